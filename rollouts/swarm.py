"""One episode as a coroutine: an orchestrator with its tools, and the sub-agents that it launches.

Invariants: every agent is a ``Transcript`` that only grows; agents are numbered in the order of their calls, never of
their timing; budgets are checked between an agent's turns, and shared ones only between the orchestrator's, so that no
episode depends on what ran beside it; whatever happens, each trace and the episode end in exactly one status, and what
was there by then is kept. Deadlines alone (``rollouts.limits``) see the clock; the tightest wins and is noted.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import fields
from functools import partial

from envs.base import Cancellable, Environment, ErrorKind, Role, Session, Task, ToolCall, ToolResult, ToolSpec
from model.chat import chat_pieces, prefill, tool_result_pieces, user_pieces
from model.chat_parser import ParsedTurn, parse_assistant_ids
from rollouts.context import content_of, context_limit, new_context
from rollouts.critical_path import CriticalMeter
from rollouts.engine.base import Completion, Finish, Sampling
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.limits import STOPPED, Deadline
from rollouts.noise import noise_key
from rollouts.placement import Job
from rollouts.prompts import ASSIGN_TASK, CREATE_SUBAGENT, ORCHESTRATOR_PROMPT, SPAWNING
from rollouts.settings import SwarmSettings
from rollouts.transcript import Transcript

CLOSE_S = 5.0  # what tools get to stop in when an episode ends badly
_SPAWNING = frozenset(tool.name for tool in SPAWNING)


async def run_episode(
    task: Task, environment: Environment, settings: SwarmSettings, *, index: int, seed: int, critical_budget: int
) -> Episode:
    """One attempt at ``task``. Never raises but for cancellation: a failure is an episode with status FAILED."""
    swarm = Swarm(task, settings, index=index, seed=seed, critical_budget=critical_budget)
    session: Session | None = None
    deadline = Deadline()
    try:
        async with deadline:
            deadline.tighten("episode_s", settings.budget.episode_s)
            settings.switch.enter(deadline)
            session = await environment.open(task)
            await swarm.run(session)
            open_session, session = session, None
            await open_session.close()
    except Exception as error:  # the boundary: one bad episode must not take the others down
        late = deadline.passed and isinstance(error, TimeoutError)
        await swarm.fail(deadline.name if late else "", _reason(error), session)
    finally:
        settings.switch.leave(deadline)
        if session is not None:  # it ended badly already: what closing adds to that is not worth more
            with suppress(Exception):
                await asyncio.wait_for(session.close(), CLOSE_S)
    swarm.episode.wall_s = swarm.elapsed()
    return swarm.episode


class Swarm:
    """One episode as it runs."""

    def __init__(
        self,
        task: Task,
        settings: SwarmSettings,
        *,
        index: int,
        seed: int,
        critical_budget: int,
        age_s: float = 0.0,
    ) -> None:
        self.settings = settings
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
        self.sampled = 0  # tokens of all agents
        self._by_id = {root.agent_id: root}
        self._openings: dict[tuple[Role, str], list[int]] = {}
        self._meter = CriticalMeter()
        self._now = asyncio.get_running_loop().time  # the loop's clock, so that a simulated one is everyone's
        self._began = self._now() - age_s

    async def fail(self, limit: str, reason: str, session: Session | None) -> None:
        """End everything that still runs: for ``reason``, or because the deadline ``limit`` passed."""
        stopped = limit == STOPPED
        self.episode.status = EpisodeStatus.CANCELLED if stopped else EpisodeStatus.FAILED
        self.episode.limit = limit
        self.episode.error = "the run was stopped" if stopped else reason
        if limit == "episode_s":
            self.episode.error = f"the episode's deadline of {self.settings.budget.episode_s} s passed"
        for trace in self.episode.traces:
            await self.cancel(trace, limit, session)

    async def cancel(self, trace: Trace, limit: str, session: Session | None) -> None:
        """End ``trace`` if it runs, because of ``limit``, and tell its tools; its turns stay."""
        if trace.status is not TraceStatus.RUNNING:
            return
        trace.status, trace.limit = TraceStatus.CANCELLED, limit
        for turn in trace.turns[-1:]:
            turn.t_end = max(turn.t_end, turn.t_model, self.elapsed() if not turn.results and turn.calls else 0.0)
        if isinstance(session, Cancellable):
            with suppress(Exception):
                await asyncio.wait_for(session.cancel(trace.agent_id), CLOSE_S)

    async def run(self, session: Session) -> None:
        """The orchestrator's loop to its end; fills the episode."""
        trace = self.episode.orchestrator
        tools = session.tools(Role.ORCHESTRATOR) + (list(SPAWNING) if self.settings.spawning else [])
        agent = _Agent(self, session, trace, ORCHESTRATOR_PROMPT, tools, self.settings.temperature)
        await agent.run(self.settings.budget.orchestrator_steps)
        ends = {TraceStatus.FINISHED: EpisodeStatus.ANSWERED, TraceStatus.OVER_BUDGET: EpisodeStatus.OVER_BUDGET}
        self.episode.status = ends.get(trace.status, EpisodeStatus.MALFORMED)
        self.episode.answer = trace.message

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

    def opening(self, role: Role, system: str, tools: list[ToolSpec]) -> list[int]:
        """Token ids of what all agents of ``role`` under the prompt ``system`` read first: tools and system prompt."""
        if (role, system) not in self._openings:
            declared = [tool.to_openai() for tool in tools]
            message = {"role": "system", "content": system}
            pieces = chat_pieces([message], declared, thinking=False, add_generation_prompt=False)
            self._openings[role, system] = self.settings.tokenizer.encode_segments(pieces)
        return self._openings[role, system]

    def stage_done(self, turn: Turn) -> None:
        """The orchestrator's turn is over: charge it with its longest sub-agent."""
        self._meter.stage(self._by_id[agent_id].steps for agent_id in turn.spawned)

    def register(self, call: ToolCall) -> ToolResult:
        """create_subagent: keep a configuration under its name (a second one of that name replaces it)."""
        name, prompt = call.arguments.get("name"), call.arguments.get("system_prompt")
        if not isinstance(name, str) or not isinstance(prompt, str) or not name:
            return _error(ErrorKind.BAD_ARGS, "name and system_prompt must be strings")
        self.agents[name] = prompt
        return ToolResult(text="created")

    def launch(self, call: ToolCall, parent: Trace, turn: Turn) -> Trace | ToolResult:
        """assign_task: a new trace for the call, or the reason why not."""
        agent, prompt = call.arguments.get("agent"), call.arguments.get("prompt")
        if not isinstance(agent, str) or not isinstance(prompt, str):
            return _error(ErrorKind.BAD_ARGS, "agent and prompt must be strings")
        if agent not in self.agents:
            return _error(ErrorKind.BAD_ARGS, "no such agent")
        launched = len(self._by_id) - 1
        if launched >= self.settings.budget.subagents:
            return _error(ErrorKind.BUDGET, "too many sub-agents")
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

    async def delegate(self, session: Session, trace: Trace, system: str, stage: float | None) -> ToolResult:
        """Run a launched sub-agent under the prompt ``system`` to its one message; its stage ends at ``stage``."""
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
        """``trace`` ran at a peer and came back as ``ran``."""
        for part in fields(Trace):
            setattr(trace, part.name, getattr(ran, part.name))
        self.sampled += sum(turn.end - turn.start for turn in trace.turns)
        if trace.limit == STOPPED:  # because this episode ends, which knows why
            trace.status, trace.limit = TraceStatus.RUNNING, ""

    async def run_subagent(
        self, session: Session, trace: Trace, system: str, steps: int, stage: float | None = None
    ) -> None:
        """Run ``trace`` for at most ``steps`` steps, in a slot, until its deadline or its stage's, ``stage``."""
        deadline = Deadline("stage_s", stage)
        try:
            async with deadline, self.settings.slots.subagents:
                deadline.tighten("agent_s", self.settings.limits.agent_s)
                tools = session.tools(Role.SUBAGENT)
                agent = _Agent(self, session, trace, system, tools, self.settings.subagent_temperature)
                await agent.run(steps)
        except TimeoutError:
            if not deadline.passed:  # somebody else's
                raise
            await self.cancel(trace, deadline.name, session)


class _Agent:
    """One agent's loop over its transcript: model, parse, tools, until it answers or a limit stops it."""

    def __init__(
        self, swarm: Swarm, session: Session, trace: Trace, system: str, tools: list[ToolSpec], temperature: float
    ) -> None:
        self.swarm, self.session, self.trace = swarm, session, trace
        self._context_limit = context_limit(swarm.settings.context, trace)
        self.settings = swarm.settings
        self._names = {tool.name for tool in tools}
        self._engine = self.settings.pool(trace)
        self._temperature = temperature
        self.transcript = Transcript(trace, self.settings.tokenizer, self.settings.media)
        opening = swarm.opening(trace.role, system, tools)
        self.transcript.observe(user_pieces(trace.prompt, thinking=False), after=opening)
        self._opening = len(trace.tokens)
        self._begin_context()

    def _begin_context(self) -> None:
        """A session of the engine, and noise of its own: equal positions of two contexts must not draw alike."""
        episode, number = self.swarm.episode, len(self.trace.cuts)
        place = (episode.seed, episode.task.key, episode.index, self.trace.agent_id, *([number] if number else []))
        self._session_id = f"{id(self.swarm):x}/{episode.task.key}/{episode.index}.{number}#{self.trace.agent_id}"
        self._sampling = Sampling(
            seed=noise_key(*place),
            temperature=self._temperature,
            top_p=self.settings.top_p if self.trace.parent is None else self.settings.subagent_top_p,
            max_new_tokens=self.settings.budget.turn_tokens,
            stop=(self.settings.tokenizer.im_end_id,),
        )

    async def run(self, max_steps: int) -> None:
        """To the end; ``trace.status`` says which."""
        try:
            while self.trace.status is TraceStatus.RUNNING:
                limit = self.swarm.limit_reached(self.trace, max_steps) or await self._fit_context()
                if limit:
                    self.trace.status, self.trace.limit = TraceStatus.OVER_BUDGET, limit
                    if self.trace.parent is None:
                        self.swarm.episode.limit = limit
                    return
                await self._turn()
        finally:
            self.transcript.close()
            await self._engine.release(self._session_id)

    async def _fit_context(self) -> str:
        """Keep the context below its limit; the limit's name where that cannot be done."""
        if self._context_limit is None or len(self.transcript.context) <= self._context_limit:
            return ""
        if self.settings.context.policy == "none":
            return "context"
        opening = self.trace.tokens[: self._opening]
        ids = new_context(self.settings.context, self.trace, opening, self.settings.tokenizer)
        if len(ids) > self._context_limit:
            return "context"
        await self._engine.release(self._session_id)
        self.transcript.restart(ids)
        self._begin_context()
        return ""

    async def _turn(self) -> None:
        began = self.swarm.elapsed()
        completion = await self._generate()
        start, end = self.transcript.sampled(completion)
        self.swarm.sampled += end - start
        parsed = self._parse(completion)
        calls = [ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in parsed.tool_calls]
        turn = Turn(
            start=start, end=end, content=parsed.content, calls=calls, malformed=parsed.malformed, t_start=began
        )
        turn.t_model = self.swarm.elapsed()
        self.trace.turns.append(turn)
        if parsed.malformed:
            self.trace.status = TraceStatus.MALFORMED
        elif not calls:
            self.trace.status, self.trace.message = TraceStatus.FINISHED, parsed.content
        else:
            turn.results = await self._execute(turn)
            results = [
                (call.id, call.name, content_of(result)) for call, result in zip(calls, turn.results, strict=True)
            ]
            images = [image for result in turn.results for image in result.images]
            self.transcript.observe(tool_result_pieces(results, thinking=False), images)
        turn.t_end = self.swarm.elapsed()
        if self.trace.parent is None:
            self.swarm.stage_done(turn)

    async def _generate(self) -> Completion:
        return await self._engine.generate(
            self.transcript.context,
            self._sampling,
            session=self._session_id,
            deadline_s=self.settings.budget.episode_s,
            media=self.trace.media,
        )

    def _parse(self, completion: Completion) -> ParsedTurn:
        if completion.finish is Finish.LENGTH:
            return ParsedTurn(malformed="the turn did not end within its tokens")
        tokenizer = self.settings.tokenizer
        if max(completion.tokens, default=0) >= tokenizer.vocab_size:
            return ParsedTurn(malformed="a token of an unused embedding row")
        return parse_assistant_ids(
            tokenizer, completion.tokens, prefill=prefill(thinking=False), tool_names=self._names
        )

    async def _execute(self, turn: Turn) -> list[ToolResult]:
        """Results in the order of the calls. Registrations take effect in that order; what runs does so at once."""
        if len(turn.calls) == 1 and turn.calls[0].name not in _SPAWNING:  # most turns: no task of its own for one call
            return [await self._call(turn, turn.calls[0])]
        pending: list[ToolResult | asyncio.Task[ToolResult]] = []
        direct = 0
        stage_s = self.settings.limits.stage_s
        stage = None if stage_s is None else asyncio.get_running_loop().time() + stage_s
        async with asyncio.TaskGroup() as group:
            for call in turn.calls:
                if call.name == CREATE_SUBAGENT.name:
                    pending.append(self.swarm.register(call))
                elif call.name == ASSIGN_TASK.name:
                    launched = self.swarm.launch(call, self.trace, turn)
                    if isinstance(launched, Trace):
                        system = self.swarm.agents[launched.name]
                        pending.append(group.create_task(self.swarm.delegate(self.session, launched, system, stage)))
                    else:
                        pending.append(launched)
                elif direct >= self.settings.budget.direct_calls:
                    pending.append(_error(ErrorKind.BUDGET, "one call a turn"))
                else:
                    direct += 1
                    pending.append(group.create_task(self._call(turn, call)))
        return [item if isinstance(item, ToolResult) else item.result() for item in pending]

    async def _call(self, turn: Turn, call: ToolCall) -> ToolResult:
        async with self.settings.slots.tool_calls:
            result = await self.session.call(self.trace.agent_id, call, deadline_s=self.settings.budget.call_s)
        if result.error is ErrorKind.TIMEOUT:
            turn.deadline = "call_s"
        return result


def _reason(error: BaseException) -> str:
    """What went wrong first, without the groups in which tasks that ran at once report it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _error(kind: ErrorKind, reason: str) -> ToolResult:
    return ToolResult(text=f"error: {reason}", error=kind)
