"""Drills: dense practice of what demonstrations teach too thinly: copying, reading, and working through a list.

In a demonstration few tokens can be copied from far back, and one value is read for two calls. A small policy then
learns the format and stands still. Here nearly every trained token is a copy, or a value that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import numpy as np

from envs.world.corpus import Piece, agenda, reading_pieces
from envs.world.reference import WORKER
from envs.world.wording import delegate_prompt
from model.chat import Call, assistant_pieces, call_id, tool_result_pieces
from model.tokenizer import Tokenizer
from parl.config import Config
from parl.learner import TextRow

_REPEATED = 48  # random tokens that a copying drill repeats
_SHORTEST = 3


def copying_drill(vocab: int, rng: np.random.Generator) -> TextRow:
    """Random tokens, then the same again; only the repetition is trained."""
    segment = rng.integers(0, vocab, _REPEATED).astype(np.int32)
    tokens = np.concatenate([segment, segment, segment[: _REPEATED // 2]])
    weights = np.where(np.arange(len(tokens)) > _REPEATED, np.float32(1), np.float32(0))
    return TextRow(tokens=tokens, weights=weights)


def agenda_drill(tokenizer: Tokenizer, rng: Random, count: int) -> TextRow:
    """A question about ``count`` names, then calls that go through them in order, in the chat format.

    Only the names are trained, for only they have to be found: what stands behind the last one in the question. The
    calls are those of one turn (``assign_task``) or of many, each followed by a fact. They begin with any of the names
    and any number, or the policy would learn to count instead, and fail on the first list that is longer.
    """
    text, label, facts = agenda(rng, count)
    todo, index = facts[rng.randrange(count - 1) :], rng.randrange(24)
    tokens = tokenizer.encode(text)
    weights = [0.0] * len(tokens)
    names = {token for name, _ in todo[1:] for token in tokenizer.encode(name)}

    def say(pieces: list[tuple[str, bool]], trained: bool) -> None:
        ids = tokenizer.encode_segments(pieces)
        tokens.extend(ids)
        weights.extend(float(trained and token in names) for token in ids)

    if rng.random() < 0.5:
        prompts = [delegate_prompt([label], name) for name, _ in todo]
        calls = [_call("assign_task", index + i, agent=WORKER, prompt=prompt) for i, prompt in enumerate(prompts)]
        say(assistant_pieces("", calls, thinking=False), True)
    else:
        for i, (name, fact) in enumerate(todo):
            call = _call("search", index + i, query=name)
            say(assistant_pieces("", [call], thinking=False), i > 0)
            say(tool_result_pieces([(call.id, call.name, fact)], thinking=False), False)
    return TextRow(tokens=np.array(tokens, np.int32), weights=np.array(weights, np.float32))


def _call(name: str, index: int, **arguments: str) -> Call:
    return Call(id=call_id(name, index), name=name, arguments=arguments)


def length_limit(done: float, longest: int) -> int:
    """Curriculum: most facts or names of a drill, 3 in the first fifth, ``longest`` at the end.

    With few facts a guess is often right and the gradient finds out why; with ten it never does.
    """
    return int(min(longest, _SHORTEST + max(longest - _SHORTEST, 0) * max(done - 0.2, 0.0) / 0.8))


def drill_batches(config: Config, tokenizer: Tokenizer) -> Iterator[list[TextRow]]:
    """``sft.copying_tokens`` of copying, then ``sft.drill_tokens`` of the others, mixed: like rows only make the
    gradient swing from one kind to the next."""
    sft, longest = config.sft, config.envs.world.widths[1]
    numbers, rng = np.random.default_rng(sft.seed), Random(f"drills:{sft.seed}")

    def mixed(done: float) -> TextRow:
        count = rng.randint(2, length_limit(done, longest))
        if rng.random() < 0.5:
            return row_of(tokenizer, reading_pieces(rng, count))
        return agenda_drill(tokenizer, rng, count)

    yield from _batches(lambda _: copying_drill(tokenizer.vocab_size, numbers), sft.copying_tokens, sft.batch_tokens)
    yield from _batches(mixed, sft.drill_tokens, sft.batch_tokens)


def _batches(make: Callable[[float], TextRow], tokens: int, size: int) -> Iterator[list[TextRow]]:
    drawn = 0
    while drawn < tokens:
        rows: list[TextRow] = []
        while sum(len(row.tokens) for row in rows) < size:
            rows.append(make(drawn / tokens))
        drawn += sum(len(row.tokens) for row in rows)
        yield rows


def row_of(tokenizer: Tokenizer, pieces: list[Piece]) -> TextRow:
    """``pieces`` as one row, each token with the weight of its piece."""
    tokens: list[int] = []
    weights: list[float] = []
    for text, weight in pieces:
        ids = tokenizer.encode(text)
        tokens += ids
        weights += [weight] * len(ids)
    return TextRow(tokens=np.array(tokens, np.int32), weights=np.array(weights, np.float32))
