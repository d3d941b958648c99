"""``parl top`` for running, finished, silent and damaged runs."""

from __future__ import annotations

import json
import os

import pytest
from rich.console import Console
from stored import make_run
from tiny import tiny_config
from typer.testing import CliRunner

from parl.cli.main import app
from parl.track.alarms import alarms
from parl.track.top import frame


@pytest.fixture
def run_dir(tmp_path):
    folder = make_run(tiny_config(tmp_path, trainer={"steps": 8}), steps=2)
    rows = [
        {"step": i, "kind": "train", "reward/total": i / 10, "steps/critical": 9.0 - i, "time/step_s": 2.0}
        for i in (1, 2)
    ]
    rows[1] |= {"perf/item_f1/wide": 0.5, "steps/critical/wide": 7.0, "time/collect_s": 3.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "kin')
    return folder


def shown(folder, now=None) -> str:
    console = Console(width=130, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(frame(folder, now))
    return console.export_text()


def test_a_running_run_shows_its_numbers_and_its_slowest_episodes(run_dir):
    text = shown(run_dir, (run_dir / "metrics.jsonl").stat().st_mtime + 1)
    assert "step 2/8" in text and "last step 0:01 ago · about 0:12 left" in text
    assert "0.200" in text and "0.100 to 0.200" in text  # the reward and its range
    assert "collect 75%" in text and "train-000002:" in text and "0.500" in text


def test_a_run_without_news_is_called_silent_and_an_evaluated_one_finished(run_dir):
    assert "silent for 10:00" in shown(run_dir, (run_dir / "metrics.jsonl").stat().st_mtime + 600)
    (run_dir / "summary.json").write_text("{}")
    assert "finished" in shown(run_dir)


def test_a_damaged_shard_is_named_and_the_rest_is_still_shown(run_dir):
    (run_dir / "episodes" / "train-000002.parquet").write_bytes(b"PAR1 no more")
    text = shown(run_dir)
    assert "cannot be read" in text and "step 2/8" in text


def test_before_the_first_step_it_says_what_is_going_on(tmp_path):
    folder = make_run(tiny_config(tmp_path), steps=0)
    assert "no step yet" in shown(folder) and "no episodes stored yet" in shown(folder)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"episodes/failed": 2.0}, "2 episodes failed"),
        ({"policy/engine_gap": 0.01}, "1.0e-02 nats"),
        ({"episodes/malformed": 5.0, "episodes/answered": 5.0}, "5 malformed"),
        ({"swarm/useless_spawn_rate": 0.9, "lambda/parallel": 0.0}, "λ1 is 0"),
        ({"swarm/spawn_rate": 0.0, "lambda/parallel": 0.1}, "serial collapse"),
        ({"policy/loss": None}, "not a number"),
        ({"turns/unread": 0.3, "episodes/malformed": 5.0}, "30% of the turns cannot be read"),
        ({"turns/cut": 0.25}, "25% of the turns are cut by length"),
        ({"turns/calls": 0.0}, "no agent called a tool"),
    ],
)
def test_what_looks_wrong_is_said(row, said):
    [text] = alarms(row, 1)
    assert said in text


def test_the_command_prints_one_frame_and_names_a_missing_run(run_dir, tmp_path):
    done = CliRunner().invoke(app, ["top", str(run_dir), "--once"])
    assert done.exit_code == 0 and "step 2/8" in done.output
    done = CliRunner().invoke(app, ["top", str(tmp_path / "nothing"), "--once"])
    assert done.exit_code == 2 and "no run in" in done.output


def test_a_healthy_row_gives_no_warning():
    healthy = {"episodes/failed": 0.0, "policy/engine_gap": 1e-5, "swarm/spawn_rate": 0.5, "lambda/parallel": 0.1}
    assert alarms(healthy, 1) == alarms({}, 0) == []
    rounded = healthy | {"policy/engine_gap": 0.3}  # as far apart as two of transformers' attentions in bfloat16
    assert alarms(rounded, 1, "bfloat16") == [] != alarms(rounded, 1)
