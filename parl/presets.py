"""Configurations, model shapes and starters that ship with the program."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SUFFIX = ".yaml"


def presets_folder() -> Path:
    """Their folder: ``parl/_presets`` of an installed wheel, ``configs`` of a checkout."""
    packed = _HERE / "_presets"
    return packed if packed.is_dir() else _HERE.parent / "configs"


def preset_names() -> list[str]:
    """Names that may replace a file, e.g. ``quickstart`` and ``recipes/qwen3_8b_h100``."""
    folder = presets_folder()
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob(f"*{_SUFFIX}"))


def preset(path: Path) -> Path:
    """The preset named by ``path``, with or without ``configs/`` and suffix; else ``path`` itself."""
    if path.is_file() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    name = Path(*parts).as_posix().removesuffix(_SUFFIX)
    return presets_folder() / f"{name}{_SUFFIX}" if name in preset_names() else path
