"""Access to a run from outside: another network namespace, another user, and leftovers in the shell.

One small run serves all cases. It is started by ``python -m parl`` from a folder whose files have our
modules' names, with an environment full of other programs' variables, and stopped when the test process ends.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attacks.base import Attack, NotHere

ROOT = Path(__file__).parents[2]
_START_S = 300.0
# names of our modules, of Python's and of installed ones
_SHADOWS = ("model", "envs", "rewards", "rollouts", "random", "yaml", "torch", "numpy", "tests", "statistics")
_LEFT_OVER = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_AUTH_TOKEN": "0" * 64,
    "RAY_NAMESPACE": "other",
    "RAY_JOB_ID": "ffff",
    "RAY_TMPDIR": "/proc/none",
    "RAY_REDIS_ADDRESS": "192.0.2.1:6379",
    "RAY_RUNTIME_ENV_HOOK": "no.such.hook",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "TMPDIR": "/proc/none",
    "CUDA_VISIBLE_DEVICES": "rubbish",
    "WANDB_MODE": "offline",
    "WANDB_DIR": "/proc/none/wandb",
    "HF_HUB_OFFLINE": "1",
}
_SETTINGS = """
name: watched
root: {root}
model: {{vocab_size: 800, hidden_size: 32, num_hidden_layers: 3, intermediate_size: 48, num_attention_heads: 2,
  q_lora_rank: 16, kv_lora_rank: 16, qk_nope_head_dim: 8, qk_rope_head_dim: 8, v_head_dim: 16, n_routed_experts: 4,
  num_experts_per_tok: 2, moe_intermediate_size: 16, max_position_embeddings: 1024}}
tokenizer: {{vocab_size: 800}}
envs: {{config: {{entities: 120, widths: [2, 4], transport: socket}}}}
sft: {{tokens: 2000, copying_tokens: 300, drill_tokens: 300, batch_tokens: 600}}
rollouts: {{group_size: 2, tasks_per_step: 1, concurrency: 4, budget: {{orchestrator_steps: 3, turn_tokens: 16}}}}
trainer: {{steps: 100000, ranks: 2, checkpoint_every: 50000, most_unread: 1}}
tracking: {{prometheus_port: {port}, tensorboard: false}}
baseline: false
eval: {{tasks: 2}}
"""
_CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="error")
ray.get(ray.remote(lambda: open(sys.argv[2], "w").close()).remote())
"""
_NODE = """
import sys
import ray._private.services as services
services.resolve_ip_for_localhost = lambda host: host  # else Ray itself takes another address than loopback
from ray.scripts.scripts import main
sys.argv[0] = "ray"
main()
"""
_SCAN = """
import json, socket, sys
found = []
for host, ports in json.load(sys.stdin):
    for port in ports:
        with socket.socket() as probe:
            probe.settimeout(2)
            if probe.connect_ex((host, port)) == 0:
                found.append([host, port])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Run:
    """A live run: its process, its folder, and what it printed."""

    process: subprocess.Popen
    folder: Path

    def tree(self) -> list:
        """The driver and its descendants."""
        import psutil

        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def listening(self) -> list[tuple[str, str, int]]:
        """Process name, address and port of every listening TCP and UDP socket."""
        import psutil

        found = []
        for process in self.tree():
            try:
                name = (process.cmdline() or [process.name()])[0]
                for open_ in process.net_connections(kind="inet"):
                    if open_.laddr and (open_.status == psutil.CONN_LISTEN or open_.type == socket.SOCK_DGRAM):
                        found.append((name, open_.laddr.ip, open_.laddr.port))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def gcs(self) -> str:
        """The address of Ray's head, from its processes' arguments."""
        lines = (" ".join(process.cmdline()) for process in self.tree())
        return next(found[1] for line in lines if (found := re.search(r"--gcs-address=(\S+)", line)))

    def session(self) -> Path:
        """The private folder of the run's Ray."""
        lines = (" ".join(process.cmdline()) for process in self.tree())
        return Path(next(found[1] for line in lines if (found := re.search(r"--temp-dir=(\S+)/r\b", line))))


def _run() -> Run:
    """The run after its first step; a failed start is not repeated."""
    run = _started()
    if isinstance(run, str):
        raise AssertionError(f"the run did not start: {run}")
    return run


@functools.cache
def _started() -> Run | str:
    folder = Path(tempfile.mkdtemp(prefix="parl-watched-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in _SHADOWS:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name}.py of the working directory was imported')\n")
    (folder / "home").mkdir()
    (folder / "run.yaml").write_text(_SETTINGS.format(root=folder / "runs", port=_free_port()))
    compiled = os.environ.get("PARL_CACHE") or str(Path.home() / ".cache" / "parl")  # not again
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_", "PYTHON"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(folder / "home")}
    environment["PARL_CACHE"] = compiled
    process = subprocess.Popen(
        [sys.executable, "-m", "parl", "train", "run.yaml"],
        cwd=folder,
        env={**environment, **_LEFT_OVER},
        stdin=subprocess.DEVNULL,
        stdout=(folder / "said").open("w"),
        stderr=subprocess.STDOUT,
    )
    atexit.register(_stop, process)
    metrics, give_up = folder / "runs" / "watched" / "metrics.jsonl", time.monotonic() + _START_S
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        if process.poll() is not None or time.monotonic() > give_up:
            return (folder / "said").read_text()[-3000:]
        time.sleep(0.5)
    return Run(process, folder)


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _only_loopback(folder: Path) -> None:
    found = _run().listening()
    assert len(found) >= 8, f"too few sockets to be a run's: {found}"
    strangers = [entry for entry in found if not entry[1].startswith(("127.", "::ffff:127.")) and entry[1] != "::1"]
    assert not strangers, f"not on loopback: {strangers}"


def _from_another_namespace(folder: Path) -> None:
    ports = sorted({port for _, _, port in _run().listening()})
    with _namespace() as (name, host), socket.socket() as control:
        control.bind(("0.0.0.0", 0))
        control.listen()
        known = control.getsockname()[1]
        found = subprocess.run(
            ["ip", "netns", "exec", name, sys.executable, "-c", _SCAN],
            input=json.dumps([[address, [*ports, known]] for address in _addresses(host)]),
            capture_output=True,
            text=True,
            check=True,
        )
    opened = json.loads(found.stdout)
    if [host, known] not in opened:
        raise NotHere("the namespace does not reach this machine at all: the scan would say nothing")
    assert not [entry for entry in opened if entry[1] != known], f"reached from outside: {opened}"


def _addresses(host: str) -> list[str]:
    """All IPv4 addresses of this machine reachable from the namespace."""
    import psutil

    own = [a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET]
    return sorted({host, "127.0.0.1", *own})


@contextmanager
def _namespace() -> Iterator[tuple[str, str]]:
    """A network namespace connected to this machine: its name, and this machine's address on the link."""
    name, net = f"parl-{os.getpid()}", f"10.203.{os.getpid() % 250}"
    end, other = f"pa{os.getpid()}"[:15], f"pb{os.getpid()}"[:15]
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise NotHere("network namespaces need root and ip of iproute2")
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        raise NotHere(f"network namespaces are not to be had here: {made.stderr.strip()}")
    try:
        inside = f"ip -n {name}"
        for command in (
            f"ip link add {end} type veth peer name {other} netns {name}",
            f"ip addr add {net}.1/30 dev {end}",
            f"ip link set {end} up",
            f"{inside} addr add {net}.2/30 dev {other}",
            f"{inside} link set {other} up",
            f"{inside} route add default via {net}.1",
        ):
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                raise NotHere(f"{command}: {done.stderr.strip()}")
        yield name, f"{net}.1"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", end], capture_output=True)


def _client(token: dict[str, str]) -> None:
    """Another program of this machine joins on loopback and runs a task that writes a file."""
    run, home = _run(), Path(tempfile.mkdtemp())
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        "RAY_gcs_server_request_timeout_seconds": "5",
        **token,
    }
    proof = home / "proof"
    command = [sys.executable, "-c", _CLIENT, run.gcs(), str(proof)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and not proof.exists(), "a stranger's task ran"
    assert re.search("auth", done.stderr, re.IGNORECASE), f"refused for another reason: {done.stderr[-1500:]}"
    shutil.rmtree(home)


def _node_joins(folder: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    environment |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_gcs_server_request_timeout_seconds": "5"}
    temporary = tempfile.mkdtemp(prefix="pr-")
    start = [sys.executable, "-c", _NODE, "start", "--block", f"--address={_run().gcs()}"]
    with (folder / "said").open("w") as said:
        node = subprocess.Popen(start, env=environment, cwd=temporary, stdout=said, stderr=said, start_new_session=True)
        try:
            code = node.wait(60)
        except subprocess.TimeoutExpired:
            code = 0
        finally:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
            shutil.rmtree(temporary, ignore_errors=True)
    text = (folder / "said").read_text()
    assert code != 0, f"a stranger's node joined: {text[-1500:]}"
    assert re.search("auth", text, re.IGNORECASE), f"refused for another reason: {text[-1500:]}"


def _http_agents(folder: Path) -> None:
    """HTTP servers refuse requests for a runtime environment, a stack dump or a file."""
    import httpx

    run, said = _run(), []
    with httpx.Client(trust_env=False, timeout=3) as client:
        for name, _, port in run.listening():
            if "Agent" not in name:  # others do not speak HTTP, and gloo takes whatever comes
                continue
            for path in ("/get_or_create_runtime_env", "/worker/traceback", "/logs/", "/"):
                try:
                    said.append((name, path, client.post(f"http://127.0.0.1:{port}{path}", content=b"x").status_code))
                except httpx.TransportError:
                    continue
    assert said and all(code in (401, 403) for _, _, code in said), said


def _folder_modes(folder: Path) -> None:
    session = _run().session()
    about, token = session.stat(), (session / "token").stat()
    assert stat.S_IMODE(about.st_mode) == 0o700 and about.st_uid == os.geteuid(), oct(about.st_mode)
    assert stat.S_IMODE(token.st_mode) == 0o600, oct(token.st_mode)
    assert len((session / "token").read_text()) >= 64
    sockets = list((session / "r").rglob("sockets/*"))
    assert sockets and all(session in path.parents for path in sockets), sockets


def _token_is_nowhere_else(folder: Path) -> None:
    run = _run()
    token = (run.session() / "token").read_text().encode()
    for process in run.tree():
        assert token not in "\0".join(process.cmdline()).encode(), process
    for root in (run.folder, run.session()):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.name != "token":
                assert token not in path.read_bytes(), path


def _nothing_is_shadowed(folder: Path) -> None:
    said = (_run().folder / "said").read_text()
    assert "was imported" not in said and "ActorDied" not in said, said[-2000:]


def _nothing_stays(folder: Path) -> None:
    """Last: an interrupt ends the run, without processes or its folder left."""
    import psutil

    run, session = _run(), _run().session()
    tree = run.tree()
    run.process.send_signal(signal.SIGINT)
    run.process.wait(120)
    _, alive = psutil.wait_procs(tree, timeout=30)
    assert not alive, alive
    assert not session.exists(), list(session.rglob("*"))[:5]


def cases() -> list[Attack]:
    """The cases for one live run, in order."""
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    tried = {
        "no file of the working directory takes the place of ours, in the driver or in workers": _nothing_is_shadowed,
        "every socket of the process tree is on loopback": _only_loopback,
        "a scan from another network namespace finds no open port on any address": _from_another_namespace,
        "a Ray client without the token": lambda folder: _client({}),
        "a Ray client with authentication switched off": lambda folder: _client({"RAY_AUTH_MODE": "disabled"}),
        "a Ray client with another token": lambda folder: _client(wrong),
        "a Ray node without the token": _node_joins,
        "HTTP requests to Ray's agents without the token": _http_agents,
        "the session folder and the token are its user's alone": _folder_modes,
        "the token on command lines, in logs and in the run's folder": _token_is_nowhere_else,
        "an interrupted run leaves neither process nor folder": _nothing_stays,
    }
    return [Attack(area="network", name=name, run=run) for name, run in tried.items()]
