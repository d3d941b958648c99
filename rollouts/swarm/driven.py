"""Episodes of an agent program (``envs.driver``): its conversations with the policy become the traces."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from envs.base import Score
from envs.driver import Door, Driver
from rollouts.config import BudgetConfig
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus
from rollouts.faults import EngineFailed, machine_fault


class Seen(Protocol):
    """What a door recorded of an episode."""

    limit: str
    faults: list[Exception]

    @property
    def score(self) -> Score | None:
        """The reward that the program posted."""
        ...

    def traces(self) -> list[Trace]:
        """Its conversations."""
        ...


class OpensDoors(Protocol):
    """Opens the policy for a program (``rollouts.gateway.door.Doors``)."""

    def door(
        self,
        episode: Episode,
        *,
        budget: BudgetConfig,
        temperature: float,
        top_p: float,
        span: tuple[float, float],
    ) -> AbstractAsyncContextManager[tuple[Door, Seen]]:
        """A door for one episode."""
        ...


async def drive(session: Driver, episode: Episode, doors: OpensDoors, **door: Any) -> None:
    """Run the program of ``session`` and fill ``episode``: traces, status, answer, the score that it posted.

    ``door``: the other arguments of :meth:`OpensDoors.door`. A program that broke off after it had asked the policy
    ends MALFORMED with the lowest score: what the policy wrote may be why. One that never asked it is an error, as
    are the engine's.
    """
    async with doors.door(episode, span=session.span, **door) as (opened, seen):
        try:
            driven = await session.drive(opened)
        finally:
            if traces := seen.traces():
                episode.traces = linked(traces, episode.task.prompt)
        if seen.faults:
            error = seen.faults[0]
            raise machine_fault(error) or EngineFailed(f"{type(error).__name__}: {error}") from error
    if not any(trace.turns for trace in episode.traces):
        raise RuntimeError(f"the program never asked the policy{f': {driven.failure}' if driven.failure else ''}")
    episode.answer, episode.error, episode.limit = driven.answer, driven.failure, seen.limit
    episode.score = driven.score or seen.score
    episode.status = EpisodeStatus.ANSWERED
    if seen.limit:
        episode.status = EpisodeStatus.OVER_BUDGET
    elif driven.failure:
        episode.status = EpisodeStatus.MALFORMED
    if episode.status is not EpisodeStatus.ANSWERED:
        low, high = session.span
        episode.answer, episode.score = "", episode.score or Score(value=low, success=False, low=low, high=high)


def linked(traces: Sequence[Trace], prompt: str) -> list[Trace]:
    """The traces as a tree: each later conversation is launched by the first one's last turn that had ended."""
    root, *others = traces
    root.prompt = root.prompt or prompt
    for trace in others:
        began = trace.turns[0].t_start if trace.turns else float("inf")
        before = [number for number, turn in enumerate(root.turns) if turn.t_end <= began]
        trace.parent_turn = before[-1] if before else 0
        if root.turns:
            root.turns[trace.parent_turn].spawned.append(trace.agent_id)
    for trace in traces:
        if trace.status is TraceStatus.RUNNING:
            trace.status = TraceStatus.CANCELLED
    return list(traces)
