"""Gather the packages of ``benchmarks/gpu.py`` for a GPU box without a package registry.

    python benchmarks/gpu_wheels.py build/wheels            # here: wheels for Python 3.12 on Linux, x86-64
    pip install --no-deps --no-index --target wheels build/wheels/*.whl      # there; then PYTHONPATH=wheels

The box has torch and triton; transformers is optional. Versions are those of this environment.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import metadata
from pathlib import Path

BINARY = (
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "hjson", "psutil",
    "msgpack", "py-cpuinfo", "einops", "tqdm", "packaging", "ml-dtypes",
)  # fmt: skip
BUILT = ("deepspeed",)  # published as source only; its wheel is plain Python
PLATFORMS = "manylinux2014_x86_64,manylinux_2_27_x86_64,manylinux_2_28_x86_64"
MOST_BYTES = 40 * 2**20


def pinned(package: str) -> str:
    """``package==version`` as it is installed here."""
    return f"{package}=={metadata.version(package)}"


def gather(folder: Path, python: str, platform: str) -> list[Path]:
    """The wheels in ``folder``, smallest first. CalledProcessError if pip cannot find one."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    platforms = [part for name in platform.split(",") for part in ("--platform", name)]
    where = ["--only-binary=:all:", "--python-version", python, *platforms, "--implementation", "cp"]
    command = [*pip, "download", "-q", "--no-deps", *where, "-d", str(folder), *map(pinned, BINARY)]
    subprocess.run(command, check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), *map(pinned, BUILT)], check=True)
    return sorted(folder.glob("*.whl"), key=lambda wheel: wheel.stat().st_size)


def main() -> int:
    """Gather, list, and check the total size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the box's Python")
    parser.add_argument("--platform", default=PLATFORMS, help="as pip names it; several by commas")
    options = parser.parse_args()
    wheels = gather(options.folder, options.python, options.platform)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{total / 2**20:7.2f} MiB  in all, of at most {MOST_BYTES / 2**20:.0f}")
    return int(total > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
