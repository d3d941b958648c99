"""An exported policy in vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("PARL_VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(PYTHON is None, reason="vllm is not installed: set PARL_VLLM_PYTHON to an interpreter that has it")
def test_vllm_serves_an_exported_policy_with_transformers_tokens_and_logprobs():
    command = [sys.executable, "benchmarks/serve_vllm.py", "--python", str(PYTHON), "--start-s", "1200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tokens equal, log-probs within" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
@pytest.mark.skipif(PYTHON is None, reason="vllm is not installed: set PARL_VLLM_PYTHON to an interpreter that has it")
def test_a_folder_is_trained_exported_and_trained_against_a_server_without_a_restart(kind: str, tmp_path: Path):
    pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")
    from benchmarks.tiny_models import write

    folder = write(kind, tmp_path / "given", sharded=kind == "qwen3_moe")
    command = [sys.executable, "benchmarks/own_model_vllm.py", "--model", str(folder), "--python", str(PYTHON)]
    command += ["--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3500)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(row["ok"] for row in rows) and sum("probe" in row["check"] for row in rows) >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(PYTHON is None, reason="vllm is not installed: set PARL_VLLM_PYTHON to an interpreter that has it")
def test_a_run_trains_against_a_real_vllm_server_and_each_token_has_its_version():
    command = [sys.executable, "benchmarks/train_vllm.py", "--python", str(PYTHON), "--weights", "transfer"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each token has its step's version; log-probs agree" in done.stdout
