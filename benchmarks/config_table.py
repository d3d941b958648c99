"""The tables of docs/configuration.md: every key with default, allowed values, unit and meaning.

    python benchmarks/config_table.py                                  # print them
    python benchmarks/config_table.py --write docs/configuration.md    # put them between the file's markers

Meanings are the ``description`` of each pydantic field; ``NOTES`` has those that the code lacks, ``UNITS``
the units. A key without a meaning, or a note for a key that is gone, is an error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from parl.config.plugin_sections import built_in_sections
from parl.config.schema import Config

BEGIN, END = "<!-- config:begin -->", "<!-- config:end -->"
BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))

NOTES = {
    "seed": "seed of tasks, sampling noise and learner; another seed than 1 gets the folder `runs/NAME-seedN`",
    "model.hidden_size": "width of the residual stream",
    "model.num_hidden_layers": "decoder layers",
    "model.num_attention_heads": "attention heads",
    "model.kv_lora_rank": "rank of the keys' and values' latent, which the cache holds",
    "model.qk_nope_head_dim": "width of a query or key head without position",
    "model.qk_rope_head_dim": "width of the rotary part of a query or key head; must be even",
    "model.v_head_dim": "width of a value head",
    "model.n_routed_experts": "routed experts of a mixture-of-experts layer",
    "model.num_experts_per_tok": "experts that a token is sent to; at most `n_routed_experts`",
    "model.n_shared_experts": "experts that every token passes",
    "model.moe_intermediate_size": "width of one expert",
    "model.routed_scaling_factor": "factor on the routed experts' sum",
    "model.norm_topk_prob": "normalise the chosen experts' weights to sum 1",
    "model.rms_norm_eps": "epsilon of RMSNorm",
    "model.rope_theta": "base of the rotary frequencies",
    "sft.seed": "seed of demonstrations, initial weights and batch order",
    "rollouts.tasks_per_step": "tasks (groups) of one training step",
    "rollouts.budget.orchestrator_steps": "turns of the orchestrator",
    "optimizer.weight_decay": "decoupled weight decay of all parameters",
    "optimizer.grad_clip": "largest global gradient norm",
    "trainer.steps": "training steps of a run",
    "trainer.keep_checkpoints": "how many of the newest checkpoints stay on disk",
    "eval.split": "split that the held-out tasks come from",
    "eval.seed": "seed of the held-out tasks and of the sampling noise on them",
    "tracking.project": "W&B project",
}
UNITS = {
    "model.max_position_embeddings": "tokens",
    "tokenizer.vocab_size": "tokens",
    "envs.config.entities": "entities",
    "envs.config.search_results": "hits",
    "envs.config.widths": "rows",
    "envs.config.hops": "hops",
    "envs.config.attributes": "columns",
    "sft.tokens": "tokens",
    "sft.batch_tokens": "tokens",
    "rollouts.group_size": "episodes",
    "rollouts.tasks_per_step": "tasks",
    "rollouts.concurrency": "episodes",
    "rollouts.budget.orchestrator_steps": "turns",
    "rollouts.budget.subagent_steps": "turns",
    "rollouts.budget.subagents": "sub-agents",
    "rollouts.budget.direct_calls": "calls",
    "rollouts.budget.turn_tokens": "tokens",
    "rollouts.budget.total_tokens": "tokens",
    "rewards.parallel_cap": "sub-agents",
    "objective.log_ratio_min": "nats",
    "objective.log_ratio_max": "nats",
    "objective.kl": "per nat",
    "trainer.steps": "steps",
    "trainer.epochs": "passes",
    "trainer.minibatches": "optimiser steps",
    "trainer.micro_tokens": "tokens",
    "trainer.ranks": "processes",
    "trainer.threads": "threads",
    "trainer.checkpoint_every": "steps",
    "trainer.keep_checkpoints": "checkpoints",
    "eval.tasks": "tasks",
}


def sections_of(key: str, field: FieldInfo) -> list[type[BaseModel]]:
    """The models of ``field`` if it is a section: one, or those of the built-in names that choose it."""
    kind = field.annotation
    chosen = list(built_in_sections(key).values())
    return chosen or ([kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else [])


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], dict[str, FieldInfo]]]:
    """(dotted prefix, model, its own keys) of ``model`` and all sections below it, in the order of the code."""
    yield (
        prefix,
        model,
        {name: field for name, field in model.model_fields.items() if not sections_of(prefix + name, field)},
    )
    for name, field in model.model_fields.items():
        for section in sections_of(prefix + name, field):
            yield from sections(section, f"{prefix}{name}.")


def tables() -> str:
    """All tables as Markdown."""
    parts: list[str] = []
    seen: set[str] = set()
    for prefix, model, fields in sections(Config):
        if not fields:
            continue
        seen |= {prefix + name for name in fields}
        heading = f"### `{prefix.rstrip('.')}`" if prefix else "### Top level"
        choices = built_in_sections(prefix.rstrip("."))
        if len(choices) > 1:
            chosen = next(name for name, kind in choices.items() if kind is model)
            key = {"model.": "family", "rollouts.engine_config.": "engine"}.get(prefix, "name")
            heading += f" with `{key}: {chosen}`"
        summary = (model.__doc__ or "").strip().splitlines()[0].split(". ")[0].rstrip(".") + "."
        rows = [_row(prefix + name, field) for name, field in fields.items()]
        head = ["| key | default | allowed | unit | meaning |", "|---|---|---|---|---|"]
        parts.append("\n".join([heading, "", summary, "", *head, *rows]))
    stale = sorted((NOTES.keys() | UNITS.keys()) - seen)
    if stale:
        raise SystemExit(f"NOTES or UNITS name keys that are gone: {', '.join(stale)}")
    return "\n\n".join(parts) + "\n"


def _row(key: str, field: FieldInfo) -> str:
    meaning = field.description or NOTES.get(key)
    if meaning is None:
        raise SystemExit(f"{key} has no description: add one to its Field, or to NOTES")
    unit = UNITS.get(key) or ("seconds" if key.endswith("_s") else "")
    default = "required" if field.is_required() else f"`{_text(_default(field))}`"
    cells = (f"`{key}`", default, _allowed(field), unit, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, Path) else json.dumps(value, ensure_ascii=False)


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    bounds = [
        f"{sign} {getattr(m, n):g}" for m in field.metadata for n, sign in BOUNDS if getattr(m, n, None) is not None
    ]
    patterns = [f"matches `{m.pattern}`" for m in field.metadata if getattr(m, "pattern", None)]
    return ", ".join([*bounds, *patterns])


def main() -> None:
    """Print the tables, or write them into a file."""
    parser = argparse.ArgumentParser(description="every configuration key as Markdown tables")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"replace what is between {BEGIN} and {END}")
    target = parser.parse_args().write
    if target is None:
        sys.stdout.write(tables())
        return
    text = target.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{target} must hold the markers {BEGIN} and {END} once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    target.write_text(f"{before}{BEGIN}\n\n{tables()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
