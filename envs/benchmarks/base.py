"""What a benchmark is. One file each: derive :class:`Benchmark`, and name the class in :mod:`registry`.

``parl bench prepare`` reads the user's download into a folder: ``rows.jsonl``, one task a line, as it came (an
encrypted one stays encrypted), beside ``benchmark.json``. A task holds no gold: the scorer reads its row again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from envs.base import Gold, Role, Score, Session, Task, ToolCall, ToolResult, ToolSpec

Row = dict[str, Any]  # a task as its download has it; ``id`` names it
MANIFEST, ROWS = "benchmark.json", "rows.jsonl"
# Where answers of benchmarks are published; the K2.5 report blocks the first.
LEAKS = ("huggingface.co", "hf.co", "hf-mirror.com", "modelscope.cn", "paperswithcode.com", "kaggle.com")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Steps of an agent and sub-agents of an episode. ``source``: who set them."""

    orchestrator_steps: int = 100
    subagent_steps: int = 100
    subagents: int = 300
    source: str = "ours: the K2.5 report names none"


class Ask(Protocol):
    """A judge: a language model that reads a prompt and replies."""

    async def __call__(self, prompt: str) -> str:
        """The reply. An exception voids the score: it is tried again, never 0."""
        ...


class NoTools:
    """A session without tools of its own."""

    def tools(self, role: Role) -> list[ToolSpec]:
        """None."""
        return []

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Never asked."""
        raise NotImplementedError(call.name)

    async def close(self) -> None:
        """Nothing to release."""


class Benchmark:
    """A published set of tasks with its rules. ``read``, ``task`` and ``score`` are required."""

    name: ClassVar[str]
    about: ClassVar[str]  # one line
    download: ClassVar[str]  # what the user downloads, and where
    limits: ClassVar[Limits] = Limits()
    blocked: ClassVar[tuple[str, ...]] = LEAKS  # domains that search and fetch must not show
    judged: ClassVar[bool] = False  # scoring asks a language model
    needs_tools: ClassVar[bool] = True  # it brings no tools, and cannot be solved without

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None) -> None:
        """``folder``: the prepared one; ``settings``: ``envs.config.settings``, for what one benchmark alone has."""
        self.folder, self.settings = folder, settings or {}

    def read(self, path: Path) -> Iterable[Row]:
        """Rows of the user's download; ValueError says what is wrong with it."""
        raise NotImplementedError(f"{self.name} reads nothing")

    def task(self, row: Row) -> Task:
        """The task of a row, without its gold."""
        raise NotImplementedError(f"{self.name} has no tasks")

    async def score(self, row: Row, answer: str, ask: Ask | None) -> Score:
        """How good an answer is; ``ask`` is there for ``judged`` ones."""
        raise NotImplementedError(f"{self.name} scores nothing")

    def session(self, row: Row) -> Session:
        """The benchmark's own tools for one episode; its ``score(answer, ask)``, if it has one, replaces ours."""
        return NoTools()

    @property
    def scoring_s(self) -> float:
        """Seconds that scoring one episode may take, asked only of a prepared folder."""
        return 600.0 if self.judged else 60.0

    def problem(self, row: Row, prompt: str, *, width: int = 1) -> Task:
        """A task with ``prompt``; its gold stays in the row."""
        return Task(
            key=str(row["id"]), family=self.name, split="test", prompt=prompt, gold=Gold(kind="none"), width=width
        )


def write_prepared(benchmark: Benchmark, path: Path, folder: Path) -> int:
    """Write what ``benchmark`` reads at ``path`` into the empty ``folder``; returns the number of tasks."""
    count, seen, whole = 0, set(), hashlib.sha256()
    with (folder / ROWS).open("w", encoding="utf-8") as file:
        for count, row in enumerate(benchmark.read(path), 1):  # noqa: B007
            if row["id"] in seen:
                raise ValueError(f"{path}: two tasks are called {row['id']!r}")
            seen.add(row["id"])
            benchmark.task(row)
            line = json.dumps(row, ensure_ascii=False) + "\n"
            whole.update(line.encode())
            file.write(line)
    if not count:
        raise ValueError(f"{path}: no tasks of {benchmark.name}; wanted: {benchmark.download}")
    manifest = {
        "benchmark": f"{type(benchmark).__module__}:{type(benchmark).__qualname__}",
        "sha256": whole.hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest | {"tasks": count}, indent=1) + "\n", encoding="utf-8")
    return count


def read_prepared(folder: Path) -> list[Row]:
    """The rows of a prepared folder."""
    with (folder / ROWS).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def json_lines(path: Path) -> Iterator[Row]:
    """Rows of a JSON Lines file, or of a JSON list."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() also ends lines within JSON texts
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
