"""The embedded engine: continuous batching with a paged latent cache over our own model.

Every step feeds one batch of prompt chunks and one token of each running stream. Results depend neither on
the batch (the decoder is batch-invariant) nor on arrival order (noise is keyed by stream and position), so an
episode has the same bits under any concurrency.

Pictures are encoded once, at prefill; their feature rows replace the embeddings of their placeholders. The
page cache keys a placeholder by its picture's content and row, not by its token.

Weights may change in flight, between two steps. Streams keep their tokens, log-probs and routes, and are
prefilled again: the continuation is exactly that of a new engine with these tokens as prompt. No cached
position of older weights is ever read.

Invariants: a stream's fed tokens are a prefix of its tokens; a request is in exactly one of waiting, running,
done; ``policy_version`` changes only in :meth:`EmbeddedEngine.update`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from model.decoder import PAGE, Features
from model.family import Family, Shape, family_of
from model.lora import merged
from rollouts.engine.base import Completion, EngineFull, Finish, Pictures, Sampling, Update
from rollouts.engine.embedded.pages import CacheFull, PagePool
from rollouts.engine.embedded.streams import Request, Shown, Step, Stream
from rollouts.engine.embedded.traits import EmbeddedTraits

_CHUNK = 128  # prompt tokens per stream and step
_BATCH = 512  # tokens per step
_STREAMS = 4096
_PAGES = 24_576


class EmbeddedEngine(EmbeddedTraits):
    """Serves one model to coroutines of one event loop. ``record_routes``: return routes of every fed token.

    ``int8``: with the family's decoder in int8; ValueError where it has none.
    """

    def __init__(
        self, config: Shape, *, pages: int | None = None, record_routes: bool = True, int8: bool = False
    ) -> None:
        self.config = config
        self.policy_version = -1
        self.generated = 0
        self.fed = 0
        self.busy_s = 0.0
        self._step_began: float | None = None
        self._record = record_routes and config.routes is not None
        family = family_of(config)
        pages = pages or _pages(family, config)
        self._decoder = (family.int8_decoder if int8 else family.decoder)(config, pages)
        self._pictures = family.picture_encoder(config) if config.pictures else None
        self._pool = PagePool(pages)
        per_stream = (config.max_position_embeddings + PAGE - 1) // PAGE
        self._tables = np.zeros((_STREAMS, per_stream), np.int32)
        self._rows = list(range(_STREAMS - 1, -1, -1))
        self._streams: dict[str, Stream] = {}
        self._running: list[Request] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._loop_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stepping = asyncio.Lock()  # held while the decoder runs

    async def assign(self, pool: str) -> None:
        """Serve ``pool`` from now on: completions of the policy pool carry routes."""
        self._record = pool == "policy" and self.config.routes is not None

    async def update(self, update: Update) -> None:
        """Take new weights, or adapters and their base, and clear the cache.

        Refused while requests run, unless ``in_flight``: then streams continue under the new weights.
        """
        version, in_flight = update.version, update.in_flight
        assert update.weights is not None
        weights = dict(update.weights if update.base is None else merged(dict(update.base), dict(update.weights)))
        async with self._stepping:  # the last step of cancelled requests may still run
            if self._running and not in_flight:
                raise RuntimeError(f"weight update to version {version} while {len(self._running)} requests run")
            self._decoder.load(weights)
            if self._pictures:
                self._pictures.load(weights)
            for session, stream in list(self._streams.items()):
                if in_flight:
                    self._rewind(stream)
                else:
                    await self.release(session)
            self._pool.forget_all()
            self.policy_version = version

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """Continue ``prompt``, which must extend the session's stream. Raises TimeoutError, ValueError."""
        if self.policy_version < 0:
            raise RuntimeError("the engine has no weights yet")
        room = self.config.max_position_embeddings - len(prompt)
        if room <= 0:
            return Completion(tokens=[], logprobs=[], finish=Finish.LENGTH, policy_version=self.policy_version)
        stream = self._open(session, prompt, self._shown(prompt, media))
        request = Request(
            stream=stream,
            sampling=sampling,
            future=asyncio.get_running_loop().create_future(),
            limit=min(sampling.max_new_tokens, room),
        )
        self._running.append(request)
        self._wake.set()
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._serve())
        try:
            return await asyncio.wait_for(request.future, deadline_s)
        except (TimeoutError, asyncio.CancelledError):
            self._running = [other for other in self._running if other is not request]
            raise

    async def release(self, session: str) -> None:
        """Forget ``session`` and cancel its request; its full pages stay for streams with the same prefix."""
        stream = self._streams.pop(session, None)
        if stream is None:
            return
        for request in self._running:
            if request.stream is stream and not request.future.done():
                request.future.set_exception(RuntimeError(f"session {session!r} was released while it generated"))
        self._running = [request for request in self._running if request.stream is not stream]
        stream.closed = True
        self._pool.release(stream.pages)
        self._rows.append(stream.row)

    async def interrupt(self, sessions: Container[str]) -> None:
        """Interrupt running requests of ``sessions``: they return their tokens so far."""
        async with self._stepping:
            streams = [id(stream) for session, stream in self._streams.items() if session in sessions]
            for request in self._running:
                if id(request.stream) in streams:
                    self._finish(request, Finish.INTERRUPTED)
            self._running = [request for request in self._running if id(request.stream) not in streams]

    def statistics(self) -> dict[str, float]:
        """Counters since the start: sampled, fed and shared tokens, live streams, busy time."""
        return {
            "busy_s": self.busy_s,
            "generated": self.generated,
            "fed": self.fed,
            "prefix_hits": self._pool.hits,
            "prefix_asked": self._pool.asked,
            "streams": len(self._streams),
        }

    def step_s(self) -> float:
        """Seconds of the current step so far; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def _rewind(self, stream: Stream) -> None:
        """Prefill ``stream`` again; the routes of positions fed before stay those it was sampled with."""
        if self._record and stream.fed > stream.reported:
            stream.older.append(self._routes(stream))
            stream.reported = stream.fed
        self._pool.release(stream.pages)
        stream.pages, stream.fed = [], 0

    def _routes(self, stream: Stream) -> np.ndarray:
        """[F, L, K] of the positions from ``reported`` to ``fed``."""
        routes = self._decoder.routes
        return routes[stream.pages].reshape(-1, *routes.shape[2:])[stream.reported : stream.fed].copy()

    def _shown(self, prompt: list[int], media: Pictures) -> list[Shown]:
        """The pictures of ``prompt`` with their sizes; ValueError if its placeholders do not match."""
        rules, placeholder = self.config.pictures, self.config.picture_id
        out: list[Shown] = []
        for start, png in media:
            if rules is None:
                raise ValueError("the prompt shows pictures, but the model has no vision section")
            count = rules.tokens(png)
            free = out[-1].start + out[-1].count if out else 0
            if start < free or prompt[start : start + count] != [placeholder] * count:
                raise ValueError(f"a picture of {count} tokens at position {start}: its placeholders are not there")
            out.append(Shown(start=start, count=count, png=png))
        return out

    def _open(self, session: str, prompt: list[int], shown: list[Shown]) -> Stream:
        keys = list(prompt)
        for picture in shown:
            keys[picture.start : picture.start + picture.count] = picture.identities()
        stream = self._streams.get(session)
        if stream is None:
            if not self._rows:
                raise EngineFull(f"more than {_STREAMS} streams at once: lower rollouts.concurrency")
            stream = Stream(row=self._rows.pop(), pages=self._pool.match(keys))
            stream.fed = len(stream.pages) * PAGE
            self._tables[stream.row, : len(stream.pages)] = stream.pages
            self._streams[session] = stream
        elif keys[: len(stream.keys)] != stream.keys:
            raise ValueError(f"session {session!r}: the prompt does not extend the stream (history was re-rendered)")
        else:
            self._streams[session] = self._streams.pop(session)  # move to the end: most recently used
        stream.tokens, stream.keys, stream.shown = list(prompt), keys, shown
        return stream

    async def _serve(self) -> None:
        while True:
            if not self._running:
                self._wake.clear()
                await self._wake.wait()
            async with self._stepping:
                if self._running:  # unless interrupted while this waited
                    await self._advance()

    async def _advance(self) -> None:
        """One step of the batch. An error in it goes to every waiter; the engine itself continues.

        If the cache is full, only the youngest request fails: its pages let the others continue.
        """
        try:
            step = self._plan()
            loop = asyncio.get_running_loop()
            tokens, logprobs = await loop.run_in_executor(self._thread, self._compute, step)
        except CacheFull as error:
            youngest = self._running.pop()
            self._rewind(youngest.stream)
            if not youngest.future.done():
                youngest.future.set_exception(error)
            return
        except Exception as error:
            for request in self._running:
                if not request.future.done():
                    request.future.set_exception(error)
            self._running = []
            return
        self._commit(step, tokens, logprobs)

    def _plan(self) -> Step:
        """Which requests feed how many tokens in this step, oldest first. Raises CacheFull.

        If several would compute the same page, the oldest does and the others wait.
        """
        parts: list[tuple[Request, int]] = []
        left = _BATCH
        begun: set[object] = set()
        for request in self._running:
            stream = request.stream
            if stream.fed == len(stream.pages) * PAGE and (key := self._share(stream)) is not None:
                if key in begun:
                    continue
                begun.add(key)
            count = min(len(stream.tokens) - stream.fed, _CHUNK, left)
            if count <= 0:
                break
            while len(stream.pages) * PAGE < stream.fed + count:
                self._tables[stream.row, len(stream.pages)] = page = self._page()
                stream.pages.append(page)
            parts.append((request, count))
            left -= count
        return self._inputs(parts)

    def _page(self) -> int:
        """A page, if none is free from the longest idle stream. Raises CacheFull."""
        if not self._pool.available:
            running = {id(request.stream) for request in self._running}
            idle = (stream for stream in self._streams.values() if stream.pages and id(stream) not in running)
            while not self._pool.available and (stream := next(idle, None)) is not None:
                self._rewind(stream)
        return self._pool.allocate()

    def _share(self, stream: Stream) -> object | None:
        """Use pages that others have filled meanwhile; returns the key of its next page, if sharable."""
        held = len(stream.pages)
        self._pool.extend(stream.pages, stream.keys)
        self._tables[stream.row, held : len(stream.pages)] = stream.pages[held:]
        stream.fed = len(stream.pages) * PAGE
        return self._pool.next_key(stream.pages, stream.keys)

    def _inputs(self, parts: list[tuple[Request, int]]) -> Step:
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        rows: list[int] = []
        ready: list[Request] = []
        shown: list[tuple[int, Shown, int, int]] = []
        for index, (request, count) in enumerate(parts):
            stream = request.stream
            for picture in stream.shown:
                first = max(picture.start, stream.fed)
                last = min(picture.start + picture.count, stream.fed + count)
                if first < last:
                    shown.append((len(ids) + first - stream.fed, picture, first - picture.start, last - first))
            ids += stream.tokens[stream.fed : stream.fed + count]
            positions += range(stream.fed, stream.fed + count)
            sequences += [index] * count
            if stream.fed + count == len(stream.tokens):
                rows.append(len(ids) - 1)
                ready.append(request)
        tables = self._tables[[request.stream.row for request, _ in parts]]
        heat = np.array([r.sampling.temperature for r in ready], np.float32)
        kept = np.array([r.sampling.top_p for r in ready], np.float32)
        keys = np.array([r.sampling.seed & (2**64 - 1) for r in ready], np.uint64)
        places = _ints([len(r.stream.tokens) for r in ready])
        fed = (_ints(ids), _ints(positions), _ints(sequences), tables, _ints(rows))
        return Step(parts, ready, fed, (heat, keys, places, kept), shown)

    def _compute(self, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Feed the batch and sample for streams whose prompt is complete (in the decoder's thread)."""
        self._step_began = began = time.monotonic()
        try:
            logits = self._decoder.forward(*step.fed, features=self._features(step))
            return self._decoder.sample(logits, *step.drawn)
        finally:
            self._step_began = None
            self.busy_s += time.monotonic() - began

    def _features(self, step: Step) -> Features | None:
        """The batch's feature rows, in place of placeholder embeddings."""
        if not step.shown or self._pictures is None:
            return None
        places = [np.arange(row, row + count, dtype=np.int32) for row, _, _, count in step.shown]
        values = [self._pictures.rows(picture.png)[start : start + n] for _, picture, start, n in step.shown]
        return np.concatenate(places), np.concatenate(values)

    def _commit(self, step: Step, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        sampled = 0
        finished: set[int] = set()
        for request, count in step.parts:
            stream = request.stream
            if stream.closed:  # released while the step ran
                sampled += stream.fed + count == len(stream.tokens)
                continue
            first_full, self.fed = stream.fed // PAGE, self.fed + count
            stream.fed += count
            for index in range(first_full, stream.fed // PAGE):
                self._pool.publish(stream.pages, index, stream.keys)
            if stream.fed < len(stream.tokens):
                continue
            token = int(tokens[sampled])
            request.tokens.append(token)
            request.logprobs.append(float(logprobs[sampled]))
            request.versions.append(self.policy_version)
            stream.tokens.append(token)
            stream.keys.append(token)
            sampled += 1
            stop = token in request.sampling.stop
            if stop or len(request.tokens) >= request.limit:
                finished.add(id(request))
                self._finish(request, Finish.STOP if stop else Finish.LENGTH)
        self.generated += sampled
        if finished:
            self._running = [request for request in self._running if id(request) not in finished]

    def _finish(self, request: Request, finish: Finish) -> None:
        if request.future.done():
            return
        stream, routes, start = request.stream, None, request.stream.reported - sum(map(len, request.stream.older))
        if self._record:
            routes = np.concatenate([*stream.older, self._routes(stream)])
            stream.older, stream.reported = [], max(stream.reported, stream.fed)
        constant = all(version == self.policy_version for version in request.versions)
        request.future.set_result(
            Completion(
                tokens=request.tokens,
                logprobs=request.logprobs,
                finish=finish,
                policy_version=self.policy_version,
                routes=routes,
                routes_start=start,
                versions=() if constant else tuple(request.versions),
            )
        )


def _ints(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


def _pages(family: Family, shape: Shape) -> int:
    costs = family.costs(shape)
    if costs is None:
        return _PAGES
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    page = PAGE * costs.cache * (1 if shape.weights_dtype == "bfloat16" else 2)
    return max(1, min(_PAGES, memory // 6 // page))
