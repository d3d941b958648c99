"""Pools of engines: the sub-agents at each version, and when a replica changes pools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from envs.base import Role
from model.kimi.family import Kimi
from model.policy_files import load_policy
from parl.collect.collector import Collector
from parl.collect.pools import Refreshed, RolloutSide, change, pool_sizes, subagents
from parl.collect.tasks import run_tasks
from parl.config.load import load_config
from parl.config.schema import Config
from parl.errors import UserError
from parl.learn.rows import step_rows
from rewards.parl_reward import Parl
from rewards.score import score_episode
from rollouts.config import RolloutsConfig
from rollouts.episode import Episode

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("loads", "sizes", "wanted"),
    [
        ((10.0, 1.0), (1, 3), ("frozen", "policy")),
        ((1.0, 10.0), (2, 1), ("policy", "frozen")),
        ((10.0, 0.0), (3, 1), None),  # the last of a pool stays
        ((5.0, 5.0), (2, 2), None),
        ((6.0, 5.0), (2, 2), None),  # not worth it
        ((0.0, 0.0), (2, 2), None),
        ((4.0, 2.4), (1, 2), None),  # it would only turn the tables
    ],
)
def test_a_replica_goes_where_it_helps(loads, sizes, wanted):
    pools = ("policy", "frozen")
    assert change(dict(zip(pools, loads, strict=True)), dict(zip(pools, sizes, strict=True))) == wanted


def weights(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full(3, value, np.float32)}


def test_sub_agents_are_the_policy_of_the_last_version_that_the_setting_divides(tmp_path: Path):
    refreshed = Refreshed(3, 2, tmp_path)
    due = [refreshed.due(version, weights(version)) for version in range(8)]
    assert [None if d is None else (d[0], float(d[1]["w"][0])) for d in due] == [
        (0, 0.0), None, None, (3, 3.0), None, None, (6, 6.0), None,
    ]  # fmt: skip
    for version, wanted in ((7, 6), (5, 3), (6, 6)):  # a resumed run, wherever its checkpoint stands
        again = Refreshed(3, 2, tmp_path).due(version, weights(99.0 if version % 3 else version))
        assert again is not None and (again[0], float(again[1]["w"][0])) == (wanted, float(wanted))
    with pytest.raises(UserError, match="version 9 are not in"):
        Refreshed(3, 2, tmp_path).due(10, weights(10))


def test_of_several_policies_that_are_evaluated_each_has_sub_agents_of_its_own():
    refreshed = Refreshed(3, 2, None)
    served = []
    for value in (1.0, 2.0):  # each as version 0
        refreshed.forget()
        due = refreshed.due(0, weights(value))
        assert due is not None and refreshed.due(0, weights(9.0)) is None
        served.append(float(due[1]["w"][0]))
    assert served == [1.0, 2.0]


def test_old_weights_go_when_no_checkpoint_can_need_them(tmp_path: Path):
    for keep, kept in ((1, [8, 10]), (3, [6, 8, 10])):  # as many versions as a resumed run may go back
        refreshed = Refreshed(2, keep, tmp_path / str(keep))
        for version in range(12):
            refreshed.due(version, weights(version))
        assert sorted(int(path.stem) for path in (tmp_path / str(keep)).iterdir()) == kept


def test_co_trained_sub_agents_have_no_engines_of_their_own():
    assert pool_sizes(RolloutsConfig(subagent_pool="co_trained", frozen_engines=3)) == {"policy": 1, "frozen": 0}
    assert pool_sizes(RolloutsConfig(frozen_engines=3)) == {"policy": 1, "frozen": 3}


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path):
    for rollouts in (
        {"subagent_policy": "x", "subagent_pool": "refreshed"},
        {"subagent_policy": "x", "rebalance": True},
        {"rebalance": True, "subagent_pool": "co_trained"},
        {"context": {"policy": "discard_all"}},
    ):
        with pytest.raises(ValueError, match="set "):
            tiny_config(tmp_path, rollouts=rollouts)
    context = {"policy": "discard_all", "subagent_tokens": 100}
    with pytest.raises(ValueError, match="weighs whole traces"):
        tiny_config(tmp_path, rollouts={"context": context}, objective={"name": "gspo"})


def test_a_folder_without_a_policy_is_named(tmp_path: Path):
    config = tiny_config(tmp_path, rollouts={"subagent_policy": str(tmp_path / "none")})
    with pytest.raises(UserError, match="no policy there"):
        subagents(config.rollouts, config.model, str(tmp_path), {})


@pytest.fixture(scope="module")
def starter() -> Path:
    return min((ROOT / "configs" / "starters").iterdir())


def quickstart(tmp_path: Path, **rollouts) -> Config:
    config = load_config(ROOT / "configs" / "quickstart.yaml", [f"root={tmp_path}"])
    return config.model_copy(update={"rollouts": config.rollouts.model_copy(update=rollouts)})


def collected(config: Config, starter: Path, versions: tuple[int, ...] = (1,)) -> list[Episode]:
    """Four groups of two at each version, all with the starter's weights."""
    start, _, _, _ = load_policy(starter, Kimi())
    collector = Collector(RolloutSide.of(config), starter, start)
    try:
        episodes = []
        for version in versions:
            collector.sync(start, version)
            tasks = run_tasks(config).take(0, 4)
            episodes += collector.collect(tasks, group_size=2, seed=1, temperature=1.0)
        return episodes
    finally:
        collector.close()


def bits(episodes: list[Episode]) -> list[tuple]:
    return [
        (e.task.key, e.index, e.status, e.answer, t.agent_id, t.status, t.tokens, t.logprobs)
        for e in episodes
        for t in e.traces
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_three_workers_and_engines_that_change_pools_give_the_episodes_of_one(tmp_path: Path, starter: Path):
    local = collected(quickstart(tmp_path), starter, (1, 2))
    assert any(episode.subagents for episode in local)
    spread = {"workers": 3, "placement": "spread", "rebalance": True, "policy_engines": 1, "frozen_engines": 2}
    assert bits(collected(quickstart(tmp_path, **spread), starter, (1, 2))) == bits(local)


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_co_trained_sub_agents_are_served_by_the_policy_and_become_rows(tmp_path: Path, starter: Path):
    config = quickstart(tmp_path, subagent_pool="co_trained")
    episodes = collected(config, starter, (5,))
    for episode in episodes:
        score_episode(episode, Parl(parallel_cap=8), Parl(critical_penalty=0).held_out())
    traces = [trace for episode in episodes for trace in episode.subagents if any(trace.mask)]
    assert traces and all(trace.trainable and trace.routes is not None for trace in traces)
    assert {version for trace in traces for version in trace.versions} == {-1, 5}
    rows = step_rows(episodes, routed=True)
    assert {row.key for row in rows} >= {
        (e.task.key, e.index, t.agent_id) for e in episodes for t in e.subagents if any(t.mask)
    }


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_refreshed_sub_agents_serve_the_version_they_were_refreshed_at(tmp_path: Path, starter: Path):
    config = quickstart(tmp_path, subagent_pool="refreshed", refresh_every=2)
    episodes = collected(config, starter, (2, 3))
    seen = [
        {v for e in part for t in e.traces if t.role is Role.SUBAGENT for v in t.versions if v >= 0}
        for part in (episodes[:8], episodes[8:])
    ]
    assert seen == [{2}, {2}]
    assert not any(t.trainable for e in episodes for t in e.subagents)
