"""The kill benchmark: a few kills pass, and it detects a run that differs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kill import differences
from parl.run.checkpoints import MANIFEST, Checkpoints, State

ROOT = Path(__file__).parents[3]


def checkpoint(folder: Path, step: int, episodes: int = 0) -> None:
    checkpoints = Checkpoints(folder / "checkpoints", keep=5)
    state = State(step=step, episodes=episodes, elapsed_s=float(len(str(folder))))
    checkpoints.commit(state, checkpoints.begin(state, 1))


def test_a_checkpoint_that_differs_is_found(tmp_path: Path):
    for step in (1, 2):
        checkpoint(tmp_path / "reference", step)
        checkpoint(tmp_path / "other", step)
    assert differences(tmp_path / "other", tmp_path / "reference") == []
    path = tmp_path / "other" / "checkpoints" / "step-000002" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["parts"] = [{"file": "part-00000.safetensors", "bytes": 1, "sha256": "0"}]
    path.write_text(json.dumps(manifest))
    assert differences(tmp_path / "other", tmp_path / "reference") == ["step-000002"]
    shutil.rmtree(tmp_path / "other")
    checkpoint(tmp_path / "other", 1, episodes=8)
    assert differences(tmp_path / "other", tmp_path / "reference") == ["step-000001"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_of_two_ranks_that_is_killed_again_and_again_continues_bit_by_bit(tmp_path: Path):
    command = [sys.executable, "benchmarks/kill.py", "--kills", "4", "--steps", "8", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all continued bit by bit" in done.stdout
