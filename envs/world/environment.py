"""The embedded world as an environment: tasks, and tools called through httpx only."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import cached_property, lru_cache, partial

from starlette.applications import Starlette

from envs.base import Environment, Readings, Task, ToolSpec
from envs.world.config import WorldConfig
from envs.world.knowledge import Knowledge, build_knowledge
from envs.world.lexicon import SPLITS, check_split
from envs.world.site.app import TOOLS, build_app
from envs.world.site.documents import build_documents, profile_lines
from envs.world.site.index import PageIndex
from envs.world.site.pictures import OPEN_PICTURE, draw_picture
from envs.world.site.session import ToolClient, ToolSession
from envs.world.table import ENOUGH, read_table, smallest_split, table_knowledge
from envs.world.tasks import GROUPS, TaskStream, distinct_tasks, generate_tasks
from envs.world.teacher import WorldTeacher

TASKS_PER_SPLIT = 512
_LEAST_ROWS = 140  # rows of a table with separate splits: the smallest gets about 15 %


class World:
    """Knowledge and index of every split, built on first use and shared by the whole process."""

    _shared: dict[str, World] = {}  # noqa: RUF012 - the process-wide cache, guarded by _lock
    _lock = threading.RLock()

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._knowledge: dict[str, Knowledge] = {}
        self._index: dict[str, PageIndex] = {}

    @classmethod
    def of(cls, config: WorldConfig) -> World:
        """The process's one world of ``config``."""
        with cls._lock:
            return cls._shared.setdefault(config.model_dump_json(), cls(config))

    def knowledge(self, split: str) -> Knowledge:
        """The knowledge base of ``split``; ValueError for an unknown split or a bad table."""
        with self._lock:
            if check_split(split) not in self._knowledge:
                source = self.config.source
                made = build_knowledge(split, self.config) if source is None else table_knowledge(source, split)
                self._knowledge[split] = made
            return self._knowledge[split]

    def index(self, split: str) -> PageIndex:
        """The searchable pages of ``split``."""
        if split not in self._index:
            with self._lock:
                if split not in self._index:
                    self._index[split] = PageIndex(build_documents(self.knowledge(split)))
        return self._index[split]

    @cached_property
    def app(self) -> Starlette:
        """The HTTP application over all splits."""
        drawn = lru_cache(4096)(partial(draw_picture, self.config.seed))
        return build_app(self.index, SPLITS, self.config.search_results, drawn if self.config.pictures else None)


class WorldEnvironment(Environment):
    """Tasks and sessions of the embedded world. Cheap to create and pickle: the world is built on first use."""

    Config = WorldConfig
    neutral = frozenset({"transport"})
    spreads = True  # the world is read-only
    stateless = True  # no call changes later ones
    groups = GROUPS

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self._client = ToolClient(lambda: self.world.app, config.transport)

    def __getstate__(self) -> dict[str, WorldConfig]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, WorldConfig]) -> None:
        self.__init__(state["config"])

    @property
    def world(self) -> World:
        """Knowledge and indices behind the tools (for tests and demonstrations)."""
        return World.of(self.config)

    @property
    def foreign(self) -> bool:
        """Whether pages come from a user's table, whose words no cold start has seen."""
        return self.config.source is not None

    @property
    def teacher(self) -> WorldTeacher:
        """Scripted policies over the train split."""
        return WorldTeacher(self.config, self.world.knowledge("train"))

    def tasks(self, split: str) -> list[Task]:
        """Up to ``TASKS_PER_SPLIT`` distinct tasks of ``split`` in the order of the world's seed."""
        return generate_tasks(self.world.knowledge(split), split, TASKS_PER_SPLIT, self.config.seed, self.config)

    def task_stream(self, split: str, seed: int) -> TaskStream:
        """Endless tasks of ``split``: iterate, or index (task ``i`` depends on (seed, i) only)."""
        return TaskStream(self.world.knowledge(split), self.config, seed)

    def held_out(self, split: str, seed: int, count: int) -> list[Task]:
        """The first ``count`` distinct tasks of the stream."""
        return distinct_tasks(self.task_stream(split, seed), count)

    def tools(self) -> tuple[ToolSpec, ...]:
        """search, open_page and find_in_page; open_picture if tasks need it."""
        return (*TOOLS, OPEN_PICTURE) if self.config.pictures else TOOLS

    def digest(self) -> dict[str, str]:
        """The hash of the table's content."""
        source = self.config.source
        return {} if source is None else {"source": hashlib.sha256(source.read_bytes()).hexdigest()}

    def notes(self) -> Iterator[str]:
        """Notes on a user's table."""
        source = self.config.source
        if source is not None and smallest_split(entities := read_table(source)) < ENOUGH:
            yield (
                f"{source}: {len(entities)} rows are too few to be divided: train, val and test share them all, so"
                " held-out scores measure looking up, not new names; about"
                f" {_LEAST_ROWS} rows are needed to keep the splits apart"
            )

    def readings(self) -> Readings | None:
        """The pages of a user's table."""
        source = self.config.source
        if source is None:
            return None
        texts = [(entity.name, "\n".join(profile_lines(entity))) for entity in read_table(source)]
        return Readings(source=str(source), what="rows make pages", texts=texts)

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> ToolSession:
        """A session for one episode of ``task``; ValueError for an unknown split."""
        check_split(task.split)
        return ToolSession(self._client.get(), task.split, self.tools())

    async def close(self) -> None:
        """Close the client and, with ``transport: socket``, the server. The environment can be used again."""
        await self._client.close()
