"""Hosts on one machine: processes in namespaces of their own, joined by a bridge.

A host has its own network (one address, no way out), host name, process numbers, shared memory, monotonic
clock, and files: ``/tmp``, ``/dev/shm`` and ``/srv`` are its own, the folders with this project's code are
empty, and what is written there no other host sees. Interpreter and installed packages are the machine's.
The bridge stands in a namespace too: the machine's network is not touched. Needs root and util-linux.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CODE, VENV = "/srv/code", "/srv/venv"  # in every host; CODE only where it was asked for
PACKAGES = ("envs", "model", "parl", "rewards", "rollouts", "configs")
NETWORK = "10.77.0"
_PATIENCE_S = 30.0
_SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
_ENTER = ("--net", "--mount", "--uts", "--ipc", "--pid", "--time")
_WITH_US = ("setpriv", "--pdeathsig", "KILL")  # a host ends with the process that made it
_DAY_S = 86_400


class Switch:
    """A network namespace with the bridge to which hosts are connected."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([*_WITH_US, "unshare", "--net", "sleep", "infinity"], start_new_session=True)
        _until_apart(self._process.pid)
        self.run("ip link add br0 type bridge && ip link set br0 up")

    def run(self, script: str) -> None:
        """Run a shell script in the namespace; CalledProcessError if it fails."""
        enter = ["nsenter", "-t", str(self._process.pid), "--net", "sh", "-ec", script]
        subprocess.run(enter, check=True, capture_output=True)

    def plug(self, name: str, pid: int, address: str) -> None:
        """Give the network namespace of ``pid`` the interface ``eth0`` with ``address``."""
        self.run(
            f"ip link add v-{name} type veth peer name eth0 netns {pid}"
            f" && ip link set v-{name} master br0 && ip link set v-{name} up"
        )
        up = f"ip addr add {address}/24 dev eth0 && ip link set eth0 up && ip link set lo up"
        subprocess.run(["nsenter", "-t", str(pid), "--net", "sh", "-ec", up], check=True, capture_output=True)

    def unplug(self, name: str) -> None:
        """Pull the cable of a host."""
        self.run(f"ip link set v-{name} down && ip link del v-{name}")

    def close(self) -> None:
        """Remove the bridge with its namespace."""
        self._process.kill()
        self._process.wait()


class Host:
    """A host named ``name`` with the last byte ``number`` of its address. ``code``: whether it has ours."""

    def __init__(self, switch: Switch, name: str, number: int, *, code: bool) -> None:
        self.name, self.address = name, f"{NETWORK}.{number}"
        flags = [*_SPACES, "--time", "--monotonic", str(number * _DAY_S), "--boottime", str(number * _DAY_S)]
        script = _setup(name) + "\nexec sleep infinity"
        command = [*_WITH_US, "unshare", *flags, "--fork", "--kill-child", "--mount-proc", "sh", "-ec", script]
        self._process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the host {name} could not be made: root and util-linux 2.38 are needed")
        self.pid = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0])
        switch.plug(name, self.pid, self.address)
        for package in PACKAGES if code else ():
            shutil.copytree(ROOT / package, self.path(CODE) / package, ignore=shutil.ignore_patterns("__pycache__"))

    def command(self, command: Sequence[str], **variables: str) -> list[str]:
        """``command`` as one that runs on this host."""
        base = {
            "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp/home",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        enter = ["nsenter", "-t", str(self.pid), *_ENTER, "env", "-C", "/srv/work", "-i"]
        return [*enter, *(f"{name}={value}" for name, value in (base | variables).items()), *command]

    def start(self, command: Sequence[str], variables: Mapping[str, str], **options: Any) -> subprocess.Popen:
        """Start ``command`` here."""
        return subprocess.Popen(self.command(command, **variables), start_new_session=True, **options)

    def run(self, command: Sequence[str], variables: Mapping[str, str], *, timeout_s: float) -> tuple[int, str]:
        """Exit code and output of ``command``; TimeoutExpired."""
        done = subprocess.run(
            self.command(command, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            start_new_session=True,
        )
        return done.returncode, done.stdout

    def path(self, path: str) -> Path:
        """The host's ``path`` as this machine sees it."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def exists(self, path: str) -> bool:
        """Whether this host has a file there."""
        return self.path(path).exists()

    def kill(self) -> None:
        """SIGKILL everything on this host at once, as if its power were cut."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # process 1 of its namespace: the kernel ends all others
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def hidden() -> list[Path]:
    """Folders of this machine where our code lies: the checkout, and what the environment has installed."""
    found = {ROOT}
    finder = "import importlib.util as u; s = u.find_spec('parl'); print(s.origin if s else '')"
    said = subprocess.run([sys.executable, "-I", "-c", finder], cwd="/", capture_output=True, text=True, check=True)
    if said.stdout.strip():
        found.add(Path(said.stdout.strip()).resolve().parents[1])
    return sorted(folder for folder in found if not folder.is_relative_to(sys.prefix))


def _setup(name: str) -> str:
    """The shell script that makes the host's files."""
    venv = Path(sys.prefix).resolve()
    lines = [
        "mount --make-rprivate /",
        f"hostname {shlex.quote(name)}",
        "mount -t tmpfs -o size=2g tmpfs /srv",
        f"mkdir -p {VENV} /srv/work",
        f"mount --bind {shlex.quote(str(venv))} {VENV}",
    ]
    lines += [f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}" for folder in hidden()]
    lines += ["mount -t tmpfs -o size=2g,mode=1777 tmpfs /tmp", "mount -t tmpfs -o size=2g,mode=1777 tmpfs /dev/shm"]
    return "\n".join([*lines, "mkdir /tmp/home", "cd /srv/work", "echo ready"])


def possible() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "root is needed for namespaces"
    for program in ("unshare", "nsenter", "setpriv", "ip"):
        if not any((Path(folder) / program).exists() for folder in os.get_exec_path()):
            return f"{program} is not there"
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed"
    return ""


def _until_apart(pid: int) -> None:
    """Wait until ``pid`` has a network namespace of its own."""
    own, began = os.readlink("/proc/self/ns/net"), time.monotonic()
    while os.readlink(f"/proc/{pid}/ns/net") == own:
        if time.monotonic() - began > _PATIENCE_S:
            raise RuntimeError("no network namespace could be made here")
        time.sleep(0.01)
