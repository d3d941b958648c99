"""Load a YAML file and dotted overrides into a checked :class:`Config`. No torch.

Values are validated strictly (``true`` is no number, ``"20"`` no integer), so a typing slip never becomes a
silent setting. All problems of a file and its overrides are reported at once, with fixes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from envs.tasks_io import file_problem, is_there, names_file
from model.family import Shape
from parl.config import yaml_text
from parl.config.fields import section, takes_text, text_of, with_texts
from parl.config.mistakes import explain, leaves, show
from parl.config.plugin_kinds import FAMILIES
from parl.config.plugin_sections import choose, plain
from parl.config.schema import TEACHER, Config, ConfigFields
from parl.errors import ConfigError
from parl.presets import preset, preset_names
from parl.shown.redaction import without_credentials
from rollouts.engine.address import shown

_NAME = FieldInfo(annotation=str | None)  # for names in KEY=VALUE


def load_config(path: str | Path, overrides: list[str] | None = None, *, files: bool = True) -> Config:
    """Read ``path`` (a file or a preset's name), apply overrides such as ``trainer.steps=20`` and validate.

    Raises :class:`ConfigError` with all mistakes. ``files=False`` skips the check that named files exist, to
    inspect runs of other machines.
    """
    path = preset(Path(path))
    tree, words = _read_yaml(path)
    changes = [_override(text) for text in overrides or []]
    replaced = {parts[0]: _mapping(text) for parts, text, _ in changes if len(parts) == 1}
    replaced = {name: section for name, section in replaced.items() if section is not None}
    chosen, unknown = choose(tree | replaced, {".".join(parts): _name(text) for parts, text, _ in changes})
    tree = with_texts(tree, words, chosen)
    for parts, text, override in changes:
        _apply_override(tree, chosen, parts, text, override)
    tree = _without_empty_sections(tree, chosen)
    problems = [f"{key} = {show(given)}: {fault}" for key, (given, fault) in unknown.items()]
    problems += [f"{key} = {show(value)}: must be a finite number" for key, value in leaves(tree) if _not_finite(value)]
    problems += [f"{key} = {show(value)}: must be within 64 bits" for key, value in leaves(tree) if _too_large(value)]
    if problems:
        raise _error(path, problems)
    config = _validate(path, _with_shape(path, tree), chosen)
    return _resolve_paths(path, config) if files else config


def to_yaml(config: Config, *, marked: bool = False) -> str:
    """The resolved configuration as YAML that :func:`load_config` reads back, with credentials replaced.

    ``marked``: with its end marked, for a run's folder; then a truncated file is refused.
    """
    tree = without_credentials(config.model_dump(mode="json"))
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return yaml_text.marked(text) if marked else text


def config_hash(*parts: BaseModel | str | int | float | bool | None) -> str:
    """Twelve hex digits that change when, and only when, one of the given sections or values changes."""
    # Parts may be copies without a required value (of a path what lies there counts): no reason for a warning.
    dump = [part.model_dump(mode="json", warnings=False) if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(dump, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's mapping, and the same with every scalar as its text."""
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}{_nearby(path)}")
    if path.stat().st_size > yaml_text.MOST_BYTES:
        size = path.stat().st_size
        raise ConfigError(f"{path}: {size:,} bytes; a configuration has at most {yaml_text.MOST_BYTES:,}: is it one?")
    try:
        text = path.read_text(encoding="utf-8")
        tree, words = yaml_text.parse(text), yaml_text.words(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}): is it a configuration? Save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if yaml_text.cut_off(text):
        raise ConfigError(f"{path}: it is cut off: its last line, '...', is missing")
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1: a configuration is a mapping of keys to values, this is {show(tree)}")
    return _today(tree, yaml_text.whole_run(text)), _today(words, yaml_text.whole_run(text))


_PLAIN = {"validity": "any", "cells": "all", "critical_failed": "cost"}  # rewards of runs that lack these keys


def _today(tree: dict[str, Any], of_run: bool) -> dict[str, Any]:
    """``tree`` with old keys renamed, so that old runs can be read. ``of_run``: it was written for a run's folder.

    The world's section was below its name; ``trainer.parallel`` had ``sequence_parallel`` = 1; a run of ``parl``
    rewards without ``validity`` counted every sub-agent and every cell.
    """
    match tree:
        case {"rewards": {"name": "parl", **rewards}} if of_run and "validity" not in rewards:
            tree = tree | {"rewards": {"name": "parl", **_PLAIN, **rewards}}
    match tree:
        case {"trainer": {"parallel": {"sequence_parallel": 1, **rest}, **trainer}}:
            tree = tree | {"trainer": trainer | {"parallel": rest}}
    envs = tree.get("envs")
    if not isinstance(envs, dict) or "world" not in envs or not {"config", "name"}.isdisjoint(envs):
        return tree
    rest = {name: part for name, part in envs.items() if name != "world"}
    return tree | {"envs": rest | {"config": envs["world"]}}


def _nearby(path: Path) -> str:
    folders = {path.parent, Path("configs"), Path(".")}
    files = sorted({file for folder in folders if folder.is_dir() for file in folder.glob("*.y*ml")})
    presets = [Path(name) for name in preset_names() if not any(name == file.stem for file in files)]
    files += [name for name in presets if len(name.parts) == 1]
    close = difflib.get_close_matches(path.stem, [file.stem for file in [*files, *presets]], n=1, cutoff=0.6)
    files = list(dict.fromkeys([*(file for file in [*files, *presets] if file.stem in close), *files]))
    return "; there are: " + ", ".join(str(file) for file in files[:8]) if files else ""


def _override(text: str) -> tuple[list[str], str, str]:
    """Key by parts, value's text, and all of KEY=VALUE; ConfigError if it has another form."""
    if half := re.search("[\ud800-\udfff]", text):
        raise ConfigError(
            f"the override {shown(text)!r} holds the byte 0x{ord(half[0]) & 0xFF:02x}, which is no UTF-8:"
            " rename the file, or set LC_ALL=C.UTF-8"
        )
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"the override {shown(text)!r} is not KEY=VALUE, e.g. trainer.steps=20")
    if parts[:2] == ["envs", "world"]:
        parts[1] = "config"
    return parts, value, text


def _name(text: str) -> str | None:
    """A name in KEY=VALUE."""
    return text_of(_NAME, text)


def _mapping(text: str) -> dict[str, Any] | None:
    """The section that KEY=VALUE replaces as a whole, such as ``rewards={name: mine:Bonus}``; None for other values."""
    try:
        found = yaml_text.parse(text)
    except yaml.YAMLError:  # reported when it is applied
        return None
    return found if isinstance(found, dict) else None


def _apply_override(tree: dict[str, Any], root: type[ConfigFields], parts: list[str], text: str, override: str) -> None:
    node: dict[str, Any] = tree
    model: type[BaseModel] | None = root
    for depth, part in enumerate(parts[:-1]):
        field = model.model_fields.get(part) if model else None
        model = section(field)
        if node.get(part) is None:  # a mapping such as envs.config.mix keeps its other defaults
            default = field.get_default(call_default_factory=True) if field and not model else None
            node[part] = dict(default) if isinstance(default, dict) else {}
        if not isinstance(node[part], dict):
            raise ConfigError(
                f"the override {shown(override)!r} goes below {'.'.join(parts[: depth + 1])}, which has no keys"
            )
        node = node[part]
    field = model.model_fields.get(parts[-1]) if model else None
    if field and takes_text(field):
        node[parts[-1]] = text_of(field, text)
        return
    try:
        read, written = {parts[-1]: yaml_text.parse(text)}, {parts[-1]: yaml_text.words(text)}
    except yaml.YAMLError:
        raise ConfigError(
            f"the override {shown(override)!r} has a value that is not valid YAML: {shown(text)!r}"
        ) from None
    node.update(with_texts(read, written, model))


def _without_empty_sections(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """A section whose lines are all commented out (null) means its defaults."""
    clean = {}
    for key, value in tree.items():
        kind = section(model.model_fields.get(key))
        if kind and value is None:
            continue
        clean[key] = _without_empty_sections(value, kind) if kind and isinstance(value, dict) else value
    return clean


def _with_shape(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in the shape from ``model.init``; ``model``'s other keys must agree with it."""
    given = tree.get("model")
    if not isinstance(given, dict) or not isinstance(given.get("init"), str):
        return tree
    family = FAMILIES.resolve(given.get("family", "kimi"))()
    folder = _beside(path, Path(given["init"]))
    if folder is None or not folder.is_dir():
        cure = f"; make it with: parl model get {folder.name}" if folder and folder.parent.name == "models" else ""
        raise ConfigError(f"{path}: model.init = {given['init']}: no such folder, neither beside {path} nor here{cure}")
    try:
        shape = family.read_shape(folder).model_dump(mode="json")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{path}: model.init: {error}") from None
    fields = family.Shape.model_fields
    defaults = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    problems = [
        f"model.{key} = {show(value)}: {folder} has {show(shape.get(key, defaults[key]))}; leave the key out"
        for key, value in given.items()
        if key in fields and not _free(family.Shape, key, value) and value != shape.get(key, defaults[key])
    ]
    if problems:
        raise _error(path, problems)
    return tree | {"model": shape | given | {"init": str(folder)}}


def _free(shape: type[Shape], key: str, value: Any) -> bool:
    """Whether ``model.KEY = value`` may differ from what ``model.init`` has."""
    return key in shape.chosen or (value is None and key in shape.left_out)


def _validate(path: Path, tree: dict[str, Any], chosen: type[ConfigFields]) -> Config:
    try:
        return plain(chosen.model_validate_json(json.dumps(tree, default=str), strict=True))
    except ValidationError as error:
        raise _error(path, [line for detail in error.errors() for line in explain(dict(detail), chosen)]) from None


def _error(path: Path, problems: list[str]) -> ConfigError:
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return ConfigError(f"{path}: {unique[0]}")
    return ConfigError(f"{path}: {len(unique)} problems\n" + "\n".join(f"  - {problem}" for problem in unique))


def _not_finite(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_not_finite, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not math.isfinite(value)


def _too_large(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_too_large, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 2**63


def _resolve_paths(path: Path, config: Config) -> Config:
    """Look up files named in the YAML beside it first, then from the current folder."""
    own, spec = config.envs.config, config.envs.tasks
    tasks = Path(spec) if spec else None
    if tasks and not names_file(str(_beside(path, tasks))):
        tasks = None  # a data set of the hub
    named = {name: file for name, file in own if isinstance(file, Path)}
    found = {f"config.{name}": _beside(path, file) for name, file in named.items()} | {"tasks": _beside(path, tasks)}
    problems = [
        f"envs.{name} = {file}: no such file, neither beside {path} nor here{_maker(file)}"
        for name, file in found.items()
        if file and not is_there(file)
    ]
    data = config.sft.data
    imitated = _beside(path, Path(data)) if data not in (None, TEACHER) else None
    if imitated is not None and not is_there(imitated):
        problems.append(f"sft.data = {data}: neither teacher nor a file or folder, beside {path} or here")
    if spec is not None and not problems and (fault := file_problem(str(found["tasks"] or spec))):
        problems.append(f"envs.tasks = {show(spec, 1000)}: {fault}")  # show a path whole
    if problems:
        raise _error(path, problems)
    own = own.model_copy(update={name: found[f"config.{name}"] for name in named})
    new_tasks = str(found["tasks"]) if found["tasks"] else spec
    envs = config.envs.model_copy(update={"config": own, "tasks": new_tasks})
    sft = config.sft if imitated is None else config.sft.model_copy(update={"data": str(imitated)})
    return config.model_copy(update={"envs": envs, "sft": sft, "starter": _beside(path, config.starter)})


def _maker(file: Path) -> str:
    """The command that makes a missing corpus."""
    what = file.name if file.name == "factbook" else f"folder PATH --to {file}"
    return f"; make it with: parl env build {what}" if file.parent.name == "corpora" else ""


def _beside(config_path: Path, file: Path | None) -> Path | None:
    if file is None or file.is_absolute() or not is_there(config_path.parent / file):
        return file
    return config_path.parent / file
