"""Drills: dense practice of the two skills that demonstrations teach too thinly, copying and reading.

In a demonstration few tokens can be copied from far back, and one value is read for two calls. A small policy then
learns the format and stands still. Here nearly every trained token is a copy, or a value that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import numpy as np

from envs.world.corpus import reading_pieces
from model.tokenizer import Tokenizer
from parl.config import Config
from parl.learner import TextRow

_REPEATED = 48  # random tokens that a copying drill repeats
_FACTS = (3, 10)  # most facts of a reading drill, at the beginning and at the end


def copying_drill(vocab: int, rng: np.random.Generator) -> TextRow:
    """Random tokens, then the same again; only the repetition is trained."""
    segment = rng.integers(0, vocab, _REPEATED).astype(np.int32)
    tokens = np.concatenate([segment, segment, segment[: _REPEATED // 2]])
    weights = np.where(np.arange(len(tokens)) > _REPEATED, np.float32(1), np.float32(0))
    return TextRow(tokens=tokens, weights=weights)


def reading_drill(tokenizer: Tokenizer, rng: Random, most: int) -> TextRow:
    """Facts, at most ``most``, then questions about them with their answers; only the answers are trained."""
    tokens: list[int] = []
    weights: list[float] = []
    for text, wanted in reading_pieces(rng, most):
        ids = tokenizer.encode(text)
        ids += [tokenizer.im_end_id] if wanted else []
        tokens += ids
        weights += [float(wanted)] * len(ids)
    return TextRow(tokens=np.array(tokens, np.int32), weights=np.array(weights, np.float32))


def most_facts(done: float) -> int:
    """Curriculum: with few facts a guess is often right, and the gradient finds out why; with ten it never does."""
    few, many = _FACTS
    return int(few + (many - few) * max(done - 0.3, 0.0) / 0.7)


def drill_batches(config: Config, tokenizer: Tokenizer) -> Iterator[list[TextRow]]:
    """``sft.copying_tokens`` of copying, then ``sft.reading_tokens`` of reading, in batches of ``sft.batch_tokens``."""
    sft = config.sft
    numbers, rng = np.random.default_rng(sft.seed), Random(f"reading:{sft.seed}")
    yield from _batches(lambda _: copying_drill(tokenizer.vocab_size, numbers), sft.copying_tokens, sft.batch_tokens)
    yield from _batches(
        lambda done: reading_drill(tokenizer, rng, most_facts(done)), sft.reading_tokens, sft.batch_tokens
    )


def _batches(make: Callable[[float], TextRow], tokens: int, size: int) -> Iterator[list[TextRow]]:
    drawn = 0
    while drawn < tokens:
        rows: list[TextRow] = []
        while sum(len(row.tokens) for row in rows) < size:
            rows.append(make(drawn / tokens))
        drawn += sum(len(row.tokens) for row in rows)
        yield rows
