"""How long code takes to start in the sandbox, at each level that this machine gives.

    python -m benchmarks.sandbox [--repeats 30] [--python /usr/bin/python3]

``cold``: a worker starts, runs ``pass`` and answers. ``warm``: the same with a worker that waited. ``kept``: code in
an interpreter that runs already. ``program``: ``/bin/true`` in a warm worker. ``50 at once``: seconds for 50 fresh
runs. Medians in milliseconds; bare: the same interpreter without any isolation.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from envs.sandbox import Sandbox
from envs.sandbox.levels import LEVELS, reason_against


async def median_ms(
    repeats: int, run: Callable[[], Awaitable[object]], ready: Callable[[], Awaitable[object]]
) -> float:
    """The median of ``repeats`` runs; ``ready`` is awaited before each and not counted."""
    taken = []
    for _ in range(repeats):
        await ready()
        began = time.perf_counter()
        await run()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


async def nothing() -> None:
    """Nothing to wait for."""


async def measure(level: str, python: str, repeats: int) -> dict[str, float]:
    """One row."""
    row = {}
    async with Sandbox(level=level, python=python, warm=0) as sandbox:
        row["cold"] = await median_ms(repeats, lambda: sandbox.run("pass", deadline_s=30), nothing)
        began = time.perf_counter()
        await asyncio.gather(*(sandbox.run("pass", deadline_s=60) for _ in range(50)))
        row["50 at once"] = time.perf_counter() - began
        session = sandbox.session()
        await session.run("x = 1", deadline_s=30)
        row["kept"] = await median_ms(repeats, lambda: session.run("x + 1", deadline_s=30), nothing)
        await session.close()
    async with Sandbox(level=level, python=python, warm=1) as sandbox:
        row["warm"] = await median_ms(repeats, lambda: sandbox.run("pass", deadline_s=30), sandbox.warm_up)
        row["program"] = await median_ms(repeats, lambda: sandbox.run(["true"], deadline_s=30), sandbox.warm_up)
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    bare = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        subprocess.run([options.python, "-I", "-S", "-c", "pass"], check=True)
        bare.append(time.perf_counter() - began)
    print(f"bare interpreter {1000 * statistics.median(bare):.1f} ms")
    print("| level | cold ms | warm ms | kept ms | program ms | 50 at once s |\n|---|---|---|---|---|---|")
    for level in LEVELS:
        if reason := reason_against(level, options.python):
            print(f"| {level} | {reason} | | | | |")
            continue
        row = asyncio.run(measure(level, options.python, options.repeats))
        shown = " | ".join(f"{row[name]:.1f}" for name in ("cold", "warm", "kept", "program"))
        print(f"| {level} | {shown} | {row['50 at once']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
