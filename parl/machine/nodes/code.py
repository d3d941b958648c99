"""The code that a run sends to the nodes of a cluster: parl, and the user's own modules.

Ray unpacks it on every node before an actor starts there. Nothing is installed.
"""

from __future__ import annotations

import shutil
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from parl.errors import UserError
from parl.machine.nodes import facts
from parl.own_packages import ROOT

_MOST = 64 * 2**20  # bytes of a user's modules
_NOT_SENT = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".venv", "*.safetensors", "*.parquet", "runs")


def pack(folder: Path, modules: Mapping[str, Path]) -> None:
    """Copy our packages and the user's ``modules`` (name: file or folder) into the new ``folder``."""
    root = Path(ROOT)
    for path in facts.code_files(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name, source in modules.items():
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=_NOT_SENT)
        else:
            shutil.copyfile(source, folder / source.name)
        size = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        if size > _MOST:
            raise UserError(
                f"the module {name} ({source}) has {size / 2**20:.0f} MiB, and at most {_MOST / 2**20:.0f} are sent to"
                " the nodes: keep data out of its folder, or install it on every node"
            )


def own_modules(loaded: Mapping[str, ModuleType] | None = None) -> dict[str, Path]:
    """The user's loaded top-level modules: those that are neither installed nor Python's nor ours."""
    given = sys.modules if loaded is None else loaded
    there = [Path(folder).resolve() for folder in _installed()]
    found = {}
    for name in sorted({full.partition(".")[0] for full in given}):
        module = given.get(name)
        if module is None or name in (*facts.OURS, "__main__", "__mp_main__"):
            continue
        source = _source(module)
        if source is not None and not any(source.is_relative_to(folder) for folder in there):
            found[name] = source
    return found


def _source(module: ModuleType) -> Path | None:
    """The file of a module, or the folder of a package; None for those without."""
    folders = [folder for folder in getattr(module, "__path__", ()) if Path(folder).is_dir()]
    if folders:
        return Path(folders[0]).resolve()
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and Path(file).suffix == ".py" and Path(file).is_file() else None


def _installed() -> Iterable[str]:
    paths = sysconfig.get_paths()
    return [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")] + [
        *site.getsitepackages(),
        site.getusersitepackages(),
    ]
