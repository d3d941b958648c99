"""The Triton kernels: their cases in Triton's interpreter, on a GPU, and compiled for Hopper."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
CASES = Path(__file__).with_name("triton_cases.py")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(*command: str, interpreted: bool) -> subprocess.CompletedProcess[str]:
    """Run in a separate Python, because Triton decides at import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpreted)), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = sys.executable, *command
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850)


def passes(interpreted: bool) -> None:
    done = run("-m", "pytest", str(CASES), "-p", "no:cacheprovider", interpreted=interpreted)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(900)  # about 40 s of processor time, minutes on a busy machine
def test_the_kernels_agree_with_the_specification_in_the_interpreter():
    passes(interpreted=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernels_agree_with_the_specification_on_the_gpu():
    passes(interpreted=False)


@pytest.mark.slow
@pytest.mark.timeout(900)  # about 40 s of processor time, minutes on a busy machine
@pytest.mark.skipif(sys.platform != "linux", reason="ptxas comes with Triton for Linux")
def test_every_kernel_compiles_for_hopper_without_spilling(tmp_path: Path):
    """The interpreter accepts code that the compiler rejects. Products must use wgmma to be fast."""
    report = tmp_path / "kernels.json"
    done = run("benchmarks/kernels_compile.py", "--bf16", "--json", str(report), interpreted=False)
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = json.loads(report.read_text())
    assert {kernel["kernel"].split(".")[0] for kernel in kernels} >= {"route", "dispatch", "grouped", "fake_quant"}
    for kernel in kernels:
        product = kernel["kernel"].split(".")[1] in ("_up", "_rows_kernel", "_dact", "_dw")
        assert kernel["shared_bytes"] <= 232448 and kernel["stack_bytes"] <= 16, kernel
        assert kernel["wgmma"] == product, kernel
