"""From a YAML file and dotted overrides to a checked :class:`Config`; every mistake is named with its fix. No torch.

Values are validated strictly (``true`` is no number, ``"20"`` no integer), so a typing slip never becomes a silent
setting. All problems of a file and its overrides are reported at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from envs.tasks_io import file_problem, is_there, names_file
from model.kimi.config import ModelConfig
from model.kimi.files.hf_config import read_shape
from parl.config import yaml_text
from parl.config.errors import ConfigError
from parl.config.fields import section, takes_text, text_of, variants, with_texts
from parl.config.schema import Config
from parl.presets import preset, preset_names
from parl.shown.redaction import without_credentials
from rollouts.engine.address import shown

_TYPE_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (quote it in YAML)",
    "path_type": "a path",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def load_config(path: str | Path, overrides: list[str] | None = None, *, files: bool = True) -> Config:
    """Read ``path`` (a file or a preset's name), apply overrides such as ``trainer.steps=20`` and validate.

    Raises :class:`ConfigError` for all mistakes at once.
    ``files=False`` asks for none of the files that it names: what was run elsewhere can be looked at here.
    """
    path = preset(Path(path))
    tree = _read_yaml(path)
    for override in overrides or []:
        if half := re.search("[\ud800-\udfff]", override):
            raise ConfigError(
                f"the override {shown(override)!r} holds the byte 0x{ord(half[0]) & 0xFF:02x}, which is no UTF-8:"
                " rename the file, or set LC_ALL=C.UTF-8"
            )
        _apply_override(tree, override)
    tree = _without_empty_sections(tree, Config)
    problems = [
        f"{key} = {_show(value)}: must be a finite number" for key, value in _leaves(tree) if _not_finite(value)
    ]
    problems += [f"{key} = {_show(value)}: must be within 64 bits" for key, value in _leaves(tree) if _too_large(value)]
    if problems:
        raise _error(path, problems)
    config = _validate(path, _with_shape(path, tree))
    return _resolve_paths(path, config) if files else config


def to_yaml(config: Config) -> str:
    """The resolved configuration with every default, as YAML that :func:`load_config` reads back to the same.

    But for credentials, which a file that lies around must not hold: those are replaced.
    """
    return yaml.safe_dump(without_credentials(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def whole_yaml(config: Config) -> str:
    """The same for a run's folder: :func:`load_config` refuses it when it is cut off."""
    return yaml_text.marked(to_yaml(config))


def config_hash(*parts: BaseModel | str | int | float | bool | None) -> str:
    """Twelve hex digits that change when, and only when, one of the given sections or values changes."""
    dump = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(dump, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def _read_yaml(path: Path) -> dict[str, Any]:
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
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}:1: a configuration is a mapping of keys to values, this is {_show(tree)}")
    return with_texts(tree, words, Config)


def _nearby(path: Path) -> str:
    folders = {path.parent, Path("configs"), Path(".")}
    files = sorted({file for folder in folders if folder.is_dir() for file in folder.glob("*.y*ml")})
    presets = [Path(name) for name in preset_names() if not any(name == file.stem for file in files)]
    files += [name for name in presets if len(name.parts) == 1]
    close = difflib.get_close_matches(path.stem, [file.stem for file in [*files, *presets]], n=1, cutoff=0.6)
    files = list(dict.fromkeys([*(file for file in [*files, *presets] if file.stem in close), *files]))
    return "; there are: " + ", ".join(str(file) for file in files[:8]) if files else ""


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"the override {shown(override)!r} is not KEY=VALUE, e.g. trainer.steps=20")
    node, model = tree, Config
    for depth, part in enumerate(parts[:-1]):
        field = model.model_fields.get(part) if model else None
        model = section(field)
        if node.get(part) is None:  # a mapping such as envs.world.mix keeps its other default entries
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
    """A section whose lines are all commented out reads as null: it means its defaults."""
    clean = {}
    for key, value in tree.items():
        kind = section(model.model_fields.get(key))
        if kind and value is None:
            continue
        clean[key] = _without_empty_sections(value, kind) if kind and isinstance(value, dict) else value
    return clean


def _with_shape(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """``model.init`` gives the shape: its other keys are filled in from there, and must not say anything else."""
    given = tree.get("model")
    if not isinstance(given, dict) or not isinstance(given.get("init"), str):
        return tree
    folder = _beside(path, Path(given["init"]))
    if folder is None or not folder.is_dir():
        raise ConfigError(f"{path}: model.init = {given['init']}: no such folder, neither beside {path} nor here")
    try:
        shape = read_shape(folder).model_dump(mode="json")
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{path}: model.init: {error}") from None
    defaults = ModelConfig.model_construct().__dict__
    problems = [
        f"model.{key} = {_show(value)}: {folder} has {_show(shape.get(key, defaults[key]))}; leave the key out"
        for key, value in given.items()
        if key in ModelConfig.model_fields and key != "quantize_experts" and value != shape.get(key, defaults[key])
    ]
    if problems:
        raise _error(path, problems)
    return tree | {"model": shape | given | {"init": str(folder)}}


def _validate(path: Path, tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise _error(path, [line for detail in error.errors() for line in _explain(dict(detail))]) from None


def _error(path: Path, problems: list[str]) -> ConfigError:
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return ConfigError(f"{path}: {unique[0]}")
    return ConfigError(f"{path}: {len(unique)} problems\n" + "\n".join(f"  - {problem}" for problem in unique))


def _explain(detail: dict[str, Any]) -> list[str]:
    """One readable line for each problem that pydantic found."""
    value, kind = detail["input"], detail["type"]
    loc, field, model = _found([str(part) for part in detail["loc"]])
    key = ".".join(loc)
    if kind == "extra_forbidden":
        return [_unknown(unknown, given, model) for unknown, given in _leaves({key: value})]
    if kind == "value_error":
        return [_value_error(loc, model, str(detail["ctx"]["error"]))]
    if kind in ("union_tag_invalid", "union_tag_not_found") and field:
        given, names = value.get("name"), list(variants(field))
        close = difflib.get_close_matches(str(given), names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return [f"{key}.name = {_show(given)}: must be one of {', '.join(names)}{hint}"]
    if kind in ("model_type", "dataclass_type") and model:
        return [f"{key} = {_show(value)}: is a section with the keys {', '.join(model.model_fields)}"]
    return [f"{key} = {_show(value)}: must be {_allowed(field, detail)}"]


def _unknown(key: str, value: Any, model: type[BaseModel] | None) -> str:
    place, _, leaf = key.rpartition(".")
    field = Config.model_fields.get(place)
    owners = [name for name, kind in variants(field).items() if leaf in kind.model_fields] if field else []
    if owners and model:
        name, keys = model.model_fields["name"].default, ", ".join(model.model_fields)
        return (
            f"{key} (given {_show(value)}) is a key of {place}.name = {' or '.join(owners)};"
            f" {place}.name = {name} has {keys}"
        )
    if key in dict(_known_keys()):  # written with dots in a file
        return f"unknown key '{key}' (given {_show(value)}): in a file a section is a mapping; {place}: {{{leaf}: ...}}"
    close = nearest_keys(key)
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; sections: {', '.join(Config.model_fields)}"
    return f"unknown key {key} (given {_show(value)}){hint}"


def _value_error(loc: list[str], model: type[BaseModel] | None, text: str) -> str:
    """A section's own check names its fields bare; give them their full path."""
    prefix = ".".join(loc)
    names = "|".join(map(re.escape, model.model_fields)) if model and prefix else ""
    full = re.sub(rf"(?<![.\w])({names})(?==| names)", rf"{prefix}.\1", text) if names else text
    return full if full != text or not prefix else f"{prefix}: {text}"


def _found(loc: list[str]) -> tuple[list[str], FieldInfo | None, type[BaseModel] | None]:
    """The keys of ``loc`` (a chosen variant is none), the innermost field that they lead to, and the section around
    an unknown key, or else of the field."""
    keys: list[str] = []
    field, model = None, Config
    for part in loc:
        if field and part in variants(field) and part not in keys:
            model = variants(field)[part]
            continue
        keys.append(part)
        if model is None or part not in model.model_fields:
            break
        field = model.model_fields[part]
        model = section(field)
    return keys, field, model


def _allowed(field: FieldInfo | None, detail: dict[str, Any]) -> str:
    context = detail.get("ctx") or {}
    if detail["type"] == "literal_error" or (field and get_origin(field.annotation) is Literal):
        choices = [str(choice) for choice in get_args(field.annotation)] if field else [str(context.get("expected"))]
        close = difflib.get_close_matches(str(detail["input"]), choices, n=1)
        return f"one of {', '.join(choices)}" + (f"; did you mean {close[0]}?" if close else "")
    if detail["type"] == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    words = _TYPE_WORDS.get(detail["type"], "")
    bounds = [
        f"{sign} {getattr(part, name)}"
        for part in (field.metadata if field else [])
        for name, sign in _BOUNDS
        if getattr(part, name, None) is not None
    ]
    if bounds and (words or detail["type"].startswith(("greater", "less"))):
        return " ".join(filter(None, [words, " and ".join(bounds)]))
    if field and field.annotation and get_origin(field.annotation) is tuple:
        size = len(get_args(field.annotation))
        if get_args(field.annotation)[-1] is Ellipsis:
            return "a list, e.g. [http://127.0.0.1:8000]" if "urls" in str(detail["loc"]) else "a list"
        return f"a list of {size} numbers, e.g. {_show(list(field.get_default(call_default_factory=True)))}"
    return words or f"valid ({detail['msg']})"


def nearest_keys(key: str, count: int = 2) -> list[str]:
    """The valid dotted keys that resemble ``key`` most, also those of other sections; best first."""
    key = key.lower()
    leaf = key.rpartition(".")[2]
    scored = []
    for known in dict(_known_keys()):
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        last = difflib.SequenceMatcher(None, leaf, known.rpartition(".")[2]).ratio()
        scored.append((max(whole, last), whole, known))
    scored.sort(key=lambda item: (-item[0], -item[1], item[2]))
    best = scored[0][0]
    return [known for score, _, known in scored[:count] if score >= max(0.6, best - 0.02)]


def _known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        own = section(field)
        for kind in [*variants(field).values()] or ([own] if own else []):
            yield from _known_keys(kind, f"{prefix}{name}.")


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _not_finite(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_not_finite, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and not math.isfinite(value)


def _too_large(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_too_large, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 2**63


def _show(value: Any, most: int = 80) -> str:
    text = shown(without_credentials(json.dumps(value, ensure_ascii=False, default=str)))
    return text if len(text) <= most else text[: most - 3] + "..."


def _resolve_paths(path: Path, config: Config) -> Config:
    """Files named in the YAML are looked up beside it first, then from the current folder."""
    world = config.envs.world
    spec = config.envs.tasks
    tasks = Path(spec) if spec else None
    if tasks and not names_file(str(_beside(path, tasks))):
        tasks = None  # a data set of the hub
    found = {name: _beside(path, file) for name, file in (("source", world.source), ("tasks", tasks))}
    problems = [
        f"envs.{'world.source' if name == 'source' else name} = {file}: no such file, neither beside {path} nor here"
        for name, file in found.items()
        if file and not is_there(file)
    ]
    if spec is not None and not problems and (fault := file_problem(str(found["tasks"] or spec))):
        problems.append(f"envs.tasks = {_show(spec, 1000)}: {fault}")  # a path is shown whole
    if problems:
        raise _error(path, problems)
    world = world.model_copy(update={"source": found["source"]})
    new_tasks = str(found["tasks"]) if found["tasks"] else config.envs.tasks
    envs = config.envs.model_copy(update={"world": world, "tasks": new_tasks})
    return config.model_copy(update={"envs": envs, "starter": _beside(path, config.starter)})


def _beside(config_path: Path, file: Path | None) -> Path | None:
    if file is None or file.is_absolute() or not is_there(config_path.parent / file):
        return file
    return config_path.parent / file
