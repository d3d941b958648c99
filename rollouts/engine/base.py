"""The contract of inference engines: token ids in, token ids with log-probs, routes and version out. No torch.

:class:`Engine` is what a swarm asks. :class:`PoolEngine` is what a run plugs in: one replica of a pool, in an actor of
its own (``rollouts.engine.actor``), named in a configuration by ``rollouts.engine: package.module:Class``. A new engine
is one file: a class below :class:`PoolEngine` with ``generate`` and ``update``, whose traits say what else it can do
(examples/engine.py).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from rollouts.config import RolloutsConfig

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One version of the weights for a server: a Hugging Face folder, and what the trainer computes with it."""

    version: int
    folder: Path
    probe: list[int]  # token ids
    logprobs: list[float]  # the trainer's, of all probe tokens but the first

    def files(self) -> list[Path]:
        """The buckets: the folder's shards."""
        return sorted(self.folder.glob("*.safetensors"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One version of the weights on its way to an engine.

    ``weights``: arrays by name; low-rank adapters where ``base`` is given, to engines with the trait ``adapters``.
    ``delivery``: a folder in their place, to engines with the trait ``servers``. ``in_flight``: requests may be
    running, and go on under the new weights.
    """

    version: int
    weights: Mapping[str, np.ndarray] | None = None
    base: Mapping[str, np.ndarray] | None = None
    delivery: Delivery | None = None
    in_flight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a replica is made for: replica ``number`` of ``pool`` (``policy`` or ``frozen``)."""

    pool: str
    number: int
    model: Any  # the shape of the policy that it serves
    rollouts: RolloutsConfig
    tokenizer: str  # folder of the vocabulary
    url: str = ""  # of its server, where the engine has the trait ``servers``

    @property
    def routes(self) -> bool:
        """Whether completions must carry the experts of every position: of a policy with experts that is trained."""
        return self.pool == "policy" and self.model.routes is not None


class EngineConfig(BaseModel):
    """The section of an engine without settings of its own; those with settings derive theirs from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PoolEngine:
    """One replica of a pool. ``rollouts.engine_config`` is a ``Config``; the traits are what a run may ask of it.

    Its methods are called on one event loop. An error of ``generate`` ends the episode that asked; a
    ``rollouts.faults.Lost`` makes the run start all replicas anew, any other ``MachineFault`` runs the episode again.
    """

    Config: ClassVar[type[EngineConfig]] = EngineConfig
    servers: ClassVar[bool] = False  # one replica for each of rollouts.http's addresses, which weights reach by folder
    routes: ClassVar[bool] = True  # completions carry experts; without, the learner chooses them anew for each token
    pictures: ClassVar[bool] = False  # prompts may show pictures
    in_flight: ClassVar[bool] = False  # weights may come while requests run, which may be interrupted
    rebalance: ClassVar[bool] = False  # a replica may change its pool
    adapters: ClassVar[bool] = False  # takes low-rank adapters, and merges them itself
    temperature_one: ClassVar[bool] = False  # log-probs are of temperature 1, whatever was sampled with

    policy_version: int = -1  # that is served; -1 before the first update

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def open(cls, place: Place) -> PoolEngine:
        """The engine for ``place``, made in its actor: the place for heavy imports."""
        return cls(place)

    @classmethod
    def check(cls, rollouts: RolloutsConfig) -> None:
        """ValueError for settings that the class cannot run with, each named in full. Before anything starts."""
        if rollouts.http.urls or rollouts.http.frozen_urls:
            raise ValueError(
                f"rollouts.http.urls is for servers, but rollouts.engine={rollouts.engine}: set the engine to vllm or"
                " sglang"
            )

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """See :class:`Engine`."""
        raise NotImplementedError(f"{type(self).__name__} generates nothing")

    async def release(self, session: str) -> None:
        """See :class:`Engine`."""

    async def update(self, update: Update) -> None:
        """Serve ``update.version``, as ``policy_version`` says, when this returns."""
        raise NotImplementedError(f"{type(self).__name__} takes no weights")

    async def interrupt(self, sessions: Container[str]) -> None:
        """End what ``sessions`` generate now: they answer with what there is. Asked with the trait ``in_flight``."""
        raise NotImplementedError(f"{type(self).__name__} cannot be interrupted")

    async def assign(self, pool: str) -> None:
        """Serve ``pool`` from here on; its weights come with the next update. Asked with the trait ``rebalance``."""
        raise NotImplementedError(f"{type(self).__name__} cannot change its pool")

    def statistics(self) -> dict[str, float]:
        """Counters since the start, added up over a pool. ``busy_s``, ``prefix_hits``, ``prefix_asked`` are tracked."""
        return {}

    def step_s(self) -> float:
        """Seconds that the step under way has taken; 0 between two. A step that is too long counts as hung."""
        return 0.0


def check_engine(kind: type) -> None:
    """ValueError unless ``kind`` is an engine that can be plugged in."""
    if not issubclass(kind, PoolEngine):
        raise ValueError("it must derive from rollouts.engine.base.PoolEngine")
    if not issubclass(kind.Config, EngineConfig):
        raise ValueError("its class Config must derive from rollouts.engine.base.EngineConfig")
    if kind.open.__func__ is not PoolEngine.open.__func__:  # makes another class's object
        return
    for name in ("generate", "update"):
        if getattr(kind, name) is getattr(PoolEngine, name):
            raise ValueError(f"it has no method {name}")
