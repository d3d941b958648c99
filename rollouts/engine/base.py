"""The contract of inference engines: token ids in; token ids, log-probs, routes and version out. No torch.

Swarms call :class:`Engine`. A run plugs in a :class:`PoolEngine`: one replica of a pool, in its own actor
(``rollouts.engine.actor``), named by ``rollouts.engine: package.module:Class``. A new engine derives from it
with ``generate`` and ``update``; its traits declare what else it supports (examples/engine.py).
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

if TYPE_CHECKING:
    from rollouts.config import RolloutsConfig
    from rollouts.engine.servers.blobs import Manifest

Pictures = Sequence[tuple[int, bytes]]  # (position of the first placeholder, PNG file)


class Finish(StrEnum):
    """Why generation stopped."""

    STOP = "stop"  # a stop token was sampled (included in the tokens)
    LENGTH = "length"  # max_new_tokens or the context window was reached
    INTERRUPTED = "interrupted"  # by the client; the turn continues in a later call


class EngineFull(RuntimeError):
    """No room for a stream, or for more of one; there may be later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. Noise is a function of (``seed``, position in the stream)."""

    seed: int  # 64-bit key of (run seed, episode, agent)
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0  # sample among the likeliest tokens that together have this probability; 1 = all
    max_new_tokens: int = 256
    stop: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A completion of N tokens; ``logprobs`` [N] under the sampling temperature (ignoring ``top_p``).

    ``versions``: the policy version of each token, if weights changed in flight; empty if all are
    ``policy_version``, the one served at the end.

    ``routes``: int16 [F, L, K], the experts of the stream's positions ``routes_start`` to
    ``routes_start + F``: all positions fed since the session's last completion, so that completions tile the
    stream (the last sampled token is fed with the next one). None for a dense or frozen policy.
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
    """A pool of replicas that serves one model."""

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """Continue ``prompt``. Calls of one ``session`` extend one stream. Raises TimeoutError, EngineFull.

        ``media``: all pictures of ``prompt``, in order; placeholders mark the positions of their features.
        """
        ...

    async def release(self, session: str) -> None:
        """End the session; its cache may be freed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One version of the weights for a server: a Hugging Face folder, and a probe to verify it.

    ``manifest``: for servers that cannot read the folder, where its shards are
    (:class:`rollouts.engine.servers.blobs.Manifest`).
    """

    version: int
    folder: Path
    probe: list[int]  # token ids
    logprobs: list[float]  # the trainer's, of all probe tokens except the first
    manifest: Manifest | None = None

    def files(self) -> list[Path]:
        """The buckets: the folder's shards."""
        return sorted(self.folder.glob("*.safetensors"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One version of the weights for an engine.

    ``weights``: arrays by name; low-rank adapters if ``base`` is given, for engines with the trait
    ``adapters``. ``delivery``: a folder instead, for engines with the trait ``servers``. ``in_flight``:
    requests may be running, and continue under the new weights.
    """

    version: int
    weights: Mapping[str, np.ndarray] | None = None
    base: Mapping[str, np.ndarray] | None = None
    delivery: Delivery | None = None
    in_flight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a replica: number ``number`` of ``pool`` (``policy`` or ``frozen``)."""

    pool: str
    number: int
    model: Any  # the shape of its policy
    rollouts: RolloutsConfig
    tokenizer: str | os.PathLike[str]  # folder of the tokenizer
    url: str = ""  # of its server, with the trait ``servers``

    @property
    def routes(self) -> bool:
        """Whether completions must carry routes: for a trained policy with experts."""
        return self.pool == "policy" and self.model.routes is not None


class EngineConfig(BaseModel):
    """The section of an engine without settings; others derive theirs from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EmbeddedConfig(EngineConfig):
    """Settings of the embedded engine."""

    int8: Literal["none", "frozen", "all"] = Field(
        default="none",
        description="keep matrices in int8: those of frozen sub-agents, or of all engines, which then sample from"
        " another function than the learner's; for `model.family: hf` in bfloat16",
    )

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value != "none"}


class PoolEngine:
    """One replica of a pool. ``Config`` is the section ``rollouts.engine_config``; traits: what it supports.

    Methods are called on one event loop. An error of ``generate`` ends its episode; ``rollouts.faults.Lost``
    restarts all replicas; any other ``MachineFault`` runs the episode again.
    """

    Config: ClassVar[type[EngineConfig]] = EngineConfig
    servers: ClassVar[bool] = False  # one replica per address of rollouts.http; weights come as folders
    routes: ClassVar[bool] = True  # completions carry routes; otherwise the learner chooses experts anew
    pictures: ClassVar[bool] = False  # prompts may hold pictures
    in_flight: ClassVar[bool] = False  # weights may change while requests run; requests can be interrupted
    rebalance: ClassVar[bool] = False  # a replica may change its pool
    adapters: ClassVar[bool] = False  # takes low-rank adapters, and merges them itself
    temperature_one: ClassVar[bool] = False  # log-probs are of temperature 1, whatever the sampling temperature

    policy_version: int = -1  # being served; -1 before the first update

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def open(cls, place: Place) -> PoolEngine:
        """The engine for ``place``, created in its actor; import heavy modules here."""
        return cls(place)

    @classmethod
    def check(cls, rollouts: RolloutsConfig) -> None:
        """ValueError for unsupported settings, each named in full. Called before anything starts."""
        if rollouts.http.urls or rollouts.http.frozen_urls or rollouts.http.urls_file:
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
        """Serve ``update.version``, as ``policy_version`` says, on return."""
        raise NotImplementedError(f"{type(self).__name__} takes no weights")

    async def interrupt(self, sessions: Container[str]) -> None:
        """Interrupt running requests of ``sessions``: they return their tokens so far. Trait ``in_flight``."""
        raise NotImplementedError(f"{type(self).__name__} cannot be interrupted")

    async def assign(self, pool: str) -> None:
        """Serve ``pool`` from now on; its weights come with the next update. Trait ``rebalance``."""
        raise NotImplementedError(f"{type(self).__name__} cannot change its pool")

    def statistics(self) -> dict[str, float]:
        """Counters, summed over a pool. ``busy_s``, ``prefix_hits`` and ``prefix_asked`` are tracked."""
        return {}

    def step_s(self) -> float:
        """Seconds of the current decoding step; 0 between steps. A step that takes too long counts as hung."""
        return 0.0


def check_engine(kind: type) -> None:
    """ValueError unless ``kind`` is a valid engine."""
    if not issubclass(kind, PoolEngine):
        raise ValueError("it must derive from rollouts.engine.base.PoolEngine")
    if not issubclass(kind.Config, EngineConfig):
        raise ValueError("its class Config must derive from rollouts.engine.base.EngineConfig")
    if kind.open.__func__ is not PoolEngine.open.__func__:  # returns another class's object
        return
    for name in ("generate", "update"):
        if getattr(kind, name) is getattr(PoolEngine, name):
            raise ValueError(f"it has no method {name}")
