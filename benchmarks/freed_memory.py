"""What keeping freed memory is worth: steps of the quickstart's cold start, with it kept and given back.

    python benchmarks/freed_memory.py                 # configs/quickstart.yaml
    python benchmarks/freed_memory.py --rounds 5 model.hidden_size=256

One rank of one thread. Each way runs in a process of its own, in turn; the figures are medians over rounds.

tokens_per_s  tokens of a step's rows over its time, median over steps
peak_mib      largest resident set of the process, libraries included
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
WAYS = ("kept", "given back")
_TOKENS, _STEP_TOKENS, _WARM_UP, _DEADLINE_S = 120_000, 2048, 4, 600.0


def steps(way: str, rows_file: Path, settings: list[str]) -> tuple[float, float]:
    """(tokens a second, peak in MiB) of a learner in this process."""
    from parl.config.load import load_config
    from parl.learn import process
    from parl.learn.config import OptimizerConfig
    from parl.learn.learner import Learner

    config = load_config("configs/quickstart.yaml", settings)
    process._SMALL = 2**60 if way == "kept" else 0
    sft = config.sft
    optimizer = OptimizerConfig(lr=sft.lr, muon_lr=sft.muon_lr)
    learner = Learner(config.model, optimizer, seed=1, threads=1)
    speeds, batch = [], []
    for row in pickle.loads(rows_file.read_bytes()):
        batch.append(row)
        if (tokens := sum(len(row.tokens) for row in batch)) < _STEP_TOKENS:
            continue
        weight = sum(float(row.weights.sum()) for row in batch)
        start = time.perf_counter()
        learner.text_step(batch, denominator=weight, micro_tokens=8192, lr_scale=1.0)
        speeds.append(tokens / (time.perf_counter() - start))
        batch = []
    return median(speeds[_WARM_UP:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Print both ways and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args()
    if given.way:
        speed, peak = steps(given.way, given.rows, given.settings)
        print(f"{speed} {peak}")
        return
    from demonstrations import demonstration_rows

    from parl.config.load import load_config

    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.pickle"
        rows.write_bytes(pickle.dumps(demonstration_rows(load_config("configs/quickstart.yaml"), _TOKENS)))
        for _ in range(given.rounds):
            for way in WAYS:
                command = [sys.executable, __file__, "--way", way, "--rows", str(rows), *given.settings]
                made = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    timeout=_DEADLINE_S,
                )
                found[way].append([float(figure) for figure in made.stdout.split()[-2:]])
    print("freed memory   tokens_per_s   peak_mib")
    for way, rounds in found.items():
        print(f"{way:14} {median(speed for speed, _ in rounds):12.0f} {median(peak for _, peak in rounds):10.0f}")
    ratios = [kept[0] / back[0] for kept, back in zip(*found.values(), strict=True)]
    print(f"kept / given back: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
