"""The decoder: the training forward's numbers, the same bits in any batch, and keyed noise."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ODD_SHAPE, SHAPE, random_policy, random_weights, tiny_model

from model.decoder import PAGE, NotFinite, export_weights
from model.kernels import native
from model.kimi.config import ModelConfig
from model.kimi.decoder import NativeDecoder, ReferenceDecoder, make_decoder
from model.kimi.transformer import Transformer

# what DeepSeek-V3's architecture has besides: groups of experts, YaRN, the latents' own epsilon; and its variants
YARN = {"factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7}
GROUPED = {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
FULL_SHAPE = SHAPE | GROUPED | {"rope_scaling": YARN, "latent_norm_eps": 1e-2, "qk_rope_head_dim": 16}
VARIANT_SHAPE = ODD_SHAPE | {"q_lora_rank": None, "rope_interleave": False, "qk_rope_head_dim": 6, "rope_theta": 50.0}
SHAPES = [
    pytest.param(SHAPE, id="tiny"),
    pytest.param(ODD_SHAPE, id="odd"),
    pytest.param(FULL_SHAPE, id="full"),
    pytest.param(VARIANT_SHAPE, id="variant"),
    pytest.param(SHAPE | {"rope_interleave": False}, id="half-split"),
]
STREAM_PAGES = 12
needs_compiler = pytest.mark.skipif(native.load_library() is None, reason="no C++ compiler")


class Feeder:
    """Feeds token streams to a decoder; every stream has its own pages."""

    def __init__(self, decoder: NativeDecoder | ReferenceDecoder, streams: int) -> None:
        self.decoder, self.fed = decoder, [0] * streams
        pages = np.random.default_rng(0).permutation(streams * STREAM_PAGES)  # a stream's pages are scattered
        self.tables = pages.astype(np.int32).reshape(streams, STREAM_PAGES)

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
        flat = self.decoder.routes[self.tables[stream]].reshape(-1, *self.decoder.routes.shape[2:])
        return flat[: self.fed[stream]]


def feeder(kind: type, config: ModelConfig, streams: int = 1, seed: int = 0) -> Feeder:
    decoder = kind(config, streams * STREAM_PAGES)
    decoder.load(random_weights(config, seed))
    return Feeder(decoder, streams)


def some_tokens(count: int, vocab: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_native_reference_and_training_forward_agree(shape):
    config = ModelConfig(**shape)
    policy = random_policy(config)
    tokens = some_tokens(70, config.vocab_size)
    fast, slow = feeder(NativeDecoder, config), feeder(ReferenceDecoder, config)
    first, second = log_softmax(fast.feed((0, tokens))), log_softmax(slow.feed((0, tokens)))
    chosen: list[torch.Tensor] = []
    for router in policy.routers():
        router.register_forward_hook(lambda _, __, out: chosen.append(out.ids))
    with torch.no_grad():
        trained = torch.log_softmax(policy.lm_head(policy.hidden(torch.tensor([tokens]))[0]), dim=-1).numpy()
    np.testing.assert_allclose(first, trained, atol=1e-4)
    np.testing.assert_allclose(second, trained, atol=1e-4)
    live = torch.stack(chosen, dim=1).numpy()
    np.testing.assert_array_equal(fast.routes(0), live)
    np.testing.assert_array_equal(slow.routes(0), live)


def in_chunks(feed: Feeder, stream: int, tokens: list[int], size: int) -> np.ndarray:
    return np.concatenate([feed.feed((stream, tokens[i : i + size])) for i in range(0, len(tokens), size)])


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_has_the_same_bits_in_any_chunks(shape):
    config = ModelConfig(**shape)
    tokens = some_tokens(61, config.vocab_size)
    whole = feeder(NativeDecoder, config)
    wanted = whole.feed((0, tokens))
    for size in (1, 5, 16, 33):
        pieces = feeder(NativeDecoder, config)
        np.testing.assert_array_equal(in_chunks(pieces, 0, tokens, size), wanted)
        np.testing.assert_array_equal(pieces.routes(0), whole.routes(0))


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_has_the_same_bits_alone_and_beside_any_others(shape):
    config = ModelConfig(**shape)
    prompt, rest = some_tokens(20, config.vocab_size), some_tokens(12, config.vocab_size, seed=1)
    alone = feeder(NativeDecoder, config)
    wanted = [alone.feed((0, prompt))[-1], *(alone.feed((0, [token]))[0] for token in rest)]
    for mates in (1, 6, 13):
        batch = feeder(NativeDecoder, config, streams=mates + 1)
        rng = np.random.default_rng(mates)
        others = [(i + 1, some_tokens(int(rng.integers(1, 40)), config.vocab_size, 50 + i)) for i in range(mates)]
        got = [batch.feed(*others[:3], (0, prompt), *others[3:])]
        place = sum(len(tokens) for _, tokens in others[:3]) + len(prompt) - 1
        rows = [got[0][place]]
        for token in rest:  # decode steps in changing order, with several tokens for some streams
            order = [(0, [token]), *((i + 1, some_tokens(int(rng.integers(1, 3)), 70, 9)) for i in range(mates))]
            rng.shuffle(order)
            place = sum(len(tokens) for _, tokens in order[: [stream for stream, _ in order].index(0)])
            rows.append(batch.feed(*order)[place])
        np.testing.assert_array_equal(np.stack(rows), np.stack(wanted))
        np.testing.assert_array_equal(batch.routes(0), alone.routes(0))


@needs_compiler
def test_the_bits_do_not_depend_on_the_number_of_threads():
    code = """
        import hashlib, numpy as np
        from test_decoder import FULL_SHAPE, ODD_SHAPE, SHAPE, ModelConfig, NativeDecoder, feeder, some_tokens
        digest = hashlib.sha256()
        for shape in (SHAPE, ODD_SHAPE, FULL_SHAPE):
            feed = feeder(NativeDecoder, ModelConfig(**shape), streams=4)
            parts = [(i, some_tokens(30 + i, 70, i)) for i in range(4)]
            digest.update(feed.feed(*parts).tobytes())
            digest.update(feed.feed(*((i, [7 + i]) for i in range(4))).tobytes())
        print(digest.hexdigest())
    """
    folder = Path(__file__).parent
    paths = os.pathsep.join(str(path) for path in (folder.parents[2], folder.parents[1], folder))

    children = []
    for threads in (1, 2):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    first, second = (child.communicate(timeout=120)[0] for child in children)
    assert len(first) > 60 and first == second


def draw(decoder, logits: np.ndarray, keys, positions, heat: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    count = len(keys)
    rows = np.ascontiguousarray(np.broadcast_to(logits, (count, logits.shape[-1])), np.float32)
    heats = np.full(count, heat, np.float32)
    return decoder.sample(rows, heats, np.array(keys, np.uint64), np.array(positions, np.int32))


@pytest.fixture(scope="module", params=[pytest.param(NativeDecoder, marks=needs_compiler), ReferenceDecoder])
def sampler(request: pytest.FixtureRequest):
    return request.param(tiny_model(), 1)


def some_logits(rows: int, vocab: int = 21, seed: int = 5) -> np.ndarray:
    return (2 * np.random.default_rng(seed).standard_normal((rows, vocab))).astype(np.float32)


@pytest.mark.parametrize("heat", [1.0, 0.6])
def test_frequencies_follow_the_softmax(sampler, heat):
    logits = some_logits(1)
    count = 20_000
    tokens, logprobs = draw(sampler, logits, range(count), [3] * count, heat)
    expected = torch.softmax(torch.from_numpy(logits[0]).double() / heat, dim=-1).numpy()
    seen = np.bincount(tokens, minlength=21)
    chi_square = float((((seen - count * expected) ** 2) / (count * expected)).sum())
    assert chi_square < 45.3  # 99.9 % of chi-square with 20 degrees of freedom
    np.testing.assert_allclose(logprobs, np.log(expected)[tokens], atol=1e-5)


def test_positions_of_one_key_are_as_good_as_keys(sampler):
    count = 20_000
    tokens, _ = draw(sampler, np.zeros((1, 16), np.float32), [12345] * count, range(count))
    seen = np.bincount(tokens, minlength=16)
    assert float(((seen - count / 16) ** 2 / (count / 16)).sum()) < 37.7  # 99.9 %, 15 degrees of freedom
    pairs = np.bincount(tokens[:-1] * 16 + tokens[1:], minlength=256)  # neighbours are independent
    assert float(((pairs - (count - 1) / 256) ** 2 / ((count - 1) / 256)).sum()) < 330.5  # 255 degrees of freedom


def test_noise_is_a_function_of_key_and_position_alone(sampler):
    logits = some_logits(6)
    keys, positions = [1, 1, 2, 2**64 - 1, 5, 5], [0, 9, 0, 4, 4, 4]
    together, logprobs = draw(sampler, logits, keys, positions)
    for i in reversed(range(6)):
        token, logprob = draw(sampler, logits[i : i + 1], keys[i : i + 1], positions[i : i + 1])
        assert (token[0], logprob[0]) == (together[i], logprobs[i])
    many = [draw(sampler, logits[:1], [key], [position])[0][0] for key in range(20) for position in range(20)]
    assert len(set(many)) > 8


def test_temperature_0_is_argmax_and_says_the_log_prob_at_temperature_1(sampler):
    logits = some_logits(50)
    heat = np.zeros(50, np.float32)
    keys, positions = np.arange(50, dtype=np.uint64), np.arange(50, dtype=np.int32)
    tokens, logprobs = sampler.sample(logits, heat, keys, positions)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_allclose(logprobs, log_softmax(logits).max(-1), atol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_top_p_draws_from_the_likeliest_tokens_that_together_reach_it(sampler, share):
    logits, count = some_logits(1), 20_000
    rows = np.ascontiguousarray(np.broadcast_to(logits, (count, 21)))
    keys, positions = np.arange(count, dtype=np.uint64), np.zeros(count, np.int32)
    heat, shares = np.ones(count, np.float32), np.full(count, share, np.float32)
    tokens, logprobs = sampler.sample(rows, heat, keys, positions, shares)
    whole = torch.softmax(torch.from_numpy(logits[0]).double(), dim=-1).numpy()
    order = np.argsort(-whole)
    kept = order[: int(np.searchsorted(np.cumsum(whole[order]), share)) + 1]
    assert set(tokens.tolist()) == set(kept.tolist()) and len(kept) < 21
    expected = count * whole[kept] / whole[kept].sum()
    assert float(((np.bincount(tokens, minlength=21)[kept] - expected) ** 2 / expected).sum()) < 45.3
    np.testing.assert_allclose(logprobs, np.log(whole)[tokens], atol=1e-5)  # those before the cut


@needs_compiler
def test_native_and_reference_pick_the_same_tokens():
    fast, slow = NativeDecoder(tiny_model(), 1), ReferenceDecoder(tiny_model(), 1)
    logits = some_logits(2000, vocab=133)
    keys = np.random.default_rng(0).integers(0, 2**63, 2000, dtype=np.uint64)
    heat, positions = np.full(2000, 0.9, np.float32), np.arange(2000, dtype=np.int32)
    shares = np.random.default_rng(1).choice(np.array([1.0, 0.9, 0.4], np.float32), 2000)
    first, second = (d.sample(logits, heat, keys, positions, shares) for d in (fast, slow))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1], atol=1e-5)


KINDS = [pytest.param(NativeDecoder, marks=needs_compiler), ReferenceDecoder]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_refused_by_name(kind, value):
    weights = random_weights(tiny_model())
    weights["layers.1.mlp.gate.weight"][2, 3] = value
    with pytest.raises(NotFinite, match=r"layers\.1\.mlp\.gate\.weight"):
        kind(tiny_model(), 1).load(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_logit_that_overflows_is_an_error(kind):
    feed = feeder(kind, tiny_model())
    weights = random_weights(tiny_model())
    weights["norm.weight"] = np.full_like(weights["norm.weight"], 3e38)
    feed.decoder.load(weights)
    with pytest.raises(NotFinite, match="logit"):
        feed.feed((0, [1, 2, 3]))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_shape_are_refused(kind):
    decoder = kind(tiny_model(), 1)
    with pytest.raises(ValueError, match=r"lm_head\.weight has shape \(799, 32\)"):
        decoder.load({**random_weights(tiny_model()), "lm_head.weight": np.zeros((799, 32), np.float32)})
    with pytest.raises(ValueError, match="missing or unknown"):
        decoder.load({"norm.weight": np.ones(32, np.float32)})


def test_exported_weights_are_copies():
    policy = Transformer(tiny_model())
    weights = export_weights(policy)
    with torch.no_grad():
        policy.norm.weight.zero_()
    assert (weights["norm.weight"] == 1).all()


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Neither a build in memory nor a cached one; yields the cache's folder."""
    monkeypatch.setenv("PARL_CACHE", str(tmp_path / "cache"))
    native.load_library.cache_clear()
    yield tmp_path / "cache"
    monkeypatch.undo()
    native.load_library.cache_clear()
    native.load_library()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PATH": "", "CXX": ""}, r"no C\+\+ compiler found"),
        ({"CXX": "/no/such/compiler"}, "/no/such/compiler"),
        ({"CXX": "false"}, "false failed"),
    ],
)
def test_without_a_working_compiler_the_reference_decoder_serves_after_one_warning(
    fresh_library, monkeypatch, variables, reason
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=reason) as seen:
        decoders = [make_decoder(tiny_model(), 2) for _ in range(3)]
    assert len(seen) == 1
    assert all(isinstance(decoder, ReferenceDecoder) for decoder in decoders)
    assert not list(fresh_library.glob("kernels-*"))


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(fresh_library, monkeypatch):
    fresh_library.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="slower PyTorch decoder"):
        assert isinstance(make_decoder(tiny_model(), 2), ReferenceDecoder)


@needs_compiler
def test_builders_at_once_never_see_half_a_library(fresh_library, monkeypatch, tmp_path):
    content = bytes(range(256)) * 400
    (tmp_path / "content").write_bytes(content)
    compiler = tmp_path / "slow.sh"  # writes its output in two halves
    compiler.write_text(
        'for last; do [ "$before" = -o ] && out="$last"; before="$last"; done\n'
        f'head -c 50000 {tmp_path}/content > "$out"; sleep 0.2; tail -c +50001 {tmp_path}/content >> "$out"\n'
    )
    monkeypatch.setenv("CXX", f"sh {compiler}")
    seen: list[bytes] = []
    builders = [threading.Thread(target=lambda: seen.append(native._built().read_bytes())) for _ in range(4)]
    for builder in builders:
        builder.start()
    while any(builder.is_alive() for builder in builders):
        assert all(file.read_bytes() == content for file in fresh_library.glob("kernels-*.so"))
    assert seen == [content] * 4
    assert len(list(fresh_library.iterdir())) == 1  # no temporary folder stays


@needs_compiler
def test_a_build_is_kept_and_taken_again(fresh_library, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setenv("PARL_CACHE", "")  # the default cache, where earlier tests' build lies
        assert isinstance(make_decoder(tiny_model(), PAGE), NativeDecoder)
        monkeypatch.setattr(native.subprocess, "run", None)
        native.load_library.cache_clear()
        assert isinstance(make_decoder(tiny_model(), PAGE), NativeDecoder)
