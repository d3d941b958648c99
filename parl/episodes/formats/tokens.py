"""A trace's token stream by turns: the tokens read before a turn, and the sampled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rollouts.episode import Trace, Turn


@dataclass(slots=True, kw_only=True)
class Piece:
    """The tokens of one turn: ``read`` before it, and ``sampled`` with log-probs and versions."""

    read: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


def pieces(trace: Trace) -> tuple[list[Piece], list[int]]:
    """The pieces of all turns, and the tokens read after the last."""
    out, at = [], 0
    for turn in trace.turns:
        span = slice(turn.start, turn.end)
        out.append(
            Piece(
                read=trace.tokens[at : turn.start],
                sampled=trace.tokens[span],
                logprobs=trace.logprobs[span],
                versions=trace.versions[span],
            )
        )
        at = turn.end
    return out, trace.tokens[at:]


def join(trace: Trace, parts: Sequence[Piece], tail: list[int]) -> None:
    """Inverse of :func:`pieces`: fill the arrays of ``trace`` and the spans of its turns."""
    for turn, piece in zip(trace.turns, parts, strict=True):
        _read(trace, piece.read)
        turn.start = len(trace.tokens)
        count = len(piece.sampled)
        trace.tokens += piece.sampled
        trace.mask += [True] * count
        trace.logprobs += piece.logprobs if len(piece.logprobs) == count else [0.0] * count
        trace.versions += piece.versions if len(piece.versions) == count else [0] * count
        turn.end = len(trace.tokens)
    _read(trace, tail)


def _read(trace: Trace, tokens: list[int]) -> None:
    trace.tokens += tokens
    trace.mask += [False] * len(tokens)
    trace.logprobs += [0.0] * len(tokens)
    trace.versions += [-1] * len(tokens)


def timed(turn: Turn) -> dict[str, float]:
    """The times of a turn, in seconds since the episode's start."""
    return {"t_start": turn.t_start, "t_model": turn.t_model, "t_end": turn.t_end}
