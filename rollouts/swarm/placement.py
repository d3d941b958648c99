"""Sub-agents on any worker of the cluster, with the same episodes wherever they run.

A sub-agent is a function of its job: noise is keyed by (seed, task, attempt, agent), engines give a stream the same
tokens whatever runs beside it, and tools answer by their arguments. So the worker that an episode lives on may hand a
job to the peer with the least to do, and which one that was shows in nothing but the times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs.base import Task
from rollouts.episode import Trace
from rollouts.faults import first_cause

_PARTIAL_S = 5.0  # what a peer gets to hand over what a cancelled sub-agent has


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sub-agent to run. ``elapsed_s``: the episode's age; ``stage_s``: seconds left to its stage, None = no limit.

    The sampling settings are the episode's, which a peer cannot know.
    """

    name: str  # unique while it runs
    task: Task
    index: int
    seed: int
    trace: Trace
    system: str
    steps: int
    elapsed_s: float
    stage_s: float | None
    temperature: float
    top_p: float


class Placement:
    """Hands jobs of one worker to the least loaded of all, as far as this one knows: what it has placed itself."""

    def __init__(self, peers: Sequence[Any], mine: int) -> None:
        """``peers``: handles of all workers, this one at position ``mine`` (its handle is not used)."""
        self._peers, self._mine = list(peers), mine
        self._placed = [0] * len(self._peers)

    async def run(self, job: Job, here: Callable[[], Awaitable[None]], adopt: Callable[[Trace], None]) -> None:
        """Run ``job`` ``here`` or at a peer, whose trace is given to ``adopt``, cancelled or not."""
        count = len(self._peers)
        order = [(self._mine + offset) % count for offset in range(count)]  # of equals this worker, then the next
        chosen = min(order, key=self._placed.__getitem__)
        self._placed[chosen] += 1
        try:
            if chosen == self._mine:
                await here()
            else:
                await _at(self._peers[chosen], job, adopt)
        finally:
            self._placed[chosen] -= 1


async def _at(peer: Any, job: Job, adopt: Callable[[Trace], None]) -> None:
    """The episode's own deadline bounds the wait."""
    answer = asyncio.ensure_future(peer.subagent.remote(job))
    try:
        adopt(await asyncio.shield(answer))
    except asyncio.CancelledError:
        peer.end_subagent.remote(job.name)
        done, _ = await asyncio.wait({answer}, timeout=_PARTIAL_S)
        if done and not answer.exception():
            adopt(answer.result())
        raise
    except Exception as error:  # what Ray wraps is what the sub-agent raised
        cause = first_cause(error)
        raise (cause if isinstance(cause, Exception) else error) from None
