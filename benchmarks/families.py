"""Decoders of transformers as policies, against transformers itself: what differs, family by family.

    python benchmarks/families.py [--only llama qwen3_moe] [--one-process] [--json FILE]

Each row is a family at a tiny random size, a check, the largest difference found and what is tolerated. The reference
is transformers' own model with its plain attention and experts, each row by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from model.arrays import BFLOAT16, fill  # noqa: E402
from model.decoder import export_weights  # noqa: E402
from model.hf.build import EXPERTS  # noqa: E402
from model.hf.family import Hf  # noqa: E402
from model.hf.policy import HfPolicy  # noqa: E402
from model.hf.shape import HfShape  # noqa: E402

VOCAB = 96
_DENSE: dict[str, Any] = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
}
_EXPERTS = _DENSE | {"head_dim": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SHARED = _EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _DENSE | {"model_type": "llama"},
    "llama_tied": _DENSE | {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": _DENSE | {"model_type": "qwen2"},
    "qwen3": _DENSE | {"model_type": "qwen3", "head_dim": 16},
    "qwen3_moe": _EXPERTS | {"model_type": "qwen3_moe", "num_experts": 4, "norm_topk_prob": True},
    "mixtral": _EXPERTS | {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 8},
    "glm4_moe": _SHARED | {"model_type": "glm4_moe", "routed_scaling_factor": 1.7},
    "deepseek_v3": _SHARED
    | _LATENT
    | {"model_type": "deepseek_v3", "num_key_value_heads": 4, "head_dim": None, "n_group": 2, "topk_group": 2},
    "gpt_oss": _EXPERTS
    | {"model_type": "gpt_oss", "num_local_experts": 4, "sliding_window": 8, "rope_parameters": {"rope_theta": 1e4}},
    "gemma3_text": _DENSE
    | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
LENGTHS = (20, 7, 7, 33, 2)  # of rows laid end to end; some longer than the windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The largest difference that a check found."""

    family: str
    check: str
    value: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether that is tolerated."""
        return self.value <= self.tolerance


# ---------------------------------------------------------------- the two models


def shape_of(family: str) -> HfShape:
    """Its tiny shape."""
    return HfShape(transformers=FAMILIES[family])


def policy_of(family: str) -> HfPolicy:
    """A policy with weights that make its logits differ widely, gains and biases that are not the neutral ones."""
    torch.manual_seed(0)
    policy, draw = Hf().policy(shape_of(family)), torch.Generator().manual_seed(0)
    for tensor in policy.state_dict().values():
        noise = torch.randn(tensor.shape, generator=draw)
        if tensor.dim() > 1:
            tensor.copy_(noise * 0.3)
        else:
            tensor.add_(noise * 0.1)
    return policy.eval()


def reference_of(family: str, policy: HfPolicy) -> Any:
    """transformers' own model with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    missing, unknown = model.load_state_dict(policy.state_dict(), strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    return model.eval()


@lru_cache(maxsize=2)
def models(family: str) -> tuple[HfPolicy, Any]:
    """Both."""
    policy = policy_of(family)
    return policy, reference_of(family, policy)


def tokens_and_mask() -> tuple[list[Tensor], Tensor]:
    """Rows [1, T] and, for all of them end to end, which tokens are trained."""
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, VOCAB, (1, length), generator=draw) for length in LENGTHS]
    mask = torch.rand(1, sum(LENGTHS), generator=draw) < 0.5
    mask[0, torch.tensor([0, *LENGTHS[:-1]]).cumsum(0)] = False
    return rows, mask


def reference_logprobs(model: Any, rows: list[Tensor], mask_BT: Tensor) -> Tensor:
    """Of the trained tokens, row by row."""
    found = []
    for row in rows:
        logprobs = torch.log_softmax(model(row, use_cache=False).logits[:, :-1], dim=-1)
        found += [torch.zeros(1, 1), logprobs.gather(2, row[:, 1:, None])[..., 0]]
    return torch.cat(found, dim=1)[mask_BT]


# ---------------------------------------------------------------- checks


def logits(family: str) -> Row:
    """Log-probs of rows laid end to end against the reference's, row by row."""
    policy, reference = models(family)
    rows, mask = tokens_and_mask()
    with torch.no_grad():
        ours, _ = policy(torch.cat(rows, dim=1), mask, lengths=LENGTHS)
        gap = (ours - reference_logprobs(reference, rows, mask)).abs().max()
    return Row(family=family, check="log-probs", value=float(gap), tolerance=2e-5)


def packing(family: str) -> Row:
    """Hidden states of rows laid end to end against those of each row by itself."""
    policy, _ = models(family)
    rows, _ = tokens_and_mask()
    with torch.no_grad():
        together = policy.hidden(torch.cat(rows, dim=1), lengths=LENGTHS)
        alone = torch.cat([policy.hidden(row) for row in rows], dim=1)
    return Row(family=family, check="packed rows", value=float((together - alone).abs().max()), tolerance=2e-5)


def gradients(family: str) -> Row:
    """Of every parameter, relative to its largest; with recomputation."""
    policy, reference = models(family)
    rows, mask = tokens_and_mask()
    policy.zero_grad(), reference.zero_grad()
    policy.train()
    policy.recompute = True
    ours, _ = policy(torch.cat(rows, dim=1), mask, lengths=LENGTHS)
    ours.sum().backward()
    policy.recompute = False
    policy.eval()
    reference_logprobs(reference, rows, mask).sum().backward()
    return Row(family=family, check="gradients", value=_gradient_gap(policy, reference), tolerance=2e-5)


def _gradient_gap(policy: HfPolicy, reference: Any) -> float:
    theirs, worst = dict(reference.named_parameters()), 0.0
    for name, parameter in policy.named_parameters():
        grad, wanted = parameter.grad, theirs[name].grad
        assert grad is not None and wanted is not None, name
        worst = max(worst, float((grad - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)))
    return worst


def experts(family: str) -> Row:
    """Our fused experts in transformers' own model: its log-probs and gradients with and without them."""
    _, reference = models(family)
    rows, mask = tokens_and_mask()
    found = []
    for implementation in ("eager", EXPERTS):
        reference.set_experts_implementation(implementation)
        reference.zero_grad()
        logprobs = reference_logprobs(reference, rows, mask)
        logprobs.sum().backward()
        stacks = [p.grad for p in reference.parameters() if p.dim() == 3]
        found.append([logprobs.detach(), *(grad / grad.abs().max() for grad in stacks if grad is not None)])
    reference.set_experts_implementation("eager")
    worst = max(float((one - other).abs().max()) for one, other in zip(*found, strict=True))
    return Row(family=family, check="experts", value=worst, tolerance=2e-5)


def some_routes(family: str, length: int, seed: int = 2) -> Tensor:
    """[length, L, K] int16: experts drawn for each token."""
    routes = shape_of(family).routes
    assert routes is not None
    noise = torch.rand(length, routes.layers, routes.experts, generator=torch.Generator().manual_seed(seed))
    return noise.argsort(-1)[..., : routes.chosen].to(torch.int16)


@contextmanager
def told(routes_TLK: Tensor, experts: int) -> Iterator[None]:
    """While entered, transformers' routers choose these experts, one layer after the other: its top-k is not asked."""
    plain, layer = torch.topk, iter(routes_TLK.long().unbind(1))

    def topk(scores: Tensor, k: int, *arguments: Any, **options: Any) -> Any:
        if scores.shape[-1] != experts:  # of groups
            return plain(scores, k, *arguments, **options)
        ids_TK = next(layer)
        return scores.gather(-1, ids_TK), ids_TK

    with patch.object(torch, "topk", topk):
        yield


def replay(family: str) -> Row:
    """Given routes: log-probs and all gradients, routers' among them, against the reference with these."""
    policy, reference = models(family)
    rows, mask = tokens_and_mask()
    routes_TLK, experts = some_routes(family, sum(LENGTHS)), len(policy.routers()[0].weight)
    policy.zero_grad(), reference.zero_grad()
    ours, _ = policy(torch.cat(rows, dim=1), mask, routes_TLK[None], lengths=LENGTHS)
    ours.sum().backward()
    theirs = []
    for row, routes in zip(rows, routes_TLK.split(LENGTHS), strict=True):
        with told(routes, experts):
            logprobs = torch.log_softmax(reference(row, use_cache=False).logits[:, :-1], dim=-1)
        theirs += [torch.zeros(1, 1), logprobs.gather(2, row[:, 1:, None])[..., 0]]
    wanted = torch.cat(theirs, dim=1)[mask]
    wanted.sum().backward()
    assert all(float(router.weight.grad.abs().max()) > 0 for router in policy.routers())
    worst = max(float((ours - wanted).detach().abs().max()), _gradient_gap(policy, reference))
    return Row(family=family, check="replayed routes", value=worst, tolerance=2e-5)


def greedy(family: str) -> Row:
    """Tokens of 24 that differ from transformers' greedy ``generate``."""
    policy, reference = models(family)
    prompt = tokens_and_mask()[0][0][0, :10]
    wanted = reference.generate(prompt[None], do_sample=False, max_new_tokens=24, min_new_tokens=24)[0]
    tokens = prompt
    for _ in range(24):
        tokens = torch.cat([tokens, policy.next_logits(tokens).argmax()[None]])
    return Row(family=family, check="greedy tokens", value=float((tokens != wanted).sum()), tolerance=0)


def engine(family: str) -> Row:
    """Log-probs that the family's decoder says of 40 tokens, fed in pieces, against the learner's with its routes."""
    policy, _ = models(family)
    decoder = Hf().decoder(policy.config, pages=8)
    decoder.load(export_weights(policy))
    tokens = torch.randint(0, VOCAB, (41,), generator=torch.Generator().manual_seed(3))
    table, said = np.arange(4, dtype=np.int32)[None], []
    for part in (slice(0, 17), slice(17, 18), slice(18, 40)):
        places = np.arange(part.start, part.stop, dtype=np.int32)
        inputs = tokens[part].int().numpy(), places, np.zeros_like(places), table
        said.append(torch.from_numpy(decoder.forward(*inputs, rows=np.arange(len(places), dtype=np.int32))))
    engines = torch.log_softmax(torch.cat(said), dim=-1).gather(1, tokens[1:, None])[:, 0]
    routes = torch.from_numpy(np.concatenate(list(decoder.routes))[:41])[None] if policy.config.routes else None
    mask = torch.arange(41)[None] > 0
    with torch.no_grad():
        learners, _ = policy(tokens[None], mask, routes)
    gap = float((engines - learners).abs().max())
    return Row(family=family, check="engine", value=gap, tolerance=2e-5)


def bfloat16(family: str) -> Row:
    """Mean error of our log-probs in bfloat16, as a multiple of that of transformers' own in bfloat16."""
    policy, _ = models(family)
    ours = Hf().blank(shape_of(family).model_copy(update={"dtype": "bfloat16"})).eval()
    fill(ours, {name: array.astype(BFLOAT16) for name, array in export_weights(policy).items()})
    rounded = Hf().blank(shape_of(family))
    fill(rounded, export_weights(ours))
    reference, theirs = reference_of(family, rounded), reference_of(family, rounded).to(torch.bfloat16)
    rows, mask = tokens_and_mask()
    with torch.no_grad():
        exact = reference_logprobs(reference, rows, mask)
        found = [reference_logprobs(theirs, rows, mask), ours(torch.cat(rows, 1), mask, lengths=LENGTHS)[0]]
    theirs_off, ours_off = (float((logprobs - exact).abs().mean()) for logprobs in found)
    return Row(family=family, check="bfloat16", value=ours_off / theirs_off, tolerance=1.5)


def checks_of(family: str) -> dict[str, Callable[[str], Row]]:
    """Those that the family has."""
    routed = {"experts": experts, "replay": replay} if shape_of(family).routes else {}
    return {
        "logits": logits,
        "packing": packing,
        "gradients": gradients,
        "greedy": greedy,
        "engine": engine,
        "bfloat16": bfloat16,
        **routed,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one-process", action="store_true", help="leave out the learner's two ranks")
    arguments = parser.parse_args()
    rows = []
    for family in arguments.only:
        rows += [_shown(check(family)) for check in checks_of(family).values()]
    if not arguments.one_process:
        from benchmarks.families_ranks import ranks

        rows += [_shown(row) for row in ranks(arguments.only)]
    if arguments.json:
        arguments.json.write_text(json.dumps([{**asdict(row), "ok": row.ok} for row in rows], indent=1) + "\n")
    if not all(row.ok for row in rows):
        raise SystemExit(1)


def _shown(row: Row) -> Row:
    print(f"{row.family:14} {row.check:24} {row.value:9.1e}  of {row.tolerance:.1e}  {'ok' if row.ok else 'BAD'}")
    return row


if __name__ == "__main__":
    main()
