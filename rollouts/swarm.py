"""One episode as a coroutine: an orchestrator with its tools, and the sub-agents that it launches.

Invariants: every agent is a ``Transcript`` that only grows; agents are numbered in the order of their calls, never of
their timing; budgets are checked between an agent's turns, and shared ones only between the orchestrator's, so that no
episode depends on what ran beside it; whatever happens, each trace and the episode end in exactly one status.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from envs.base import Environment, ErrorKind, Role, Session, Task, ToolCall, ToolResult, ToolSpec
from model.chat import prefill, prompt_pieces, tool_result_pieces
from model.chat_parser import ParsedTurn, parse_assistant_ids
from model.tokenizer import Tokenizer
from model.vision_config import MediaLimits
from rollouts.config import BudgetConfig
from rollouts.critical_path import CriticalMeter
from rollouts.engine.base import Completion, Engine, Finish, Sampling
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.prompts import ASSIGN_TASK, CREATE_SUBAGENT, ORCHESTRATOR_PROMPT, SPAWNING
from rollouts.transcript import Transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSettings:
    """What all episodes of a run share. ``pool`` picks the engine that speaks for a trace.

    ``media``: how pictures are cut for the policies; None where they cannot see.
    """

    tokenizer: Tokenizer
    pool: Callable[[Trace], Engine]
    budget: BudgetConfig
    spawning: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    subagent_temperature: float = 1.0  # theirs have no top_p
    media: MediaLimits | None = None


async def run_episode(
    task: Task, environment: Environment, settings: SwarmSettings, *, index: int, seed: int, critical_budget: int
) -> Episode:
    """One attempt at ``task``. Never raises but for cancellation: a failure is an episode with status FAILED."""
    swarm = _Swarm(task, settings, index=index, seed=seed, critical_budget=critical_budget)
    began = time.monotonic()
    clock = asyncio.timeout(settings.budget.episode_s)
    try:
        async with clock:
            session = await environment.open(task)
            try:
                await swarm.run(session)
            finally:
                await session.close()
    except Exception as error:  # the boundary: one bad episode must not take the others down
        late = clock.expired() and isinstance(error, TimeoutError)
        swarm.fail(f"the episode's deadline of {settings.budget.episode_s} s passed" if late else _reason(error))
    swarm.episode.wall_s = time.monotonic() - began
    return swarm.episode


def noise_key(*parts: object) -> int:
    """64-bit sampling key of (seed, episode, agent): equal parts, equal noise."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


class _Swarm:
    def __init__(self, task: Task, settings: SwarmSettings, *, index: int, seed: int, critical_budget: int) -> None:
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
        self._meter = CriticalMeter()
        self._began = time.monotonic()

    def fail(self, reason: str) -> None:
        """End everything that still runs."""
        self.episode.status, self.episode.error = EpisodeStatus.FAILED, reason
        for trace in self.episode.traces:
            if trace.status is TraceStatus.RUNNING:
                trace.status = TraceStatus.CANCELLED

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
        return time.monotonic() - self._began

    def limit_reached(self, trace: Trace, max_steps: int) -> str:
        """Name of the budget that forbids ``trace`` another turn, or an empty string."""
        if trace.steps >= max_steps:
            return "steps"
        if trace.parent is None:
            if self.episode.critical_budget and self._meter.steps + 1 > self.episode.critical_budget:
                return "critical_steps"
            if sum(sum(other.mask) for other in self.episode.traces) >= self.settings.budget.total_tokens:
                return "total_tokens"
        return ""

    def stage_done(self, turn: Turn) -> None:
        """The orchestrator's turn is over: charge it with its longest sub-agent."""
        self._meter.stage(self.episode.trace(agent_id).steps for agent_id in turn.spawned)

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
        if len(self.episode.subagents) >= self.settings.budget.subagents:
            return _error(ErrorKind.BUDGET, "too many sub-agents")
        trace = Trace(
            agent_id=f"{parent.agent_id}/{len(self.episode.subagents)}",
            role=Role.SUBAGENT,
            name=agent,
            parent=parent.agent_id,
            parent_turn=len(parent.turns) - 1,
            prompt=prompt,
        )
        self.episode.traces.append(trace)
        turn.spawned.append(trace.agent_id)
        return trace

    async def delegate(self, session: Session, trace: Trace, system: str) -> ToolResult:
        """Run a launched sub-agent under the prompt ``system`` to its one message."""
        budget = self.settings.budget
        allowance = self._meter.allowance(self.episode.critical_budget)
        steps = budget.subagent_steps if allowance is None else min(budget.subagent_steps, allowance)
        tools = session.tools(Role.SUBAGENT)
        agent = _Agent(self, session, trace, system, tools, self.settings.subagent_temperature)
        started = self.elapsed()
        await agent.run(steps)
        latency = self.elapsed() - started
        if trace.status is TraceStatus.FINISHED:
            return ToolResult(text=trace.message, latency_s=latency)
        return ToolResult(text="error: sub-agent failed", error=ErrorKind.BUDGET, latency_s=latency)


class _Agent:
    """One agent's loop over its transcript: model, parse, tools, until it answers or a limit stops it."""

    def __init__(
        self, swarm: _Swarm, session: Session, trace: Trace, system: str, tools: list[ToolSpec], temperature: float
    ) -> None:
        self.swarm, self.session, self.trace = swarm, session, trace
        self.settings = swarm.settings
        self._names = {tool.name for tool in tools}
        self._temperature = temperature
        self._engine = self.settings.pool(trace)
        episode = swarm.episode
        self._key = noise_key(episode.seed, episode.task.key, episode.index, trace.agent_id)
        self._session_id = f"{id(swarm):x}/{episode.task.key}/{episode.index}/{trace.agent_id}"
        self.transcript = Transcript(trace, self.settings.tokenizer, self.settings.media)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": trace.prompt}]
        declared = [tool.to_openai() for tool in tools]
        self.transcript.observe(prompt_pieces(messages, declared, thinking=False))

    async def run(self, max_steps: int) -> None:
        """To the end; ``trace.status`` says which."""
        try:
            while self.trace.status is TraceStatus.RUNNING:
                limit = self.swarm.limit_reached(self.trace, max_steps)
                if limit:
                    self.trace.status = TraceStatus.OVER_BUDGET
                    if self.trace.parent is None:
                        self.swarm.episode.limit = limit
                    return
                await self._turn()
        finally:
            self.transcript.close()
            await self._engine.release(self._session_id)

    async def _turn(self) -> None:
        began = self.swarm.elapsed()
        completion = await self._generate()
        start, end = self.transcript.sampled(completion)
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
            results = [(call.id, call.name, _content(result)) for call, result in zip(calls, turn.results, strict=True)]
            images = [image for result in turn.results for image in result.images]
            self.transcript.observe(tool_result_pieces(results, thinking=False), images)
        turn.t_end = self.swarm.elapsed()
        if self.trace.parent is None:
            self.swarm.stage_done(turn)

    async def _generate(self) -> Completion:
        budget = self.settings.budget
        sampling = Sampling(
            seed=self._key,
            temperature=self._temperature,
            top_p=self.settings.top_p if self.trace.parent is None else 1.0,
            max_new_tokens=budget.turn_tokens,
            stop=(self.settings.tokenizer.im_end_id,),
        )
        return await self._engine.generate(
            self.trace.tokens,
            sampling,
            session=self._session_id,
            deadline_s=budget.episode_s,
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
        pending: list[ToolResult | asyncio.Task[ToolResult]] = []
        direct = 0
        async with asyncio.TaskGroup() as group:
            for call in turn.calls:
                if call.name == CREATE_SUBAGENT.name:
                    pending.append(self.swarm.register(call))
                elif call.name == ASSIGN_TASK.name:
                    launched = self.swarm.launch(call, self.trace, turn)
                    if isinstance(launched, Trace):
                        system = self.swarm.agents[launched.name]
                        pending.append(group.create_task(self.swarm.delegate(self.session, launched, system)))
                    else:
                        pending.append(launched)
                elif direct >= self.settings.budget.direct_calls:
                    pending.append(_error(ErrorKind.BUDGET, "one call a turn"))
                else:
                    direct += 1
                    pending.append(group.create_task(self._call(call)))
        return [item if isinstance(item, ToolResult) else item.result() for item in pending]

    async def _call(self, call: ToolCall) -> ToolResult:
        return await self.session.call(self.trace.agent_id, call, deadline_s=self.settings.budget.call_s)


def _reason(error: BaseException) -> str:
    """What went wrong first, without the groups in which tasks that ran at once report it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _content(result: ToolResult) -> str | list[dict[str, str]]:
    """What the template renders of a result: its text, and a placeholder for each picture."""
    if not result.images:
        return result.text
    text = [{"type": "text", "text": result.text}] if result.text else []
    return [*text, *({"type": "image"} for _ in result.images)]


def _error(kind: ErrorKind, reason: str) -> ToolResult:
    return ToolResult(text=f"error: {reason}", error=kind)
