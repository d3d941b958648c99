"""Drills: dense practice of what demonstrations teach too thinly: copying, reading, and working through a list.

In a demonstration few tokens can be copied from far back, and one value is read for two calls. A small policy then
learns the format and stands still. Here nearly every trained token is a copy, or a value that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import numpy as np

from envs.world.corpus import agenda_pieces, reading_pieces
from model.tokenizer import Tokenizer
from parl.config import Config
from parl.learner import TextRow

_REPEATED = 48  # random tokens that a copying drill repeats
_LONGEST = (3, 12)  # facts of a reading drill or names of an agenda, at the beginning and at the end


def copying_drill(vocab: int, rng: np.random.Generator) -> TextRow:
    """Random tokens, then the same again; only the repetition is trained."""
    segment = rng.integers(0, vocab, _REPEATED).astype(np.int32)
    tokens = np.concatenate([segment, segment, segment[: _REPEATED // 2]])
    weights = np.where(np.arange(len(tokens)) > _REPEATED, np.float32(1), np.float32(0))
    return TextRow(tokens=tokens, weights=weights)


def reading_drill(tokenizer: Tokenizer, rng: Random, most: int) -> TextRow:
    """Facts, at most ``most``, then questions about them with their answers; only the answers are trained."""
    return _row(tokenizer, reading_pieces(rng, most), ends=True)


def agenda_drill(tokenizer: Tokenizer, rng: Random, most: int) -> TextRow:
    """A list of at most ``most`` names, then calls that go through it; only the calls are trained."""
    return _row(tokenizer, agenda_pieces(rng, most), ends=False)


def _row(tokenizer: Tokenizer, pieces: list[tuple[str, bool]], *, ends: bool) -> TextRow:
    tokens: list[int] = []
    weights: list[float] = []
    for text, wanted in pieces:
        ids = tokenizer.encode(text)
        ids += [tokenizer.im_end_id] if wanted and ends else []
        tokens += ids
        weights += [float(wanted)] * len(ids)
    return TextRow(tokens=np.array(tokens, np.int32), weights=np.array(weights, np.float32))


def longest(done: float) -> int:
    """Curriculum: with few facts a guess is often right, and the gradient finds out why; with ten it never does."""
    few, many = _LONGEST
    return int(few + (many - few) * max(done - 0.3, 0.0) / 0.7)


def drill_batches(config: Config, tokenizer: Tokenizer) -> Iterator[list[TextRow]]:
    """``sft.copying_tokens`` of copying, then ``sft.reading_tokens`` of the others, ``sft.batch_tokens`` at a time."""
    sft = config.sft
    numbers, rng = np.random.default_rng(sft.seed), Random(f"drills:{sft.seed}")

    def mixed(done: float) -> TextRow:
        make = reading_drill if rng.random() < 0.5 else agenda_drill
        return make(tokenizer, rng, longest(done))

    yield from _batches(lambda _: copying_drill(tokenizer.vocab_size, numbers), sft.copying_tokens, sft.batch_tokens)
    yield from _batches(mixed, sft.reading_tokens, sft.batch_tokens)


def _batches(make: Callable[[float], TextRow], tokens: int, size: int) -> Iterator[list[TextRow]]:
    drawn = 0
    while drawn < tokens:
        rows: list[TextRow] = []
        while sum(len(row.tokens) for row in rows) < size:
            rows.append(make(drawn / tokens))
        drawn += sum(len(row.tokens) for row in rows)
        yield rows
