"""Peak memory of writing and loading a checkpoint in many small shards, against the model and one shard.

    python benchmarks/checkpoint_memory.py                  # 1 GB in shards of 16 MB
    python benchmarks/checkpoint_memory.py --gb 48          # needs 48 GB of disk and of memory

Each half runs in a separate process. Its peak is VmHWM (resident memory, the mapped file included) minus the
memory before. Loading may take the model, one shard, and ``SLACK`` for index and allocator; else exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from model.kimi.config import ModelConfig

MB, GB = 10**6, 10**9
SLACK = 32 * MB
ROOT = Path(__file__).parents[1]


def shape(size: float) -> ModelConfig:
    """A mixture of experts whose float32 weights take about ``size`` bytes."""
    wanted = {"hidden_size": 256, "moe_intermediate_size": 128, "vocab_size": 1024, "num_hidden_layers": 5}
    experts = max(2, round(size / 4 / (4 * 3 * 256 * 128)))
    return ModelConfig(**wanted, n_routed_experts=experts, look_back=False, embedding_mean=0.0)


def write(folder: Path, size: float, shard: float) -> dict[str, float]:
    """Write a random model; returns the peak while writing, above the model itself."""
    import torch

    from model.kimi.files.checkpoint import save
    from model.kimi.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(shape(size))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.5)  # touches every page
    before = _status("VmRSS")
    _forget_peak()
    save(model, folder, shard_bytes=round(shard))
    return {"peak": _status("VmHWM") - before, "model": sum(t.nbytes for t in model.state_dict().values())}


def read(folder: Path) -> dict[str, float]:
    """Load it; returns the peak while loading, above the memory before.

    A tiny model is loaded first, so that imports are not measured.
    """
    from model.kimi.files.checkpoint import load, save
    from model.kimi.transformer import Transformer

    with tempfile.TemporaryDirectory() as name:
        save(Transformer(shape(0)), name)
        load(name)
    before = _status("VmRSS")
    _forget_peak()
    model = load(folder)
    return {"peak": _status("VmHWM") - before, "model": sum(t.nbytes for t in model.state_dict().values())}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM from here on


def _apart(half: str, folder: Path, *arguments: float) -> dict[str, float]:
    """``half`` of the measurement in a new process."""
    command = [sys.executable, __file__, "--half", half, str(folder), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print the table; exit code 1 past the limit."""
    parser = argparse.ArgumentParser(description="peak memory of a checkpoint in many small shards")
    parser.add_argument("--gb", type=float, default=1.0, help="size of the model")
    parser.add_argument("--shard-mb", type=float, default=16.0)
    parser.add_argument("--half", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.half:
        half, folder, *rest = arguments.half
        print(json.dumps(write(Path(folder), *map(float, rest)) if half == "write" else read(Path(folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        written = _apart("write", folder, arguments.gb * GB, arguments.shard_mb * MB)
        files = sorted(folder.glob("*.safetensors"))
        loaded = _apart("read", folder)
        largest = max(file.stat().st_size for file in files)
    table = Table("", "MB", title=f"{len(files)} shards", title_justify="left")
    limits = {"model": loaded["model"], "largest shard": largest}
    peaks = {"writing, above the model": written["peak"], "loading": loaded["peak"]}
    for label, size in (limits | peaks).items():
        table.add_row(label, f"{size / MB:,.1f}")
    over = loaded["peak"] - sum(limits.values())
    table.add_row("loading, beyond model + one shard", f"{over / MB:,.1f}", style="bold")
    Console().print(table)
    if over > SLACK:
        raise SystemExit(f"loading took {over / MB:,.1f} MB beyond model and one shard, not {SLACK / MB:.0f}")


if __name__ == "__main__":
    main()
