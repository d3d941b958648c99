"""Task sets of the package ``verifiers`` (0.4): their tasks, their tool sets in this process, their rewards.

What needs a runtime (a container, setup of a machine) is refused by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from pydantic import Field

from envs.base import Environment, Gold, Score, Task, TaskStream, ToolCall, ToolResult, ToolSpec
from envs.named import extra, named
from envs.plugs.mcp_connection import Connection
from envs.plugs.mcp_server import Server
from envs.plugs.session import PlugSection, PlugSession, offered, places
from envs.plugs.threads import outside
from envs.steps.session import transcript

_EXTRA = ("parl-swarm[verifiers]", "envs.name=verifiers")
_HOOKS = ("setup", "finalize", "stage_verifier")  # they get a runtime, which there is none of


class VerifiersConfig(PlugSection):
    """A task set of verifiers."""

    taskset: str = Field(description="id of an installed task set, or package.module:Class")
    options: dict[str, Any] = Field(default_factory=dict, description="keys of the task set's own config")
    tasks: int = Field(default=1000, gt=0, description="tasks that are taken of it, those of all splits together")
    low: float = Field(default=0.0, description="lowest sum of weighted rewards")
    high: float = Field(default=1.0, description="highest; an episode that reaches it is a success")


class VerifiersEnvironment(Environment):
    """A task set. Of every ten tasks, the last two are those of val and test."""

    Config = VerifiersConfig
    config: VerifiersConfig
    repeatable = False

    def __init__(self, config: VerifiersConfig) -> None:
        super().__init__(config)
        self._shared: dict[asyncio.AbstractEventLoop, list[tuple[str, Connection]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])

    @cached_property
    def taskset(self) -> Any:
        """The task set; ValueError for a name or a key that is none."""
        v1 = extra("verifiers.v1", *_EXTRA)
        key = f"envs.config.taskset = {self.config.taskset}"
        if ":" in self.config.taskset:
            found = named(self.config.taskset, "envs.config.taskset")
        else:
            try:
                found = extra("verifiers.v1.utils.loaders", *_EXTRA).taskset_class(self.config.taskset)
            except (ImportError, AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"{key}: {error}") from error
        generic = extra("verifiers.v1.utils.generic", *_EXTRA)
        kind = generic.concrete_type(found, v1.TasksetConfig) or v1.TasksetConfig
        return found(kind.model_validate(self.config.options))

    @cached_property
    def all_tasks(self) -> list[Any]:
        """The task set's tasks."""
        return list(islice(self.taskset, self.config.tasks))

    def tasks(self, split: str) -> Iterator[Task]:
        """The tasks of ``split``; all of them where there are fewer than ten."""
        for index in places(len(self.all_tasks), split):
            task = self.all_tasks[index]
            told = "\n\n".join(filter(None, (task.data.system_prompt, task.data.prompt_text)))
            about = {"family": type(task).__name__.lower(), "plan": {"index": index}}
            key = hashlib.sha256(task.key.encode()).hexdigest()[:16]  # theirs may be long and differ in the end
            yield Task(key=key, split=split, prompt=told, gold=Gold(kind="none"), **about)

    def task_stream(self, split: str, seed: int) -> TaskStream:
        """ValueError for a task set that cannot be used here."""
        self._refuse()
        return super().task_stream(split, seed)

    def tools(self) -> tuple[ToolSpec, ...]:
        """Those of the first task."""
        self._refuse()

        async def listed() -> tuple[ToolSpec, ...]:
            session = await self._session(self.all_tasks[0])
            try:
                return session.specs
            finally:
                await session.close()
                await self.close()

        return outside(listed())

    def notes(self) -> Iterator[str]:
        """ValueError for a task set that cannot be used here, or a name of a tool that does not exist."""
        offered(self.config, self.tools())
        yield from ()

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> VerifiersSession:
        """Fresh tool sets of the task, beside those that the task set shares."""
        return await self._session(self.all_tasks[task.plan["index"]])

    async def close(self) -> None:
        """End the shared tool sets."""
        for _, connection in self._shared.pop(asyncio.get_running_loop(), []):
            await connection.close()

    async def _session(self, task: Any) -> VerifiersSession:
        loop = asyncio.get_running_loop()
        if loop not in self._shared:
            self._shared[loop] = [
                await _served(each, None, None) for each in self.taskset.toolsets(self.taskset.config)
            ]
        trace = _new_trace(task)
        own = [await _served(each, task, trace.state) for each in task.toolsets(task.config)]
        return await VerifiersSession.of(self.config, task, trace, self._shared[loop], own)

    def _refuse(self) -> None:
        if not self.all_tasks:
            raise ValueError(f"envs.config.taskset = {self.config.taskset}: it has no task")
        task, plain = self.all_tasks[0], extra("verifiers.v1", *_EXTRA).Task
        wants = [name for name in _HOOKS if getattr(type(task), name) is not getattr(plain, name)]
        for kind in ("reward", "metric"):
            for hook in task.hooks(kind):
                given = inspect.signature(hook).parameters.get("runtime")
                if given is not None and given.default is inspect.Parameter.empty:
                    wants.append(hook.__name__)
        if task.NEEDS_CONTAINER:
            wants.append("NEEDS_CONTAINER")
        if wants:
            why = f"needs a runtime ({', '.join(wants)}), which there is none of here"
            raise ValueError(f"envs.config.taskset = {self.config.taskset}: {type(task).__name__} {why}")


class VerifiersSession(PlugSession):
    """One episode: a trace of theirs, which their rewards read in the end."""

    def __init__(
        self, config: VerifiersConfig, tools: dict[str, tuple[ToolSpec, Connection, str]], task: Any, trace: Any
    ) -> None:
        self.specs = tuple(spec for spec, _, _ in tools.values())
        super().__init__(offered(config, self.specs), config.result_chars)
        self._config, self._tools, self._task, self._trace = config, tools, task, trace
        self._own: list[Connection] = []

    @classmethod
    async def of(
        cls,
        config: VerifiersConfig,
        task: Any,
        trace: Any,
        shared: list[tuple[str, Connection]],
        own: list[tuple[str, Connection]],
    ) -> VerifiersSession:
        """With the tools of all tool sets, listed."""
        tools: dict[str, tuple[ToolSpec, Connection, str]] = {}
        for prefix, connection in (*shared, *own):
            for tool in await connection.tools():
                name = f"{prefix}_{tool.name}" if prefix else tool.name
                spec = ToolSpec(name=name, description=tool.description, parameters=tool.parameters)
                tools[name] = spec, connection, tool.name
        session = cls(config, tools, task, trace)
        session._own = [connection for _, connection in own]
        return session

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """See :class:`PlugSession`."""
        _, connection, tool = self._tools[call.name]
        return await connection.call(tool, call.arguments)

    async def score(self, episode: Any) -> Score:
        """The sum of the task's weighted rewards over the orchestrator's conversation."""
        self._trace.nodes = _nodes(episode)
        await self._task.score(self._trace)
        rewards = {name: reward.score for name, reward in self._trace.rewards.items() if reward is not None}
        metrics = {name: value for name, value in self._trace.metrics.items() if value is not None}
        if not rewards:
            raise ValueError(f"envs.config.taskset = {self._config.taskset}: the task gave no reward")
        low, high = self._config.low, self._config.high
        return Score(value=float(self._trace.reward), parts=metrics | rewards, low=low, high=high)

    async def close(self) -> None:
        """End the tool sets of the task."""
        self.closed = True
        own, self._own = self._own, []
        for connection in own:
            await connection.close()


async def _served(toolset: Any, task: Any, state: Any) -> tuple[str, Connection]:
    """(prefix of its tools, a connection to ``toolset`` in this process), sharing the trace's ``state``."""
    if state is not None and isinstance(state, toolset._state_cls):

        async def pull() -> Any:
            return state

        async def push(before: bytes) -> None: ...

        toolset._pull_state, toolset._push_state = pull, push
    await toolset.setup()
    if task is not None:
        await toolset.setup_task(task.data)
    server = extra("mcp.server.mcpserver", *_EXTRA).MCPServer(toolset.server_name or type(toolset).__name__)
    toolset.register(server)
    module = f"{type(toolset).__module__}:{type(toolset).__qualname__}"
    return toolset.server_name, Connection(toolset.server_name, Server(module=module), running=server)


def _new_trace(task: Any) -> Any:
    v1, trace = extra("verifiers.v1", *_EXTRA), extra("verifiers.v1.trace", *_EXTRA)
    state = extra("verifiers.v1.state", *_EXTRA).state_cls(type(task))()
    about = trace.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    agent = trace.AgentInfo(config=v1.AgentConfig(runtime=v1.SubprocessConfig()))
    return v1.Trace(task=about, agent=agent, state=state)


def _nodes(episode: Any) -> list[Any]:
    """The orchestrator's messages as a chain of nodes."""
    graph, types = extra("verifiers.v1.graph", *_EXTRA), extra("verifiers.v1.types", *_EXTRA)
    kinds = {"user": types.UserMessage, "assistant": types.AssistantMessage, "tool": types.ToolMessage}
    nodes = []
    for number, message in enumerate(transcript(episode)):
        given = {name: value for name, value in message.items() if name not in ("role", "tool_calls")}
        if calls := message.get("tool_calls"):
            given["tool_calls"] = [types.ToolCall(id=call["id"], **call["function"]) for call in calls]
        made = kinds[message["role"]](**given)
        sampled = message["role"] == "assistant"
        nodes.append(graph.MessageNode(parent=number - 1 if number else None, message=made, sampled=sampled))
    return nodes
