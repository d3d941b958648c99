"""Forward passes, losses and optimiser inputs on a GPU that is not there: fake tensors raise on mixed devices.

A build of torch for CPUs makes no graph over such tensors, so this shows nothing of backward passes, nor of values,
nccl or the kernels themselves: ``benchmarks/gpu.py`` does, on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from model.family import family_of
from model.hf.shape import HfShape
from model.lora import attach
from parl.errors import UserError
from parl.learn.batch import Batch, TextRow, lay
from parl.learn.group import learner_device
from parl.learn.objective.cispo import Cispo
from parl.learn.objective.grpo import Grpo
from parl.learn.objective.gspo import Gspo
from parl.learn.objective.k25 import K25
from parl.learn.qk_clip import QKClip
from parl.learn.route_replay import RouteWatch
from parl.learn.rows import Row
from parl.learn.shard.optimizer import MuonAdamW, orthogonalise
from parl.learn.terms import Sums, add, metric_names, policy_terms, text_terms

GPU = torch.device("cuda", 0)
_QWEN = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
_MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
SHAPES = {
    "kimi": tiny_model(),
    "qwen3": HfShape.model_validate({"transformers": {"model_type": "qwen3", **_QWEN}, "dtype": "bfloat16"}),
    "qwen3_moe": HfShape.model_validate({"transformers": {"model_type": "qwen3_moe", **_QWEN, **_MOE}}),
    "windows": HfShape.model_validate(
        {"transformers": {"model_type": "mistral", **_QWEN, "sliding_window": 8}, "dtype": "bfloat16"}
    ),
}
OBJECTIVES = [K25(kl=0.1), Grpo(correction="tis"), Grpo(correction="mis"), Gspo(), Cispo()]


def on_the_gpu(model: nn.Module) -> None:
    """Replace all parameters and buffers by fake ones on a GPU, tied ones by one."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)
                    trained = tensor.requires_grad
                    moved[id(tensor)] = nn.Parameter(fake, trained) if isinstance(tensor, nn.Parameter) else fake
                table[name] = moved[id(tensor)]  # type: ignore[assignment]


def policy_on_the_gpu(name: str):
    policy = family_of(SHAPES[name]).policy(SHAPES[name]).to(getattr(torch, SHAPES[name].weights_dtype)).train()
    return policy


def some_rows(name: str) -> list[Row]:
    rng, rows = np.random.default_rng(0), []
    start = rng.integers(0, 300, 6).astype(np.int32)
    for number, length in enumerate((20, 12, 31)):
        mask = np.arange(length) >= 6
        routes = None
        if said := SHAPES[name].routes:
            routes = np.tile(np.arange(said.chosen, dtype=np.int16), (length, said.layers, 1))
        values = dict.fromkeys(("logprobs", "advantages", "proximal", "reference"), mask * np.float32(-0.5))
        tokens = np.concatenate([start, rng.integers(0, 300, length - 6).astype(np.int32)])
        rows.append(Row(key=(str(number), 0, "0"), tokens=tokens, mask=mask, routes=routes, **values))
    return rows


def a_batch(name: str, policy, device: torch.device = GPU) -> Batch:
    return lay(some_rows(name), lambda row: row.mask, share=policy.shares, device=device)  # type: ignore[union-attr]


class PlainIndexing(TorchFunctionMode):
    """``x[...]`` and ``~x`` by the operators behind them: Python's bindings ask the device to be there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__invert__:
            return torch.ops.aten.bitwise_not.default(*args)
        if func is not Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        parts = index if isinstance(index, tuple) else (index,)
        if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
            place = next(i for i, part in enumerate(parts) if part is Ellipsis)
            named = len([part for part in parts if part is not None]) - 1
            parts = (*parts[:place], *[slice(None)] * (tensor.dim() - named), *parts[place + 1 :])
        dim, chosen = 0, []
        for part in parts:
            if part is None:
                tensor = tensor.unsqueeze(dim)
            elif isinstance(part, slice):
                tensor = torch.ops.aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
            elif isinstance(part, Tensor):
                chosen += [None] * (dim - len(chosen)) + [part]
            else:
                tensor = torch.ops.aten.select.int(tensor, dim, part)
                continue
            dim += 1
        return torch.ops.aten.index.Tensor(tensor, chosen) if chosen else tensor


@contextmanager
def a_gpu(policy) -> Iterator[None]:
    """Inside the block ``policy`` is on a GPU that is not there."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), PlainIndexing():
        on_the_gpu(policy)
        yield


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: f"{one.name}-{getattr(one, 'correction', '')}")
@pytest.mark.parametrize("name", list(SHAPES))
def test_losses_and_sums_stay_on_the_gpu(name, objective):
    policy = policy_on_the_gpu(name)
    batch = a_batch(name, policy)
    totals: Sums = dict.fromkeys(metric_names(objective), 0.0)
    with a_gpu(policy):
        loss, sums = policy_terms(policy, batch, objective, denominator=9.0, temperature=0.8)
        add(totals, sums)
        add(totals, sums)
    assert loss.device.type == "cuda"
    assert set(totals) == set(metric_names(objective))
    assert {value.device.type for value in totals.values()} == {"cuda"}


@pytest.mark.parametrize("name", list(SHAPES))
def test_imitation_recomputation_and_watched_routes_too(name):
    policy = policy_on_the_gpu(name)
    policy.recompute = True
    rows = [TextRow(tokens=row.tokens, weights=row.mask.astype(np.float32)) for row in some_rows(name)]
    texts = lay(rows, lambda row: row.weights > 0, share=policy.shares, device=GPU)  # type: ignore[union-attr]
    batch, watch = a_batch(name, policy), RouteWatch(policy.routers())
    with a_gpu(policy):
        loss, seen = text_terms(policy, texts, denominator=9.0)
        with watch:
            policy_terms(policy, batch, K25(), denominator=9.0, temperature=1.0)
        assert all(counts.device.type == "cuda" for counts in watch._seen)
    assert {loss.device.type, seen["right"].device.type, seen["acted"].device.type} == {"cuda"}


def test_adapters_and_the_heads_logits_too():
    policy = policy_on_the_gpu("kimi")
    batch = a_batch("kimi", policy)
    QKClip(policy, 100.0)
    attach(policy, rank=2, alpha=4.0, targets=("attention", "shared_experts"))
    policy.train()
    with a_gpu(policy):
        policy_terms(policy, batch, K25(), denominator=9.0, temperature=1.0)
        found = [attention.max_logit_H for attention in policy.attention_layers()]
    assert all(logits is not None and logits.device.type == "cuda" for logits in found)


def test_a_batch_left_on_the_host_is_noticed():
    policy = policy_on_the_gpu("qwen3")
    batch = a_batch("qwen3", policy, torch.device("cpu"))
    with a_gpu(policy), pytest.raises((RuntimeError, ValueError), match="device"):
        policy_terms(policy, batch, K25(), denominator=9.0, temperature=1.0)


def test_the_optimisers_state_lies_where_the_weights_do():
    policy = policy_on_the_gpu("kimi")
    with a_gpu(policy):
        matrices, rest = policy.muon_parameters()
        optimizer = MuonAdamW(matrices, rest, muon_lr=1e-3, lr=1e-3, grad_clip=None)
        for parameter in policy.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        assert orthogonalise(matrices[0]).device.type == "cuda"
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert kept and {value.device.type for value in kept} == {"cuda"}


def test_ranks_take_gpus_where_the_cluster_has_one_for_each(monkeypatch):
    import ray

    for there, wanted, ranks, chosen in (
        (0, "auto", 2, "cpu"), (2, "auto", 2, "cuda"), (2, "cpu", 2, "cpu"), (4, "cuda", 2, "cuda"),
    ):  # fmt: skip
        monkeypatch.setattr(ray, "cluster_resources", lambda there=there: {"GPU": float(there)} if there else {})
        assert learner_device(wanted, ranks) == chosen  # type: ignore[arg-type]
    for there, wanted, fix in ((1, "auto", "set trainer.ranks=1"), (0, "cuda", "trainer.device=cpu")):
        monkeypatch.setattr(ray, "cluster_resources", lambda there=there: {"GPU": float(there)} if there else {})
        with pytest.raises(UserError, match=fix):
            learner_device(wanted, 2)  # type: ignore[arg-type]
