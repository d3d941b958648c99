"""The contract between tasks, tools and rollouts.

An ``Environment`` yields ``Task`` rows and opens one ``Session`` per episode. A session owns its agents'
state; state that one agent must not see is keyed by agent id. Tool failures are data (``ToolResult.error``),
never exceptions; only cancellation propagates. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, SupportsFloat, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from envs.teacher import Teacher


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
    """One call from the model. ``id`` is ``functions.NAME:INDEX``; ``arguments`` is the parsed JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """A call's result. ``text`` is what the agent reads, also with an ``error``. ``latency_s`` in seconds.

    ``images`` (PNG files) follow the text, for a policy with vision. ``machine``: the call failed because of
    the tools' machine (no connection, a dead server): no agent reads it, and the episode is run again.
    ``done``: the agent has ended (a game is over). A sub-agent's message, or the episode's answer, is then what
    the agent wrote beside its call, or else ``text``.
    """

    text: str
    error: ErrorKind | None = None
    latency_s: float = 0.0
    images: tuple[bytes, ...] = ()
    machine: bool = False
    done: bool = False

    @property
    def readable(self) -> str:
        """The text, with a word for each picture."""
        return "\n".join(filter(None, (self.text, *("[picture]" for _ in self.images))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Costs of a good plan for a task in critical steps, the answer's turn included: upper bounds of the lowest.

    ``serial_steps``: one agent, one call per turn. ``parallel_steps``: a plan with sub-agents, if better. ``width``:
    sub-agents in that plan, 0 if spawning does not pay. ``direct_steps``: one agent that may make several calls in a
    turn (``rollouts.budget.direct_calls``); None: unknown. The embedded world's are those of its scripted plans
    (docs/world.md says which plans are shorter).
    """

    serial_steps: int
    parallel_steps: int
    width: int
    direct_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """The hidden answer, by ``kind``: ``table`` (columns, key columns, rows), ``exact`` (accepted strings), or
    ``none``: the session scores the episode (:class:`Scorer`), or nothing does. Those of kind ``function``,
    ``judge`` and ``command`` are scored by what ``rewards`` names, which may read ``answers`` and ``data``.
    ``command``: the task's own program and arguments.
    """

    kind: str
    columns: tuple[str, ...] = ()
    unique_columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    answers: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)  # other accepted spelling -> the spelling in rows or answers
    data: dict[str, Any] = field(default_factory=dict)  # JSON
    command: tuple[str, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """As a JSON object."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("data", "command")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good an episode's outcome is: ``value`` in [``low``, ``high``], which may be negative.

    ``success``: whether it counts as solved; None: where ``value`` is ``high``. ``parts``: named numbers to be
    tracked beside it. A value within a billionth of the range of one of its ends is that end: sums are rounded.
    ValueError for a value outside its range or a number that is not finite.
    """

    value: float
    success: bool | None = None
    parts: dict[str, float] = field(default_factory=dict)
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name, number in {"value": self.value, "low": self.low, "high": self.high, **self.parts}.items():
            if not isinstance(number, SupportsFloat) or not math.isfinite(number):
                raise ValueError(f"a score's {name} = {number!r} is no finite number")
        if not self.low < self.high:
            raise ValueError(f"a score's low = {self.low} must be below its high = {self.high}")
        near = [end for end in (self.low, self.high) if abs(self.value - end) <= 1e-9 * (self.high - self.low)]
        object.__setattr__(self, "value", near[0] if near else self.value)  # 0.1 ten times is 0.9999999999999999
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"a score of {self.value} is outside [{self.low}, {self.high}]: scale it, or declare its low and high"
            )

    @property
    def solved(self) -> bool:
        """``success``, or whether the value is the highest."""
        return self.value >= self.high if self.success is None else self.success


class Unscored(RuntimeError):
    """This one episode has no score, whoever asks: it is run again once, then left out and reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question. ``gold``, ``oracle`` and ``plan`` never reach a prompt or an agent's log.

    ``plan`` is input for the reference policies, in the environment's own format; empty for tasks that a user
    brings.
    """

    key: str
    family: str
    split: str
    prompt: str
    gold: Gold
    oracle: Oracle | None = None
    width: int = 1  # independent parts of the task (rows of a wide table)
    plan: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """The task as a flat ``datasets`` row (nested parts as JSON strings)."""
        row = asdict(self) | {"gold": self.gold.to_row()}
        if self.oracle and self.oracle.direct_steps is None:  # rows of tasks that do not know it have no such key
            del row["oracle"]["direct_steps"]
        for name in ("gold", "oracle", "plan"):
            row[name] = json.dumps(row[name], ensure_ascii=False, sort_keys=True)
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Task:
        """Inverse of :meth:`to_row`; without ``key`` it is the content hash, other absent fields have
        defaults.
        """
        gold = _loads(row["gold"])
        tuples = {name: tuple(gold.get(name) or ()) for name in ("columns", "unique_columns", "answers", "command")}
        rows = tuple(tuple(r) for r in gold.get("rows") or ())
        oracle = _loads(row.get("oracle"))
        return cls(
            key=row.get("key") or task_key(row["prompt"], gold),
            family=row.get("family") or "user",
            split=row.get("split") or "test",
            prompt=row["prompt"],
            gold=Gold(
                kind=gold["kind"], rows=rows, aliases=gold.get("aliases") or {}, data=gold.get("data") or {}, **tuples
            ),
            oracle=Oracle(**oracle) if oracle else None,
            width=int(row.get("width") or 1),
            plan=_loads(row.get("plan")) or {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGroup:
    """Tasks whose results are shown together: those of ``family`` (None: any) from ``least_width`` on.

    ``title``: its name on pages, by default ``name``. ``highlight``: its number at the top of a run's report,
    the headline ``success`` or ``critical_steps`` (single agent's divided by the policy's), or beside it ``item_f1``
    or ``spawn_rate``.
    ``always``: show its row also without such tasks.
    """

    name: str
    family: str | None = None
    least_width: int = 0
    title: str = ""
    highlight: str = ""
    always: bool = True

    def holds(self, family: str, width: int) -> bool:
        """Whether a task of this family and width, which episodes store, belongs to the group."""
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
        """Run ``call`` for ``agent_id``; returns ``ErrorKind.TIMEOUT`` after ``deadline_s`` seconds."""
        ...

    async def close(self) -> None:
        """Release everything the session holds; safe to call twice."""
        ...


@runtime_checkable
class Cancellable(Protocol):
    """An optional part of a session: it is told when an agent was stopped from outside."""

    async def cancel(self, agent_id: str) -> None:
        """Stop what runs for ``agent_id``, whose current call is already cancelled. Must be quick."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """An optional part of a session: it scores the finished episode."""

    async def score(self, episode: Any) -> Score:
        """The score of a ``rollouts.episode.Episode``, whatever its status; stored with it.

        Awaited once, after the last agent ended and before ``close``, for at most
        ``rollouts.score_deadline_s`` seconds. If it fails, the episode is run again, never scored 0.
        """
        ...


class Section(BaseModel):
    """The section of a configuration that a class brings: frozen, and unknown keys are errors.

    A field of type ``Path`` names a file that must exist; it is looked up beside the configuration first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def pictures(self) -> bool:
        """Whether some tasks need a policy with vision."""
        return False


class TaskStream(Protocol):
    """An endless stream of tasks by position."""

    def __getitem__(self, index: int) -> Task:
        """Task ``index``, a function of the stream's seed and the index."""
        ...


@dataclass(frozen=True, slots=True)
class Repeated:
    """A finite list of tasks, repeated in order."""

    tasks: Sequence[Task]

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index % len(self.tasks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Texts that one call may return, by name, to check against the policy's context before a run.

    ``source`` (who brings them), ``what`` (what each is made of): for messages such as "12 of 80 rows make
    ...".
    """

    source: str
    what: str
    texts: Sequence[tuple[str, str]]


class Environment:
    """A source of tasks and the tools to solve them; derive from it, and name the class in ``envs.name``.

    ``tasks`` and ``open`` are required, the rest has defaults. It is pickled to rollout workers, so clients
    and heavy imports come with the first ``open``.
    """

    Config: ClassVar[type[Section]] = Section  # the class of ``envs.config``
    neutral: ClassVar[frozenset[str]] = frozenset()  # its keys that affect no episode, such as a transport
    # An agent's results depend on its own calls alone, so agents of one episode may use separate sessions on
    # several machines (``rollouts.placement: spread``).
    spreads: ClassVar[bool] = False
    # No call changes later ones: a continued episode need not repeat its calls.
    stateless: ClassVar[bool] = False
    # The same calls in a new session lead to the same state. False: an episode that lost its session begins anew.
    repeatable: ClassVar[bool] = True
    drives: ClassVar[bool] = False  # its sessions run agent programs of their own (envs.driver)
    # Its texts are not made of the words that a policy from scratch learns from its teacher.
    foreign: bool = False
    # How tables and reports group results, in order. Families without a group follow, a group each; all tasks
    # together come last.
    groups: ClassVar[tuple[TaskGroup, ...]] = ()

    def __init__(self, config: Any) -> None:
        self.config = config

    def tasks(self, split: str) -> Iterable[Task]:
        """Distinct tasks of ``split`` in a fixed order; ValueError for an unknown split."""
        raise NotImplementedError(f"{type(self).__name__} has no method tasks")

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> Session:
        """A fresh session for one episode of ``task``.

        ``seed``, below 2^31, is the same for all episodes of a task's group and the same when one is run again;
        ``attempt`` is the episode's number in its group.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method open")

    async def close(self) -> None:
        """Release the environment's resources (servers, clients)."""

    def tools(self) -> tuple[ToolSpec, ...]:
        """The tools that every session offers, to count their tokens in a prompt."""
        return ()

    def task_stream(self, split: str, seed: int) -> TaskStream:
        """Endless training tasks of ``split``; by default those of :meth:`tasks`, repeated."""
        return Repeated(list(self.tasks(split)))

    def held_out(self, split: str, seed: int, count: int) -> list[Task]:
        """The first ``count`` tasks of an evaluation, or as many as exist."""
        return list(islice(self.tasks(split), count))

    def digest(self) -> dict[str, str]:
        """Hashes of what the section only names, such as a file's content, by key of the section."""
        return {}

    def notes(self) -> Iterator[str]:
        """Check the environment's data: yields notes for the user, raises ValueError for mistakes."""
        yield from ()

    def readings(self) -> Readings | None:
        """Long texts that its tools return, if they are known beforehand."""
        return None

    @property
    def teacher(self) -> Teacher | None:
        """The teacher of a policy from scratch; without one a run needs ``model.init``."""
        return None
