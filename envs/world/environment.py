"""The embedded world as an environment: tasks, and tools called through httpx only."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from functools import cached_property, lru_cache, partial

import httpx
from starlette.applications import Starlette

from envs.base import Environment, ErrorKind, Readings, Role, Task, ToolCall, ToolResult, ToolSpec
from envs.world.config import WorldConfig
from envs.world.groups import GROUPS
from envs.world.knowledge import Knowledge, build_knowledge
from envs.world.lexicon import SPLITS, check_split
from envs.world.pictures import OPEN_PICTURE, decoded, draw_picture
from envs.world.site.app import TOOLS, build_app
from envs.world.site.documents import build_documents, profile_lines
from envs.world.site.index import PageIndex
from envs.world.site.server import SocketServer
from envs.world.table import ENOUGH, read_table, smallest_split, table_knowledge
from envs.world.tasks import TaskStream, distinct_tasks, generate_tasks
from envs.world.teacher import WorldTeacher

TASKS_PER_SPLIT = 512
_LEAST_ROWS = 140  # rows of a table with separate splits: the smallest gets about 15 %
_JSON = {"content-type": "application/json"}
_GONE = (502, 503, 504)  # a proxy's answers for a missing server


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
        self._server: SocketServer | None = None
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

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

    async def open(self, task: Task) -> WorldSession:
        """A session for one episode of ``task``; ValueError for an unknown split."""
        check_split(task.split)
        return WorldSession(self._http(), task.split, self.tools())

    async def close(self) -> None:
        """Close the client and, with ``transport: socket``, the server. The environment can be used again."""
        client, server = self._client, self._server
        self._client = self._server = self._loop = None
        if client is not None:
            await client.aclose()
        if server is not None:
            await asyncio.to_thread(server.close)

    def _http(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:  # a pool belongs to its event loop
            self._client, self._loop = self._make_client(), loop
        return self._client

    def _make_client(self) -> httpx.AsyncClient:
        # The call's own deadline bounds every wait, so httpx's default of five seconds is off.
        if self.config.transport == "asgi":
            transport = httpx.ASGITransport(app=self.world.app, raise_app_exceptions=False)
            return httpx.AsyncClient(transport=transport, base_url="http://world", timeout=None, trust_env=False)
        if self._server is None:
            self._server = SocketServer(self.world.app)
        # A small pool: httpx scans every connection for each request, so a large one is slower.
        limits = httpx.Limits(max_connections=16, max_keepalive_connections=16)
        return httpx.AsyncClient(base_url=self._server.url, timeout=None, limits=limits, trust_env=False)


class WorldSession:
    """One episode's tools. The world is read-only, so agents need no state of their own."""

    def __init__(self, client: httpx.AsyncClient, split: str, tools: tuple[ToolSpec, ...] = TOOLS) -> None:
        self._client, self._split, self._tools, self._closed = client, split, tools, False

    def tools(self, role: Role) -> list[ToolSpec]:
        """The world's tools, the same for both roles."""
        return list(self._tools)

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Run ``call`` within ``deadline_s`` seconds; failures are results, only cancellation propagates."""
        started = time.perf_counter()
        images: tuple[bytes, ...] = ()
        machine = False
        if self._closed or self._client.is_closed:
            text, error = "error: closed", ErrorKind.CANCELLED
        elif call.name not in {tool.name for tool in self._tools}:
            text, error = "error: unknown tool", ErrorKind.UNKNOWN_TOOL
        else:
            try:
                text, error, images = await self._post(call, deadline_s)
            except httpx.TransportError as lost:
                text, error, machine = f"error: server ({type(lost).__name__}: {lost})", ErrorKind.SERVER, True
        latency_s = time.perf_counter() - started
        return ToolResult(text=text, error=error, images=images, latency_s=latency_s, machine=machine)

    async def close(self) -> None:
        """End the session; later calls answer ``cancelled``."""
        self._closed = True

    async def _post(self, call: ToolCall, deadline_s: float) -> tuple[str, ErrorKind | None, tuple[bytes, ...]]:
        """Text, error and pictures; httpx.TransportError without a server."""
        try:
            body = json.dumps(call.arguments)
        except (TypeError, ValueError):
            return "error: bad JSON", ErrorKind.BAD_ARGS, ()
        try:
            async with asyncio.timeout(deadline_s):
                reply = await self._client.post(f"/{self._split}/{call.name}", content=body, headers=_JSON)
            if reply.status_code in _GONE:
                raise httpx.RemoteProtocolError(f"status {reply.status_code}")
            if reply.status_code >= 500:
                return "error: server", ErrorKind.SERVER, ()
            payload = reply.json()
            error = payload["error"]
            images = decoded(payload.get("images") or ())
            return payload["text"], None if error is None else ErrorKind(error), images
        except TimeoutError:
            return "error: timeout", ErrorKind.TIMEOUT, ()
        except (ValueError, KeyError, TypeError):  # a reply of another server
            return "error: server", ErrorKind.SERVER, ()
