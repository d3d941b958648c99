"""How fast the quickstart's policy learns to copy, read and go through a list from drills alone.

    python benchmarks/drills.py                             # the recipe, about ten minutes on one core
    python benchmarks/drills.py --set model.look_back=false       # without the initialised look-back heads
    python benchmarks/drills.py --set model.embedding_mean=0
    python benchmarks/drills.py --steps 300 --set sft.seed=2

Prints every 50 steps the loss, and the mean probability of the right token in drills of ten facts or names: a
value of a table, and the next item's number and name in a table, in calls of one turn and of many.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch

from envs.teacher import Part
from envs.world.corpus import reading_pieces
from envs.world.lexicon import FIRSTS, SECONDS
from envs.world.teacher import FORMS, agenda_parts
from model.chat.kimi import KimiChat
from model.kimi.transformer import Transformer
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.drills import drill_batches, exercise_row
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import build_tokenizer
from parl.config.load import load_config
from parl.learn.batch import TextRow, lay
from parl.learn.shard.optimizer import MuonAdamW

LENGTH, PROBES, EVERY = 10, 8, 50


def main() -> None:
    """Train on drills alone and print the progress."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    torch.set_num_threads(1)
    torch.manual_seed(config.sft.seed)
    tokenizer = build_tokenizer(Recipe.of(config))
    model = Transformer(config.model).train()
    matrices, rest = model.muon_parameters()
    optimizer = MuonAdamW(matrices, rest, muon_lr=config.sft.muon_lr, lr=config.sft.lr, grad_clip=1.0)
    print(
        "step  M tokens   loss   value  table:     its assign:     its search:     its\n"
        "                               number    name  number    name  number    name"
    )
    tokens = 0
    for step, rows in enumerate(drill_batches(Recipe.of(config), tokenizer)):
        tokens += sum(len(row.tokens) for row in rows)
        logprobs_M, weights_M = measure(model, rows)
        loss = -(weights_M * logprobs_M).sum() / weights_M.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for router in model.routers():
            router.balance(1e-3)
        if step % EVERY == 0:
            seen = " ".join(f"{p:7.2f}" for p in probes(model, tokenizer))
            print(f"{step:4d} {tokens / 1e6:9.2f} {loss.item():6.3f} {seen}", flush=True)
        if step >= options.steps:
            break


def measure(model: Transformer, rows: list[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and weights of the trained tokens of ``rows``, both [M]."""
    batch = lay(rows, lambda row: (row.weights > 0) & (np.arange(len(row.tokens)) > 0))
    return model(**batch.inputs)[0], batch.gather("weights")


@torch.no_grad()
def probes(model: Transformer, tokenizer: Tokenizer) -> list[float]:
    """Mean probabilities of the columns' tokens, in drills of ten; of names only the first half."""
    rng = Random(0)
    kinds = [lambda: exercise_row(KimiChat(tokenizer), [Part(pieces=reading_pieces(rng, LENGTH, LENGTH))])]
    kinds += [
        lambda form=form: exercise_row(KimiChat(tokenizer), agenda_parts(rng, LENGTH, LENGTH, form)) for form in FORMS
    ]
    found: list[tuple[list[float], list[float], list[float]]] = []
    for make in kinds:
        numbers, names, values = [], [], []
        for row in [make() for _ in range(PROBES)]:
            logprobs_M, weights_M = measure(model, [row])
            trained = row.tokens[1:][row.weights[1:] > 0]
            for token, logprob, weight in zip(trained, logprobs_M.tolist(), weights_M.tolist(), strict=True):
                text = tokenizer.decode([int(token)])
                if weight == 1 and text not in SECONDS:
                    kind = names if text in FIRSTS else numbers if text.endswith(". ") else values
                    kind.append(float(np.exp(logprob)))
        found.append((numbers, names, values))
    wanted = [found[0][2], *(part for kind in found[1:] for part in kind[:2])]
    return [float(np.mean(p)) for p in wanted]


if __name__ == "__main__":
    main()
