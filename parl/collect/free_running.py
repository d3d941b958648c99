"""Checks a policy in free-running episodes on held-out tasks, to decide when a cold start is good enough.

Accuracy on demonstrations, where every token follows the right ones, is not enough: a policy with 99.1 % of
them right solved a tenth of its tasks, one with 99.65 % solved 0.85 of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model.decoder import Weights
from parl.cold_start.shipped import Recipe, cold_start_folder
from parl.collect.collector import Collector
from parl.collect.pools import RolloutSide
from parl.collect.tasks import run_tasks
from parl.config.schema import Config
from rewards.base import PERF
from rewards.score import score_episode
from rollouts.episode import EpisodeStatus
from rollouts.store.store import EpisodeStore

SPLIT = "val"
CHECK = "check"  # the kind of the kept episodes


def free_running(config: Config) -> Callable[[Weights, Path, int], dict[str, float]]:
    """A check of weights, and a folder's tokenizer, after so many tokens: ``sft.check_tasks`` of val, an episode each.

    Returns the mean ``score``, 0 for what nothing scores, the share of ``malformed`` episodes, and the shares that
    ``spawned``: of tasks where it may pay, and of those whose oracle says it cannot (``spawned_in_vain``).
    Sub-agents are the same policy; sampling is that of the evaluation. The episodes are kept beside the cold start, in
    HASH.checks, by thousands of tokens.
    """
    sft, evaluation = config.sft, config.eval
    asked = evaluation.model_copy(update={"split": SPLIT, "tasks": sft.check_tasks})
    alone = config.rollouts.model_copy(update={"subagent_pool": "co_trained", "subagent_policy": None})

    def check(weights: Weights, tokenizer: Path, tokens: int) -> dict[str, float]:
        tasks = run_tasks(config.model_copy(update={"eval": asked})).held_out()
        side = replace(RolloutSide.of(config), rollouts=alone, adapters=False)
        collector = Collector(side, tokenizer, weights)
        try:
            collector.serve(weights)
            episodes = collector.collect(
                tasks, group_size=1, seed=asked.seed, temperature=asked.temperature, top_p=asked.top_p
            )
        finally:
            collector.close()
        for episode in episodes:
            score_episode(episode, config.rewards, config.rewards.held_out())
        kept = EpisodeStore(cold_start_folder(Recipe.of(config)).with_suffix(".checks"))
        kept.write(tokens // 1000, episodes, policy_version=0, kind=CHECK)
        parts: dict[str, list[float]] = {"score": [], "malformed": [], "spawned": [], "spawned_in_vain": []}
        for episode in episodes:
            oracle = episode.task.oracle
            parts["score"].append(episode.rewards.get(PERF, 0.0))
            parts["malformed"].append(episode.status is EpisodeStatus.MALFORMED)
            pays = oracle is None or oracle.width > 0
            parts["spawned" if pays else "spawned_in_vain"].append(bool(episode.subagents))
        return {name: sum(values) / len(values) for name, values in parts.items() if values}

    return check
