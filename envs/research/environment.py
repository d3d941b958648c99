"""A corpus folder as an environment: ``envs: {name: research, config: {corpus: FOLDER}}``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from envs.base import Environment, Section, Task, TaskGroup, TaskStream, ToolSpec
from envs.research.corpus import MANIFEST, TASKS, Corpus
from envs.research.site import PLACE, TOOLS, Site
from envs.world.site.session import ToolClient, ToolSession

if TYPE_CHECKING:
    from envs.teacher import Teacher


class ResearchConfig(Section):
    """Which corpus, how its tools answer, and which of its questions are asked."""

    corpus: Path = Field(description="the folder that `parl env build` wrote")
    results: int = Field(default=3, gt=0, le=50, description="hits of one query")
    snippet: int = Field(default=0, ge=0, le=60, description="words shown of each hit; 0 = titles alone")
    part: int = Field(default=3000, ge=200, description="characters that one call of `open` shows of a page")
    families: tuple[str, ...] = Field(default=(), description="task families that are asked; empty = all")
    widths: tuple[int, int] = Field(default=(1, 1000), description="smallest and largest number of rows of a task")
    closed_book: bool = Field(default=False, description="no tools at all: measures what a policy knows by heart")
    transport: Literal["asgi", "socket"] = Field(
        default="asgi", description="how httpx reaches the tools: in process or over a socket"
    )

    @field_validator("widths")
    @classmethod
    def _ordered(cls, widths: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= widths[0] <= widths[1]:
            raise ValueError(f"{list(widths)} must be [smallest, largest], from 1 on")
        return widths


class Shuffled:
    """Tasks in another order each time through: task ``i`` is a function of (seed, i)."""

    def __init__(self, tasks: list[Task], seed: int) -> None:
        self._tasks, self._seed = tasks, seed
        self._order = lru_cache(4)(self._lap)

    def _lap(self, lap: int) -> list[int]:
        return Random(f"research:{self._seed}:{lap}").sample(range(len(self._tasks)), len(self._tasks))

    def __getitem__(self, index: int) -> Task:
        lap, place = divmod(index, len(self._tasks))
        return self._tasks[self._order(lap)[place]]


@lru_cache(maxsize=4)
def _corpus(folder: Path, changed_ns: int) -> Corpus:
    return Corpus(folder)


@lru_cache(maxsize=16)
def _tasks(corpus: Corpus, split: str) -> list[Task]:
    return corpus.tasks(split)


class ResearchEnvironment(Environment):
    """Questions over real pages, and the tools to find them. Cheap to create and to pickle."""

    Config = ResearchConfig
    neutral = frozenset({"transport"})
    spreads = stateless = True  # the pages are read-only
    foreign = True
    groups = (
        TaskGroup(name="wide", family="wide", title="wide tasks", highlight="item_f1", always=False),
        TaskGroup(name="deep", family="deep", title="deep wide tasks", highlight="critical_steps", always=False),
        TaskGroup(name="list", family="list", title="lists", always=False),
        TaskGroup(name="compare", family="compare", title="comparisons", always=False),
        TaskGroup(name="chain", family="chain", highlight="spawn_rate", always=False),
        TaskGroup(name="fact", family="fact", title="single facts", highlight="spawn_rate", always=False),
    )

    def __init__(self, config: ResearchConfig) -> None:
        self.config = config
        self._client = ToolClient(lambda: self.site.app(), config.transport)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])

    @property
    def corpus(self) -> Corpus:
        """The corpus, opened once a process. CorpusError (a ValueError) if the folder holds none."""
        folder = self.config.corpus
        manifest = folder / MANIFEST
        return _corpus(folder, manifest.stat().st_mtime_ns if manifest.exists() else 0)

    @property
    def site(self) -> Site:
        """The tools."""
        given = self.config
        return Site(self.corpus, results=given.results, snippet=given.snippet, part=given.part)

    def tasks(self, split: str) -> list[Task]:
        """The corpus's questions of ``split`` in the families and widths asked for."""
        low, high = self.config.widths
        wanted = self.config.families
        found = _tasks(self.corpus, split)
        return [t for t in found if low <= t.width <= high and (not wanted or t.family in wanted)]

    def task_stream(self, split: str, seed: int) -> TaskStream:
        """The tasks of ``split`` in a shuffled order that ``seed`` determines, another one each time through."""
        tasks = self.tasks(split)
        if not tasks:
            raise ValueError(self._nothing(split))
        return Shuffled(tasks, seed)

    def held_out(self, split: str, seed: int, count: int) -> list[Task]:
        """The first ``count`` tasks of the shuffled order."""
        tasks = self.tasks(split)
        return [Shuffled(tasks, seed)[i] for i in range(min(count, len(tasks)))]

    def tools(self) -> tuple[ToolSpec, ...]:
        """search, open and find; none with ``closed_book``."""
        return () if self.config.closed_book else TOOLS

    def digest(self) -> dict[str, str]:
        """A hash of pages and questions."""
        folder = self.config.corpus
        whole = hashlib.sha256()
        for path in sorted([*folder.glob(MANIFEST), *(folder / TASKS).glob("*.jsonl")]):
            whole.update(path.name.encode() + path.read_bytes())
        return {"corpus": whole.hexdigest()}

    def notes(self) -> Iterator[str]:
        """ValueError for a damaged corpus or families that it does not have."""
        self.corpus.check()
        known = {task.family for split in self.corpus.manifest["tasks"] for task in _tasks(self.corpus, split)}
        if unknown := sorted(set(self.config.families) - known):
            raise ValueError(f"families = {unknown}: {self.config.corpus} has {sorted(known) or 'no questions'}")
        yield from ()

    @property
    def teacher(self) -> Teacher | None:
        """For the corpus ``factbook``, whose questions come with plans, unless its book is closed."""
        from envs.research.factbook.build import NAME
        from envs.research.factbook.teacher import CorpusTeacher

        taught = self.corpus.manifest["name"] == NAME and not self.config.closed_book
        return CorpusTeacher(self) if taught else None

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> ToolSession:
        """A session for one episode."""
        return ToolSession(self._client.get(), PLACE, self.tools())

    async def close(self) -> None:
        """Close the client and, with ``transport: socket``, the server."""
        await self._client.close()

    def _nothing(self, split: str) -> str:
        low, high = self.config.widths
        return (
            f"{self.config.corpus} has no question of split {split} with families {list(self.config.families) or 'any'}"
            f" and {low} to {high} rows: name a file with envs.tasks, or build the corpus with --questions FILE"
        )
