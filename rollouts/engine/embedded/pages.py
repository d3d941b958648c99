"""Pages of the latent cache: allocation, reference counts, and sharing of equal prefixes.

A full page is keyed by its content: (key of the page before it, its 16 tokens). A new stream with the same
prefix uses the same pages. Keys are dropped when the weights change: a stale page is never shared.
"""

from __future__ import annotations

from collections import OrderedDict

from model.decoder import PAGE
from rollouts.engine.base import EngineFull

_ROOT = -1


class CacheFull(EngineFull):
    """All pages are held by running streams."""


class PagePool:
    """``count`` pages. Unreferenced pages with known content stay for reuse, oldest evicted first."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._refs = [0] * count
        self._key: list[tuple[int, tuple[int, ...]] | None] = [None] * count
        self._by_key: dict[tuple[int, tuple[int, ...]], int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.hits = 0  # tokens taken from shared pages
        self.asked = 0  # tokens of new streams

    @property
    def available(self) -> bool:
        """Whether :meth:`allocate` would succeed."""
        return bool(self._free or self._idle)

    def allocate(self) -> int:
        """An exclusive page. Raises CacheFull."""
        if not self._free:
            if not self._idle:
                raise CacheFull(f"all {len(self._refs)} cache pages are in use: lower rollouts.concurrency")
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            self._free.append(page)
        page = self._free.pop()
        self._refs[page] = 1
        return page

    def match(self, tokens: list[int]) -> list[int]:
        """Pages that hold the longest prefix of ``tokens`` in whole pages (now referenced), never all of it."""
        pages: list[int] = []
        self.extend(pages, tokens)
        self.asked += len(tokens)
        return pages

    def extend(self, pages: list[int], tokens: list[int]) -> None:
        """Append to the full ``pages`` of a stream those that now hold the next of ``tokens``."""
        while (key := self.next_key(pages, tokens)) in self._by_key:
            assert key is not None
            page = self._by_key[key]
            self._refs[page] += 1
            self._idle.pop(page, None)
            pages.append(page)
            self.hits += PAGE

    def next_key(self, pages: list[int], tokens: list[int]) -> tuple[int, tuple[int, ...]] | None:
        """The key of the page after ``pages``; None if it holds the last of ``tokens`` or follows a
        duplicate.
        """
        start = len(pages) * PAGE
        parent = pages[-1] if pages else _ROOT
        if start + PAGE >= len(tokens) or (parent != _ROOT and self._key[parent] is None):
            return None
        return parent, tuple(tokens[start : start + PAGE])

    def publish(self, pages: list[int], index: int, tokens: list[int]) -> None:
        """Page ``index`` of a stream is full: let later streams find it (the first of equal pages wins)."""
        parent = pages[index - 1] if index else _ROOT
        if parent != _ROOT and self._key[parent] is None:
            return  # its predecessor is a private duplicate: nobody would find it
        key = (parent, tuple(tokens[index * PAGE : (index + 1) * PAGE]))
        if key not in self._by_key:
            self._by_key[key] = pages[index]
            self._key[pages[index]] = key

    def release(self, pages: list[int]) -> None:
        """Drop references. Children first, so that eviction never breaks a chain in the middle."""
        for page in reversed(pages):
            self._refs[page] -= 1
            if self._refs[page]:
                continue
            if self._key[page] is None:
                self._free.append(page)
            else:
                self._idle[page] = None

    def forget_all(self) -> None:
        """The weights changed: share no page any more."""
        for page in list(self._idle):
            self._free.append(page)
        self._idle.clear()
        self._by_key.clear()
        self._key = [None] * len(self._refs)

    def _forget(self, page: int) -> None:
        key = self._key[page]
        if key is not None:
            self._by_key.pop(key, None)
            self._key[page] = None
