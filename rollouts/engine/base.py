"""What the swarm asks of an inference engine: token ids in, token ids with log-probs, routes and version out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np


class Finish(StrEnum):
    """Why generation stopped."""

    STOP = "stop"  # a stop token was sampled (it is part of the tokens)
    LENGTH = "length"  # max_new_tokens or the context window was reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. Noise is a function of (``seed``, position in the stream), never of a shared random stream."""

    seed: int  # 64-bit key of (run seed, episode, agent)
    temperature: float = 1.0  # 0 = greedy
    max_new_tokens: int = 256
    stop: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came back. For N new tokens: ``tokens`` and ``logprobs`` of length N, under the sampling temperature.

    ``routes``: int16 [P + N, L, K] for the whole stream up to and including the last *fed* token when the policy is a
    mixture of experts (the last sampled token has not been fed yet: its row is -1), else None.
    """

    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    policy_version: int
    routes: np.ndarray | None = None


@runtime_checkable
class Engine(Protocol):
    """One pool of replicas that serves one model."""

    async def generate(self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float) -> Completion:
        """Continue ``prompt``. Calls of one ``session`` extend the same stream. Raises ``TimeoutError`` at the deadline."""
        ...

    async def release(self, session: str) -> None:
        """The session is over; its cache may go."""
        ...
