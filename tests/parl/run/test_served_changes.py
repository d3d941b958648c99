"""Servers as engines of an asynchronous run, and servers that are added and lost while a run goes on."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from test_served_run import served_config
from vllm_stand_in import stand_in

from parl.config.schema import Config
from parl.run.loop import Training
from parl.track.progress import Progress
from rollouts.store.store import EpisodeStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 4


class Between(Progress):
    """Calls ``at[step]`` when a step is trained."""

    def __init__(self, at: dict[int, Any]) -> None:
        super().__init__(STEPS, "test")
        self._at = at

    def update(self, step: int, metrics: dict[str, float]) -> None:
        super().update(step, metrics)
        self._at.get(step, lambda: None)()


def rows_of(config: Config) -> list[dict[str, Any]]:
    rows = map(json.loads, (config.run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "train"]


def check_episodes(config: Config, staleness: int) -> set[int]:
    """Every trained token is of a version that its step may train, with its experts; returns the ages."""
    store, ages = EpisodeStore(config.run_dir / "episodes"), set()
    for step in range(1, STEPS + 1):
        episodes, version = store.read(step) or pytest.fail(f"step {step} has no episodes")
        for episode in episodes:
            trace = episode.orchestrator
            ages |= {version - one for one in trace.versions if one >= 0}
            assert trace.routes is not None and (trace.routes[:-1] >= 0).all()
    assert min(ages) >= 0 and max(ages) <= staleness
    return ages


@pytest.mark.parametrize("overlap", [True, False])
def test_a_run_with_a_staleness_trains_against_a_server(
    one_ray: None, cold_start: Path, tiny_run: Config, overlap: bool
):
    with stand_in(tiny_run.model.shape) as (url, server):
        name = f"served-beside-{overlap}"
        http = {"urls": (url,), "tolerance": 1e-3}
        config = served_config(tiny_run, name, http, steps=STEPS, staleness=1, overlap=overlap)
        config.run_dir.mkdir(parents=True)
        with Progress(STEPS, name) as progress:
            Training(config, config.run_dir, cold_start).run(progress)
    rows = rows_of(config)
    assert len(rows) == STEPS and server.label == str(STEPS) and all(row["rollouts/restarts"] == 0 for row in rows)
    assert 1 in check_episodes(config, 1) and all(row["policy/staleness_max"] <= 1 for row in rows)
    assert all(row["engine/probe_gap"] < 1e-3 for row in rows)


@pytest.mark.parametrize(("staleness", "loss"), [(0, 3), (1, 2)])
def test_a_server_is_added_another_is_lost_and_the_run_goes_on(
    one_ray: None, cold_start: Path, tiny_run: Config, tmp_path: Path, staleness: int, loss: int
):
    file, shape = tmp_path / "servers", tiny_run.model.shape
    with ExitStack() as stack, ExitStack() as first:
        one_url, one = first.enter_context(stand_in(shape))
        two_url, two = stack.enter_context(stand_in(shape))
        file.write_text(f"{one_url}\n")
        http = {"urls_file": str(file), "tolerance": 1e-3}
        config = served_config(tiny_run, f"changing-{staleness}", http, steps=STEPS, staleness=staleness)
        config.run_dir.mkdir(parents=True)
        counts: dict[str, tuple[int, int]] = {}

        def added() -> None:
            file.write_text(f"{one_url}\n{two_url}\n")

        def lost() -> None:
            counts["lost"] = one.calls, two.calls
            first.close()

        with Between({1: added, loss: lost}) as progress:
            Training(config, config.run_dir, cold_start).run(progress)
    rows = rows_of(config)
    assert [row["engine/servers"] for row in rows] == [1, *[2] * (loss - 1), *[1] * (STEPS - loss)]
    assert two.label == str(STEPS) and two.calls > 0
    if not staleness:  # with one, the episodes of all later steps may have ended when the server is lost
        assert two.calls > counts["lost"][1] > 0
    check_episodes(config, staleness)
