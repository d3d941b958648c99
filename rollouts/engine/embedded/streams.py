"""Sessions, requests and steps of the embedded engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from model.pictures import content_key
from rollouts.engine.base import Completion, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture in a stream: ``count`` positions from ``start``."""

    start: int
    count: int
    png: bytes

    def identities(self) -> list[int]:
        """Cache keys of its positions; negative, unlike tokens."""
        key = content_key(self.png)
        return [-1 - (key << 24 | row) for row in range(self.count)]


@dataclass(slots=True, kw_only=True)
class Stream:
    """One session's token stream and its pages. ``keys``: cache keys of positions."""

    row: int  # line of the page table
    tokens: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    fed: int = 0
    pages: list[int] = field(default_factory=list)
    reported: int = 0  # positions whose routes were returned, or are in ``older``
    older: list[np.ndarray] = field(default_factory=list)  # routes under earlier weights, returned next
    closed: bool = False


@dataclass(slots=True, kw_only=True)
class Request:
    """A running completion."""

    stream: Stream
    sampling: Sampling
    future: asyncio.Future[Completion]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    limit: int = 0


@dataclass(slots=True)
class Step:
    """One batch for the decoder, copied on the event loop: nothing in it changes while the decoder runs."""

    parts: list[tuple[Request, int]]  # who feeds how many tokens
    ready: list[Request]  # whose prompt is complete after this step: they sample
    fed: tuple[np.ndarray, ...]  # tokens, positions, sequences, tables, rows to sample
    drawn: tuple[np.ndarray, ...]  # temperatures, keys, positions of the new tokens, top-p
    shown: list[tuple[int, Shown, int, int]]  # batch row, picture, first row and number of rows
