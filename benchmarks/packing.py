"""Packed rows against padded rows: CPU time of forward and backward on the quickstart's policy.

    python benchmarks/packing.py
    python benchmarks/packing.py --tokens 200000 --set model.hidden_size=256

Rows are the shipped starter's demonstrations (lengths as in rollouts), and rows of one length, which need no
padding. ``padded`` sorts by length and pads rows that are at least half as long as the longest of their
micro-batch. Both are interleaved; a ratio is the median over the rounds. The gradients are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.kimi.transformer import Transformer
from parl.cold_start.rows import DemoWorker
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import build_tokenizer
from parl.config.load import load_config
from parl.learn.batch import TextRow, lay, micro_batches


def padded(rows: list[TextRow], limit: int) -> list[dict[str, Tensor]]:
    """Inputs of micro-batches of at most ``limit`` padded tokens."""
    groups: list[list[TextRow]] = []
    for row in sorted(rows, key=lambda r: -len(r.tokens)):
        longest = len(groups[-1][0].tokens) if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= limit and 2 * len(row.tokens) >= longest:
            groups[-1].append(row)
        else:
            groups.append([row])
    out = []
    for group in groups:
        tokens = torch.zeros(len(group), len(group[0].tokens), dtype=torch.long)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for i, row in enumerate(group):
            tokens[i, : len(row.tokens)] = torch.from_numpy(row.tokens.astype(np.int64))
            mask[i, : len(row.tokens)] = torch.from_numpy(trained(row))
        out.append({"tokens_BT": tokens, "mask_BT": mask})
    return out


def trained(row: TextRow) -> np.ndarray:
    """Every token with a weight except the first."""
    mask = row.weights > 0
    mask[0] = False
    return mask


def run(model: Transformer, batches: list[dict]) -> tuple[float, Tensor]:
    """CPU seconds of the forward and backward passes, and the gradient of the mean log-prob."""
    model.zero_grad()
    began = time.process_time()
    for batch in batches:
        model(**batch)[0].sum().backward()
    taken = time.process_time() - began
    return taken, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def compare(name: str, model: Transformer, rows: list[TextRow], limit: int, rounds: int) -> None:
    """Print one line of the table."""
    ways = {
        "padded": padded(rows, limit),
        "packed": [lay(group, trained).inputs for group in micro_batches(rows, limit)],
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    gradients = {}
    for _ in range(rounds):
        for way, batches in ways.items():
            seconds, gradients[way] = run(model, batches)
            times[way].append(seconds)
    ratio = statistics.median(p / q for p, q in zip(times["padded"], times["packed"], strict=True))
    real = sum(len(row.tokens) for row in rows)
    waste = 1 - real / sum(batch["tokens_BT"].numel() for batch in ways["padded"])
    far = float((gradients["padded"] - gradients["packed"]).norm() / gradients["padded"].norm())
    counts = len(ways["padded"]), len(ways["packed"])
    speed = real / statistics.median(times["packed"])
    line = f"{name:14} {len(rows):7} {real:8} {waste:8.1%} {counts[0]:8} {counts[1]:6} {speed:10.0f} {ratio:13.2f}"
    print(f"{line} {far:9.1e}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--tokens", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, limit = Transformer(config.model).train(), config.trainer.micro_tokens
    tokenizer = Path("configs/starters")
    recipe = Recipe.of(config)
    saved = next(tokenizer.glob("*/tokenizer.json"), None) or build_tokenizer(recipe).save(Path("tokenizer.json"))
    rows = asyncio.run(DemoWorker(recipe, str(saved)).rows(0, max(1, options.tokens // 2000)))
    rng = np.random.default_rng(0)
    tokens = options.tokens // 4
    print("rows             count   tokens  padding  batches packed  packed t/s  padded/packed  gradient")
    compare("demonstrations", model, rows, limit, options.rounds)
    for length in (128, 512, 2048):
        count = max(1, tokens // length)
        ids = rng.integers(0, config.model.vocab_size, (count, length)).astype(np.int32)
        even = [TextRow(tokens=row, weights=np.ones(length, np.float32)) for row in ids]
        compare(f"{length} each", model, even, limit, options.rounds)


if __name__ == "__main__":
    main()
