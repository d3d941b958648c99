"""transformers' decoders as policies: each check of ``benchmarks/families.py`` for each family, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")

from benchmarks.families import (
    FAMILIES,
    LENGTHS,
    VOCAB,
    checks_of,
    models,
    policy_of,
    shape_of,
    tokens_and_mask,
)
from model.decoder import export_weights
from model.hf.experts import fused
from model.hf.family import Hf
from model.hf.policy import HfPolicy
from model.hf.shape import HfShape
from model.lora import attach
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator


@pytest.mark.parametrize(("family", "check"), [(family, check) for family in FAMILIES for check in checks_of(family)])
def test_a_family_agrees_with_transformers(family: str, check: str):
    row = checks_of(family)[check](family)
    assert row.ok, row


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "mamba"}, "carry a state"),
        ({"model_type": "qwen3_next"}, "carry a state"),
        ({"model_type": "gemma3"}, "see or hear"),
        ({"model_type": "bloom"}, "no attention interface"),
        ({"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16}, "cap"),
        ({"model_type": "cohere", "logit_scale": 0.5}, "behind the head"),
        ({"model_type": "llama4_text", "head_dim": 16, "num_local_experts": 2}, "no router"),
        ({"model_type": "minimax_m2", "head_dim": 16, "num_local_experts": 4}, "no router"),
        ({"model_type": "no_such_model"}, "no_such_model"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_by_name_with_the_reason(config: dict[str, Any], reason: str):
    tiny = {key: FAMILIES["llama"][key] for key in FAMILIES["llama"] if key != "model_type"}
    with pytest.raises(ValueError, match=reason) as raised:
        Hf().policy(HfShape(transformers=tiny | {"num_hidden_layers": 2} | config))
    assert config["model_type"] in str(raised.value)


def test_a_tied_head_has_no_weight_of_its_own():
    policy = policy_of("llama_tied")
    assert "lm_head.weight" not in policy.state_dict()
    assert not [name for name, _ in policy.named_parameters() if "lm_head" in name]


def test_a_row_beyond_the_context_is_refused():
    policy = Hf().policy(shape_of("llama").model_copy(update={"max_position_embeddings": 16}))
    with pytest.raises(ValueError, match="row of 17 tokens exceeds max_position_embeddings=16"):
        policy.hidden(torch.zeros(1, 17, dtype=torch.long))


# ---------------------------------------------------------------- the learner


def some_row(number: int, length: int = 40) -> Row:
    draw = np.random.default_rng(number)
    mask = draw.random(length) < 0.5
    mask[0], mask[-1] = False, True
    return Row(
        key=("t", number, "0"),
        tokens=draw.integers(0, VOCAB, length).astype(np.int32),
        mask=mask,
        logprobs=np.where(mask, draw.normal(-4.5, 0.1, length), 0).astype(np.float32),
        advantages=np.where(mask, np.float32(1 - 2 * (number % 2)), np.float32(0)),
    )


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_a_learner_takes_a_step_and_comes_back_from_its_files(family: str, tmp_path: Path):
    def step(learner: Learner) -> dict[str, float]:
        rows = [some_row(number) for number in range(4)]
        settings = {"denominator": float(denominator(rows)), "temperature": 1.0, "micro_tokens": 100}
        return learner.policy_step(rows, K25(log_ratio_min=-9.0, log_ratio_max=9.0), **settings)

    shape, optimizer = shape_of(family), OptimizerConfig()
    first = Learner(shape, optimizer, seed=0, parallel=ParallelConfig(recompute=True))
    before = first.weights()
    assert np.isfinite(step(first)["grad_norm"])
    assert before.keys() == first.model.state_dict().keys()
    assert all(np.abs(before[name] - array).max() > 0 for name, array in first.weights().items())
    first.save(tmp_path, "a")
    second = Learner(shape, optimizer, seed=1)
    second.load(tmp_path, "a")
    assert step(first) == step(second)
    for name, array in first.weights().items():
        assert np.array_equal(array, second.weights()[name]), name


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_learner_tells_which_share_of_replayed_experts_it_would_choose_itself(family: str):
    learner = Learner(shape_of(family), OptimizerConfig(), seed=0)
    learner.load_weights(export_weights(policy_of(family)))
    row, chosen = some_row(0), []
    hooks = [r.register_forward_hook(lambda _, __, choice: chosen.append(choice.ids)) for r in learner.model.routers()]
    learner.model.hidden(torch.from_numpy(row.tokens).long()[None])
    for hook in hooks:
        hook.remove()
    live = torch.stack(chosen, dim=1).numpy().astype(np.int16)
    settings = {"denominator": 1e6, "temperature": 1.0, "micro_tokens": 100, "lr_scale": 0.0}
    for routes, low, high in ((live, 1.0, 1.0), ((live + 1) % 4, 0.2, 0.8)):
        metrics = learner.policy_step([replace(row, routes=routes)], K25(log_ratio_min=-9.0), **settings)
        assert low <= metrics["route_overlap"] <= high


@pytest.mark.parametrize("family", [family for family in FAMILIES if shape_of(family).routes])
def test_our_kernels_compute_the_experts_that_they_can(family: str):
    _, reference = models(family)
    stacks = [module.experts for module in reference.modules() if hasattr(module, "experts")]
    assert stacks
    assert all(fused(stack) == (family != "gpt_oss") for stack in stacks)


def test_a_router_counts_its_load_once_and_is_balanced_against_it():
    policy = policy_of("glm4_moe").train()
    policy.recompute = True
    rows, mask = tokens_and_mask()
    policy(torch.cat(rows, dim=1), mask, lengths=LENGTHS)[0].sum().backward()
    for router in policy.routers():
        assert float(router.load_E.sum()) == sum(LENGTHS) * 2
        before, load = router.e_score_correction_bias.clone(), router.load_E.clone()
        router.balance(0.1)
        moved = router.e_score_correction_bias - before
        assert torch.equal(moved.sign(), torch.sign(load.mean() - load))
        assert not router.load_E.any()


def test_a_configuration_that_tells_of_other_experts_than_the_model_has_is_refused():
    config = {key: value for key, value in FAMILIES["qwen3_moe"].items() if key != "num_experts"}
    with pytest.raises(ValueError, match="0 layers of 0 routed experts, the model has 3 of 128"):
        Hf().policy(HfShape(transformers=config))


def test_muon_gets_linear_layers_and_experts_and_adapters_find_theirs():
    policy = policy_of("glm4_moe")
    matrices, rest = ({name_of(policy, p) for p in part} for part in policy.muon_parameters())
    assert {name.rsplit(".", 2)[-2] for name in rest} & {"embed_tokens", "lm_head", "gate", "norm"}
    assert "model.layers.1.mlp.experts.gate_up_proj" in matrices
    assert not {name for name in matrices if "embed" in name or "lm_head" in name or "mlp.gate.weight" in name}
    lora = attach(policy, rank=2, alpha=4.0, targets=["attention", "shared_experts"])
    assert {name.split(".", 3)[3] for name in lora.names} == {
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        *(f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")),
    }


def name_of(policy: HfPolicy, wanted: torch.nn.Parameter) -> str:
    return next(name for name, parameter in policy.named_parameters() if parameter is wanted)
