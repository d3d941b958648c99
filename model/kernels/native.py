"""Builds and binds the C++ kernels: compiled once with the machine's compiler, cached, reached through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).parent / "cpu" / "decoder.cpp"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w")


def _cpu_signature() -> str:
    """What -march=native depends on: a cached build must not travel to another processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor() or platform.machine()


def cache_dir() -> Path:
    """Where compiled kernels are kept: $PARL_CACHE or ~/.cache/parl."""
    return Path(os.environ.get("PARL_CACHE") or Path.home() / ".cache" / "parl")


@cache
def load_library() -> ctypes.CDLL | None:
    """The kernels, or None (with one warning that says why) where they cannot be built."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        warnings.warn("no C++ compiler found (g++ or clang++): the slower PyTorch decoder is used", stacklevel=2)
        return None
    key = hashlib.sha256("\0".join((_SOURCE.read_text(), compiler, *_FLAGS, _cpu_signature())).encode()).hexdigest()[
        :16
    ]
    target = cache_dir() / f"decoder-{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # renamed whole: builders never see half a file
            built = Path(folder) / target.name
            run = subprocess.run(
                [compiler, *_FLAGS, "-o", str(built), str(_SOURCE)], capture_output=True, text=True, timeout=300
            )
            if run.returncode:
                warnings.warn(
                    f"{compiler} failed, the slower PyTorch decoder is used:\n{run.stderr[-2000:]}", stacklevel=2
                )
                return None
            os.replace(built, target)
    library = ctypes.CDLL(str(target))
    library.parl_decoder_new.restype = ctypes.c_void_p
    library.parl_page_floats.restype = ctypes.c_long
    return library
