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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_of_transformers_is_measured_as_a_plain_script(tmp_path: Path):
    transformers = pytest.importorskip("transformers", minversion="5.24")
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "model")
    out = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/learner.py", "--model", str(tmp_path / "model"), "--steps", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--rows", "episodes", "--json", str(out)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    found = [(row["trainer"], row["ranks"]) for row in rows]
    assert found == [
        ("parl-bfloat16", 1),
        ("parl-bfloat16", 2),
        ("parl-bfloat16_muon", 1),
        ("parl-float32", 1),
        ("transformers-autocast", 1),
        ("transformers-float32", 1),
    ]
    for row in rows:
        assert row["rows"] == "episodes" and row["tokens_per_s"] > 0 and row["tokens_per_cpu_s"] > 0
        assert row["peak_gib"] > 0.1
