"""The learner benchmark runs and writes all documented rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_measures_parl_and_torch_and_writes_rows(tmp_path: Path):
    sizes = ["--tokens", "1500", "--steps", "1", "--ranks", "1", "2"]
    command = [sys.executable, "-m", "benchmarks.learner", "--only", "parl", "torch", *sizes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [*command, "--json", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert [(row["trainer"], row["ranks"]) for row in rows] == [("parl", 1), ("parl", 2), ("torch", 1)]
    names = {"trainer", "model", "ranks", "zero", "ep", "tokens_per_s", "mfu", "peak_gib", "step_ms", "sync_ms"}
    for row in rows:
        assert set(row) == names
        assert row["tokens_per_s"] > 0 and 0 < row["mfu"] < 1.5 and row["peak_gib"] > 0.1
