"""Injects each machine fault into a small run, and reports the outcome.

    python benchmarks/faults.py [--json FILE] [--only NAME ...] [--keep FOLDER]

Every fault gets its own run (``parl train`` with its own Ray, about 20 s), and strikes after its first steps.
``known_s``: seconds from the fault to the first message that names it. ``exit``: the run's exit code; unless
0 the run is continued with ``--resume``. ``equal``: whether policy and metrics finally equal those of an
undisturbed run, bit by bit, except for times. ``named``: whether a message named the component. The exit code
is 1 if a fault was silent, took more than 60 s to be reported, or changed what was learned.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parl")]

import httpx  # noqa: E402 - the folders are put on the path above
import psutil  # noqa: E402
import yaml  # noqa: E402

ACTORS = {
    "rank": "ray::Learner",
    "engine": "ray::EngineActor",
    "worker": "ray::RolloutWorker",
    "gcs": "gcs_server",
    "raylet": "raylet",
}
STEPS = 6
LIMIT_S = 60.0
_DEADLINE_S = 600.0  # of anything that is waited for
_ORPHANS_S = 100.0  # Ray's agents want to tell a dead GCS for a minute that their raylet is gone
_SPARE = 24 * 2**20  # bytes of a small disk beside what a run needs


class NotHere(Exception):
    """The fault is impossible on this machine; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The outcome of a run with a fault."""

    fault: str
    known_s: float | None
    exit: int | None
    named: bool
    equal: bool
    said: str


def tiny(root: Path) -> dict[str, Any]:
    """The configuration tree of the run: six steps of eight short episodes."""
    shape = {"vocab_size": 800, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}
    shape |= {"num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8}
    shape |= {"qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    shape |= {"moe_intermediate_size": 16, "max_position_embeddings": 1024}
    drills = {"tokens": 20_000, "copying_tokens": 2_000, "drill_tokens": 2_000, "batch_tokens": 600}
    budget = {"orchestrator_steps": 6, "turn_tokens": 64}
    return {
        "name": "reference",
        "root": str(root),
        "model": shape,
        "tokenizer": {"vocab_size": 800},
        "envs": {"config": {"entities": 120, "widths": [2, 4]}},
        "sft": {**drills, "lr": 0.01, "muon_lr": 0.02},
        "rollouts": {"group_size": 4, "tasks_per_step": 2, "concurrency": 8, "budget": budget},
        "trainer": {"steps": STEPS, "ranks": 2, "keep_checkpoints": STEPS + 1, "most_unread": 1.0},
        "eval": {"tasks": 2},
        "tracking": {"wandb": "disabled"},
    }


def swarming(root: Path) -> dict[str, Any]:
    """The same for faults of sub-agents: the quickstart's shipped cold start, which spawns, in its world."""
    tree = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    tree["rollouts"] |= {"group_size": 6, "tasks_per_step": 2, "concurrency": 12}
    return tree | {
        "name": "swarming",
        "root": str(root),
        "baseline": False,
        "starter": str(ROOT / "configs" / "starters"),
        "trainer": {"steps": 3, "ranks": 1, "keep_checkpoints": 4, "most_unread": 1.0},
        "eval": {"tasks": 2},
        "tracking": {"wandb": "disabled"},
    }


class Run:
    """``parl train`` in a separate process."""

    def __init__(self, config: Path, name: str, *more: str, env: dict[str, str] | None = None) -> None:
        self.config, self.name, self.more = config, name, more
        self.folder = Path(yaml.safe_load(config.read_text())["root"]) / name
        self.log = config.with_name(f"{name}-{time.monotonic_ns()}.log")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY", "WANDB"))}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
        # a shell's background jobs, and nohup's, inherit that these are ignored
        heard = "import signal as s; s.signal(s.SIGHUP, s.SIG_DFL); s.signal(s.SIGINT, s.default_int_handler); "
        code = f"{heard}from parl.cli.main import main; main()"
        command = [sys.executable, "-c", code, "train", str(config), f"name={name}", *more]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.seen: list[psutil.Process] = []

    def text(self) -> str:
        """Its output so far."""
        return self.log.read_text(errors="replace")

    def steps(self) -> int:
        """Steps in its metrics."""
        path = self.folder / "metrics.jsonl"
        return path.read_text().count('"kind": "train"') if path.exists() else 0

    def below(self) -> list[psutil.Process]:
        """Its Ray and its actors."""
        if self.process.poll() is None:
            self.seen = psutil.Process(self.process.pid).children(recursive=True)
        return self.seen

    def victims(self, kind: str) -> list[psutil.Process]:
        """Its processes of ``kind``; oldest first."""
        if kind == "driver":
            return [psutil.Process(self.process.pid)]
        found = [process for process in self.below() if _title(process).startswith(ACTORS[kind])]
        return sorted(found, key=lambda process: process.pid)

    def wait(self, done: Callable[[], Any], what: str) -> Any:
        """Wait until ``done()`` is true and return it; TimeoutError names ``what``."""
        end = time.monotonic() + _DEADLINE_S
        while not (found := done()):
            if time.monotonic() > end:
                self.end()
                raise TimeoutError(f"{what}; see {self.log}")
            time.sleep(0.1)
        return found

    def finish(self) -> int:
        """Its exit code."""
        self.wait(lambda: self.process.poll() is not None, "the end of a run")
        return int(self.process.returncode)

    def orphans(self) -> list[str]:
        """Processes left by an ended run."""
        return [f"{_title(process)[:60]} ({process.pid})" for process in self.seen if _runs(process)]

    def end(self) -> None:
        """Kill all of it."""
        for process in [*self.below(), *([psutil.Process(self.process.pid)] if self.process.poll() is None else [])]:
            if _runs(process):
                process.kill()
        self.process.wait()


def _title(process: psutil.Process) -> str:
    try:
        name = process.name()
        return name if name in ("gcs_server", "raylet") else " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``strike(run)`` causes the fault; ``known``: words of which a message has one; ``mend`` undoes it.

    ``exits``: allowed exit codes. ``disk``: needs a small disk. ``served``: its policy is on a server.
    ``spawns``: its policy spawns. ``at``: steps done before the fault; None: at the start.
    """

    name: str
    strike: Callable[[Run], None]
    known: tuple[str, ...]
    exits: tuple[int, ...] = (0,)
    mend: Callable[[Run], None] = lambda run: None
    disk: bool = False
    served: bool = False
    spawns: bool = False
    at: int | None = 1
    more: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


def send(kind: str, number: signal.Signals, which: int = 0) -> Callable[[Run], None]:
    """A fault by a signal."""

    def strike(run: Run) -> None:
        run.wait(lambda: len(run.victims(kind)) > which, f"a process of kind {kind}")
        run.victims(kind)[which].send_signal(number)

    return strike


def fill(run: Run) -> None:
    """Fill the run's disk."""
    with (run.folder.parent / "filler").open("wb") as file:
        block = bytes(2**20)
        try:
            while True:
                file.write(block)
        except OSError:
            return


def empty(run: Run) -> None:
    """Free the disk."""
    (run.folder.parent / "filler").unlink(missing_ok=True)


def freeze(run: Run) -> None:
    """Make the run's folder read-only, for root as well."""
    _mount("--bind", str(run.folder), str(run.folder))
    _mount("-o", "remount,bind,ro", str(run.folder))


def thaw(run: Run) -> None:
    """Make it writable again."""
    subprocess.run(["umount", "-l", str(run.folder)], check=False)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def ask_server(path: str) -> Callable[[Run], None]:
    """Set the behaviour of the stand-in for an inference server."""

    def strike(run: Run) -> None:
        url = yaml.safe_load(run.config.read_text())["rollouts"]["http"]["urls"][0]
        with suppress(httpx.RemoteProtocolError):  # told to die, it does not answer
            httpx.post(f"{url}/fault/{path}", timeout=10)

    return strike


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
LOST = ("its process has ended", "are started again")
HUNG = (" hung: ",)
GONE = ("Ray's gcs_server", "Ray's raylet")
FAULTS = [
    Fault(name="SIGKILL of the first engine", strike=send("engine", KILL, 0), known=LOST),
    Fault(name="SIGKILL of the second engine", strike=send("engine", KILL, 1), known=LOST, spawns=True),
    Fault(name="SIGKILL of a rollout worker", strike=send("worker", KILL), known=LOST),
    Fault(name="SIGKILL of a learner rank", strike=send("rank", KILL, 1), known=("learner rank",), exits=(1,)),
    Fault(name="SIGKILL of the driver", strike=send("driver", KILL), known=(), exits=(-9,)),
    Fault(name="SIGSTOP of the first engine", strike=send("engine", STOP, 0), known=HUNG),
    Fault(name="SIGSTOP of the second engine", strike=send("engine", STOP, 1), known=HUNG, spawns=True),
    Fault(name="SIGSTOP of a rollout worker", strike=send("worker", STOP), known=HUNG),
    Fault(name="SIGSTOP of a learner rank", strike=send("rank", STOP, 1), known=HUNG, exits=(1,)),
    Fault(
        name="SIGTERM of the driver",
        strike=send("driver", signal.SIGTERM),
        known=("ended by SIGTERM",),
        exits=(143,),
        more=("trainer.checkpoint_every=100",),
    ),
    Fault(name="SIGHUP of the driver", strike=send("driver", signal.SIGHUP), known=("ended by SIGHUP",), exits=(129,)),
    Fault(
        name="SIGTERM while Ray starts",
        strike=send("gcs", signal.SIGCONT),
        known=("ended by SIGTERM",),
        exits=(143,),
        at=None,
    ),
    Fault(
        name="Ray kills for memory",
        strike=lambda run: None,
        known=("OutOfMemoryError",),
        exits=(1,),
        at=None,
        env=(("RAY_memory_usage_threshold", "0.001"), ("RAY_memory_monitor_refresh_ms", "200")),
    ),
    Fault(name="full disk", strike=fill, mend=empty, known=("No space left", "bytes and"), exits=(1,), disk=True),
    Fault(name="read-only folder", strike=freeze, mend=thaw, known=("Read-only file system",), exits=(2,)),
    Fault(name="lost GCS", strike=send("gcs", KILL), known=GONE, exits=(1,)),
    Fault(name="lost raylet", strike=send("raylet", KILL), known=GONE, exits=(1,)),
    Fault(name="hung raylet", strike=send("raylet", STOP), known=GONE, exits=(1,)),
    Fault(name="dead inference server", strike=ask_server("die"), known=("EngineGone", "reach"), served=True),
    Fault(
        name="lying inference server",
        strike=ask_server("lie"),
        known=("BadAnswer", "not usable", "run again"),
        served=True,
    ),
]


class Striker:
    """Runs faults in ``root`` and compares with the undisturbed run, which is made on demand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._references: dict[str, Path] = {}

    def config(self, name: str, kind: str, *, root: Path | None = None, url: str | None = None) -> Path:
        """A configuration file."""
        tree = (swarming if kind == "swarming" else tiny)(root or self.root)
        if url:
            tree["rollouts"] |= {"engine": "vllm", "http": {"urls": [url], "tolerance": 1e-3}}
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def reference(self, name: str) -> Path:
        """The folder of the undisturbed run of that kind."""
        if name not in self._references:
            with stand_in() if name == "served" else _nothing() as url:
                run = Run(self.config(name, name, url=url), name)
                if code := run.finish():
                    raise RuntimeError(f"the undisturbed run ended with {code}:\n{run.text()[-3000:]}")
            self._references[name] = run.folder
        return self._references[name]

    def strike(self, fault: Fault) -> Row:
        """One fault, from the start of its run to its end."""
        kind = "served" if fault.served else "swarming" if fault.spawns else "reference"
        reference = self.reference(kind)
        name = "".join(letter if letter.isalnum() else "-" for letter in fault.name.lower())
        with (
            small_disk(self.root, name) if fault.disk else _nothing() as disk,
            stand_in() if fault.served else _nothing() as url,
        ):
            if disk:
                shutil.copytree(self.root / "cold_start", Path(disk) / "cold_start")
            config = self.config(name, kind, root=Path(disk) if disk else None, url=url)
            run = Run(config, name, *fault.more, env=dict(fault.env))
            try:
                return self._struck(fault, run, reference)
            finally:
                run.end()
                fault.mend(run)

    def _struck(self, fault: Fault, run: Run, reference: Path) -> Row:
        if fault.at is not None:
            run.wait(lambda: run.steps() >= (fault.at or 0) or run.process.poll() is not None, "the first step")
            run.below()
        before, began = len(run.text()), time.monotonic()
        fault.strike(run)
        if fault.name == "SIGTERM while Ray starts":
            run.process.send_signal(signal.SIGTERM)
        said = run.wait(lambda: _said(run, before, fault.known) or run.process.poll() is not None, "a word about it")
        known_s = time.monotonic() - began
        said = said if isinstance(said, str) else _said(run, before, fault.known)
        code = run.finish()
        if code == -KILL:
            said = "killed by signal 9"  # nobody is left to say so but the shell
        end = time.monotonic() + _ORPHANS_S
        while (left := run.orphans()) and time.monotonic() < end:
            time.sleep(0.2)
        fault.mend(run)
        if code:
            self._resume(run, fault)
        equal = not finished(run.folder, reference) and not left
        wrong = [f"exit {code}"] * (code not in fault.exits) + [f"orphans: {left}"] * bool(left)
        text = " ".join([said, *wrong])
        return Row(
            fault=fault.name,
            known_s=round(known_s, 1) if said else None,
            exit=code,
            named=bool(said) and "Traceback" not in run.text()[before:],
            equal=equal and not wrong,
            said=text[:400],
        )

    def _resume(self, run: Run, fault: Fault) -> None:
        exists = (run.folder / "config.yaml").exists()
        again = Run(run.config, run.name, *fault.more, *(["--resume"] if exists else []))
        try:
            if code := again.finish():
                raise RuntimeError(f"{fault.name}: the resumed run ended with {code}:\n{again.text()[-3000:]}")
        finally:
            again.end()


def finished(folder: Path, reference: Path) -> list[str]:
    """Differences of two ended runs."""
    files = [path / "policy" / "model.safetensors" for path in (folder, reference)]
    wrong = ["policy"] * (files[0].read_bytes() != files[1].read_bytes())
    return wrong + ["metrics"] * (_metrics(folder) != _metrics(reference))


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows without values of clocks, caches and restarts."""
    hidden = ("time/", "speed/", "latency/", "rollouts/restarts", "engine/server_restarts", "engine/pause_s")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith(hidden)} for row in rows]


def _said(run: Run, after: int, known: Sequence[str]) -> str:
    """The first later line that names the fault."""
    lines = run.text()[after:].splitlines()
    return next((line.strip() for line in lines if any(word in line for word in known)), "")


@contextmanager
def _nothing():
    yield None


@contextmanager
def small_disk(root: Path, name: str):
    """A small file system."""
    folder = root / f"disk-{name}"
    folder.mkdir()
    cold = sum(path.stat().st_size for path in (root / "cold_start").rglob("*") if path.is_file())
    _mount("-t", "tmpfs", "-o", f"size={2 * cold + _SPARE + 64 * 2**20}", "tmpfs", str(folder))
    try:
        yield str(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def stand_in():
    """An inference server in separate processes at one address: a dead one is followed by another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--server", str(port)]
    keeper = subprocess.Popen(command, env=environment, start_new_session=True)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + _DEADLINE_S
    try:
        while True:
            try:
                httpx.get(f"{url}/health", timeout=2)
                break
            except httpx.TransportError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(keeper.pid, KILL)
        keeper.wait()


def serve(port: int, *, once: bool) -> None:
    """The stand-in, restarted 35 s after it died; ``once``: without a restart."""
    if not once:
        while True:
            subprocess.run([sys.executable, __file__, "--server", str(port), "--once"], check=False)
            time.sleep(35.0)
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from vllm_stand_in import StandIn  # pyright: ignore[reportMissingImports]

    from model.kimi.config import ModelConfig

    served, lies = StandIn(ModelConfig.model_validate(tiny(Path())["model"])), [0]

    async def answer(request: Request) -> Response:
        if request.url.path == "/fault/die":
            os._exit(1)
        if request.url.path == "/fault/lie":
            lies[0] = 6
        response = await served.answer(request)
        if request.url.path == "/inference/v1/generate" and lies[0] and b'"token_id"' in response.body:
            lies[0] -= 1
            tree = json.loads(bytes(response.body))
            for entry in tree["choices"][0]["logprobs"]["content"]:
                entry["logprob"] = float("nan")
            return Response(json.dumps(tree), media_type="application/json")
        return response

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def bad(row: Row) -> bool:
    """Whether the fault was silent, late, or changed what was learned."""
    return row.known_s is None or row.known_s > LIMIT_S or not row.named or not row.equal


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--only", nargs="+", default=[], help="faults whose names contain one of these")
    parser.add_argument("--keep", type=Path, help="folder of the runs, kept")
    parser.add_argument("--server", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        serve(options.server, once=options.once)
        return 0
    rows: list[Row] = []
    chosen = [fault for fault in FAULTS if not options.only or any(part in fault.name for part in options.only)]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        root = options.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        striker = Striker(root.resolve())
        print("| fault | known after s | exit | named | equal | said |\n|---|---|---|---|---|---|", flush=True)
        for fault in chosen:
            try:
                row = striker.strike(fault)
            except NotHere as lacks:
                print(f"| {fault.name} | not possible here: {lacks} | | | | |", flush=True)
                continue
            except Exception as error:  # the others are tried as well
                said = f"{type(error).__name__}: {error}"
                row = Row(fault=fault.name, known_s=None, exit=None, named=False, equal=False, said=said[-400:])
            rows.append(row)
            said = row.said.replace("|", "/")[:160]
            print(f"| {row.fault} | {row.known_s} | {row.exit} | {row.named} | {row.equal} | {said} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    wrong = [row.fault for row in rows if bad(row)]
    print(f"{len(rows) - len(wrong)} of {len(rows)} held" + (f"; not: {', '.join(wrong)}" if wrong else ""))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
