"""Drills: dense practice of what demonstrations teach too thinly: copying, reading, and working through a list.

In a demonstration few tokens can be copied from far back, and one value is read for two calls. A small policy then
learns the format and stands still. Here nearly every trained token is a copy, or a value that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

import numpy as np

from envs.world.corpus import Piece, agenda, reading_pieces
from envs.world.reference import WORKER
from envs.world.wording import answer_table, asking, fact_line
from model.chat.base import Call, ChatFormat
from model.chat.base import Piece as Segment
from model.tokenizer.tokenizer import Tokenizer
from parl.config.family import chat_format
from parl.config.schema import Config
from parl.learn.batch import TextRow

_REPEATED = 48  # random tokens that a copying drill repeats
_CHANGED = 0.25  # share of the repetition that differs
FORMS = ("table", "assign", "search")  # of what goes through a list, as often


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


def agenda_drill(chat: ChatFormat, rng: Random, count: int, longest: int, form: str) -> TextRow:
    """A question about a numbered list of ``count`` names, then what goes through it.

    ``form``: a ``table``; or calls in chat format, those of one turn (``assign``) or of many, each followed by a fact
    (``search``). Only the number that comes next and the name behind it are trained, for only they have to be found.
    All begin anywhere in the list, the calls' ids with any number, and the list's own numbers end at ``longest`` or
    before.
    """
    text, label, rows = agenda(rng, count, longest)
    todo, index = rows[rng.randrange(count - 1) :], rng.randrange(24)
    wanted = [todo[0][1], *(item for item, _, _ in todo[1:])]  # any number may be the first
    tokens = chat.tokenizer.encode(text)
    weights = [0.0] * len(tokens)

    def say(pieces: list[Segment], parts: Sequence[str] = ()) -> None:
        ids = chat.encode(pieces)
        tokens.extend(ids)
        weights.extend([0.0] * len(ids))
        for part in map(chat.tokenizer.encode, parts):
            at = next(i for i in range(len(ids)) if ids[i : i + len(part)] == part) - len(ids)
            for i in range(at, at + len(part)):
                weights[i] = 1.0

    prompts = [asking([label], item) for item, _, _ in todo]
    if form == "table":
        table = answer_table(("name", label), [(item, value) for item, _, value in todo])
        say([(table, False)], wanted[1:])
    elif form == "assign":
        calls = [_call(chat, "assign_task", index + i, agent=WORKER, prompt=prompt) for i, prompt in enumerate(prompts)]
        say(chat.assistant("", calls), wanted)
    else:
        for i, (_, name, value) in enumerate(todo):
            call = _call(chat, "search", index + i, query=prompts[i])
            say(chat.assistant("", [call]), wanted[i : i + 1])
            say(chat.results([(call.id, call.name, fact_line(name, label, value))]))
    return TextRow(tokens=np.array(tokens, np.int32), weights=np.array(weights, np.float32))


def _call(chat: ChatFormat, name: str, index: int, **arguments: str) -> Call:
    return Call(id=chat.call_id(name, index), name=name, arguments=arguments)


def drill_batches(config: Config, tokenizer: Tokenizer) -> Iterator[list[TextRow]]:
    """``sft.copying_tokens`` of copying, then ``sft.drill_tokens`` of the others, mixed: like rows only make the
    gradient swing from one kind to the next. Lists have every length from the first on, or short ones are counted."""
    sft, longest = config.sft, max(config.envs.world.widths[1], 2)
    numbers, rng = np.random.default_rng(sft.seed), Random(f"drills:{sft.seed}")
    chat = chat_format(config, tokenizer)

    def mixed() -> TextRow:
        count = rng.randint(2, longest)
        if rng.random() < 0.5:
            return row_of(tokenizer, reading_pieces(rng, count, longest))
        return agenda_drill(chat, rng, count, longest, rng.choice(FORMS))

    yield from _batches(lambda: copying_drill(tokenizer.vocab_size, numbers), sft.copying_tokens, sft.batch_tokens)
    yield from _batches(mixed, sft.drill_tokens, sft.batch_tokens)


def _batches(make: Callable[[], TextRow], tokens: int, size: int) -> Iterator[list[TextRow]]:
    drawn = 0
    while drawn < tokens:
        rows: list[TextRow] = []
        while sum(len(row.tokens) for row in rows) < size:
            rows.append(make())
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
