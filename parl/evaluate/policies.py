"""The policies of an evaluation: those of a run, a folder of weights, or a chat server's model.

The episodes of a policy are stored in ``RUN/evals/LABEL-HASH``, with the hash of all that they depend on
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
from parl.cold_start.starting_policy import check_policy_files, starting_policy
from parl.collect.free_running import free_running
from parl.config.schema import Config, EvalConfig, PolicyFields
from parl.errors import UserError
from parl.evaluate.chat_model import Served
from parl.evaluate.identity import EFFECTS, Effect, description, identity, policy_digest, policy_vocabulary

_RUN_DECIDES = ("max_position_embeddings", "quantize_experts")  # the weights fit either way


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy to evaluate: weights or a server's model, whether it may spawn, and its episodes' folder.

    ``about``: a note on what made them, ``about.json`` beside them.
    """

    label: str
    source: Path | Served
    spawning: bool
    store: Path
    about: dict[str, Any]


def local_policies(config: Config, model: Path | None, single_agent: bool, policies: Sequence[str]) -> list[Policy]:
    """The run's ``policies``, or the weights in ``model``. UserError: no such policy, or it does not fit."""
    folders = _chosen(config.run_dir, config.rollouts.swarm, model, single_agent, policies)
    for folder, _ in folders.values():
        if folder:
            check_policy(config.model, folder)
    cold = starting_policy(config, check=free_running(config))
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


def _chosen(
    run_dir: Path, swarm: bool, model: Path | None, single_agent: bool, labels: Sequence[str]
) -> dict[str, tuple[Path | None, bool]]:
    """Label -> (folder, None for the cold start's; whether it may spawn)."""
    known: dict[str, tuple[Path | None, bool]] = {
        "cold_start": (None, swarm),
        "cold_start_no_spawn": (None, False),
        "trained": (run_dir / "policy", swarm),
        "single_agent": (run_dir / "single_agent" / "policy", False),
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
    return {label: known[label] for label in dict.fromkeys(labels)}


def _complete(folder: Path) -> bool:
    return (folder / SINGLE).exists()


def check_policy(wanted: PolicyFields, folder: Path) -> None:
    """UserError unless ``folder`` holds a whole policy of the shape of the configuration's engines."""
    if not _complete(folder):
        if (folder / INDEX).exists():
            raise UserError(
                f"{folder} is a checkpoint in several files: evaluate it as its own run's start, with the override"
                f" model.init={folder} and --policy cold_start"
            )
        raise UserError(f"no policy in {folder}: train it first (parl train), or name another folder with --model")
    try:
        shape = family_of(wanted).read_shape(folder)
        policy_vocabulary(folder)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{error}; a policy is weights, config.json and tokenizer in one folder") from None
    check_policy_files(folder, "train it again (parl train --resume, once the folder is gone), or name another")
    for name in type(shape).model_fields:
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
    about = {"policy": str(folder), "spawning": spawning, "weights": weights}
    parts = description(config, weights, spawning=spawning, chat=False)
    return _kept(config.run_dir, config.eval, label, folder, parts, about)


def served_policies(config: Config, served: Served, single_agent: bool) -> list[Policy]:
    """The model of a server as ``swarm``, if sub-agents are on, and as ``single_agent``."""
    server = {"url": served.url, "model": served.name}
    counted = {**server, "texts": str(TEXTS_VERSION)}  # its vocabulary is trained on the world's texts
    chosen = []
    for label in ("swarm", "single_agent") if config.rollouts.swarm and not single_agent else ("single_agent",):
        spawning = label == "swarm"
        parts = description(config, counted, spawning=spawning, chat=True)
        about = {**server, "spawning": spawning}
        chosen.append(_kept(config.run_dir, config.eval, label, served, parts, about))
    return chosen


def _kept(
    run_dir: Path,
    evaluation: EvalConfig,
    label: str,
    source: Path | Served,
    parts: dict[str, Any],
    about: dict[str, Any],
) -> Policy:
    """A policy whose episodes depend on ``parts``, with their folder."""
    store = run_dir / "evals" / f"{label}-{identity(parts)}"
    sampling = {"seed": evaluation.seed, "temperature": evaluation.temperature, "top_p": evaluation.top_p}
    about = about | sampling | {"identity": parts}
    return Policy(label=label, source=source, spawning=about["spawning"], store=store, about=about)
