"""What the swarm asks of an inference engine: token ids in, token ids with log-probs, routes and version out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np

Pictures = Sequence[tuple[int, bytes]]  # (position of the first placeholder, PNG file)


class Finish(StrEnum):
    """Why generation stopped."""

    STOP = "stop"  # a stop token was sampled (it is part of the tokens)
    LENGTH = "length"  # max_new_tokens or the context window was reached
    INTERRUPTED = "interrupted"  # the client asked for what there is so far; the turn goes on in a later call


class EngineFull(RuntimeError):
    """There is no room for a stream, or for more of one: later there may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. Noise is a function of (``seed``, position in the stream), never of a shared random stream."""

    seed: int  # 64-bit key of (run seed, episode, agent)
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0  # sample from the likeliest tokens that together have this probability; 1 = from all
    max_new_tokens: int = 256
    stop: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came back. For N new tokens: ``tokens`` and ``logprobs`` of length N, under the sampling temperature
    (whatever ``top_p`` leaves out).

    ``versions``: the policy version that sampled each token, where weights changed in flight; empty where all are
    ``policy_version``, the one served at the end.

    ``routes``: int16 [F, L, K], the experts of the stream's positions ``routes_start`` to ``routes_start + F``: all
    positions fed since the session's last completion, so that consecutive completions tile the stream (the last
    sampled token has not been fed yet and comes with the next one). None for a dense or frozen policy.
    """

    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    policy_version: int
    routes: np.ndarray | None = None
    routes_start: int = 0
    versions: tuple[int, ...] = ()


@runtime_checkable
class Engine(Protocol):
    """One pool of replicas that serves one model."""

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """Continue ``prompt``. Calls of one ``session`` extend one stream. Raises ``TimeoutError`` at the deadline,
        :class:`EngineFull`.

        ``media``: all pictures that ``prompt`` shows, in order; placeholders stand where their features go.
        """
        ...

    async def release(self, session: str) -> None:
        """The session is over; its cache may go."""
        ...
