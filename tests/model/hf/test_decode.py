"""Decoders of transformers' models: transformers' own numbers, and the same bits in any chunks and beside anybody."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")

from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.families import FAMILIES, models, shape_of
from model.arrays import to_numpy
from model.decoder import PAGE, NotFinite, Weights, export_weights
from model.hf.decode.choose import make_decoder
from model.hf.decode.native import GqaDecoder
from model.hf.decode.paged import PagedDecoder
from model.hf.decode.plan import Plan, supported
from model.hf.family import Hf
from model.hf.shape import HfShape
from model.kernels.native import load_library
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

needs_compiler = pytest.mark.skipif(load_library() is None, reason="no C++ compiler")
VOCAB, PAGES = 133, 16
_SIZES: dict[str, Any] = {
    **{"vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3},
    **{"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
}
_ROPE: dict[str, Any] = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = _ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = _ROPE | {"rope_type": "yarn"}
_MOE: dict[str, Any] = {"head_dim": 16, "num_experts_per_tok": 3}
# what differs between the families that the native decoder serves, and shapes that fill no vector
NATIVE: dict[str, dict[str, Any]] = {
    "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "tied, llama3's rotation": {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    "yarn, no sharing": {
        "model_type": "llama",
        "num_key_value_heads": 6,
        "rope_parameters": _ROPE | {"rope_type": "yarn"},
    },
    "a window": {"model_type": "mistral", "sliding_window": 20, "head_dim": 16},
    "a window in some layers": {
        **{"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1}
    },
    "odd sizes": {"model_type": "qwen2", "hidden_size": 42, "intermediate_size": 54, "num_attention_heads": 3}
    | {"num_key_value_heads": 1},
    "norms of queries and keys": {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
    "experts": {"model_type": "qwen3_moe", "num_experts": 6, "moe_intermediate_size": 40, **_MOE}
    | {"mlp_only_layers": [1], "norm_topk_prob": True},
    "experts, plain weights": {"model_type": "qwen3_moe", "num_experts": 17, "moe_intermediate_size": 24, **_MOE}
    | {"norm_topk_prob": False},
    "experts, a window": {"model_type": "mixtral", "num_local_experts": 5, "sliding_window": 40, **_MOE},
}
native = pytest.mark.parametrize("name", NATIVE)


@lru_cache(maxsize=2)
def reference(name: str, dtype: str = "float32") -> Any:
    """transformers' model of a shape, with weights that make its logits differ widely."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**_SIZES | NATIVE[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=1.0 if "embed" in key else parameter.shape[-1] ** -0.5)
    return model.to(getattr(torch, dtype)).eval()


def weights_of(model: Any) -> Weights:
    names = {
        id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())
    }  # a tied head once
    return {
        name: to_numpy(tensor) for name, tensor in model.state_dict(keep_vars=True).items() if names[id(tensor)] == name
    }


class Feeder:
    """Feeds streams of tokens to a decoder; every stream has pages of its own, anywhere."""

    def __init__(self, decoder: Any, streams: int) -> None:
        self.decoder, self.fed = decoder, [0] * streams
        pages = np.random.default_rng(0).permutation(streams * PAGES)
        self.tables = pages.astype(np.int32).reshape(streams, PAGES)

    def feed(self, *parts: tuple[int, list[int]]) -> np.ndarray:
        """One call with all ``parts`` (stream, tokens); logits of every fed token, [T, V]."""
        ids = [token for _, tokens in parts for token in tokens]
        positions = [self.fed[stream] + i for stream, tokens in parts for i in range(len(tokens))]
        sequences = [stream for stream, tokens in parts for _ in tokens]
        for stream, tokens in parts:
            self.fed[stream] += len(tokens)
        ints = [np.array(values, np.int32) for values in (ids, positions, sequences)]
        return self.decoder.forward(*ints, self.tables, np.arange(len(ids), dtype=np.int32))

    def routes(self, stream: int) -> np.ndarray:
        routes = self.decoder.routes
        return routes[self.tables[stream]].reshape(PAGES * PAGE, *routes.shape[2:])[: self.fed[stream]]


def native_feeder(name: str, dtype: str = "float32", streams: int = 1, int8: bool = False) -> Feeder:
    shape = HfShape(transformers=_SIZES | NATIVE[name], dtype=dtype)
    decoder = GqaDecoder(shape, streams * PAGES, int8=int8)
    decoder.load(weights_of(reference(name, dtype)))
    return Feeder(decoder, streams)


def some_tokens(count: int, seed: int = 0, vocab: int = VOCAB) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def logprobs(logits: Any) -> np.ndarray:
    return torch.log_softmax(torch.as_tensor(logits).float(), dim=-1).numpy()


def expected(model: Any, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs [T, V] and routes [T, L, K] of transformers' own model."""
    chosen: list[torch.Tensor] = []
    routers = [module for name, module in model.named_modules() if type(module).__name__.endswith("Router")]
    hooks = [router.register_forward_hook(lambda _, __, out: chosen.append(out[2])) for router in routers]
    with torch.no_grad():
        found = logprobs(model(torch.tensor([tokens]), use_cache=False).logits[0])
    for hook in hooks:
        hook.remove()
    return found, torch.stack(chosen, dim=1).numpy() if chosen else np.empty((len(tokens), 0, 0))


# ---------------------------------------------------------------- the same function


@needs_compiler
@native
def test_the_native_decoder_says_what_transformers_says(name: str):
    tokens = some_tokens(200)
    feed = native_feeder(name)
    wanted, routes = expected(reference(name), tokens)
    np.testing.assert_allclose(logprobs(feed.feed((0, tokens))), wanted, atol=5e-5)
    np.testing.assert_array_equal(feed.routes(0), routes)


@needs_compiler
@native
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
def test_in_bfloat16_it_is_as_near_to_exact_numbers_as_transformers_is(name: str, int8: bool):
    """Both round; neither is right. int8 weights may be four times as far off."""
    tokens = some_tokens(120)
    model = reference(name, "bfloat16")
    exact, theirs = expected(reference_in_float32(model), tokens)[0], expected(model, tokens)[0]
    ours = logprobs(native_feeder(name, "bfloat16", int8=int8).feed((0, tokens)))
    gap, allowed = np.abs(ours - exact).mean(), np.abs(theirs - exact).mean()
    assert gap < (4.0 if int8 else 1.25) * allowed


def reference_in_float32(model: Any) -> Any:
    return deepcopy(model).float()


# ---------------------------------------------------------------- the same bits


KINDS = [("float32", False), ("bfloat16", False), ("bfloat16", True)]
kinds = pytest.mark.parametrize(("dtype", "int8"), KINDS, ids=["float32", "bfloat16", "int8"])


def in_chunks(feed: Feeder, stream: int, tokens: list[int], size: int) -> np.ndarray:
    return np.concatenate([feed.feed((stream, tokens[i : i + size])) for i in range(0, len(tokens), size)])


def check_chunks(make: Any, vocab: int, count: int, sizes: tuple[int, ...]) -> None:
    tokens, whole = some_tokens(count, vocab=vocab), make(1)
    wanted = whole.feed((0, tokens))
    for size in sizes:
        pieces = make(1)
        np.testing.assert_array_equal(in_chunks(pieces, 0, tokens, size), wanted)
        np.testing.assert_array_equal(pieces.routes(0), whole.routes(0))


def check_beside_others(make: Any, vocab: int, mates: tuple[int, ...]) -> None:
    prompt, rest = some_tokens(20, vocab=vocab), some_tokens(6, seed=1, vocab=vocab)
    alone = make(1)
    wanted = [alone.feed((0, prompt))[-1], *(alone.feed((0, [token]))[0] for token in rest)]
    for number in mates:
        batch, rng = make(number + 1), np.random.default_rng(number)
        others = [(i + 1, some_tokens(int(rng.integers(1, 40)), 50 + i, vocab)) for i in range(number)]
        got = batch.feed(*others[:3], (0, prompt), *others[3:])
        rows = [got[sum(len(tokens) for _, tokens in others[:3]) + len(prompt) - 1]]
        for token in rest:  # the mates change places and some feed several tokens
            order = [(0, [token]), *((i + 1, some_tokens(int(rng.integers(1, 3)), 9, vocab)) for i in range(number))]
            rng.shuffle(order)
            place = sum(len(tokens) for _, tokens in order[: [stream for stream, _ in order].index(0)])
            rows.append(batch.feed(*order)[place])
        np.testing.assert_array_equal(np.stack(rows), np.stack(wanted))
        np.testing.assert_array_equal(batch.routes(0), alone.routes(0))


@needs_compiler
@kinds
@native
def test_a_stream_has_the_same_bits_in_any_chunks(name: str, dtype: str, int8: bool):
    check_chunks(lambda streams: native_feeder(name, dtype, streams, int8), VOCAB, 150, (1, 7, 16, 33, 128))


@needs_compiler
@kinds
@native
def test_a_stream_has_the_same_bits_alone_and_beside_any_others(name: str, dtype: str, int8: bool):
    check_beside_others(lambda streams: native_feeder(name, dtype, streams, int8), VOCAB, (1, 6, 30))


@needs_compiler
def test_the_bits_do_not_depend_on_the_number_of_threads():
    code = """
        import hashlib
        from test_decode import KINDS, native_feeder, some_tokens
        digest = hashlib.sha256()
        for dtype, int8 in KINDS:
            for name in ("tied, llama3's rotation", "odd sizes", "experts, a window"):
                feed = native_feeder(name, dtype, 4, int8)
                digest.update(feed.feed(*((i, some_tokens(30 + i, i)) for i in range(4))).tobytes())
                digest.update(feed.feed(*((i, [7 + i]) for i in range(4))).tobytes())
        print(digest.hexdigest())
    """
    folder = Path(__file__).parent
    paths = os.pathsep.join(str(path) for path in (folder.parents[2], folder))
    children = []
    for threads in (1, 2):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    first, second = (child.communicate(timeout=280)[0].split()[-1:] for child in children)
    assert len(first[0]) == 64 and first == second


# ---------------------------------------------------------------- any family, in PyTorch


def paged_feeder(family: str, streams: int = 1) -> Feeder:
    policy = models(family)[0]
    decoder = PagedDecoder(Hf().policy(shape_of(family)), streams * PAGES)
    decoder.load(export_weights(policy))
    return Feeder(decoder, streams)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_decoder_says_what_transformers_says(family: str):
    feed, vocab = paged_feeder(family), shape_of(family).vocab_size
    tokens = some_tokens(60, vocab=vocab)
    wanted, routes = expected(models(family)[1], tokens)
    np.testing.assert_allclose(logprobs(in_chunks(feed, 0, tokens, 50)), wanted, atol=5e-5)
    np.testing.assert_array_equal(feed.routes(0), routes)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss", "deepseek_v3"])
def test_the_reference_decoder_has_the_same_bits_in_any_company(family: str):
    vocab = shape_of(family).vocab_size
    check_chunks(lambda streams: paged_feeder(family, streams), vocab, 40, (1, 7))
    check_beside_others(lambda streams: paged_feeder(family, streams), vocab, (6,))


# ---------------------------------------------------------------- in the engine


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "glm4_moe"])
async def test_the_engine_samples_with_the_log_probs_that_the_learner_computes(family: str):
    policy, shape = models(family)[0], shape_of(family)
    engine = EmbeddedEngine(shape, pages=64)
    await engine.update(Update(version=0, weights=export_weights(policy)))
    prompt = some_tokens(21, vocab=shape.vocab_size)
    done = await engine.generate(prompt, Sampling(seed=3, max_new_tokens=20), session="s", deadline_s=60.0)
    tokens = torch.tensor([prompt + done.tokens])
    mask, routes = torch.zeros_like(tokens, dtype=torch.bool), torch.full((1, 41, *done.routes.shape[1:]), -1)
    mask[0, 21:], routes[0, : len(done.routes)] = True, torch.from_numpy(done.routes).long()
    with torch.no_grad():
        learned, _ = policy(tokens, mask, routes)
        free, _ = policy(tokens, mask)
    np.testing.assert_allclose(learned.numpy(), done.logprobs, atol=5e-5)
    np.testing.assert_allclose(free.numpy(), done.logprobs, atol=5e-5)  # it would have chosen the same


# ---------------------------------------------------------------- which, and what is refused


@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_gets_the_decoder_that_serves_it(family: str):
    fast = family in ("llama", "llama_tied", "qwen2", "qwen3", "qwen3_moe", "mixtral")
    assert supported(shape_of(family)) == fast
    assert isinstance(make_decoder(shape_of(family), 2), GqaDecoder if fast else PagedDecoder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_parameters"),
        ({"intermediate_size": 81}, "even"),
        ({"model_type": "gemma3_text", "head_dim": 16}, "gemma3_text"),
    ],
)
def test_a_shape_that_the_native_decoder_cannot_serve_is_refused_with_the_reason(change: dict[str, Any], reason: str):
    shape = HfShape(transformers=_SIZES | {"model_type": "llama"} | change)
    assert not supported(shape)
    with pytest.raises(ValueError, match=reason):
        Plan(shape)


@needs_compiler
def test_what_is_no_number_is_said_and_leaves_nothing_behind():
    feed = native_feeder("biases", "bfloat16")
    good = weights_of(reference("biases", "bfloat16"))
    tokens = some_tokens(20)
    wanted = feed.feed((0, tokens))
    broken = {**good, "model.layers.0.self_attn.v_proj.bias": good["model.layers.0.self_attn.v_proj.bias"] + np.inf}
    with pytest.raises(NotFinite, match="v_proj"):
        feed.decoder.load(broken)
    huge = {**good, "model.norm.weight": np.full_like(good["model.norm.weight"], 3e38)}
    feed.decoder.load(huge)
    with pytest.raises(NotFinite, match="logit"):
        Feeder(feed.decoder, 1).feed((0, tokens))
    feed.decoder.load(good)
    np.testing.assert_array_equal(Feeder(feed.decoder, 1).feed((0, tokens)), wanted)


@needs_compiler
def test_weights_of_another_shape_are_refused():
    feed, weights = native_feeder("a window"), weights_of(reference("a window"))
    with pytest.raises(ValueError, match="missing or unknown"):
        feed.decoder.load({"model.norm.weight": weights["model.norm.weight"]})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(7,\)"):
        feed.decoder.load({**weights, "model.norm.weight": np.ones(7, np.float32)})
