"""The contract of a session that runs an agent program of its own instead of offering tools to our agents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from envs.base import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where an agent program finds the policy: OpenAI's API at ``url`` (with ``/v1``), for one episode.

    ``key`` is its API key and tells its requests from those of other episodes; ``model``: the policy's name.
    POST ``url``/parl/reward ``{"reward": NUMBER, "parts": {NAME: NUMBER}}`` scores the episode.
    """

    url: str
    key: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """How the program ended: its ``answer``, its own ``score`` if it gave one, and ``failure`` if it broke off."""

    answer: str = ""
    score: Score | None = None
    failure: str = ""


@runtime_checkable
class Driver(Protocol):
    """A session whose agents are a program: what it asks the policy are the episode's turns.

    ``span``: the lowest and highest reward that the program may post; one that broke off earns the lowest.
    """

    span: tuple[float, float]

    async def drive(self, door: Door) -> Driven:
        """Run the program to its end. Cancelled at the episode's deadline: then it must end the program."""
        ...
