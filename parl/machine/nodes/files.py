"""Files for and from nodes that do not see the run's folder.

:class:`Carried` is a folder that goes along with an actor's arguments. :class:`Apart` is what an actor offers
to read and write files of its node; :func:`fetch` and :func:`send` copy them over Ray in pieces.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from model.files import replacing
from parl.machine.nodes.place import several

_PIECE = 64 * 2**20  # bytes in one message
_LARGEST = 64 * 2**20  # bytes of a file that goes along with an actor's arguments
_ANSWER_S = 120.0
IO = "io"  # the concurrency group of calls that run beside a rank's steps


class Carried(os.PathLike[str]):
    """A folder without its weights, as a path on whichever node it is read."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.absolute())

    def __fspath__(self) -> str:
        return self._folder

    def __str__(self) -> str:
        return self._folder

    def __reduce__(self) -> tuple[Any, ...]:
        paths = [path for path in sorted(Path(self._folder).iterdir()) if path.is_file() and _small(path)]
        return _arrived, (self._folder, {path.name: path.read_bytes() for path in paths})


def carried(folder: Path) -> str | Carried:
    """``folder`` for actors: its path on one machine, its contents on several."""
    return Carried(folder) if several() else str(folder.resolve())


def _small(path: Path) -> bool:
    return path.suffix != ".safetensors" and path.stat().st_size <= _LARGEST


def _arrived(original: str, files: dict[str, bytes]) -> Carried:
    """The folder on this node: the original one if it is the same here, or a copy."""
    there = Path(original)
    if all((there / name).is_file() and (there / name).read_bytes() == data for name, data in files.items()):
        return Carried(there)
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)} ".encode() + data)
    copy = private_folder() / digest.hexdigest()[:24]
    if not copy.is_dir():
        with replacing(copy) as temporary:
            temporary.mkdir()
            for name, data in files.items():
                (temporary / name).write_bytes(data)
    return Carried(copy)


def private_folder() -> Path:
    """A folder of this user and node for copies, in Ray's own session folder: removed with it."""
    from ray._private import worker

    node: Any = worker._global_node  # Ray has no public name for it
    session = Path(node.get_session_dir_path())
    folder = session / "parl"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class Apart:
    """A mixin for actors whose node may not see the driver's files."""

    def sees(self, path: Path) -> bool:
        """Whether this file of the driver's exists here."""
        return path.exists()

    def scratch(self) -> Path:
        """A new empty folder of this node."""
        return Path(tempfile.mkdtemp(prefix="part-", dir=private_folder()))

    def read_piece(self, path: Path, start: int) -> bytes:
        """Bytes of ``path`` from ``start`` on, at most a piece; none at its end."""
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_PIECE)

    def append_piece(self, path: Path, data: bytes) -> None:
        """Append to ``path``. OSError: a full disk."""
        with path.open("ab") as file:
            file.write(data)

    def drop(self, folder: Path) -> None:
        """Delete a folder that :meth:`scratch` made."""
        shutil.rmtree(folder, ignore_errors=True)


def blind(actors: Sequence[Any], folder: Path) -> list[bool]:
    """For each of ``actors`` whether it does not see the driver's ``folder``."""
    if not several():
        return [False] * len(actors)
    mark = folder / f".seen-{secrets.token_hex(8)}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        seen = ray.get([_io(actor.sees).remote(mark.absolute()) for actor in actors], timeout=_ANSWER_S)
    finally:
        mark.unlink()
    return [not sees for sees in seen]


def new_folder(actor: Any) -> Path:
    """A new empty folder of the actor's node."""
    return ray.get(_io(actor.scratch).remote(), timeout=_ANSWER_S)


def fetch(actor: Any, source: Path, target: Path) -> None:
    """Copy the file ``source`` of the actor's node to ``target`` here, flushed to disk. OSError: a full disk."""
    with target.open("wb") as file:
        while data := _piece(actor, source, file.tell()):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _piece(actor: Any, source: Path, start: int) -> bytes:
    answer: Any = ray.get(_io(actor.read_piece).remote(source, start), timeout=_ANSWER_S)
    return answer


def send(actor: Any, sources: Sequence[Path]) -> Path:
    """Copy files of this node into a new folder of the actor's; returns that folder. OSError: a full disk."""
    folder = new_folder(actor)
    for source in sources:
        with source.open("rb") as file:
            while data := file.read(_PIECE):
                ray.get(_io(actor.append_piece).remote(folder / source.name, data), timeout=_ANSWER_S)
    return folder


def _io(method: Any) -> Any:
    return method.options(concurrency_group=IO)
