"""The cost of Muon's orthogonalisation one by one, batched, and shared by ranks: ratios of CPU time.

    python benchmarks/muon.py                                  # the quickstart's policy, two ranks
    python benchmarks/muon.py --set model.hidden_size=256 --ranks 4

``grouped`` batches equal shapes of all layers; ``shared`` is the busiest rank when the matrices are
distributed (without sending the results). Each is the best of several runs, as a ratio to one by one.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model.kimi.transformer import Transformer
from parl.config.load import load_config
from parl.learn.shard.optimizer import deal, orthogonalise


def grouped(matrices: list[Tensor]) -> list[Tensor]:
    """:func:`orthogonalise` of each, equal shapes in one call."""
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        members[tuple(matrix.shape[-2:])].append(index)
    done = list(matrices)
    for shape, indices in members.items():
        flat = [matrices[index].reshape(-1, *shape) for index in indices]
        parts = orthogonalise(torch.cat(flat)).split([len(part) for part in flat])
        for index, part in zip(indices, parts, strict=True):
            done[index] = part.view(matrices[index].shape)
    return done


def best(work: Callable[[], object], runs: int) -> float:
    """Seconds of CPU time of the fastest of ``runs`` runs."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


@torch.no_grad()
def main() -> None:
    """Print the ratios, and whether grouping gives the same bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    matrices = Transformer(load_config(options.config, options.set).model).muon_parameters()[0]
    grads = [torch.randn_like(matrix) for matrix in matrices]
    alone = [orthogonalise(grad) for grad in grads]
    same = all(torch.equal(a, b) for a, b in zip(alone, grouped(grads), strict=True))
    busiest = max(deal(grads, options.ranks), key=lambda s: sum(grads[i].numel() * min(grads[i].shape[-2:]) for i in s))
    ways: dict[str, Callable[[], object]] = {
        "one by one": lambda: [orthogonalise(grad) for grad in grads],
        "grouped": lambda: grouped(grads),
        f"shared by {options.ranks}": lambda: [orthogonalise(grads[index]) for index in busiest],
    }
    times = {name: best(work, options.runs) for name, work in ways.items()}
    for name, seconds in times.items():
        print(f"{name:14} {seconds / times['one by one']:.2f}")
    print(f"grouped gives {'the same bits' if same else 'other bits'}")


if __name__ == "__main__":
    main()
