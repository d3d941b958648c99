"""Loading a checkpoint of many small shards needs the model and about one shard, not the model twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux' /proc")
def test_the_peak_of_loading_is_the_model_and_a_shard():
    """The model is three times the slack, so that a second copy would show."""
    command = [sys.executable, "benchmarks/checkpoint_memory.py", "--gb", "0.1", "--shard-mb", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shards" in done.stdout and "beyond model + one shard" in done.stdout
