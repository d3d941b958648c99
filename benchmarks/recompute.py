"""Memory that a micro-batch keeps for its backward pass, with and without activation recomputation.

    python benchmarks/recompute.py                 # the quickstart's policy, rows of 1024 tokens
    python benchmarks/recompute.py --tokens 4096

Counted exactly: bytes of all tensors saved by autograd, each once, without the weights.
"""

from __future__ import annotations

import argparse

import torch

from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer


def kept(model: Transformer, tokens: int, *, recompute: bool) -> int:
    """Bytes kept after a forward pass of one row of ``tokens``."""
    model.recompute = recompute
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    held = []  # alive to the end, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        held.append(storage)
        return tensor

    row = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(row, dtype=torch.bool)
    mask[0, : tokens // 2] = False  # as in a trace: half of it is read
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(row, mask)
    return sum(size for place, size in found.items() if place not in weights)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    tokens = parser.parse_args().tokens
    model = Transformer(ModelConfig(max_position_embeddings=max(tokens, 2048))).train()
    print(f"| row of {tokens} tokens | kept, MiB | KiB a token |\n|---|--:|--:|")
    for recompute in (False, True):
        size = kept(model, tokens, recompute=recompute)
        print(f"| recompute: {str(recompute).lower()} | {size / 2**20:.1f} | {size / tokens / 2**10:.1f} |")


if __name__ == "__main__":
    main()
