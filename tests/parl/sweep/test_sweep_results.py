"""What a sweep shows: means, paired differences and curves by hand, and pages that hold them all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from parl.config.load import to_yaml
from parl.errors import UserError
from parl.sweep.cells import cells
from parl.sweep.file import read_sweep
from parl.sweep.results.aggregate import Done, aggregate, task_keys
from parl.sweep.results.measure import Record, mean_of
from parl.sweep.results.page import keep_results, markdown, write_results
from parl.sweep.state import Outcome

TEXT = """name: mine
base: base.yaml
grid: {sft.seed: [1, 2], seed: [1, 2]}
arms:
  swarm: {}
  single: {rollouts.swarm: false}
  cold_start: {policy: cold_start}
evaluate: {groups: {broad: {families: [wide], least_width: 8, most_width: 16}}}
"""
WIDTHS = {"a": 2, "b": 8, "c": 16, "d": 1}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(to_yaml(tiny_config(Path("runs"))))
    Path("sweep.yaml").write_text(TEXT)
    return read_sweep(Path("sweep.yaml"))


def record(task: str, **values: float) -> Record:
    width = WIDTHS[task]
    return Record(family="wide" if width > 1 else "chain", width=width, values=values)


def done_cells(sweep: Any, tokens: bool = False) -> list[Done]:
    """The single agent needs twice the steps of the swarm, plus 1 with the second cold start; d is failed by all."""
    found = []
    for cell in cells(sweep, {}):
        factor = {"swarm": 1, "single": 2, "cold_start": 3}[cell.arm]
        extra = cell.arm == "single" and cell.at["sft.seed"] == "2"
        numbers = {
            task: {
                "success": float(task != "d"),
                "item_f1": 1.0 if task != "d" else 0.25,
                "critical_steps": factor * (width + 1.0) + extra,
                "spawned": float(cell.arm == "swarm" and width > 1),
                **({"path_tokens": 10.0 * width} if tokens else {}),
            }
            for task, width in WIDTHS.items()
        }
        records = {task: record(task, **values) for task, values in numbers.items()}
        outcome = Outcome(key=cell.key, wall_s=60.0, store="evals/x", label=cell.policy, cold=cell.cold)
        found.append(Done(cell=cell, outcome=outcome, records=records))
    return found


def row_of(found: dict[str, Any], kind: str, **wanted: str) -> dict[str, Any]:
    return next(row for row in found[kind] if all(row[key] == value for key, value in wanted.items()))


def test_means_of_each_group_are_those_of_its_tasks_and_runs(sweep):
    found = aggregate(sweep, done_cells(sweep), cells=10)
    assert (found["cold_starts"], found["done"], found["tasks"], found["reference"]) == (2, 10, 4, "swarm")
    swarm = row_of(found, "rows", arm="swarm", group="all")
    assert swarm["success"]["value"] == pytest.approx(0.75) and swarm["item_f1"]["value"] == pytest.approx(0.8125)
    assert swarm["critical_steps"]["value"] == pytest.approx((3 + 9 + 17 + 2) / 4)
    assert (swarm["runs"], swarm["cold_starts"]) == (4, 2)
    single = row_of(found, "rows", arm="single", group="broad")
    assert single["tasks"] == 2 and single["critical_steps"]["value"] == pytest.approx((18 + 34) / 2 + 0.5)
    assert single["by_run"]["single-sft.seed2-seed1"]["critical_steps"] == pytest.approx(27.0)
    assert all(row["critical_steps"]["low"] >= 0 for row in found["rows"])
    chain = row_of(found, "rows", arm="swarm", group="chain")
    assert (chain["tasks"], chain["spawn_rate"]["value"], chain["item_f1"]["value"]) == (1, 0.0, 0.25)


def test_a_column_that_no_episode_has_is_null_and_in_no_table(sweep):
    without = aggregate(sweep, done_cells(sweep), cells=10)
    assert row_of(without, "rows", arm="swarm", group="all")["path_tokens"] is None
    assert "path tokens" not in markdown(without | {"chosen": {}})
    there = aggregate(sweep, done_cells(sweep, tokens=True), cells=10)
    assert row_of(there, "rows", arm="swarm", group="all")["path_tokens"]["value"] == pytest.approx(67.5)
    assert "path tokens" in markdown(there | {"chosen": {}})


def test_differences_are_paired_by_point_of_the_grid_and_task(sweep):
    found = aggregate(sweep, done_cells(sweep), cells=10)
    own = row_of(found, "differences", arm="single", group="all")
    assert own["pairs"] == 4 and own["reference"] == "swarm"
    assert own["critical_steps"]["difference"]["value"] == pytest.approx(31 / 4 + 0.5)
    assert own["critical_steps"]["ratio"]["value"] == pytest.approx((31 * 2 / 4 + 0.5) / (31 / 4), rel=0.02)
    assert own["success"]["difference"] == {"value": 0.0, "low": pytest.approx(-0.6024, abs=1e-3),
                                            "high": pytest.approx(0.6024, abs=1e-3)}  # fmt: skip
    start = row_of(found, "differences", arm="cold_start", group="all")
    assert start["pairs"] == 4 and start["critical_steps"]["ratio"]["value"] == pytest.approx(3.0)


def test_unfinished_cells_are_said_and_only_common_tasks_count(sweep):
    own = [one for one in done_cells(sweep) if one.cell.arm != "cold_start"]
    short = Done(cell=own[0].cell, outcome=own[0].outcome, records={k: own[0].records[k] for k in ("a", "b")})
    found = aggregate(sweep, [short, *own[1:]], cells=10)
    assert found["tasks"] == 2 and found["only_common"]
    text = markdown(found | {"chosen": {}})
    assert "8 of 10 cells" in text and "Cells are missing" in text and "only those that all have count" in text
    assert task_keys([short, *own[1:]]) == {"a", "b"}
    with pytest.raises(UserError, match="no cell of sweep mine is done"):
        aggregate(sweep, [], cells=10)


def test_curves_hold_mean_and_range_over_the_runs_of_an_arm(sweep):
    done = done_cells(sweep)
    for number, one in enumerate(one for one in done if one.cell.arm == "swarm"):
        folder = one.cell.config.run_dir
        (folder / "policy").mkdir(parents=True)
        (folder / "policy" / "model.safetensors").touch()
        (folder / "policy" / "meta.json").write_text('{"step": 2}')
        rows = [{"step": step, "kind": "train", "steps/critical": 10.0 * step + number} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = aggregate(sweep, done, cells=10)
    assert found["curves"] == {"swarm": {"steps/critical": [[1, 11.5, 10.0, 13.0], [2, 21.5, 20.0, 23.0]]}}


def test_the_page_holds_every_number_of_the_table_without_network_or_script(sweep, tmp_path: Path):
    found = aggregate(sweep, done_cells(sweep, tokens=True), cells=10)
    chosen = {"swarm": {"chosen": {"optimizer.lr": "1e-4"}, "scores": [{"score": 0.5, "optimizer.lr": "1e-4"}]}}
    found |= {"chosen": chosen, "sweep": "<b>mine</b>"}
    page = write_results(found, tmp_path / "out").read_text()
    text = (tmp_path / "out" / "table.md").read_text()
    for number in re.findall(r"\d+\.\d+ \[[^]]+\]", text):
        assert number in page
    assert "swarm: optimizer.lr=1e-4, chosen on val (1e-4: 0.500)." in text
    assert "<b>mine</b>" not in page and "<script" not in page and "http://www.w3.org" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    figures = {file.name for file in (tmp_path / "out" / "figures").iterdir()}
    assert {"bars-success.svg", "bars-critical-steps.svg", "bars-path-tokens.svg"} <= figures
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"] == found["rows"]


def test_kept_results_have_their_command_and_file(sweep, tmp_path: Path):
    found = aggregate(sweep, done_cells(sweep), cells=10) | {"chosen": {}}
    write_results(found, tmp_path / "out")
    for _ in range(2):  # a second time over the first
        keep_results(tmp_path / "out", tmp_path / "kept", Path("sweep.yaml"))
    kept = tmp_path / "kept"
    assert (kept / "sweep.yaml").read_text() == TEXT
    text = (kept / "README.md").read_text()
    assert f"parl sweep sweep.yaml --keep {kept}" in text and "10 of 10 cells, 10:00 together" in text
    assert (kept / "results.json").read_bytes() == (tmp_path / "out" / "results.json").read_bytes()
    assert list((kept / "figures").glob("*.svg"))


def test_a_metric_to_choose_by_must_be_in_every_episode():
    found = {"a": record("a", reward=0.5, success=1.0), "b": record("b", reward=1.0)}
    assert mean_of(found, "reward") == pytest.approx(0.75)
    with pytest.raises(UserError, match=r"choose\.metric = success is no metric of every episode; there are: reward"):
        mean_of(found, "success")
