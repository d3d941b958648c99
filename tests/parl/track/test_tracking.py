"""Tracking survives a kill: one W&B run, one JSONL."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from parl.config.schema import TrackingConfig
from parl.track.progress import Progress, sparkline
from parl.track.tracker import Tracker, read_rows
from parl.track.wandb_reader import read_history, read_records, wandb_files

OFFLINE = TrackingConfig(wandb="offline")
DISABLED = TrackingConfig(wandb="disabled")


def _steps(rows: list[dict], key: str = "step") -> list[int]:
    return [row[key] for row in rows if key in row]


def test_offline_run_reads_back_every_step_on_its_own_axis(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, OFFLINE)
    for step in range(1, 4):
        tracker.log(step, {"reward/total": step / 10, "steps/critical": 30.0 - step, "speed/odd": math.nan})
    tracker.log(3, {"eval/item_f1": 0.5, "x": math.inf}, kind="eval")
    tracker.table("verdict", ["policy", "item_f1"], [["trained", 0.9]])
    (tmp_path / "report.html").write_text("<p>")
    tracker.artifact(tmp_path / "report.html", "report")
    tracker.summary({"wide/item_f1": 0.9})
    tracker.finish()
    tracker.finish()

    rows = read_history(tmp_path)
    assert _steps(rows, "train/step") == [1, 2, 3]
    assert [row["train/reward/total"] for row in rows if "train/step" in row] == [0.1, 0.2, 0.3]
    assert [row["eval/item_f1"] for row in rows if "eval/step" in row] == [0.5]
    assert [row["verdict"]["_type"] for row in rows if "verdict" in row] == ["table-file"]
    assert read_history(tmp_path, tracker._run_id) == rows
    assert read_history(tmp_path, "another") == []
    jsonl = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["kind"]) for row in jsonl] == [(1, "train"), (2, "train"), (3, "train"), (3, "eval")]
    assert jsonl[0]["speed/odd"] is None and jsonl[3]["x"] is None


_CHILD = """
import sys, time
from pathlib import Path
from parl.config.schema import TrackingConfig
from parl.track.tracker import Tracker
tracker = Tracker(Path(sys.argv[1]), TrackingConfig(wandb="offline"), "abcd1234")
for step in range(1, 6):
    tracker.log(step, {"reward/total": float(step)})
print("logged", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_sigkilled_run_continues_and_no_step_is_missing_or_doubled(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # a process tree of its own
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout and child.stdout.readline().strip() == "logged"
    child.kill()
    child.wait()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "ki')

    tracker = Tracker(tmp_path, OFFLINE, "abcd1234", resumed_step=3)
    assert tracker._run_id == "abcd1234"
    assert _steps(read_rows(path)) == [1, 2, 3]
    tracker.log(3, {"reward/total": 99.0})  # a row from before the kill is not written twice
    for step in range(4, 7):
        tracker.log(step, {"reward/total": float(step)})
    tracker.finish()

    assert _steps(read_rows(path)) == [1, 2, 3, 4, 5, 6]
    assert set(_steps(read_history(tmp_path), "train/step")) == {1, 2, 3, 4, 5, 6}
    assert all(file.name == "run-abcd1234.wandb" for file in wandb_files(tmp_path))


def test_rows_that_wandb_lost_are_logged_again(tmp_path: Path) -> None:
    rows = [{"step": step, "kind": "train", "reward/total": float(step)} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tracker = Tracker(tmp_path, OFFLINE, "lost0001", resumed_step=2)
    tracker.finish()
    assert _steps(read_history(tmp_path), "train/step") == [1, 2]
    tracker = Tracker(tmp_path, OFFLINE, "lost0001", resumed_step=2)
    tracker.finish()
    assert _steps(read_history(tmp_path), "train/step") == [1, 2]  # they are there now: not a third time


def test_wandb_failure_is_one_warning_and_the_jsonl_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def fail(**_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.warns(UserWarning, match="no network") as caught:
        tracker = Tracker(tmp_path, OFFLINE)
        tracker.log(1, {"a": 1.0})
        tracker.table("t", ["a"], [[1]])
        tracker.summary({"a": 1})
        tracker.finish()
    assert len(caught) == 1
    assert _steps(read_rows(tmp_path / "metrics.jsonl")) == [1]


def test_a_fresh_run_starts_an_empty_file_and_a_resumed_one_at_its_step(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, DISABLED)
    for step in (1, 2):
        tracker.log(step, {"a": 1.0})
    tracker.finish()
    Tracker(tmp_path, DISABLED, tracker._run_id, resumed_step=1).finish()
    assert [row["step"] for row in read_rows(tracker.path)] == [1]
    Tracker(tmp_path, DISABLED).finish()
    assert read_rows(tracker.path) == []


def test_reader_joins_chunks_across_blocks_and_stops_at_a_cut_tail() -> None:
    records = [b"a" * 10, b"b" * 100_000, b"c" * 32_000, b"d"]
    data = bytearray(b":W&B\x00\x00\x00")
    for record in records:
        first, rest = True, record
        while True:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += b"\0" * room
                room = 32768
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            data += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not rest:
                break
    assert list(read_records(bytes(data))) == records
    assert list(read_records(bytes(data[:-1]))) == records[:-1]
    assert list(read_records(bytes(data[:60_000]))) == records[:1]
    assert list(read_records(b"")) == []
    assert list(read_records(b"something else")) == []


METRICS = {
    "reward/total": 0.41,
    "perf/item_f1/wide": 0.6,
    "perf/item_f1/chain": 0.8,
    "steps/critical": 21.5,
    "swarm/subagents": 1.25,
    "swarm/spawn_rate/wide": 0.5,
    "swarm/spawn_rate/chain": 0.0,
    "lambda/parallel": 0.3,
    "lambda/finish": 0.1,
    "speed/tokens_per_s": 1234.0,
}


def test_progress_prints_one_plain_line_a_step_without_a_terminal() -> None:
    out = io.StringIO()
    with Progress(2, "quickstart", console=Console(file=out, width=60)) as progress:
        progress.phase("collecting", 1, 96)
        progress.phase("collecting", 2, 96)
        progress.update(1, METRICS)
        progress.phase("learning")
        progress.update(2, {**METRICS, "reward/total": 0.5})
    lines = out.getvalue().splitlines()
    assert len(lines) == 4 and lines[0] == "quickstart"
    for part in ("step 1/2", "reward 0.410", "item-F1 0.700", "critical steps 21.5", "spawn wide 0.50", "1,234 tok/s"):
        assert part in lines[2]


def test_progress_shows_everything_live_in_a_terminal() -> None:
    out = io.StringIO()
    with Progress(40, "quickstart", console=Console(file=out, width=100, force_terminal=True)) as progress:
        for step in range(1, 9):
            progress.update(step, {**METRICS, "reward/total": step / 10, "steps/critical": 40.0 - step})
        progress.phase("collecting", 40, 96)
    text = out.getvalue()
    for part in ("quickstart", "step 8/40", "ETA", "▁▂▃▄▅▆▇█", "█▇▆▅▄▃▂▁", "wide 50%", "λ1 · λ2"):
        assert part in text


def test_the_weights_of_a_strangers_reward_are_shown_by_their_names() -> None:
    out = io.StringIO()
    metrics = {name: value for name, value in METRICS.items() if not name.startswith("lambda/")}
    with Progress(2, "run", console=Console(file=out, width=200)) as progress:
        progress.update(1, {**metrics, "lambda/solved": 0.8, "lambda/tidy": 0.1})
        assert "λ solved 0.80 λ tidy 0.10" in progress.plain()
        assert ("λ solved · λ tidy", "0.80 · 0.10", "") in progress._rows()


def test_the_time_left_is_that_of_the_last_steps_and_no_startup_counts() -> None:
    now, out = [0.0], io.StringIO()
    with Progress(50, "run", console=Console(file=out, width=60), clock=lambda: now[0]) as progress:
        progress.phase("starting engines and learner")
        now[0] += 200.0  # engines, kernels, the first step
        shown = []
        for step in range(1, 21):
            now[0] += 10.0 if step < 15 else 30.0
            progress.update(step, METRICS)
            shown.append(progress.plain().rpartition("ETA ")[2])
    assert shown[:2] == ["?", "?"]
    assert shown[2] == "7:50"  # 47 steps of 10 s
    assert shown[13] == "6:00"
    assert shown[19] == "11:00"  # 30 steps; of the last ten, six took 30 s


def test_a_resumed_run_begins_its_estimate_anew() -> None:
    now = [0.0]
    progress = Progress(50, "run", console=Console(file=io.StringIO()), clock=lambda: now[0])
    with progress:
        for step in (31, 32, 33):
            now[0] += 100.0 if step == 31 else 10.0
            progress.update(step, METRICS)
        assert progress.plain().endswith("ETA 2:50")


def test_sparkline_scales_and_shortens() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0, math.nan, 2.0]) == "▁█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert len(sparkline([float(i) for i in range(1000)], width=40)) == 40


def test_read_rows_refuses_damage_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(textwrap.dedent('{"step": 1, "kind": "train"}\nbroken\n{"step": 2, "kind": "train"}\n'))
    with pytest.raises(ValueError, match=r"metrics.jsonl:2"):
        read_rows(path)


def test_online_without_a_key_is_kept_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    real = wandb.init

    def unreachable(**options: object) -> object:
        if options["mode"] == "online":
            raise wandb.errors.CommError("no network")
        return real(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.warns(UserWarning, match="kept offline"):
        tracker = Tracker(tmp_path, TrackingConfig(wandb="online"))
    tracker.log(1, {"a": 1.0})
    tracker.finish()
    assert _steps(read_history(tmp_path), "train/step") == [1]
