"""Activation recomputation: the same gradient from less memory, and nothing counted twice."""

from __future__ import annotations

import torch
from tiny import random_policy, tiny_model

from model.kimi.transformer import Transformer

CONFIG = tiny_model()


def gradients(model: Transformer, recompute: bool) -> tuple[list[torch.Tensor], int, torch.Tensor, torch.Tensor]:
    """Of the summed log-probs; bytes kept for the backward pass; the experts' load; the heads' largest logits."""
    model.recompute, model.collect_logits = recompute, True
    model.zero_grad()
    for router, block in zip(model.routers(), model.blocks(), strict=False):
        router.load_E.zero_()
        block.self_attn.max_logit_H = None
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(CONFIG.vocab_size, (2, 40), generator=g)
    routes = torch.randint(-1, CONFIG.n_routed_experts, (2, 40, CONFIG.num_moe_layers, 2), generator=g)
    routes[..., 1] = torch.where(routes[..., 0] < 0, -1, (routes[..., 0] + 1) % CONFIG.n_routed_experts)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[:, 0] = False
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs, _ = model(tokens, mask, routes)
    held = sum(kept.values())
    logprobs.sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    logits = [block.self_attn.max_logit_H for block in model.blocks()]
    return (
        found,
        held,
        torch.stack([r.load_E for r in model.routers()]),
        torch.stack([x for x in logits if x is not None]),
    )


def test_layers_computed_again_give_the_same_gradient_from_less_memory_and_count_once():
    model = random_policy(CONFIG).train()
    plain, much, load, logits = gradients(model, recompute=False)
    again, little, load_again, logits_again = gradients(model, recompute=True)
    assert len(plain) == len(again) == len(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert little < 0.7 * much  # what is left is mostly weights and logits
    assert torch.equal(load, load_again) and int(load.sum()) == 2 * 40 * 2 * CONFIG.num_moe_layers
    assert torch.equal(logits, logits_again)


def test_nothing_is_recomputed_without_gradient_or_training():
    model = random_policy(CONFIG)
    model.recompute = True
    tokens, mask = torch.arange(10)[None], torch.arange(10)[None] > 0
    calls = []
    model.blocks()[0].register_forward_hook(lambda module, args, kwargs, out: calls.append(kwargs), with_kwargs=True)
    model(tokens, mask)
    assert calls == [{"recompute": False}]
