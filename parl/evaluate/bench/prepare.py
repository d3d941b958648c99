"""Prepared benchmarks: made from a download, run by a policy, and stored episodes scored again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.base import Section, Unscored
from envs.benchmarks.base import MANIFEST, read_prepared, write_prepared
from envs.benchmarks.environment import BenchmarkConfig
from envs.benchmarks.judge import ChatJudge, JudgeConfig
from envs.benchmarks.registry import benchmark_class, prepared
from envs.benchmarks.scoring.widesearch import Unavailable
from model.files import replacing
from parl.episodes.listing import Filter, list_episodes
from parl.errors import UserError


def prepare(name: str, source: Path, folder: Path, settings: Sequence[str]) -> int:
    """Write ``folder`` from the user's download; returns the number of tasks. UserError says what is wrong."""
    pairs = [setting.partition("=") for setting in settings]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"--set {wrong[0]}: write KEY=VALUE")
    if folder.exists() and not (folder / MANIFEST).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no prepared benchmark: remove it, or name another with --to")
    if not source.exists():
        raise UserError(f"--from {source}: there is nothing")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        benchmark = benchmark_class(name)(folder, {key: value for key, _, value in pairs})
        with replacing(folder) as partial:
            partial.mkdir()
            return write_prepared(benchmark, source, partial)
    except KeyError as error:
        raise UserError(f"{source}: a task has no {error}; wanted: {benchmark_class(name).download}") from None
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from None


def judge_settings(url: str | None, model: str | None, key_env: str | None) -> dict[str, Any] | None:
    """The judge's section; None without one."""
    if url is None and model is None:
        return None
    if url is None or model is None:
        raise UserError(f"--judge-url {url} and --judge-model {model}: give both, or none")
    return {"url": url, "model": model, "key_env": key_env}


def run_settings(folder: Path, judge: dict[str, Any] | None, section: Section, score_deadline_s: float) -> list[str]:
    """Settings of an evaluation on a prepared benchmark, with its limits.

    ``section``: the environment's as it stands; of a benchmark's the tools, the judge and the settings stay.
    ``score_deadline_s``: the seconds for scoring as they stand, which are made longer where the benchmark needs it.
    """
    try:
        benchmark = prepared(folder)
        scoring_s = max(benchmark.scoring_s, score_deadline_s)
    except ValueError as error:
        raise UserError(str(error)) from None
    kept = section.model_dump(mode="json", exclude_defaults=True) if isinstance(section, BenchmarkConfig) else {}
    config = kept | {"folder": str(folder.resolve())} | ({"judge": judge} if judge else {})
    limits = benchmark.limits
    tasks = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["tasks"]
    return [
        "envs.tasks=null",
        "envs.name=benchmark",
        f"envs.config={json.dumps(config)}",
        f"eval.tasks={tasks}",
        f"rollouts.budget.orchestrator_steps={limits.orchestrator_steps}",
        f"rollouts.budget.subagent_steps={limits.subagent_steps}",
        f"rollouts.score_deadline_s={scoring_s}",
    ]


def score_store(
    folder: Path, store: Path, kind: str | None, mode: str, judge: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Scores of stored episodes by the benchmark's own rule, one row each; those of other tasks are left out."""
    benchmark = prepared(folder, {"mode": mode})
    rows = {str(row["id"]): row for row in read_prepared(folder)}
    if hasattr(benchmark.session(next(iter(rows.values()))), "grade"):
        raise UserError(f"{benchmark.name} scores what the agents made, which is gone: its scores are in the episodes")
    if benchmark.judged and judge is None and benchmark.name != "widesearch":
        raise UserError(f"{benchmark.name} is scored by a judge: give --judge-url and --judge-model")
    for _, outline in list_episodes(store, Filter(kind=kind), texts=True):
        episode = outline.episode
        if episode.task.key in rows:
            answer = episode.answer if str(episode.status) == "answered" else ""
            yield {"id": episode.task.key, "attempt": episode.index} | asyncio.run(
                _scored(benchmark, rows[episode.task.key], answer, judge)
            )


async def _scored(benchmark: Any, row: dict[str, Any], answer: str, judge: dict[str, Any] | None) -> dict[str, Any]:
    ask = ChatJudge(JudgeConfig(**judge)) if judge else None
    try:
        score = await benchmark.score(row, answer, ask)
    except Unavailable as error:
        raise UserError(f"{row['id']}: {error}") from None
    except Unscored as error:  # this one is void; the others have their scores
        return {"score": None, "success": None, "void": str(error)}
    finally:
        if ask:
            await ask.close()
    return {"score": score.value, "success": score.solved, **score.parts}
