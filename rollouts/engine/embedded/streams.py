"""What the embedded engine keeps of its sessions, requests and steps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from model.pictures import content_key
from rollouts.engine.base import Completion, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture in a stream: ``count`` positions from ``start`` on."""

    start: int
    count: int
    png: bytes

    def identities(self) -> list[int]:
        """What its positions are known by; negative, as no token is."""
        key = content_key(self.png)
        return [-1 - (key << 24 | row) for row in range(self.count)]


@dataclass(slots=True, kw_only=True)
class Stream:
    """One session's token stream and its pages. ``keys``: what positions are known by, tokens but for pictures."""

    row: int  # line of the page table
    tokens: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    fed: int = 0
    pages: list[int] = field(default_factory=list)
    reported: int = 0  # positions whose routes have been handed out, or lie in ``older``
    older: list[np.ndarray] = field(default_factory=list)  # routes under earlier weights, to be handed out next
    closed: bool = False


@dataclass(slots=True, kw_only=True)
class Request:
    """A completion under way."""

    stream: Stream
    sampling: Sampling
    future: asyncio.Future[Completion]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    limit: int = 0


@dataclass(slots=True)
class Step:
    """One batch as the decoder takes it, copied on the event loop: nothing in it changes while the decoder works."""

    parts: list[tuple[Request, int]]  # who feeds how many tokens
    ready: list[Request]  # whose prompt this step completes: they sample
    fed: tuple[np.ndarray, ...]  # tokens, positions, sequences, tables, rows of the ready ones
    drawn: tuple[np.ndarray, ...]  # temperatures, keys, positions of the new tokens, shares of probability kept
    shown: list[tuple[int, Shown, int, int]]  # batch row, picture, the first and the number of its rows there
