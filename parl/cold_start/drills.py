"""Drills: dense practice of what demonstrations teach too thinly: copying, reading, and working through a list.

In a demonstration few tokens can be copied from far back, and one value is read for two calls. A small policy then
learns the format and stands still. Here nearly every trained token is a copy, or a value that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

import numpy as np

from envs.teacher import Part
from model.chat.base import Call, ChatFormat
from model.chat.base import Piece as Segment
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import teacher_of
from parl.config.family import chat_format
from parl.learn.batch import TextRow

_REPEATED = 48  # random tokens that a copying drill repeats
_CHANGED = 0.25  # share of the repetition that differs


def copying_drill(vocab: int, rng: np.random.Generator) -> TextRow:
    """Random pieces, then the same pieces in another order with some tokens changed; what can be known is trained.

    The order differs, or heads would learn a distance. In half of the drills every second or third token of a piece is
    one separator. So neither the last token nor the one before always tells what comes next, and heads must learn to
    match whatever of the last few tokens they can.
    """
    length = int(rng.integers(3, 9))
    pieces = rng.integers(0, vocab, (_REPEATED // length, length))
    separators = np.zeros(length, bool)
    if rng.random() < 0.5:
        separators[rng.integers(0, 2) :: rng.integers(2, 4)] = True
        pieces[:, separators] = rng.integers(0, vocab)
    shuffled = pieces[rng.permutation(len(pieces))]
    changed = ~separators & (rng.random(shuffled.shape) < _CHANGED)
    again = np.where(changed, rng.integers(0, vocab, shuffled.shape), shuffled)
    known = ~(changed | separators)
    known &= np.cumsum(known, axis=1) > 1  # something of the piece has to be seen first
    tokens = np.concatenate([pieces.ravel(), again.ravel()])
    weights = np.concatenate([np.zeros(pieces.size), known.ravel()])
    return TextRow(tokens=tokens.astype(np.int32), weights=weights.astype(np.float32))


def drill_batches(recipe: Recipe, tokenizer: Tokenizer) -> Iterator[list[TextRow]]:
    """``sft.copying_tokens`` of copying, then ``sft.drill_tokens`` of the teacher's exercises, mixed: like rows only
    make the gradient swing from one kind to the next."""
    sft, teacher = recipe.sft, teacher_of(recipe, recipe.envs.build())
    numbers, rng = np.random.default_rng(sft.seed), Random(f"drills:{sft.seed}")
    copying, exercise = partial(copying_drill, tokenizer.vocab_size, numbers), partial(teacher.exercise, rng)
    yield from _batches(copying, sft.copying_tokens, sft.batch_tokens)
    chat = chat_format(recipe.model, recipe.rollouts, tokenizer)
    yield from _batches(lambda: exercise_row(chat, exercise()), sft.drill_tokens, sft.batch_tokens)


def _batches(make: Callable[[], TextRow], tokens: int, size: int) -> Iterator[list[TextRow]]:
    drawn = 0
    while drawn < tokens:
        rows: list[TextRow] = []
        while sum(len(row.tokens) for row in rows) < size:
            rows.append(make())
        drawn += sum(len(row.tokens) for row in rows)
        yield rows


def exercise_row(chat: ChatFormat, parts: Sequence[Part]) -> TextRow:
    """An exercise as one row: its texts and turns, each token with its loss weight."""
    tokenizer = chat.tokenizer
    tokens: list[int] = []
    weights: list[float] = []
    for part in parts:
        for text, weight in part.pieces:
            ids = tokenizer.encode(text)
            tokens += ids
            weights += [weight] * len(ids)
        ids = chat.encode(_segments(chat, part))
        trained = [0.0] * len(ids)
        for wanted in map(tokenizer.encode, part.wanted):
            at = next(i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted)
            trained[at : at + len(wanted)] = [1.0] * len(wanted)
        tokens += ids
        weights += trained
    return TextRow(tokens=np.array(tokens, np.int32), weights=np.array(weights, np.float32))


def _segments(chat: ChatFormat, part: Part) -> list[Segment]:
    if part.calls:
        calls = [Call(id=chat.call_id(name, number), name=name, arguments=given) for number, name, given in part.calls]
        return chat.assistant("", calls)
    if part.results:
        return chat.results([(chat.call_id(name, number), name, text) for number, name, text in part.results])
    return [(part.said, False)] if part.said else []
