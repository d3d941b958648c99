"""Savings of adapters: trained parameters, bytes of gradients and optimiser, bytes of a weight sync.

    python benchmarks/lora.py                       # the quickstart's policy and the published shapes in configs/models
    python benchmarks/lora.py --set optimizer.lora.rank=64

Counted on shapes alone, without allocation. Gradients and Muon's momentum or AdamW's two moments are float32,
as in the learner; a sync sends float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer
from model.lora import attach
from parl.config.load import load_config
from parl.learn.config import LoraConfig

_GIB, _WORD = 2**30, 4


def sizes(config: ModelConfig, lora: LoraConfig | None) -> tuple[int, int, float, float]:
    """(all parameters, trained ones, GiB of gradients and optimiser, GiB of a sync)."""
    with torch.device("meta"):
        model = Transformer(config.model_copy(update={"look_back": False}))
        held = sum(p.numel() for p in model.parameters())
        matrices, rest = model.muon_parameters()
        if lora:
            matrices, rest = [], list(attach(model, **lora.model_dump()).parameters())
    muon, adamw = (sum(p.numel() for p in group) for group in (matrices, rest))
    sent = muon + adamw if lora else held
    return held, muon + adamw, (2 * muon + 3 * adamw) * _WORD / _GIB, sent * _WORD / _GIB


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    lora = config.optimizer.lora or LoraConfig()
    shapes = {options.config.stem: config.model.shape}
    for file in sorted(Path("configs/models").glob("*.yaml")):
        shapes[file.stem] = load_config(file, []).model.shape
    print(f"rank {lora.rank}, targets {', '.join(lora.targets)}")
    print(f"{'':18} parameters  trained: all       LoRA  gradients, optimiser, GiB    LoRA   sync, GiB    LoRA")
    for name, shape in shapes.items():
        held, trained, state, sync = sizes(shape, None)
        _, few, less, sent = sizes(shape, lora)
        counts = f"{name:18} {held:10.4g} {trained:13.4g} {few:10.4g}"
        print(f"{counts} {state:27.4g} {less:7.3g} {sync:11.4g} {sent:7.3g}")


if __name__ == "__main__":
    main()
