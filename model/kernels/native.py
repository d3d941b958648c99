"""Builds and binds the C++ kernels: compiled once with the local compiler, cached, called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parent / "cpu"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w")


def _cpu_signature() -> str:
    """What -march=native depends on: a cached build must not be used on another processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor() or platform.machine()


def cache_dir() -> Path:
    """Cache folder of compiled kernels: $PARL_CACHE or ~/.cache/parl."""
    return Path(os.environ.get("PARL_CACHE") or Path.home() / ".cache" / "parl")


class _BuildError(RuntimeError):
    """The kernels could not be compiled; the message says why."""


@cache
def load_library() -> ctypes.CDLL | None:
    """The kernels, or None (with one warning that says why) if they cannot be built."""
    try:
        library = ctypes.CDLL(str(_built()))
    except (_BuildError, OSError, subprocess.TimeoutExpired) as error:
        warnings.warn(f"the slower PyTorch decoder and experts are used, no native kernels: {error}", stacklevel=2)
        return None
    library.parl_decoder_new.restype = ctypes.c_void_p
    library.parl_page_floats.restype = ctypes.c_long
    library.parl_gqa_new.restype = ctypes.c_void_p
    return library


def _built() -> Path:
    """The shared library, compiled now unless a build for these sources, compiler and processor exists."""
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "")
    if not compiler:
        raise _BuildError("no C++ compiler found (g++ or clang++)")
    sources = sorted(_FOLDER.glob("*.cpp"))
    texts = [path.read_text() for path in (*sources, *sorted(_FOLDER.glob("*.hpp")))]
    parts = (*texts, *compiler, *_FLAGS, _cpu_signature())
    target = cache_dir() / f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # renamed when complete
        built = Path(folder) / target.name
        command = [*compiler, *_FLAGS, "-o", str(built), *map(str, sources)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if run.returncode:
            raise _BuildError(f"{' '.join(compiler)} failed:\n{run.stderr[-2000:]}")
        os.replace(built, target)
    return target


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Where ``array`` begins, which must be contiguous."""
    return ctypes.c_void_p(array.ctypes.data)


def sample(
    library: ctypes.CDLL,
    logits: np.ndarray,
    temperature: np.ndarray,
    keys: np.ndarray,
    positions: np.ndarray,
    top_p: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """:meth:`model.decoder.Decoder.sample` by the kernels."""
    count = len(logits)
    top_p = np.ones(count, np.float32) if top_p is None else top_p
    token, logprob = np.empty(count, np.int32), np.empty(count, np.float32)
    arrays = (logits, temperature, keys, positions, top_p, token, logprob)
    library.parl_sample(count, logits.shape[1], *map(pointer, arrays))
    return token, logprob
