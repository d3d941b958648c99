"""Lookups by model family for rollouts and for readers of policies. No torch."""

from __future__ import annotations

from pathlib import Path

from envs.base import Role
from model.chat.base import ChatFormat, Vocabulary
from model.family import Family, Shape, family_of
from model.json_file import read_json
from parl.config.plugin_kinds import FAMILIES
from parl.errors import UserError
from rollouts.config import RolloutsConfig


def chat_format(
    model: Shape, rollouts: RolloutsConfig, tokenizer: Vocabulary | None = None, *, role: Role = Role.ORCHESTRATOR
) -> ChatFormat:
    """The chat format of policies of shape ``model``; without a tokenizer, it renders text only.

    UserError if the format does not fit the tokenizer, or ``rollouts.thinking``.
    """
    try:
        return family_of(model).chat(model, tokenizer, thinking=rollouts.thinks(role))
    except ValueError as error:
        raise UserError(f"these policies cannot be spoken to: {error}") from error


def _of_others(folder: Path) -> Family:
    """The family that reads a Hugging Face folder; else the one that says what is missing."""
    ours = FAMILIES.resolve("kimi")
    kind = read_json(folder / "config.json", finite=False).get("model_type", ours.reads[0])
    return (ours if kind in ours.reads else FAMILIES.resolve("hf"))()


def family_at(folder: Path) -> Family:
    """The family of the policy in ``folder``, which must be built in or installed; else ValueError.

    A file may not name any module: importing it would run untrusted code.
    """
    file = folder / "meta.json"
    home = read_json(file, finite=False).get("family") if file.exists() else None
    if home is None:
        return _of_others(folder)
    known = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in map(FAMILIES.resolve, FAMILIES.names())}
    if home not in known:
        raise ValueError(f"{file} names the family {home!r}, which is neither built in nor installed as an entry point")
    return known[home]()
