"""The cost of an update of the weights in flight for the embedded engine.

    python benchmarks/in_flight.py                       # the quickstart's policy, 32 streams of 400 tokens
    python benchmarks/in_flight.py --streams 64 --tokens 800

Prints the processor time of one decoding step of all streams, and from the update to the next token of every
stream (loading the weights and prefill); medians, interleaved in one process. The streams' tokens are random,
so no page is shared.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import numpy as np

from model.kimi.family import Kimi
from model.policy_files import load_policy
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine


async def measure(folder: Path, streams: int, tokens: int, rounds: int) -> tuple[float, float]:
    """(CPU seconds of a decoding step, CPU seconds of an update), medians over ``rounds``."""
    weights, model, _, _ = load_policy(folder, Kimi())
    engine = EmbeddedEngine(model, pages=streams * (model.max_position_embeddings // 16 + 1))
    await engine.update(Update(version=0, weights=weights))
    prompts = np.random.default_rng(0).integers(0, model.vocab_size, (streams, tokens)).tolist()
    new = model.max_position_embeddings - tokens
    running = [
        asyncio.create_task(
            engine.generate(prompt, Sampling(seed=i, max_new_tokens=new), session=str(i), deadline_s=3600.0)
        )
        for i, prompt in enumerate(prompts)
    ]

    async def each(count: int) -> float:
        """Wait until every stream has ``count`` more tokens."""
        began, wanted = time.process_time(), [len(request.tokens) + count for request in engine._running]
        while any(len(r.tokens) < n for r, n in zip(engine._running, wanted, strict=True)):
            await asyncio.sleep(0.002)
        return time.process_time() - began

    while len(engine._running) < streams:
        await asyncio.sleep(0)
    await each(2)
    steps, updates = [], []
    for version in range(1, rounds + 1):
        steps.append(await each(8) / 8)
        began = time.process_time()
        await engine.update(Update(version=version, weights=weights, in_flight=True))
        await each(1)
        updates.append(time.process_time() - began)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return statistics.median(steps), statistics.median(updates)


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=next(Path("configs/starters").iterdir()))
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    step, update = asyncio.run(measure(arguments.policy, arguments.streams, arguments.tokens, arguments.rounds))
    print(f"{arguments.streams} streams of {arguments.tokens} tokens")
    print(f"decoding step {1000 * step:.1f} ms, update and feeding again {1000 * update:.0f} ms")


if __name__ == "__main__":
    main()
