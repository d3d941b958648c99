"""What a cold start depends on, where one lies, and why a shipped one does not apply. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from parl.config.load import config_hash
from parl.config.mistakes import leaves
from parl.config.schema import TEACHER, Config, EnvsFields, PolicyFields, SftConfig, TokenizerConfig
from rollouts.config import RolloutsConfig

VERSION = 11  # part of the hash: raised when the demonstrations or the recipe change in code
WEIGHTS = "model.safetensors"
_SHOWN = 4  # differences that are named
_MINUTES = 26 / 10e6  # of a token: the default shape on two busy cores (docs/quickstart.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a cold start is made from, by the sections of a configuration. ``root``, ``starter``: where one may lie."""

    root: Path
    starter: Path | None
    model: PolicyFields
    tokenizer: TokenizerConfig
    envs: EnvsFields
    sft: SftConfig
    rollouts: RolloutsConfig

    @classmethod
    def of(cls, config: Config) -> Recipe:
        """That of a run of ``config``."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


def cold_start_hash(recipe: Recipe) -> str:
    """12 hex digits of everything that the cold start depends on; of a table its content, wherever it lies."""
    digest = recipe.envs.build().digest()
    own = recipe.envs.config.model_copy(update=dict.fromkeys(digest))
    parts = [recipe.envs.name] if recipe.envs.name != "world" else []
    parts += [f"{name}={value}" for name, value in _shown_to_agents(recipe).items()]
    model, sft = recipe.model, recipe.sft
    if model.init is not None:
        parts.append(f"init={init_key(model)}")
        model = model.model_copy(update={"init": None})
    if (data := sft.data) is not None and data != TEACHER and Path(data).exists():
        parts.append(f"data={_stamps(Path(data))}")
        sft = sft.model_copy(update={"data": None})
    return config_hash(model, recipe.tokenizer, own, sft, VERSION, *digest.values(), *parts)


def init_key(model: PolicyFields) -> str:
    """Changes when ``model.init`` names another folder, or when its files change."""
    assert model.init is not None
    return config_hash(model.shape, str(model.init.resolve()), *_stamps(model.init))


def _stamps(path: Path) -> list[str]:
    """Name, size and time of change of a file, or of all files in a folder."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]


def _shown_to_agents(recipe: Recipe) -> dict[str, Any]:
    """Prompts and way of writing that demonstrations have, where they are not the default ones."""
    default, rollouts = type(recipe.rollouts)(), recipe.rollouts
    told = {"rollouts.prompts": rollouts.prompts.model_dump(mode="json"), "rollouts.thinking": rollouts.thinking}
    if rollouts.subagent_thinking is not None:
        told["rollouts.subagent_thinking"] = rollouts.subagent_thinking
    usual = {"rollouts.prompts": default.prompts.model_dump(mode="json"), "rollouts.thinking": default.thinking}
    return {name: value for name, value in told.items() if value != usual.get(name)}


def cold_start_settings(recipe: Recipe) -> dict[str, Any]:
    """What :func:`cold_start_hash` is made of, by dotted key: kept beside the weights, to tell later what differs."""
    settings = {
        **dict(leaves(recipe.model.model_dump(mode="json"), "model.")),
        **dict(leaves(recipe.tokenizer.model_dump(mode="json"), "tokenizer.")),
        **dict(leaves(recipe.envs.config.model_dump(mode="json"), "envs.config.")),
        **dict(leaves(recipe.sft.model_dump(mode="json"), "sft.")),
        **_shown_to_agents(recipe),
    }
    digest = recipe.envs.build().digest()
    contents = {f"envs.config.{key}": f"a file with the SHA-256 {content[:12]}" for key, content in digest.items()}
    name = {} if recipe.envs.name == "world" else {"envs.name": recipe.envs.name}
    return settings | contents | name | {"recipe": VERSION}


def cold_start_folder(recipe: Recipe) -> Path:
    """Where the cold start is cached."""
    return recipe.root / "cold_start" / cold_start_hash(recipe)


def shipped(recipe: Recipe) -> Path | None:
    """The starter's folder for this configuration; None where there is none."""
    folder = recipe.starter / cold_start_hash(recipe) if recipe.starter else None
    return folder if folder and (folder / WEIGHTS).exists() else None


def starter_note(recipe: Recipe) -> str | None:
    """Why the starter that is named does not apply, and what that costs; None where it does or nothing is trained."""
    if recipe.starter is None or recipe.model.init is not None or shipped(recipe):
        return None
    if (cold_start_folder(recipe) / WEIGHTS).exists():
        return None
    minutes = recipe.sft.tokens * _MINUTES
    cost = (
        f"the cold start is trained instead, {recipe.sft.tokens / 1e6:.1f} M tokens, which take about"
        f" {max(round(minutes), 1)} minutes on two cores with the default shape, once: it is kept in"
        f" {cold_start_folder(recipe)}"
    )
    return f"starter = {recipe.starter} does not apply ({_why(recipe)}): {cost}"


def _why(recipe: Recipe) -> str:
    """How the settings differ from those of the closest starter."""
    if not recipe.starter or not recipe.starter.is_dir():
        return "there is no such folder"
    wanted = cold_start_settings(recipe)
    found = {
        folder.name: _settings(folder) for folder in sorted(recipe.starter.iterdir()) if (folder / WEIGHTS).exists()
    }
    if not found:
        return "it holds no cold start, which is a folder HASH with model.safetensors"
    known = {name: settings for name, settings in found.items() if settings}
    if not known:
        return f"it holds {', '.join(found)}, and this configuration needs {cold_start_hash(recipe)}"
    differences = {name: _differences(wanted, settings) for name, settings in known.items()}
    closest = min(differences, key=lambda name: len(differences[name]))
    lines = differences[closest]
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{closest} was made with {', '.join(lines[:_SHOWN])}{more}" if lines else f"{closest} is of another version"


def _differences(wanted: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    missing = object()
    made, asked = (tree.get("envs.name", "world") for tree in (settings, wanted))
    other = [f"envs.name = {made}, not {asked}"] if made != asked else []  # whose own keys say nothing then
    return other + [
        f"{key} = {_shown(settings.get(key))}, not {_shown(wanted.get(key))}"
        for key in dict.fromkeys([*wanted, *settings])
        if settings.get(key, missing) != wanted.get(key, missing) and not (other and key.startswith("envs."))
    ]


def _settings(folder: Path) -> dict[str, Any]:
    """The settings that a starter was made with; empty where it does not say."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    settings = meta.get("settings") if isinstance(meta, dict) else None
    if not isinstance(settings, dict):
        return {}
    return {re.sub(r"^envs\.world\.", "envs.config.", key): value for key, value in settings.items()}  # once so called


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
