"""Stops a run whose first turns are mostly malformed: its rewards would be noise.

Typical causes are a wrong parser, another model's chat template, or too few tokens per turn; the error shows
examples with the parser's messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from model.tokenizer.tokenizer import load_tokenizer
from parl.errors import UserError
from parl.shown.terminal import line
from rollouts.episode import Episode, Trace, Turn

_SHOWN, _HEAD, _TAIL = 2, 240, 80  # turns, and characters of each


def check_readable(episodes: Sequence[Episode], most: float, policy: Path) -> None:
    """UserError if more than the share ``most`` of the turns is malformed. ``policy``: tokenizer's folder."""
    turns = [turn for episode in episodes if not episode.void for trace in episode.traces for turn in trace.turns]
    unread, cut = sum(turn.unread for turn in turns), sum(turn.cut for turn in turns)
    if not turns or unread + cut <= most * len(turns):
        return
    told = [
        f"{(unread + cut) / len(turns):.0%} of the first step's {len(turns)} turns cannot be read"
        f" (trainer.most_unread is {most:g}): {unread} by the parser, {cut} were cut by length. For example:"
    ]
    tokenizer = load_tokenizer(policy)
    for episode, trace, turn in islice(_examples(episodes), _SHOWN):
        known = [token for token in trace.tokens[turn.start : turn.end] if token < tokenizer.vocab_size]
        wrote = line(tokenizer.decode(known))
        wrote = wrote if len(wrote) <= _HEAD + _TAIL else f"{wrote[:_HEAD]} … {wrote[-_TAIL:]}"
        told.append(f"  {episode.task.key}#{episode.index}, agent {trace.agent_id}: {line(turn.malformed)}")
        told.append(f"    wrote: {wrote}")
    if cut > unread:
        cure = (
            "raise rollouts.budget.turn_tokens; a model that never comes to an end, as small ones that do not know the"
            " tools, has to see demonstrations first (sft.data, docs/cold_start.md)"
        )
    else:
        cure = "teach the format first (sft), or set the model's own with model.chat where the parser is the wrong one"
    raise UserError("\n".join([*told, f"{cure}; trainer.most_unread=1 goes on all the same"]))


def _examples(episodes: Sequence[Episode]) -> Iterator[tuple[Episode, Trace, Turn]]:
    """Malformed turns, one per reason."""
    seen: set[str] = set()
    for episode in episodes:
        for trace in episode.traces:
            for turn in trace.turns:
                if turn.malformed and turn.malformed not in seen and not episode.void:
                    seen.add(turn.malformed)
                    yield episode, trace, turn
