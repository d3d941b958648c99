"""Fetches the shards of a version to the server's own disk, while the server goes on. Standard library and numpy.

Runs in the workers of an inference server (``vllm_receiver``), which shares no disk with the trainer. Only what the
folder lacks is fetched: a delta where the older shard is there, else the whole. All bytes are checked against the
SHA-256 of the manifest before they get their name. Workers of one machine take turns, so that each blob is fetched
once.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rollouts.engine.servers.blobs import Blob, Corrupt, Manifest, Shard, apply, sha256

FOLDER = "PARL_WEIGHTS"  # environment variable: the folder for shards on the server's machine
_TRIES, _PAUSE_S, _WAIT_S = 4, 0.5, 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(slots=True, kw_only=True)
class Pulled:
    """What became of a pull: ``done`` also after an ``error``; bytes that were fetched, and seconds."""

    version: int
    done: bool = False
    error: str = ""
    fetched: int = 0
    seconds: float = 0.0
    deltas: int = 0  # shards made from a delta
    wholes: int = 0  # shards fetched whole


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Puller:
    """Shards in ``folder``, which is created with mode 700."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or weights_folder()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (owner := self._folder.stat().st_uid) != os.getuid():
            raise PermissionError(f"{self._folder} belongs to user {owner}: set {FOLDER} to a folder of your own")
        self._state: Pulled | None = None
        self._checked: set[str] = set()  # shards whose bytes this process has seen to be right
        self._kept: list[dict[str, tuple[str, Shard]]] = []  # by name, of the last two versions: where a shard is from

    def begin(self, manifest: Manifest) -> None:
        """Start to fetch ``manifest`` in a thread. RuntimeError while another version is being fetched."""
        if self._state is not None and not self._state.done:
            if self._state.version == manifest.version:
                return  # asked again, because the answer was lost
            raise RuntimeError(f"version {self._state.version} is still being fetched")
        self._state = Pulled(version=manifest.version)
        threading.Thread(target=self._run, args=(manifest, self._state), name="parl weights", daemon=True).start()

    def state(self) -> dict[str, Any]:
        """The last pull as a tree; empty before the first."""
        return asdict(self._state) if self._state is not None else {}

    def path(self, name: str) -> Path:
        """The file of the shard ``name``, which was fetched before; fetched again if it was deleted since.

        FileNotFoundError: it was not. ConnectionError, Corrupt: it cannot be fetched again.
        """
        kept = next((kept[name] for kept in reversed(self._kept) if name in kept), None)
        if name not in self._checked or kept is None:
            raise FileNotFoundError(f"shard {name} was not fetched before the update")
        file = self._folder / f"{name}.safetensors"
        if not file.is_file():
            with self._turn():
                self._bring(*kept, Pulled(version=-1))
        return file

    def _run(self, manifest: Manifest, state: Pulled) -> None:
        began = time.monotonic()
        try:
            self.pull(manifest, state)
        except Exception as error:  # the trainer asks for it: nothing else would show an error of this thread
            state.error = f"{type(error).__name__}: {error}"
        state.seconds = time.monotonic() - began
        state.done = True

    def pull(self, manifest: Manifest, state: Pulled) -> None:
        """Fetch what is missing of ``manifest``, and delete what was fetched for older versions than the one before.

        Other files stay: they may be those of another server or run with the same folder.
        """
        wanted = {shard.whole.sha256: (manifest.where, shard) for shard in manifest.shards}
        if self._kept and self._kept[-1].keys() == wanted.keys():  # asked again: the version before stays
            self._kept[-1] = wanted
        else:
            self._kept.append(wanted)
        for shard in manifest.shards:
            with self._turn():
                self._bring(manifest.where, shard, state)
        needed = set().union(*self._kept[-2:])
        dropped, self._kept = self._kept[:-2], self._kept[-2:]
        with self._turn():
            for name in set().union(*dropped) - needed:
                (self._folder / f"{name}.safetensors").unlink(missing_ok=True)
                self._checked.discard(name)

    def _bring(self, where: str, shard: Shard, state: Pulled) -> None:
        name = shard.whole.sha256
        file = self._folder / f"{name}.safetensors"
        if file.exists() and (name in self._checked or sha256(file.read_bytes()) == name):
            self._checked.add(name)
            return
        data = self._patched(where, shard, state)
        if data is None:
            data = fetch(where, shard.whole)
            state.fetched += len(data)
            state.wholes += 1
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_bytes(data)
        partial.rename(file)
        self._checked.add(name)

    def _patched(self, where: str, shard: Shard, state: Pulled) -> bytes | None:
        """The shard made from its older one; None if that is not here, or the result is not what it should be."""
        old = self._folder / f"{shard.base}.safetensors"
        if shard.delta is None or not old.exists():
            return None
        delta = fetch(where, shard.delta)
        state.fetched += len(delta)
        try:
            data = apply(old.read_bytes(), delta)
        except Corrupt:  # the older file was changed on this disk: the whole shard repairs it
            return None
        if sha256(data) != shard.whole.sha256:
            return None
        state.deltas += 1
        return data

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with (self._folder / ".turn").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def weights_folder() -> Path:
    """``PARL_WEIGHTS``, or a folder of the user's in the temporary one."""
    named = os.environ.get(FOLDER)
    return Path(named) if named else Path(tempfile.gettempdir()) / f"parl-weights-{os.getuid()}"


def fetch(where: str, blob: Blob) -> bytes:
    """The bytes of ``blob`` below ``where``, tried again. ConnectionError: not reached; Corrupt: other bytes."""
    wrong = ""
    for number in range(_TRIES):
        time.sleep(_PAUSE_S * (2**number - 1))
        try:
            data = _read(where, blob)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise ConnectionError(f"{where} answers {error.code} for blob {blob.sha256}") from None
            wrong = f"{where} answers {error.code}"
        except OSError as error:
            wrong = f"{where} cannot be read: {error}"
        else:
            if len(data) == blob.size and sha256(data) == blob.sha256:
                return data
            wrong = f"{where} sends {len(data)} bytes that are not blob {blob.sha256} of {blob.size} bytes"
    raise (Corrupt if "sends" in wrong else ConnectionError)(wrong)


def _read(where: str, blob: Blob) -> bytes:
    """At most one byte more than the blob has."""
    address = urlsplit(where)
    if address.scheme not in ("http", "https"):
        import fsspec

        with fsspec.open(f"{where.rstrip('/')}/{blob.sha256}", "rb") as file:
            return file.read(blob.size + 1)  # type: ignore[union-attr]
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if address.hostname in _LOOPBACK:
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{where.rstrip('/')}/{blob.sha256}", headers={"x-parl-sign": blob.sign})
    with urllib.request.build_opener(*handlers).open(request, timeout=_WAIT_S) as answer:
        return answer.read(blob.size + 1)
