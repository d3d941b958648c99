"""The stages of a sweep with processes that stand in for runs: order, failures, choices, repetition, interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_config

from parl.config.load import to_yaml
from parl.errors import UserError
from parl.sweep import processes, run
from parl.sweep.cells import cells, trials
from parl.sweep.estimate import Clock, from_earlier
from parl.sweep.file import read_sweep
from parl.sweep.kept import keep_cells
from parl.sweep.processes import excerpt
from parl.sweep.run import choices, run_sweep
from parl.sweep.state import Folder, Order, Outcome

HERE = Path(__file__).parent
TEXT = """name: mine
base: base.yaml
set: {trainer.steps: 4}
grid: {sft.seed: [1, 2]}
arms:
  swarm: {}
  single: {rollouts.swarm: false}
  cold_start: {policy: cold_start}
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's file in the current folder, whose cells are stood in for; nothing is reported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, str(HERE / "stand_in.py")))
    monkeypatch.setattr(run, "_write_report", lambda *_: None)
    Path("base.yaml").write_text(to_yaml(tiny_config(Path("runs"))))
    Path("sweep.yaml").write_text(TEXT)
    behave()
    return Path("sweep.yaml")


def behave(**cells: str) -> None:
    Path("behaviour.json").write_text(json.dumps({name.replace("__", "-"): how for name, how in cells.items()}))


def started() -> list[str]:
    file = Path("started.txt")
    found = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return found


def test_cold_starts_come_first_and_a_second_start_runs_nothing(sweep: Path):
    assert run_sweep(sweep) == []
    order = started()
    assert [name.startswith("cold-start-") for name in order[:3]] == [True, True, False]
    assert order[2:] == [f"{arm}-sft.seed{i}" for arm in ("swarm", "single", "cold_start") for i in (1, 2)]
    for name in ("model.safetensors",):  # as if the cold starts were there
        for cell in cells(read_sweep(sweep), {}):
            (Path("runs/cold_start") / cell.cold).mkdir(parents=True, exist_ok=True)
            (Path("runs/cold_start") / cell.cold / name).touch()
    assert run_sweep(sweep) == [] and started() == []


def test_a_failed_cell_shows_its_traceback_and_the_others_go_on(sweep: Path, capsys):
    behave(**{"swarm__sft.seed1": "fail", "single__sft.seed2": "mistake"})
    assert run_sweep(sweep) == ["swarm-sft.seed1", "single-sft.seed2"]
    assert len(started()) == 8
    told = capsys.readouterr().err
    assert "swarm-sft.seed1 FAILED (exit code 1)" in told and "RuntimeError: no luck with swarm-sft.seed1" in told
    assert "Traceback (most recent call last):" in told
    assert "single-sft.seed2 FAILED (exit code 2)" in told and "error: trainer.steps is too few" in told
    behave()
    assert run_sweep(sweep) == []
    assert [name for name in started() if not name.startswith("cold-start")] == ["swarm-sft.seed1", "single-sft.seed2"]


def test_cells_of_a_cold_start_that_failed_are_not_run(sweep: Path, capsys):
    second = next(cell.cold for cell in cells(read_sweep(sweep), {}) if cell.at == {"sft.seed": "2"})
    behave(**{f"cold__start__{second}": "fail"})
    failed = run_sweep(sweep)
    assert failed == [f"cold-start-{second}", "swarm-sft.seed2", "single-sft.seed2", "cold_start-sft.seed2"]
    assert not any(name.endswith("seed2") for name in started())
    assert "not run, its cold start failed: swarm-sft.seed2" in capsys.readouterr().err


def test_of_equal_trials_the_smallest_value_is_taken_and_untuned_arms_keep_theirs(sweep: Path):
    sweep.write_text(TEXT + "choose: {grid: {optimizer.lr: [1e-4, 3e-4, 2e-4]}, arms: [swarm]}\n")
    assert run_sweep(sweep) == []
    order = started()
    assert order[2:5] == [f"trial-swarm-sft.seed1-optimizer.lr{lr}" for lr in ("1e-4", "3e-4", "2e-4")]
    asked = {name: Order.read(Path(f"runs/mine/cells/{name}.json")) for name in order[5:]}
    assert "optimizer.lr=2e-4" in asked["swarm-sft.seed2"].overrides
    assert asked["swarm-sft.seed1"].folder == "runs/mine/swarm-sft.seed1-optimizer.lr2e-4"
    assert not any(text.startswith("optimizer.lr") for text in asked["single-sft.seed1"].overrides)


def test_an_arm_without_all_of_its_trials_is_not_run(sweep: Path):
    sweep.write_text(TEXT + "choose: {grid: {optimizer.lr: [1e-4, 3e-4]}, arms: [swarm]}\n")
    behave(**{"trial__swarm__sft.seed1__optimizer.lr3e-4": "fail"})
    failed = run_sweep(sweep)
    assert failed == ["trial-swarm-sft.seed1-optimizer.lr3e-4", "swarm-sft.seed1", "swarm-sft.seed2"]
    assert "swarm-sft.seed2" not in started()
    parsed = read_sweep(sweep)
    assert choices(parsed, Folder(Path("runs/mine")), trials(parsed)) == {}


def test_a_run_whose_configuration_changed_is_refused_or_run_anew(sweep: Path):
    run_sweep(sweep)
    started()
    for cell in cells(read_sweep(sweep), {}):
        cell.config.run_dir.mkdir(parents=True, exist_ok=True)
        (cell.config.run_dir / "config.yaml").write_text(to_yaml(cell.config))
    sweep.write_text(TEXT.replace("trainer.steps: 4", "trainer.steps: 6"))
    with pytest.raises(UserError) as refused:
        run_sweep(sweep)
    assert "swarm-sft.seed1: trainer.steps was 4 and is 6" in str(refused.value) and "--again" in str(refused.value)
    assert started() == []
    assert run_sweep(sweep, again=True) == []
    assert "single-sft.seed2" in started()
    assert Order.read(Path("runs/mine/cells/single-sft.seed2.json")).anew


def test_another_evaluation_runs_the_cells_without_training_them_anew(sweep: Path):
    run_sweep(sweep)
    started()
    for cell in cells(read_sweep(sweep), {}):
        cell.config.run_dir.mkdir(parents=True, exist_ok=True)
        (cell.config.run_dir / "config.yaml").write_text(to_yaml(cell.config))
    sweep.write_text(TEXT + "evaluate: {tasks: 3}\n")
    assert run_sweep(sweep) == []
    assert "swarm-sft.seed1" in started()
    assert not Order.read(Path("runs/mine/cells/swarm-sft.seed1.json")).anew


def test_only_some_arms_are_run(sweep: Path):
    assert run_sweep(sweep, only=["single"]) == []
    assert [name for name in started() if not name.startswith("cold-")] == ["single-sft.seed1", "single-sft.seed2"]
    with pytest.raises(UserError, match="--only other: no arm is called so; there are: swarm"):
        run_sweep(sweep, only=["other"])


def test_jobs_run_at_once(sweep: Path):
    behave(**{"swarm__sft.seed1": "hang"})
    code = (
        "import sys; from pathlib import Path; from parl.sweep import processes, run\n"
        f"processes.COMMAND = (sys.executable, {str(HERE / 'stand_in.py')!r}); run._write_report = lambda *_: None\n"
        "run.run_sweep(Path('sweep.yaml'), jobs=2)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        wanted = [Path(f"runs/mine/done/{name}.json") for name in ("single-sft.seed1", "cold_start-sft.seed2")]
        deadline = time.monotonic() + 240
        while not all(file.exists() for file in wanted) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert all(file.exists() for file in wanted)
        assert not Path("runs/mine/done/swarm-sft.seed1.json").exists()
        with pytest.raises(UserError, match="a sweep is under way"):
            run_sweep(sweep)
        hanging = [int(pid) for pid in Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()]
        driver.send_signal(signal.SIGINT)
        assert driver.wait(120) != 0
        assert hanging and not any(Path(f"/proc/{pid}").exists() for pid in hanging)
    finally:
        driver.kill()


def test_the_excerpt_is_the_first_traceback_of_the_last_try(tmp_path: Path):
    log = tmp_path / "log"
    first = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nValueError: the cause\n'
    second = 'Traceback (most recent call last):\n  File "b.py", line 2, in g\nKeyError: later\n'
    log.write_text(f"\n--- 2026-01-01 old\n{second}\n--- 2026-01-02 new\nstep 1\n{first}\nDuring handling\n\n{second}")
    assert excerpt(log) == first.strip()
    log.write_text("\n--- 2026-01-01 x\nnote: all is well\nerror: no such file\n")
    assert excerpt(log) == "error: no such file"
    log.write_text("\n--- 2026-01-01 x\nlast words\n")
    assert excerpt(log) == "last words"


def test_time_left_is_that_of_cells_like_those_to_come(sweep: Path):
    known = cells(read_sweep(sweep), {})
    folder = Folder(Path("runs/mine"))
    clock = Clock(folder, known)
    orders = {cell.id: Order.of(cell, Path("base.yaml"), None) for cell in known}
    waiting = [orders["swarm-sft.seed2"], orders["cold_start-sft.seed2"]]
    assert clock.left([], waiting, 1) is None
    clock.took(orders["swarm-sft.seed1"], 100.0)
    clock.took(orders["cold_start-sft.seed1"], 10.0)
    assert clock.left([], waiting, 1) == pytest.approx(110.0)
    assert clock.left([(orders["single-sft.seed1"], 30.0, 0.25)], waiting, 1) == pytest.approx(90 + 110)
    assert clock.left([(orders["single-sft.seed1"], 30.0, None)], waiting, 2) == pytest.approx(100.0)


def test_the_estimate_is_that_of_done_cells_else_of_a_run_of_the_same_policy(sweep: Path):
    known = cells(read_sweep(sweep), {})
    folder = Folder(Path("runs/mine"))
    assert from_earlier(known, known, folder) is None
    earlier = Path("runs/earlier")
    earlier.mkdir(parents=True)
    (earlier / "config.yaml").write_text(to_yaml(known[0].config))
    rows = [{"step": i, "kind": "train", "time/step_s": 5.0} for i in (1, 2)]
    (earlier / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = from_earlier(known, known, folder)
    assert found and found[0] == pytest.approx(4 * 4 * 5.0) and "runs/earlier took 5.0 s" in found[1]
    folder.report(known[0].id, Outcome(key="any", wall_s=60.0))
    found = from_earlier(known[1:], known, folder)
    assert found and found[0] == pytest.approx(3 * 60.0)


def test_a_dry_run_prints_every_cell_and_writes_nothing(sweep: Path, capsys):
    assert run_sweep(sweep, dry_run=True) == []
    told = capsys.readouterr().out
    assert "single-sft.seed2 [to do]: sft.seed=2, rollouts.swarm=false" in told
    assert "cold_start-sft.seed1 [to do]: only evaluates cold_start, sft.seed=1, rollouts.swarm=true" in told
    assert "8 cells in runs/mine: 4 train, 8 are to do" in told
    assert not os.path.exists("runs") and started() == []


def test_kept_cells_are_taken_back_elsewhere_and_only_as_they_are_configured_now(sweep: Path, capsys):
    folder = Folder(Path("runs/mine"))
    for cell in cells(read_sweep(sweep), {})[:2]:
        store = cell.config.run_dir / "evals" / "trained-1"
        store.mkdir(parents=True)
        (store / "trained-000000.parquet").write_bytes(b"episodes")
        (cell.config.run_dir / "weights").write_bytes(b"heavy")
        folder.report(cell.id, Outcome(key=cell.key, wall_s=9.0, store="evals/trained-1", label="trained"))
    keep_cells(folder, cells(read_sweep(sweep), {}), Path("kept"))
    first = cells(read_sweep(sweep), {})[0]
    assert sorted(p.name for p in (Path("kept/cells") / first.id).iterdir()) == ["evals"]
    shutil.rmtree("runs")
    assert run_sweep(sweep, keep=Path("kept")) == []
    assert "2 finished cells are taken from kept" in capsys.readouterr().out
    assert first.id not in started() and first.config.run_dir.joinpath("evals/trained-1").is_dir()
    shutil.rmtree("runs")
    sweep.write_text(TEXT.replace("trainer.steps: 4", "trainer.steps: 5"))
    assert run_sweep(sweep, keep=Path("kept")) == [] and first.id in started()  # of another configuration
