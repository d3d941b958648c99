"""What a node of a cluster is like. Runs on nodes that may lack our code: the standard library alone.

Ray sends this module to the nodes by value (``parl.machine.nodes.probe``).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS = ("envs", "model", "parl", "rewards", "rollouts")
_SKIPPED = ("__pycache__", "_presets")
_SPEEDS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")  # flags by which our kernels differ
_CHUNK = 2**20


class Node:
    """An actor on a node, which answers questions about it."""

    def __init__(self) -> None:
        self._ear: socket.socket | None = None

    def facts(self, packages: Sequence[str], paths: Sequence[str], root: str) -> dict[str, Any]:
        """``packages``: distributions; ``paths``: whether they exist here; ``root``: where the driver's code lies."""
        temporary = tempfile.gettempdir()
        return {
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
            "code": code_digest(root),
            "processor": processor(),
            "cores": os.cpu_count() or 0,
            "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "room": shutil.disk_usage(temporary).free,
            "seen": [path for path in paths if os.path.exists(path)],
        }

    def clock(self) -> float:
        """This node's seconds since the epoch."""
        return time.time()

    def listen(self, host: str, first: int, last: int) -> int:
        """Accept one peer at a free port of the range and count its bytes; the port, 0 if none is free."""
        for port in range(first, last + 1):
            ear = socket.socket()
            try:
                ear.bind((host, port))
            except OSError:
                ear.close()
                continue
            ear.listen(1)
            ear.settimeout(30.0)
            self._ear = ear
            threading.Thread(target=self._serve, args=(ear,), daemon=True).start()
            return port
        return 0

    def call(self, host: str, port: int, size: int) -> float | str:
        """Bytes a second to a listening peer, or what went wrong."""
        block = bytes(_CHUNK)
        try:
            with socket.create_connection((host, port), timeout=10.0) as line:
                began = time.monotonic()
                for _ in range(size // _CHUNK):
                    line.sendall(block)
                line.shutdown(socket.SHUT_WR)
                line.recv(1)
                return size / max(time.monotonic() - began, 1e-9)
        except OSError as error:
            return f"{type(error).__name__}: {error}"

    @staticmethod
    def _serve(ear: socket.socket) -> None:
        with contextlib.suppress(OSError), ear, ear.accept()[0] as line:
            while line.recv(_CHUNK):
                pass
            line.sendall(b"x")


def version(name: str) -> str | None:
    """The version of an installed distribution, without its build."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def code_digest(root: str = "") -> str | None:
    """The hash of our packages in ``root`` if they are there, or else as installed; None without any."""
    if not os.path.isfile(os.path.join(root, "parl", "__init__.py")):
        try:
            found = importlib.util.find_spec("parl")
        except (ImportError, ValueError):
            found = None
        if found is None or found.origin is None:
            return None
        root = os.path.dirname(os.path.dirname(found.origin))
    digest = hashlib.sha256()
    for path in code_files(Path(root)):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def code_files(root: Path) -> list[Path]:
    """The files of our packages in ``root``, in order."""
    files = [path for name in OURS for path in (root / name).rglob("*") if path.is_file()]
    return sorted(path for path in files if not set(path.relative_to(root).parts) & set(_SKIPPED))


def processor() -> str:
    """The kind of processor, as far as our kernels round differently on it."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split())
                break
    return " ".join([platform.machine(), *(name for name in _SPEEDS if name in flags)])
