"""One episode as a coroutine: an orchestrator with its tools, and the sub-agents that it launches.

Invariants: every agent is an append-only ``Transcript``; agents are numbered in the order of their calls;
budgets are checked between an agent's turns, and shared ones only between the orchestrator's, so that no
episode depends on concurrency; each trace and the episode end in exactly one status, and finished turns are
kept. Only deadlines (``rollouts.limits``) depend on the clock; the tightest wins and is recorded.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import fields
from functools import partial

from envs.base import Cancellable, Environment, ErrorKind, Role, Session, Task, ToolCall, ToolResult, ToolSpec
from envs.driver import Driver
from model.chat.base import Piece
from rollouts.critical_path import CriticalMeter
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.faults import EngineFailed, MachineFault, Stalled, first_cause, machine_fault
from rollouts.prompts import PROMPT_METRIC, PromptsConfig
from rollouts.swarm.agent import Agent, refusal
from rollouts.swarm.driven import drive
from rollouts.swarm.limits import STOPPED, Deadline
from rollouts.swarm.partial import Answers, Flight, Suspended, unanswered
from rollouts.swarm.placement import Job
from rollouts.swarm.scoring import scored
from rollouts.swarm.settings import SwarmSettings

CLOSE_S = 5.0  # time for tools to stop when an episode ends badly


async def run_episode(
    task: Task,
    environment: Environment,
    settings: SwarmSettings,
    *,
    index: int,
    seed: int,
    critical_budget: int,
    flight: Flight | None = None,
) -> Episode:
    """One attempt at ``task``. Raises only on cancellation: a failure is an episode with status FAILED.

    ``flight`` halts it, holds what it continues from (``rollouts.swarm.partial``), and records machine
    faults.
    """
    flight = flight or Flight()
    flight.forget_lost(environment)
    swarm = Swarm(task, settings, index=index, seed=seed, critical_budget=critical_budget, flight=flight)
    session: Session | None = None
    deadline = Deadline()
    try:
        async with deadline:
            deadline.tighten("episode_s", settings.budget.episode_s - swarm.episode.wall_s)
            settings.switch.enter(deadline)
            session = await flight.open(environment, task, settings.budget.call_s, seed=seed, attempt=index)
            await swarm.run(session)
            if settings.score and swarm.episode.score is None and not flight.halted:
                deadline.extend(settings.score_deadline_s)  # the agents' time is not the scorer's
                swarm.episode.score = await scored(settings.score, session, swarm.episode, settings.score_deadline_s)
            open_session, session = session, None
            if not flight.halted:
                await open_session.close()
    except Exception as error:  # the boundary: a failed episode must not affect the others
        late = deadline.passed and isinstance(error, TimeoutError)
        flight.fault = swarm.fault_of(error, deadline.name if late else "")
        await swarm.fail(deadline.name if late else "", _reason(error), session)
    finally:
        settings.switch.leave(deadline)
        if session is not None:  # it ended badly already: errors of closing do not matter
            with suppress(Exception):
                await asyncio.wait_for(session.close(), CLOSE_S)
    swarm.episode.wall_s = swarm.elapsed()
    return swarm.episode


class Swarm:
    """A running episode."""

    def __init__(
        self,
        task: Task,
        settings: SwarmSettings,
        *,
        index: int,
        seed: int,
        critical_budget: int,
        age_s: float = 0.0,
        flight: Flight | None = None,
    ) -> None:
        self.settings, self.flight = settings, flight or Flight()
        root = Trace(agent_id="0", role=Role.ORCHESTRATOR, name="orchestrator", prompt=task.prompt, trainable=True)
        self.episode = Episode(
            task=task,
            index=index,
            seed=seed,
            traces=[root],
            status=EpisodeStatus.FAILED,
            critical_budget=critical_budget,
        )
        self.agents: dict[str, str] = {}  # registered configurations: name -> system prompt
        self.answers: dict[str, Answers] = {}  # of turns in progress, by agent id
        self.live: dict[str, Agent] = {}
        self.sampled = 0  # tokens of all agents
        self.engine_fault: EngineFailed | None = None  # what an engine raised
        self._by_id = {root.agent_id: root}
        self._openings: dict[tuple[Role, str], list[int]] = {}
        self._meter = CriticalMeter()
        self._now = asyncio.get_running_loop().time  # the loop's clock, so that simulated time works
        if self.flight.saved:
            self._continue(self.flight.saved)
        self._started = self._now()
        self._began = self._started - (age_s or self.episode.wall_s)
        self.flight.state = self.state

    def _continue(self, saved: Suspended) -> None:
        self.episode, self.agents, self.answers = saved.episode, saved.agents, saved.answers
        self._by_id = {trace.agent_id: trace for trace in self.episode.traces}
        self.sampled = sum(sum(trace.mask) for trace in self.episode.traces)
        root = self.episode.orchestrator
        for turn in root.turns:
            if turn is not unanswered(root):
                self.stage_done(turn)

    def state(self) -> Suspended:
        """The current state of the episode."""
        for agent in self.live.values():
            agent.transcript.close()
        self.episode.wall_s = self.elapsed()
        return Suspended(episode=self.episode, agents=self.agents, answers=self.answers)

    def fault_of(self, error: Exception, limit: str) -> MachineFault | None:
        """The machine fault behind ``error``, or behind the passed deadline ``limit``; None if there is none.

        Every engine error is a machine fault: it is independent of the policy.
        """
        if limit:
            reason = "" if limit == STOPPED else self.settings.stalled(self._started)
            return Stalled(reason) if reason else None
        return machine_fault(error) or self.engine_fault

    async def fail(self, limit: str, reason: str, session: Session | None) -> None:
        """End all running agents: for ``reason``, or because the deadline ``limit`` passed."""
        stopped = limit == STOPPED
        self.episode.status = EpisodeStatus.CANCELLED if stopped else EpisodeStatus.FAILED
        self.episode.limit = limit
        self.episode.error = "the run was stopped" if stopped else reason
        if limit == "episode_s":
            self.episode.error = f"the episode's deadline of {self.settings.budget.episode_s} s passed"
        for trace in self.episode.traces:
            await self.cancel(trace, limit, session)

    async def cancel(self, trace: Trace, limit: str, session: Session | None) -> None:
        """Cancel ``trace`` if it runs, because of ``limit``, and notify its tools; its turns stay."""
        if trace.status is not TraceStatus.RUNNING:
            return
        trace.status, trace.limit = TraceStatus.CANCELLED, limit
        self.answers.pop(trace.agent_id, None)
        for turn in trace.turns[-1:]:
            turn.t_end = max(turn.t_end, turn.t_model, self.elapsed() if not turn.results and turn.calls else 0.0)
        if isinstance(session, Cancellable):
            with suppress(Exception):
                await asyncio.wait_for(session.cancel(trace.agent_id), CLOSE_S)

    async def run(self, session: Session) -> None:
        """The orchestrator's loop, or the session's own program, to its end; fills the episode."""
        if isinstance(session, Driver):
            return await self._drive(session)
        trace = self.episode.orchestrator
        prompts = self.settings.prompts
        if prompts.orchestrator != PromptsConfig().orchestrator:
            self.episode.metrics[PROMPT_METRIC] = prompts.orchestrator
        tools = session.tools(Role.ORCHESTRATOR) + (list(prompts.spawning) if self.settings.spawning else [])
        agent = Agent(self, session, trace, prompts.orchestrator, tools, self.settings.temperature)
        await agent.run(self.settings.budget.orchestrator_steps)
        self.flight.halted = trace.status is TraceStatus.RUNNING
        if self.flight.halted:
            return
        ends = {TraceStatus.FINISHED: EpisodeStatus.ANSWERED, TraceStatus.OVER_BUDGET: EpisodeStatus.OVER_BUDGET}
        self.episode.status = ends.get(trace.status, EpisodeStatus.MALFORMED)
        self.episode.answer = trace.message

    async def _drive(self, session: Driver) -> None:
        if self.settings.doors is None:
            raise ValueError("an agent program asks a policy of ours: it cannot be run with a server's model")
        settings = {name: getattr(self.settings, name) for name in ("budget", "temperature", "top_p")}
        await drive(session, self.episode, self.settings.doors(), **settings)

    def elapsed(self) -> float:
        """Seconds since the episode began."""
        return self._now() - self._began

    def limit_reached(self, trace: Trace, max_steps: int) -> str:
        """Name of the budget that forbids ``trace`` another turn, or an empty string."""
        if trace.steps >= max_steps:
            return "steps"
        if trace.parent is None:
            if self.episode.critical_budget and self._meter.steps + 1 > self.episode.critical_budget:
                return "critical_steps"
            if self.sampled >= self.settings.budget.total_tokens:
                return "total_tokens"
        return ""

    def opening(self, role: Role, system: str, tools: list[ToolSpec], question: str) -> tuple[list[int], list[Piece]]:
        """(token ids of tools and ``system``, shared by all agents of ``role``; pieces of the ``question``)."""
        declared = [tool.to_openai() for tool in tools]
        messages, chat = [{"role": "system", "content": system}], self.settings.chat_of(role)
        if (role, system) not in self._openings:
            self._openings[role, system] = chat.encode(chat.opening(messages, declared))
        return self._openings[role, system], chat.question(question, messages, declared)

    def stage_done(self, turn: Turn) -> None:
        """Charge the orchestrator's finished turn with its longest sub-agent."""
        self._meter.stage(self._by_id[agent_id].steps for agent_id in turn.spawned)

    def register(self, call: ToolCall) -> ToolResult:
        """create_subagent: store a configuration by name (replacing an earlier one)."""
        name, prompt = call.arguments.get("name"), call.arguments.get("system_prompt")
        if not isinstance(name, str) or not isinstance(prompt, str) or not name:
            return refusal(ErrorKind.BAD_ARGS, "name and system_prompt must be strings")
        self.agents[name] = prompt
        return ToolResult(text="created")

    def launch(self, call: ToolCall, parent: Trace, turn: Turn) -> Trace | ToolResult:
        """assign_task: a new trace for the call, or the error result."""
        agent, prompt = call.arguments.get("agent"), call.arguments.get("prompt")
        if not isinstance(agent, str) or not isinstance(prompt, str):
            return refusal(ErrorKind.BAD_ARGS, "agent and prompt must be strings")
        if agent not in self.agents:
            return refusal(ErrorKind.BAD_ARGS, "no such agent")
        launched = len(self._by_id) - 1
        if launched >= self.settings.budget.subagents:
            return refusal(ErrorKind.BUDGET, "too many sub-agents")
        trace = Trace(
            agent_id=f"{parent.agent_id}/{launched}",
            role=Role.SUBAGENT,
            name=agent,
            parent=parent.agent_id,
            parent_turn=len(parent.turns) - 1,
            prompt=prompt,
            trainable=self.settings.train_subagents,
        )
        self.episode.traces.append(trace)
        self._by_id[trace.agent_id] = trace
        turn.spawned.append(trace.agent_id)
        return trace

    async def delegate(self, session: Session, trace: Trace, system: str, stage: float | None) -> ToolResult | None:
        """Run a launched sub-agent with the prompt ``system`` to its message; its stage ends at ``stage``.

        None if it was halted.
        """
        budget = self.settings.budget
        allowance = self._meter.allowance(self.episode.critical_budget)
        steps = budget.subagent_steps if allowance is None else min(budget.subagent_steps, allowance)
        started = self.elapsed()
        if self.settings.placement is None:
            await self.run_subagent(session, trace, system, steps, stage)
        else:
            here = partial(self.run_subagent, session, trace, system, steps, stage)
            job = self._job(trace, system, steps, stage)
            await self.settings.placement.run(job, here, partial(self._adopt, trace))
        latency = self.elapsed() - started
        if trace.status is TraceStatus.RUNNING:
            return None
        if trace.status is TraceStatus.FINISHED:
            return ToolResult(text=trace.message, latency_s=latency)
        kind = ErrorKind.TIMEOUT if trace.status is TraceStatus.CANCELLED else ErrorKind.BUDGET
        return ToolResult(text="error: sub-agent failed", error=kind, latency_s=latency)

    def _job(self, trace: Trace, system: str, steps: int, stage: float | None) -> Job:
        return Job(
            name=f"{id(self):x}/{self.episode.task.key}/{self.episode.index}#{trace.agent_id}",
            task=self.episode.task,
            index=self.episode.index,
            seed=self.episode.seed,
            trace=trace,
            system=system,
            steps=steps,
            elapsed_s=self.elapsed(),
            stage_s=None if stage is None else stage - self._now(),
            temperature=self.settings.subagent_temperature,
            top_p=self.settings.subagent_top_p,
        )

    def _adopt(self, trace: Trace, ran: Trace) -> None:
        """Copy ``ran``, from a peer, to ``trace``."""
        for part in fields(Trace):
            setattr(trace, part.name, getattr(ran, part.name))
        self.sampled += sum(turn.end - turn.start for turn in trace.turns)
        if trace.limit == STOPPED:  # because this episode ends, which knows the reason
            trace.status, trace.limit = TraceStatus.RUNNING, ""

    async def run_subagent(
        self, session: Session, trace: Trace, system: str, steps: int, stage: float | None = None
    ) -> None:
        """Run ``trace`` for at most ``steps`` steps, in a slot, until its deadline or that of its ``stage``."""
        deadline, began = Deadline("stage_s", stage), self._now()
        try:
            async with deadline, self.settings.slots.subagents:
                deadline.tighten("agent_s", self.settings.limits.agent_s)
                tools = session.tools(Role.SUBAGENT)
                agent = Agent(self, session, trace, system, tools, self.settings.subagent_temperature)
                await agent.run(steps)
        except TimeoutError:
            if not deadline.passed:  # another deadline
                raise
            if reason := self.settings.stalled(began):
                raise Stalled(reason) from None
            await self.cancel(trace, deadline.name, session)


def _reason(error: BaseException) -> str:
    """The first cause, without exception groups."""
    error = first_cause(error)
    return f"{type(error).__name__}: {error}"
