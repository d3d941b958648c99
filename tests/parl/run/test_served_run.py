"""Runs with servers as engines: weights arrive, versions come back, servers that lost them recover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vllm_stand_in import stand_in

from model.kimi.family import Kimi
from parl.collect.collector import Collector
from parl.collect.pools import RolloutSide
from parl.config.load import ConfigError, load_config
from parl.config.schema import Config
from parl.run.loop import Training
from parl.track.progress import Progress
from rollouts.store.store import EpisodeStore


def served_config(config: Config, name: str, http: dict[str, Any], **trainer: Any) -> Config:
    rollouts = config.rollouts.model_copy(
        update={"engine": "vllm", "http": config.rollouts.http.model_copy(update=http), "tasks_per_step": 1}
    )
    changes = {"name": name, "rollouts": rollouts, "trainer": config.trainer.model_copy(update=trainer)}
    return config.model_copy(update=changes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_trains_against_servers_of_both_pools(one_ray, cold_start: Path, tiny_run: Config):
    shape = tiny_run.model.shape
    with stand_in(shape) as (policy_url, policy), stand_in(shape) as (frozen_url, frozen):
        http = {"urls": (policy_url,), "frozen_urls": (frozen_url,), "tolerance": 1e-3}
        config = served_config(tiny_run, "served", http, steps=2)
        config.run_dir.mkdir(parents=True)
        with Progress(2, "served") as progress:
            Training(config, config.run_dir, cold_start).run(progress)
    assert (policy.updates, frozen.updates, policy.label, frozen.label) == (3, 1, "2", "0")
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(row["policy/engine_gap"] < 1e-3 and row["engine/probe_gap"] < 1e-3 for row in rows)
    assert [row["engine/in_place"] for row in rows] == [1.0, 1.0]
    store = EpisodeStore(config.run_dir / "episodes")
    for step in (1, 2):
        stored = store.read(step)
        assert stored is not None and stored[1] == step - 1
        for episode in stored[0]:
            trace = episode.orchestrator
            assert {v for v in trace.versions if v >= 0} == {step - 1}
            assert trace.routes is not None and (trace.routes[:-1] >= 0).all()
    kept = sorted(folder.name for folder in (config.run_dir / "served").iterdir())
    assert kept == ["frozen-000000", "policy-000001", "policy-000002"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["forget_after", "lie_at"])
def test_episodes_of_a_server_that_lost_its_weights_or_lied_run_again(
    one_ray, cold_start: Path, tiny_run: Config, fault: str
):
    from model.policy_files import load_policy
    from parl.collect.tasks import run_tasks

    weights, model, _, _ = load_policy(cold_start, Kimi())
    with stand_in(model) as (url, server):
        config = served_config(tiny_run, f"faulty-{fault}", {"urls": (url,), "tolerance": 1e-3})
        collector = Collector(RolloutSide.of(config), cold_start, weights)
        try:
            collector.sync(weights, 5)
            setattr(server, fault, server.calls + 3)
            tasks = run_tasks(config).take(0, 2)
            episodes = collector.collect(tasks, group_size=2, seed=1, temperature=1.0)
        finally:
            collector.close()
    restarts = 1 if fault == "forget_after" else 0  # a lie costs the episode, not the pool
    assert collector.restarts == restarts and server.updates == 1 + restarts
    assert server.lie_at <= server.calls
    assert all({v for v in e.orchestrator.versions if v >= 0} == {5} and not e.error for e in episodes)
    assert all(value <= 0 for e in episodes for trace in e.traces for value in trace.logprobs)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rollouts.engine=vllm"], "needs rollouts.http.urls"),
        (["rollouts.http.urls=[http://a:1]"], "engine=embedded"),
        (
            ["rollouts.engine=sglang", "rollouts.http.urls=[http://a:1]", "rollouts.http.weights=transfer"],
            "engine=vllm",
        ),
        (["rollouts.engine=vllm", "rollouts.http.urls=[http://a:1]", "rollouts.http.weights=restart"], "http.restart"),
        (["rollouts.engine=vllm", "rollouts.http.urls=[http://a:1]", "rollouts.temperature=0.7"], "temperature=0.7"),
        (
            ["rollouts.engine=vllm", "rollouts.http.urls=[http://a:1]", "rollouts.http.frozen_urls=[http://a:1]"],
            "a server holds one model",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(overrides: list[str], named: str, tiny_yaml: Path):
    with pytest.raises(ConfigError, match=named):
        load_config(tiny_yaml, overrides)
