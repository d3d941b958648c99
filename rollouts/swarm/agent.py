"""One agent's loop over its transcript: model, parse, tools, until it answers or a limit stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import TYPE_CHECKING

from envs.base import ErrorKind, Session, ToolCall, ToolResult, ToolSpec
from model.chat.base import ParsedTurn
from rollouts.engine.base import Completion, Finish, Sampling
from rollouts.episode import CUT, Trace, TraceStatus, Turn
from rollouts.faults import EngineFailed, Stalled, ToolsLost
from rollouts.noise import noise_key
from rollouts.prompts import ASSIGN_TASK, CREATE_SUBAGENT, SPAWNING_NAMES
from rollouts.swarm.context import content_of, context_limit, new_context
from rollouts.swarm.partial import Answers, turn_start, unanswered
from rollouts.swarm.transcript import Transcript

if TYPE_CHECKING:
    from rollouts.swarm.swarm import Swarm


class Agent:
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
        self._chat = self.settings.chat_of(trace.role)
        self.transcript = Transcript(trace, self._chat, self.settings.media)
        swarm.live[trace.agent_id] = self
        if trace.tokens:  # a resumed trace
            self._opening = trace.turns[0].start if trace.turns else turn_start(trace)
        else:
            opening, question = swarm.opening(trace.role, system, tools, trace.prompt)
            self.transcript.observe(question, after=opening)
            self._opening = len(trace.tokens)
        self._begin_context()

    def _begin_context(self) -> None:
        """A new engine session and noise key: equal positions of two contexts must not sample alike."""
        episode, number = self.swarm.episode, len(self.trace.cuts)
        place = (episode.seed, episode.task.key, episode.index, self.trace.agent_id, *([number] if number else []))
        self._session_id = f"{id(self.swarm):x}/{episode.task.key}/{episode.index}.{number}#{self.trace.agent_id}"
        self._sampling = Sampling(
            seed=noise_key(*place),
            temperature=self._temperature,
            top_p=self.settings.top_p if self.trace.parent is None else self.settings.subagent_top_p,
            max_new_tokens=self.settings.budget.turn_tokens,
            stop=self._chat.stop_ids,
        )

    async def run(self, max_steps: int) -> None:
        """Run to the end; ``trace.status`` tells how, and is RUNNING if the episode was halted."""
        try:
            if turn := unanswered(self.trace):
                await self._answer(turn)
            while self.trace.status is TraceStatus.RUNNING and not self.swarm.flight.halting:
                begun = self.transcript.unfinished  # an interrupted turn has passed its limits
                limit = "" if begun else self.swarm.limit_reached(self.trace, max_steps) or await self._fit_context()
                if limit:
                    self.trace.status, self.trace.limit = TraceStatus.OVER_BUDGET, limit
                    if self.trace.parent is None:
                        self.swarm.episode.limit = limit
                    return
                await self._turn()
        finally:
            self.transcript.close()
            del self.swarm.live[self.trace.agent_id]
            await self._engine.release(self._session_id)

    async def _fit_context(self) -> str:
        """Keep the context below its limit; returns the limit's name if that is impossible."""
        if self._context_limit is None or len(self.transcript.context) <= self._context_limit:
            return ""
        if self.settings.context.policy == "none":
            return "context"
        opening = self.trace.tokens[: self._opening]
        ids = new_context(self.settings.context, self.trace, opening, self._chat)
        if len(ids) > self._context_limit:
            return "context"
        await self._engine.release(self._session_id)
        self.transcript.restart(ids)
        self._begin_context()
        return ""

    async def _turn(self) -> None:
        """One turn, or a part of it: up to an interruption, or from one on."""
        began, start = self.swarm.elapsed(), turn_start(self.trace)
        completion = await self._generate(start)
        before, end = self.transcript.sampled(completion)
        self.swarm.sampled += end - before
        if completion.finish is Finish.INTERRUPTED:
            return
        parsed = self._parse(self.trace.tokens[start:], completion.finish)
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
            return await self._answer(turn)
        self._end(turn)

    async def _answer(self, turn: Turn) -> None:
        """Run the remaining calls of ``turn`` and append the results, unless the episode was halted."""
        answers = self.swarm.answers.setdefault(self.trace.agent_id, Answers())
        await self._execute(turn, answers)
        if len(answers.results) < len(turn.calls):
            return
        del self.swarm.answers[self.trace.agent_id]
        turn.results = [answers.results[number] for number in range(len(turn.calls))]
        pairs = zip(turn.calls, turn.results, strict=True)
        images = [image for result in turn.results for image in result.images]
        shown = [(call.id, call.name, content_of(result)) for call, result in pairs]
        self.transcript.observe(self._chat.results(shown), images)
        if ended := [result.text for result in turn.results if result.done]:
            self.trace.status, self.trace.message = TraceStatus.FINISHED, turn.content or ended[0]
        self._end(turn)

    def _end(self, turn: Turn) -> None:
        turn.t_end = self.swarm.elapsed()
        if self.trace.parent is None:
            self.swarm.stage_done(turn)

    async def _generate(self, start: int) -> Completion:
        written = len(self.trace.tokens) - start
        sampling = self._sampling
        if written:
            sampling = replace(sampling, max_new_tokens=sampling.max_new_tokens - written)
        try:
            return await self._engine.generate(
                self.transcript.context,
                sampling,
                session=self._session_id,
                deadline_s=self.settings.budget.episode_s,
                media=self.trace.media,
            )
        except Exception as error:
            self.swarm.engine_fault = EngineFailed(f"{type(error).__name__}: {error}")
            raise

    def _parse(self, tokens: list[int], finish: Finish) -> ParsedTurn:
        if finish is Finish.LENGTH:
            return ParsedTurn(malformed=CUT)
        return self._chat.parse(tokens, tools=self._names, first=self.trace.tool_calls)

    async def _execute(self, turn: Turn, answers: Answers) -> None:
        """Fill ``answers``, except for halted sub-agents. Registrations come first; the calls run at once."""
        if (
            len(turn.calls) == 1 and turn.calls[0].name not in SPAWNING_NAMES
        ):  # most turns: no asyncio task for a single call
            if not answers.results:
                answers.results[0] = await self._call(turn, turn.calls[0])
            return
        direct = 0
        stage_s = self.settings.limits.stage_s
        stage = None if stage_s is None else asyncio.get_running_loop().time() + stage_s
        async with asyncio.TaskGroup() as group:
            for number, call in enumerate(turn.calls):
                if number in answers.results:
                    continue
                if call.name == CREATE_SUBAGENT:
                    answers.results[number] = self.swarm.register(call)
                elif call.name == ASSIGN_TASK:
                    if number in answers.launched:
                        launched = self.swarm.episode.trace(answers.launched[number])
                    else:
                        launched = self.swarm.launch(call, self.trace, turn)
                    if isinstance(launched, ToolResult):
                        answers.results[number] = launched
                        continue
                    answers.launched[number] = launched.agent_id
                    run = self.swarm.delegate(self.session, launched, self.swarm.agents[launched.name], stage)
                    group.create_task(_settle(answers, number, run))
                elif direct >= self.settings.budget.direct_calls:
                    answers.results[number] = refusal(ErrorKind.BUDGET, "one call a turn")
                else:
                    direct += 1
                    group.create_task(_settle(answers, number, self._call(turn, call)))

    async def _call(self, turn: Turn, call: ToolCall) -> ToolResult:
        async with self.settings.slots.tool_calls:
            began = asyncio.get_running_loop().time()
            result = await self.session.call(self.trace.agent_id, call, deadline_s=self.settings.budget.call_s)
        if result.machine:
            raise ToolsLost(f"the call of {call.name} failed: {result.text}")
        if result.error is ErrorKind.TIMEOUT:
            if reason := self.settings.stalled(began):
                raise Stalled(reason)
            turn.deadline = "call_s"
        return result


async def _settle(answers: Answers, number: int, run: Awaitable[ToolResult | None]) -> None:
    result = await run
    if result is not None:
        answers.results[number] = result


def refusal(kind: ErrorKind, reason: str) -> ToolResult:
    """The answer to a call that is not made."""
    return ToolResult(text=f"error: {reason}", error=kind)
