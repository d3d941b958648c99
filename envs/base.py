"""The contract between tasks, tools and rollouts.

An ``Environment`` yields ``Task`` rows and opens one ``Session`` per episode. A session owns whatever its agents
may touch; state that one agent must not see is keyed by the agent's id. Tool failures are data (``ToolResult.error``),
never exceptions; only cancellation propagates. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


class Role(StrEnum):
    """Who holds a tool or speaks in a trace."""

    ORCHESTRATOR = "orchestrator"
    SUBAGENT = "subagent"


class ErrorKind(StrEnum):
    """Why a tool call gave no result; reported to the policy and to the metrics."""

    BAD_ARGS = "bad_args"
    NOT_FOUND = "not_found"
    UNKNOWN_TOOL = "unknown_tool"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    SERVER = "server"
    CANCELLED = "cancelled"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One callable tool: its name, what it does, and the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]

    def to_openai(self) -> dict[str, Any]:
        """The tool as an OpenAI ``tools`` entry (what chat templates take)."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call as the model wrote it. ``id`` is ``functions.NAME:INDEX``; ``arguments`` is the parsed JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call returned. ``text`` is what the agent reads, also when ``error`` is set. ``latency_s`` in seconds.

    ``images`` (PNG files) are shown after the text, to a policy that can see. ``machine``: the call failed because the
    tools' machine did (no connection, a dead server), not because the world answers so: no agent reads such a result,
    the episode is run again.
    """

    text: str
    error: ErrorKind | None = None
    latency_s: float = 0.0
    images: tuple[bytes, ...] = ()
    machine: bool = False

    @property
    def readable(self) -> str:
        """The text, and a word for each picture."""
        return "\n".join(filter(None, (self.text, *("[picture]" for _ in self.images))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Best possible costs of a task in critical steps, the final answer's turn included.

    ``serial_steps``: one agent, one tool call a turn. ``parallel_steps``: the best plan with sub-agents (equal to
    ``serial_steps`` where spawning cannot help). ``width``: sub-agents in that best plan, 0 where none pays.
    """

    serial_steps: int
    parallel_steps: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """The hidden answer. ``kind`` is ``table`` (columns, key columns, rows) or ``exact`` (accepted strings)."""

    kind: str
    columns: tuple[str, ...] = ()
    unique_columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    answers: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)  # other accepted spelling -> the spelling in rows or answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked. ``gold``, ``oracle`` and ``plan`` never reach a prompt or a log of an agent.

    ``plan`` is what the reference policies need to solve the task through the tools (the environment's own format);
    empty for tasks that a user brings.
    """

    key: str
    family: str
    split: str
    prompt: str
    gold: Gold
    oracle: Oracle | None = None
    width: int = 1  # independent parts of the task (rows of a wide table), 1 where there is one
    plan: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """The task as a flat ``datasets`` row (nested parts as JSON strings)."""
        row = asdict(self)
        for name in ("gold", "oracle", "plan"):
            row[name] = json.dumps(row[name], ensure_ascii=False, sort_keys=True)
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Task:
        """Inverse of :meth:`to_row`; a row without ``key`` gets its content hash, other absent fields a default."""
        gold = _loads(row["gold"])
        tuples = {name: tuple(gold.get(name) or ()) for name in ("columns", "unique_columns", "answers")}
        rows = tuple(tuple(r) for r in gold.get("rows") or ())
        oracle = _loads(row.get("oracle"))
        return cls(
            key=row.get("key") or task_key(row["prompt"], gold),
            family=row.get("family") or "user",
            split=row.get("split") or "test",
            prompt=row["prompt"],
            gold=Gold(kind=gold["kind"], rows=rows, aliases=gold.get("aliases") or {}, **tuples),
            oracle=Oracle(**oracle) if oracle else None,
            width=int(row.get("width") or 1),
            plan=_loads(row.get("plan")) or {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGroup:
    """Tasks that results are shown together for: those of ``family`` (None: of any) from ``least_width`` on.

    ``title``: what a page calls it, the name without one. ``highlight``: its number that heads a run's report, one of
    ``critical_steps`` (how many times fewer than a single agent's), ``item_f1`` and ``spawn_rate``. ``always``: it has
    a row in an evaluation's table also where no such task was asked.
    """

    name: str
    family: str | None = None
    least_width: int = 0
    title: str = ""
    highlight: str = ""
    always: bool = True

    def holds(self, family: str, width: int) -> bool:
        """Whether a task of this family and width belongs to it: all that is stored of a task with its episodes."""
        return self.family in (None, family) and width >= self.least_width


def task_key(prompt: str, gold: Any) -> str:
    """Stable 16-hex-digit content hash of a task."""
    text = prompt + "\x00" + json.dumps(gold, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _loads(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


@runtime_checkable
class Session(Protocol):
    """One episode's view of the environment."""

    def tools(self, role: Role) -> list[ToolSpec]:
        """The environment's own tools for ``role`` (spawning tools are added by the swarm)."""
        ...

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Run ``call`` for ``agent_id``; gives up after ``deadline_s`` seconds with ``ErrorKind.TIMEOUT``."""
        ...

    async def close(self) -> None:
        """Release everything the session holds; safe to call twice."""
        ...


@runtime_checkable
class Cancellable(Protocol):
    """What a session may also offer: to be told that an agent was ended from outside and wants nothing any more."""

    async def cancel(self, agent_id: str) -> None:
        """Stop what runs for ``agent_id``, whose call under way has been cancelled already. Must be quick."""
        ...


@runtime_checkable
class Environment(Protocol):
    """A source of tasks and the tools to solve them.

    With an attribute ``spreads = True`` it says that what an agent gets depends on its own calls alone, so that agents
    of one episode may use sessions of their own, on several machines (``rollouts.placement: spread``).
    An environment may say ``stateless = True``: no call changes what later ones answer. The calls of an episode that is
    continued elsewhere are then not made again in its new session.
    Its class may list ``groups``, a tuple of :class:`TaskGroup`: how tables and reports group results, in their order.
    Families that are in no group are a group each, after those; all tasks together come last.
    """

    def tasks(self, split: str) -> Iterable[Task]:
        """Tasks of ``split`` in a fixed order."""
        ...

    async def open(self, task: Task) -> Session:
        """A fresh session for one episode of ``task``."""
        ...

    async def close(self) -> None:
        """Release the environment's own resources (servers, clients)."""
        ...
