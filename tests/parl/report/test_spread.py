"""The charts over held-out episodes: small cases by hand, and what a run's page shows."""

from __future__ import annotations

import pytest
from stored import make_run
from tiny import tiny_config

from parl.report.data import load_run
from parl.report.spread import cumulative, shares, spread_charts, time_to_score


def test_a_target_costs_the_budget_at_which_the_mean_reaches_it():
    metrics = [{"critical_steps": steps, "perf": score} for steps, score in ((3, 1.0), (10, 0.5), (7, 0.5), (4, 0.0))]
    found = dict(time_to_score(metrics))
    assert found[0.02] == found[0.24] == 3  # the first alone gives a mean of 0.25
    assert found[0.26] == 7 and found[0.36] == 7 and found[0.38] == 10 and found[0.5] == 10
    assert max(found) == pytest.approx(0.5)  # no budget reaches more


def test_shares_and_cumulative_shares():
    assert shares([0, 2, 2, 1]) == [[0, 0.25], [1, 0.25], [2, 0.5]]
    assert cumulative([1, 3, 3, 2]) == [[0, 0.0], [1, 0.25], [2, 0.5], [3, 1.0]]


def test_a_page_has_them_for_every_evaluated_policy(tmp_path):
    run = make_run(tiny_config(tmp_path))
    charts = load_run(run).spread
    assert [chart["title"] for chart in charts] == ["Critical steps for a target score", "Critical steps", "Width"]
    assert {one["name"] for one in charts[0]["series"]} == {"trained swarm", "single agent", "cold start"}
    assert spread_charts(tmp_path / "nothing") == []
