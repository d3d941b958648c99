"""``parl env check CONFIG``: tries a configuration's environment without a model.

A task is opened, the tools are listed, one is called, and the right and a wrong answer are scored, as a run would.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.base import Environment, Gold, Role, Score, Scorer, Session, Task, ToolCall, ToolSpec
from envs.driver import Driver
from envs.tasks_io import load_tasks
from parl.config.runs import configuration
from parl.config.schema import Config, EvalConfig
from parl.errors import UserError
from parl.shown.terminal import echo
from rewards.score import score_of
from rewards.scoring import Scoring, check_scoring
from rollouts.config import RolloutsConfig
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus
from rollouts.faults import Unscored
from rollouts.swarm.scoring import scored

_OPEN_S = 180.0  # with the imports of its libraries
_WRONG = "a wrong answer"
_SHOWN = 200  # characters of a text
_AGENTS = {Role.ORCHESTRATOR: "0", Role.SUBAGENT: "0/0"}


_MODEL = ("model", "sft", "optimizer", "trainer")  # sections of the policy, which is not needed here


def environment_alone(config: Path, overrides: Sequence[str]) -> Config:
    """The configuration with the default policy, so that the policy's files need not be there."""
    others = [text for text in overrides if text.partition("=")[0].split(".")[0].strip() not in _MODEL]
    return configuration(config, [*others, *(f"{section}={{}}" for section in _MODEL)])


def check_environment(
    config: Config, call: str | None = None, arguments: str | None = None, answer: str | None = None
) -> bool:
    """Print what happens; whether nothing is missing. UserError where it cannot go on.

    ``call``: the tool to be called, instead of the first; with ``arguments`` (JSON), instead of made-up ones.
    ``answer``: what is scored as the right answer, instead of the task's gold.
    """
    environment = config.envs.build()
    try:
        for note in environment.notes():
            echo(f"note: {note}", err=True)
        train, held_out = _tasks(environment, config.envs.tasks, config.eval, config.seed)
        check_scoring(config.rewards, [train])
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise UserError(str(error)) from error
    _say("tasks", f"train: {_short(train.prompt)}")
    _say("", f"{config.eval.split}: {held_out} to evaluate")
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        checked = _Checked(environment, train, config.rollouts, Scoring(config.rewards, Path(folder)))
        try:
            runner.run(checked.all_of_it(call, arguments, answer))
        finally:
            runner.run(environment.close())
    kept = "they are repeated" if environment.repeatable else "it begins anew"
    _say("state", "none" if environment.stateless else f"calls change it; where an episode loses its session, {kept}")
    for line in checked.missing or ["nothing"]:
        _say("missing", line)
    return not checked.missing


def _tasks(environment: Environment, own: str | None, evaluation: EvalConfig, seed: int) -> tuple[Task, int]:
    """The first training task, and how many tasks there are to evaluate. ValueError without one."""
    if own is not None:
        return load_tasks(own, "train")[0], len(load_tasks(own, evaluation.split)[: evaluation.tasks])
    held_out = environment.held_out(evaluation.split, evaluation.seed, evaluation.tasks)
    return environment.task_stream("train", seed)[0], len(held_out)


class _Checked:
    """The tries, and what they found missing."""

    def __init__(self, environment: Environment, task: Task, rollouts: RolloutsConfig, scoring: Scoring) -> None:
        self.environment, self.task, self.scoring = environment, task, scoring
        self.call_s, self.score_s = rollouts.budget.call_s, rollouts.score_deadline_s
        self.missing: list[str] = []

    async def all_of_it(self, call: str | None, arguments: str | None, answer: str | None) -> None:
        """Open, list, call, score."""
        right = _right(self.task.gold) if answer is None else answer
        session = await self._open()
        try:
            found = {role: session.tools(role) for role in Role}
            for role, tools in found.items():
                _say("tools", f"{role}: {', '.join(map(_signature, tools)) or 'none'}")
            await self._call(session, found, call, arguments)
            first = await self._score(session, right)
        finally:
            await session.close()
        if first is None and isinstance(session, Driver):
            return _say("score", "what the program posts: the task's gold is of kind none")
        if first is None:
            self.missing.append(
                f"a score: gold.kind = {self.task.gold.kind}, and the session has no method score; give the tasks a"
                " gold answer, name a function in rewards.function, or give the session `async def score(episode)`"
            )
            return
        if self.task.gold.kind not in ("exact", "table") and answer is None:
            after = "after that call, " if any(found.values()) else ""
            return _say("score", f"{after}with {_short(right)!r} as the answer: {_number(first)}")
        if isinstance(session, Scorer):  # the call may have spoilt it
            first = await self._alone(right)
        wrong = await self._alone(_WRONG)
        _say("score", f"the right answer {_short(right)!r}: {_number(first)}; {_WRONG}: {_number(wrong)}")
        if first is not None and wrong is not None and wrong.value >= first.value:
            form = "; --answer TEXT scores one in the form that the task asks for" if answer is None else ""
            self.missing.append(f"a difference: a wrong answer scores as much as the right one{form}")

    async def _alone(self, answer: str) -> Score | None:
        """The score of ``answer`` without any call."""
        session = await self._open(said=False)
        try:
            return await self._score(session, answer)
        finally:
            await session.close()

    async def _open(self, *, said: bool = True) -> Session:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(_OPEN_S):
                session = await self.environment.open(self.task, seed=0, attempt=0)
        except Exception as error:
            raise UserError(f"{self._name}.open failed: {type(error).__name__}: {error}") from error
        if said:
            _say("opened", f"in {time.perf_counter() - began:.2f} s")
        return session

    @property
    def _name(self) -> str:
        return type(self.environment).__name__

    async def _call(
        self, session: Session, found: dict[Role, list[ToolSpec]], wanted: str | None, arguments: str | None
    ) -> None:
        offered = [(role, tool) for role, tools in found.items() for tool in tools]
        if not offered and wanted is None:
            return _say("call", "none: the agents have no tools")
        chosen = [(role, tool) for role, tool in offered if wanted in (None, tool.name)]
        if not chosen:
            names = ", ".join(dict.fromkeys(tool.name for _, tool in offered)) or "none"
            raise UserError(f"--call {wanted}: there is no such tool; there are: {names}")
        role, tool = chosen[0]
        given = _parsed(arguments) if arguments is not None else example(tool.parameters, tool.parameters)
        called = ToolCall(id="functions.check:0", name=tool.name, arguments=given)
        began = time.perf_counter()
        result = await session.call(_AGENTS[role], called, deadline_s=self.call_s)
        took = time.perf_counter() - began
        _say("call", f"{tool.name}({json.dumps(given, ensure_ascii=False)}) in {took:.3f} s")
        _say("", _short(result.readable) or "an empty result")
        if result.machine:
            self.missing.append(f"the tools' server: {result.text}")
        elif result.error:
            _say("", f"({result.error}; --call NAME --arguments JSON tries another call)")

    async def _score(self, session: Session, answer: str) -> Score | None:
        trace = Trace(agent_id="0", role=Role.ORCHESTRATOR, name="orchestrator", prompt=self.task.prompt)
        trace.status, trace.message = TraceStatus.FINISHED, answer
        episode = Episode(task=self.task, index=0, seed=0, traces=[trace], status=EpisodeStatus.ANSWERED, answer=answer)
        try:
            episode.score = await scored(self.scoring, session, episode, self.score_s)
        except Unscored as error:
            if self.task.gold.kind == "none" and isinstance(session, Driver):  # the program did not run
                return None
            raise UserError(str(error)) from error
        except Exception as error:
            raise UserError(str(error)) from error
        return score_of(episode)


def example(schema: dict[str, Any], whole: dict[str, Any]) -> Any:
    """A value of ``schema``; ``whole`` holds its definitions."""
    if "$ref" in schema:
        place = whole
        for part in schema["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        return example(place, whole)
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example(schema[key][0], whole)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        return {
            name: example(properties[name], whole) for name in schema.get("required", properties) if name in properties
        }
    if kind == "array":
        return [example(schema.get("items") or {"type": "string"}, whole)]
    simple: dict[Any, Any] = {"integer": 1, "number": 1.0, "boolean": False, "null": None}
    return schema.get("minimum", simple[kind]) if kind in simple else "test"


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        given = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise UserError(f"--arguments {arguments}: no JSON: {error}") from None
    if not isinstance(given, dict):
        raise UserError(f'--arguments {arguments}: must be an object, such as {{"query": "test"}}')
    return given


def _right(gold: Gold) -> str:
    """An answer that earns full marks, where there is one."""
    if gold.kind == "table":
        rows = [gold.columns, ["---"] * len(gold.columns), *gold.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return gold.answers[0] if gold.answers else "an answer"


def _signature(tool: ToolSpec) -> str:
    return f"{tool.name}({', '.join(tool.parameters.get('properties', {}))})"


def _number(score: Score | None) -> str:
    if score is None:
        return "nothing"
    parts = "".join(f", {name} {value:g}" for name, value in score.parts.items())
    return f"{score.value:g} in [{score.low:g}, {score.high:g}]{', solved' if score.solved else ''}{parts}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _say(what: str, text: str) -> None:
    echo(f"{what:9}{text}")
