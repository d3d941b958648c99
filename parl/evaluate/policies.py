"""Whom an evaluation is about: the policies of a run, a folder of weights, or the model of a chat server.

The episodes of a policy lie in ``RUN/evals/LABEL-HASH``, where the hash changes with everything that shapes an episode
(``parl.evaluate.identity``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.family import family_of
from model.policy_files import INDEX, SINGLE
from parl.cold_start.shipped import VERSION as TEXTS_VERSION
from parl.cold_start.start import check_policy_files, starting_policy
from parl.config.schema import Config
from parl.errors import UserError
from parl.evaluate.chat_model import Served
from parl.evaluate.identity import EFFECTS, Effect, description, identity, policy_digest, policy_vocabulary

_RUN_DECIDES = ("max_position_embeddings", "quantize_experts")  # of a policy's shape: its weights fit either way


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Whom to evaluate: weights or a server's model, whether it may spawn, and where its episodes are kept.

    ``about``: a note of what made them, ``about.json`` beside them.
    """

    label: str
    source: Path | Served
    spawning: bool
    store: Path
    about: dict[str, Any]


def local_policies(config: Config, model: Path | None, single_agent: bool, policies: Sequence[str]) -> list[Policy]:
    """Those called ``policies``, or the weights in ``model``. UserError: no such policy, or it does not fit the run."""
    folders = _folders(config, model, single_agent, policies)
    cold = starting_policy(config)
    for folder, _ in folders.values():
        if folder and policy_vocabulary(folder) != policy_vocabulary(cold):
            raise UserError(
                f"{folder} has another vocabulary than the run, whose sub-agents it speaks to ({cold}): evaluate it"
                f" with the override model.init={folder} and --policy cold_start"
            )
    return [
        local_policy(config, cold, label, folder or cold, spawning=spawns)
        for label, (folder, spawns) in folders.items()
    ]


def _folders(
    config: Config, model: Path | None, single_agent: bool, labels: Sequence[str]
) -> dict[str, tuple[Path | None, bool]]:
    """Label -> (folder, None for the cold start's; whether it may spawn)."""
    swarm = config.rollouts.swarm
    known: dict[str, tuple[Path | None, bool]] = {
        "cold_start": (None, swarm),
        "cold_start_no_spawn": (None, False),
        "trained": (config.run_dir / "policy", swarm),
        "single_agent": (config.run_dir / "single_agent" / "policy", False),
    }
    if model is not None:
        known = {"model": (model, swarm and not single_agent)}
        labels = ["model"]
    elif single_agent:
        labels = ["single_agent"]
    elif not labels:
        folder = known["single_agent"][0]
        labels = ["trained", *(["single_agent"] if folder and _complete(folder) else [])]
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise UserError(f"no policy is called {', '.join(unknown)}: --policy is one of {', '.join(known)}")
    for label in labels:
        if folder := known[label][0]:
            _check_policy(config, folder)
    return {label: known[label] for label in dict.fromkeys(labels)}


def _complete(folder: Path) -> bool:
    return (folder / SINGLE).exists()


def _check_policy(config: Config, folder: Path) -> None:
    """UserError unless ``folder`` holds a whole policy of the shape that the configuration's engines are built for."""
    if not _complete(folder):
        if (folder / INDEX).exists():
            raise UserError(
                f"{folder} is a checkpoint in several files: evaluate it as its own run's start, with the override"
                f" model.init={folder} and --policy cold_start"
            )
        raise UserError(f"no policy in {folder}: train it first (parl train), or name another folder with --model")
    try:
        shape = family_of(config.model).read_shape(folder)
        policy_vocabulary(folder)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{error}; a policy is weights, config.json and tokenizer in one folder") from None
    check_policy_files(folder, "train it again (parl train --resume, once the folder is gone), or name another")
    wanted = config.model.shape
    for name in type(wanted).model_fields:
        found, given = getattr(shape, name), getattr(wanted, name)
        if found != given and EFFECTS.get(f"model.{name}") is not Effect.NONE and name not in _RUN_DECIDES:
            raise UserError(
                f"{folder} has {name}={found}, but model.{name}={given}: evaluate it under the configuration that it"
                f" was trained with, or with the override model.init={folder} and --policy cold_start"
            )


def local_policy(config: Config, cold: Path, label: str, folder: Path, *, spawning: bool) -> Policy:
    """The weights in ``folder``; its sub-agents are ``rollouts.subagent_policy`` or the cold start ``cold``."""
    subagents = config.rollouts.subagent_policy or cold
    weights = {"policy": policy_digest(folder), "subagents": policy_digest(subagents)}
    parts = description(config, weights, spawning=spawning, chat=False)
    about = _about(config, parts, {"policy": str(folder), "spawning": spawning, "weights": weights})
    return Policy(label=label, source=folder, spawning=spawning, store=_store(config, label, parts), about=about)


def served_policies(config: Config, served: Served, single_agent: bool) -> list[Policy]:
    """The model of a server as ``swarm``, where sub-agents are on, and as ``single_agent``."""
    server = {"url": served.url, "model": served.name}
    chosen = []
    for label in ("swarm", "single_agent") if config.rollouts.swarm and not single_agent else ("single_agent",):
        spawning = label == "swarm"
        # what its text is counted in is made from the world's texts
        parts = description(config, {**server, "texts": str(TEXTS_VERSION)}, spawning=spawning, chat=True)
        store, about = _store(config, label, parts), _about(config, parts, {**server, "spawning": spawning})
        chosen.append(Policy(label=label, source=served, spawning=spawning, store=store, about=about))
    return chosen


def _store(config: Config, label: str, parts: dict[str, Any]) -> Path:
    """The folder of a policy's episodes."""
    return config.run_dir / "evals" / f"{label}-{identity(parts)}"


def _about(config: Config, parts: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """A note of what made a policy's episodes."""
    evaluation = config.eval
    sampling = {"seed": evaluation.seed, "temperature": evaluation.temperature, "top_p": evaluation.top_p}
    return about | sampling | {"identity": parts}
