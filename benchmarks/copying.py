"""How many optimiser steps until the quickstart's policy can copy: random tokens, then the same again.

    python benchmarks/copying.py                      # the config's initialisation
    python benchmarks/copying.py --mean 0             # without the mean that all embeddings share
    python benchmarks/copying.py --steps 400 --muon-lr 0.008

Prints the loss (nats a repeated token; 7.05 = log of the vocabulary = knows nothing) every 25 steps.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from model.config import ModelConfig
from model.transformer import Transformer, muon_parameters
from parl.learner import pad
from parl.optimizer import MuonAdamW
from parl.sft import drill

ROWS = 8


def main() -> None:
    """Train on drills alone and print the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mean", type=float, default=ModelConfig().embedding_mean)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--muon-lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    config = ModelConfig(embedding_mean=options.mean)
    model = Transformer(config).train()
    matrices, rest = muon_parameters(model)
    optimizer = MuonAdamW(matrices, rest, muon_lr=options.muon_lr, lr=options.lr, grad_clip=1.0)
    rng = np.random.default_rng(options.seed)
    for step in range(1, options.steps + 1):
        batch = pad([drill(config.vocab_size, rng) for _ in range(ROWS)], lambda row: row.weights > 0)
        logprobs, _ = model(batch.tokens_BT, batch.mask_BT)
        loss = -logprobs.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
