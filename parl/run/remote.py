"""Files at an fsspec address (``s3://bucket/runs/mine``, ``file:///mnt/runs/mine``), with retries and deadlines.

A file appears whole or not at all: object stores put it in one step, elsewhere it is written under another name and
renamed. Keys and endpoints come from the environment or fsspec's own configuration files.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from parl.errors import MachineError
from parl.shown.redaction import without_credentials

T = TypeVar("T")
_AT_ONCE = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "abfs",
    "abfss",
    "az",
    "adl",
    "oss",
    "r2",
    "memory",
}  # a put is seen when complete
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between five attempts
_ATTEMPT_S = 60.0
_SLOWEST = 1e6  # bytes a second
_PART = ".part-"  # in names of files that are being written


class Remote:
    """The files below ``url``, by their path relative to it. Errors are MachineErrors that name the address."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.shown = without_credentials(self.url)
        self._found: tuple[Any, str] | None = None

    def files(self) -> dict[str, int]:
        """Bytes of each complete file; empty where the address does not exist."""
        return {name: size for name, size in self._list().items() if _PART not in name}

    def unfinished(self) -> dict[str, int]:
        """Bytes of each file that is being written, or was when its process was killed."""
        return {name: size for name, size in self._list().items() if _PART in name}

    def _list(self) -> dict[str, int]:
        def find() -> dict[str, int]:
            store, root = self._store()
            store.invalidate_cache()
            try:
                found = store.find(root, detail=True)
            except FileNotFoundError:
                return {}
            named = {path.removeprefix(root).lstrip("/"): int(told["size"] or 0) for path, told in found.items()}
            return {name: size for name, size in named.items() if name}

        found = self._call("list", "", find)
        if strange := [name for name in found if {"..", "."} & set(name.split("/")) or "\\" in name or "\0" in name]:
            raise MachineError(f"{self.shown} holds {strange[0]!r}, which no run writes: nothing of it is taken")
        return found

    def put(self, local: Path, name: str) -> int:
        """Write the file ``local`` as ``name``; returns its bytes. FileNotFoundError if it has gone here."""
        size = local.stat().st_size  # a log may grow meanwhile: what is there now
        try:
            return self._write(name, size, lambda out: _copy(local, out, size))
        except _Gone:
            raise FileNotFoundError(local) from None

    def write(self, name: str, data: bytes) -> None:
        """Write ``data`` as ``name``."""
        self._write(name, len(data), lambda out: out.write(data))

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""

        def read() -> bytes | None:
            store, root = self._store()
            try:
                return store.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None

        return self._call("read", name, read)

    def get(self, name: str, local: Path, size: int) -> None:
        """Write ``name``, of ``size`` bytes, to ``local``."""
        local.parent.mkdir(parents=True, exist_ok=True)

        def get() -> None:
            store, root = self._store()
            store.get_file(f"{root}/{name}", str(local))
            if local.stat().st_size != size:
                raise OSError(f"{local.stat().st_size} bytes came of {size}")

        self._call("fetch", name, get, size)

    def remove(self, name: str) -> None:
        """Delete ``name``, if it is there."""

        def remove() -> None:
            store, root = self._store()
            try:
                store.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

        self._call("delete", name, remove)

    def _write(self, name: str, size: int, fill: Callable[[Any], object]) -> int:
        def write() -> None:
            store, root = self._store()
            final = f"{root}/{name}"
            protocols = {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)
            path = final if protocols & _AT_ONCE else f"{final}{_PART}{secrets.token_hex(4)}"
            if path != final:
                store.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                with store.open(path, "wb") as out:
                    fill(out)
                there = int(store.info(path)["size"])
                if there != size:
                    raise OSError(f"{there} bytes are there of {size}")
                if path != final:
                    store.mv(path, final)
            except BaseException:
                if path != final:  # nobody would look for it again
                    with suppress(Exception):
                        store.rm_file(path)
                raise

        self._call("write", name, write, size)
        return size

    def _store(self) -> tuple[Any, str]:
        if self._found is None:
            import fsspec

            store, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False)
            self._found = store, root.rstrip("/")
        return self._found

    def _call(self, verb: str, name: str, act: Callable[[], T], size: int = 0) -> T:
        """What ``act`` returns; it is tried five times, each with a deadline."""
        where = f"{self.shown}/{name}" if name else self.shown
        limit = _ATTEMPT_S + size / _SLOWEST
        for pause in (*_PAUSES_S, None):
            try:
                return _within(act, limit)
            except _Gone:
                raise
            except ImportError as error:  # the package for this kind of store
                raise MachineError(f"{where}: {error}") from error
            except Exception as error:  # every store has its own errors
                if pause is None:
                    said = without_credentials(str(error).strip() or type(error).__name__).splitlines()[0]
                    times = len(_PAUSES_S) + 1
                    raise MachineError(f"cannot {verb} {where}, tried {times} times: {said}") from error
                time.sleep(pause * random.uniform(0.75, 1.25))
        raise AssertionError


class _Gone(Exception):
    """The local file was deleted."""


def _copy(local: Path, out: Any, size: int) -> None:
    try:
        file = local.open("rb")  # for every attempt: one that hangs keeps its own
    except FileNotFoundError as error:
        raise _Gone from error
    with file:
        left = size
        while left and (data := file.read(min(left, 2**24))):
            out.write(data)
            left -= len(data)


def _within(act: Callable[[], T], limit_s: float) -> T:
    """What ``act`` returns; TimeoutError after ``limit_s``, when it is left to itself."""
    done: list[Any] = []

    def run() -> None:
        try:
            done.append((act(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True, name="store")
    thread.start()
    thread.join(limit_s)
    if not done:
        raise TimeoutError(f"no answer within {limit_s:.0f} s")
    result, error = done[0]
    if error is not None:
        raise error
    return result
