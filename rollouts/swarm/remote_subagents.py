"""Sub-agents of other workers' episodes."""

from __future__ import annotations

import asyncio

from envs.base import Environment
from rollouts.episode import Trace
from rollouts.swarm.limits import Deadline
from rollouts.swarm.partial import session_seed
from rollouts.swarm.placement import Job
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import CLOSE_S, Swarm


async def run_job(job: Job, environment: Environment, settings: SwarmSettings) -> Trace:
    """Run a sub-agent of another worker's episode in its own session. Raises errors of engine and tools."""
    host = Swarm(job.task, settings, index=job.index, seed=job.seed, critical_budget=0, age_s=job.elapsed_s)
    stage = None if job.stage_s is None else asyncio.get_running_loop().time() + job.stage_s
    deadline = Deadline()
    opening = environment.open(job.task, seed=session_seed(job.seed, job.task), attempt=job.index)
    session = await asyncio.wait_for(opening, settings.budget.episode_s)
    try:
        async with deadline:
            settings.switch.enter(deadline)
            await host.run_subagent(session, job.trace, job.system, job.steps, stage)
    except TimeoutError:
        if not deadline.passed:
            raise
        await host.cancel(job.trace, deadline.name, session)
    finally:
        await asyncio.wait_for(session.close(), CLOSE_S)
    return job.trace
