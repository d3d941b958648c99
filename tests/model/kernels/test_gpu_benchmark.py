"""The GPU benchmark on a CPU: the same code at small sizes writes all documented rows."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
NAMES = {"what", "shape", "dtype", "value", "unit", "peer", "peer_value", "parity", "ok", "goal", "reason"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_same_code_runs_on_a_cpu_and_every_row_holds_or_says_why_it_is_not_there(tmp_path: Path):
    out, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    page.write_text("# Kept\n\n<!-- measured -->old<!-- end of what was measured -->\n\nLearned.\n")
    command = [sys.executable, str(SCRIPT), "--cpu", "--json", str(out), "--page", str(page)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert {"date", "torch", "triton", "device"} <= set(found["facts"])
    for row in found["rows"]:
        assert set(row) == NAMES and row["ok"] is not False, row
        assert row["value"] is not None or row["reason"], row
    checked = {row["what"] for row in found["rows"] if row["ok"]}
    promised = {"router", "router's gradient", "dispatch", "experts", "dx", "dW13", "dW2", "dweights", "INT4"}
    promised |= {"runs repeat", "a token's neighbours change nothing", "experts forward", "experts forward + backward"}
    assert checked >= promised | {"learner step", "experts decoding, time", "gate, time"}
    skipped = [row["what"] for row in found["rows"] if row["value"] is None]
    assert any("CUDA graph" in what for what in skipped) and any("embedded engine" in what for what in skipped)
    text = page.read_text()
    assert (
        text.startswith("# Kept\n") and text.endswith("Learned.\n") and "old" not in text and "| ✓ | router |" in text
    )


def test_a_section_that_breaks_becomes_a_row_and_loses_no_other(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch):
    def broken(bench: object) -> None:
        raise RuntimeError("no such kernel")

    bench = gpu.Bench("cpu")
    monkeypatch.setitem(gpu.SECTIONS, "experts", broken)
    gpu.run(bench, ["experts", "not yet"])
    assert bench.rows[0]["ok"] is False and "no such kernel" in bench.rows[0]["reason"]
    assert len(bench.rows) > 1 and all(row["ok"] is None and row["reason"] for row in bench.rows[1:])


def test_goals_are_judged_only_on_the_card_that_they_are_set_for(gpu: ModuleType):
    bench = gpu.Bench("cpu")
    for judged in (False, True):
        bench.judged = judged
        bench.add("fast", 10.0, "µs", goal="<= 15", ok=True)
        bench.add("slow", 20.0, "µs", goal="<= 15", ok=True)
        bench.add("slow without parity", 400.0, "TFLOP/s", goal=">= 470")
        bench.add("fast and wrong", 10.0, "µs", goal="<= 15", ok=False)
    assert [row["ok"] for row in bench.rows] == [True, True, None, False, True, False, False, False]
