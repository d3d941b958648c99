"""Tests and measurements that need a GPU, by one command, without Ray and without a network.

    python benchmarks/gpu.py --json gpu.json --page docs/notes/gpu.md  # a GPU: at most eight minutes on an H100 or H200
    python benchmarks/gpu.py --cpu --json gpu.json                  # the same code, small sizes, CPU operators: seconds
    python benchmarks/gpu.py --only parity bits                     # some sections

Needs torch, triton and pydantic; also measures transformers if installed. The JSON holds
``{"facts": {...}, "rows": [...]}``, a row ``{what, shape, dtype, value, unit, peer, peer_value, parity, ok,
goal, reason}``: ``parity`` is the deviation from float64 or from the peer, ``ok`` whether it is within its
tolerance (on an H200 also whether the goal is met), or null with a ``reason`` if it could not run. A section
that fails becomes a row that is not ok. Exit code 1 unless every row is ok or null.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import gpu_dense, gpu_kernels, gpu_learner, gpu_steps  # noqa: E402
from benchmarks.gpu_rows import Bench, facts, write_page  # noqa: E402

SECTIONS = gpu_kernels.SECTIONS | gpu_dense.SECTIONS | gpu_learner.SECTIONS | gpu_steps.SECTIONS
_WARMERS = 14  # each holds a context and a layer on the device
_WARMING_S = 150.0


def warm_up() -> None:
    """Compile the kernels in parallel processes; a single process would take minutes."""
    workers = min(_WARMERS, os.cpu_count() or 1)
    command = [sys.executable, __file__, "--warm"]
    running = [
        subprocess.Popen([*command, str(index), str(workers)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for index in range(workers)
    ]
    deadline = time.monotonic() + _WARMING_S
    for process in running:
        try:
            _, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            if process.returncode:
                print(errors.decode(errors="replace")[-2000:], file=sys.stderr)
        except subprocess.TimeoutExpired:
            process.kill()  # what it did not get to is compiled when it is called


def warm(index: int, workers: int) -> None:
    """One such process; its sections report jobs that fail."""
    for job in gpu_kernels.warming(Bench("cuda"))[index::workers]:
        try:
            job()
        except Exception:
            traceback.print_exc()
        torch.cuda.empty_cache()


def run(bench: Bench, names: list[str]) -> None:
    """Run the sections; a failing one keeps the others' rows."""
    for name in names:
        began = time.monotonic()
        try:
            SECTIONS[name](bench)
        except Exception as error:
            traceback.print_exc()
            bench.add(name, None, "", ok=False, reason=f"the section broke: {error!r}"[:500])
        if not bench.small:
            torch.cuda.empty_cache()
        print(f"        {name}: {time.monotonic() - began:.1f} s", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="small sizes on CPU operators")
    parser.add_argument("--json", type=Path, help="write facts and rows here")
    parser.add_argument("--page", type=Path, help="write facts and a table here, in Markdown")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="sections; all of them if not given")
    parser.add_argument("--warm", nargs=2, type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, write, judge."""
    options = parsed()
    if not options.cpu and not torch.cuda.is_available():
        print("no CUDA device: --cpu runs the same code at small sizes", file=sys.stderr)
        return 2
    if options.warm:
        warm(*options.warm)
        return 0
    began = time.monotonic()
    bench = Bench("cpu" if options.cpu else "cuda")
    found = facts(bench.device)
    print("\n".join(f"{name}: {value}" for name, value in found.items()), flush=True)
    if not options.cpu:
        warm_up()
        print(f"        compiled in {time.monotonic() - began:.0f} s", flush=True)
    run(bench, options.only or list(SECTIONS))
    seconds = time.monotonic() - began
    if options.json:
        options.json.write_text(json.dumps({"facts": found, "rows": bench.rows}, indent=1) + "\n")
    if options.page:
        write_page(options.page, found, bench.rows, seconds)
    bad = [row for row in bench.rows if row["ok"] is False]
    print(f"{len(bench.rows)} rows in {seconds:.0f} s, {len(bad)} not ok")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
