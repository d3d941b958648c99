"""Sub-agents on any worker of the cluster, with the same episodes wherever they run.

A sub-agent is a function of its job: noise is keyed by (seed, task, attempt, agent), engines are
batch-invariant, and tools depend on their arguments. So an episode's worker may send a job to the least
loaded peer; only times differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs.base import Task
from rollouts.episode import Trace
from rollouts.faults import first_cause

_PARTIAL_S = 5.0  # time for a peer to return a cancelled sub-agent's trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sub-agent to run. ``elapsed_s``: the episode's age; ``stage_s``: seconds left, None = no limit.

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
    """Sends jobs of one worker to the least loaded worker, by the jobs that this one has placed."""

    def __init__(self, peers: Sequence[Any], mine: int) -> None:
        """``peers``: handles of all workers, this one at position ``mine`` (its handle is not used)."""
        self._peers, self._mine = list(peers), mine
        self._placed = [0] * len(self._peers)

    async def run(self, job: Job, here: Callable[[], Awaitable[None]], adopt: Callable[[Trace], None]) -> None:
        """Run ``job`` ``here`` or at a peer, whose trace goes to ``adopt``, cancelled or not."""
        count = len(self._peers)
        order = [(self._mine + offset) % count for offset in range(count)]  # prefer this worker, then the next
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
    """Run at a peer; the episode's own deadline bounds the wait."""
    answer = asyncio.ensure_future(peer.subagent.remote(job))
    try:
        adopt(await asyncio.shield(answer))
    except asyncio.CancelledError:
        peer.end_subagent.remote(job.name)
        done, _ = await asyncio.wait({answer}, timeout=_PARTIAL_S)
        if done and not answer.exception():
            adopt(answer.result())
        raise
    except Exception as error:  # Ray wraps what the sub-agent raised
        cause = first_cause(error)
        raise (cause if isinstance(cause, Exception) else error) from None
