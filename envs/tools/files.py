"""The tools ``read_file``, ``write_file`` and ``list_files``: a folder for each episode, and nothing outside it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import Field

from envs.base import ErrorKind, Section, ToolCall, ToolResult
from envs.plugs.session import Refused
from envs.sandbox.inside import beneath
from envs.tools.kit import Kit, Opened, spec

_TEXT = {"type": "string"}
_PATH = {"type": "string", "description": "relative, such as notes/a.txt"}


class FilesConfig(Section):
    """Files of an episode, which its agents share."""

    megabytes: int = Field(default=64, gt=0, description="all files of an episode together")
    count: int = Field(default=1000, gt=0, description="files and folders of an episode")
    page_chars: int = Field(default=10_000, gt=0, description="characters that one read_file returns")


class FilesKit(Kit):
    """A folder for each episode, made with its first use."""

    specs = (
        spec(
            "write_file",
            "Write a text file; it replaces an older one.",
            ("path", "text"),
            path=_PATH,
            text=_TEXT,
        ),
        spec(
            "read_file",
            "Read a text file, from the character `start` on.",
            ("path",),
            path=_PATH,
            start={"type": "integer", "minimum": 0},
        ),
        spec("list_files", "List all files with their sizes in bytes."),
    )
    stateless = False

    def __init__(self, config: FilesConfig) -> None:
        self.config = config

    def open(self, folder: str | None) -> Opened:
        """See :class:`Kit`."""
        assert folder is not None
        return _Files(self.config, folder)


def make_folder() -> str:
    """An empty folder that every user may write to, in one that only its owner may list."""
    outer = tempfile.mkdtemp(prefix="parl-files-")
    os.chmod(outer, 0o711)
    inner = os.path.join(outer, "work")
    os.mkdir(inner)
    os.chmod(inner, 0o777)
    return inner


def remove_folder(folder: str) -> None:
    """Delete a folder of :func:`make_folder`, whatever code put into it: any depth, any rights."""
    outer = os.path.dirname(folder)
    for line in (["chmod", "-R", "u+rwX", outer], ["rm", "-rf", "--", outer]):
        subprocess.run(line, capture_output=True, timeout=60, check=False)


class _Files(Opened):
    def __init__(self, config: FilesConfig, folder: str) -> None:
        self._config, self._folder = config, folder

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        work = {"write_file": self._write, "read_file": self._read, "list_files": self._list}[call.name]
        try:
            return ToolResult(text=await asyncio.to_thread(work, call.arguments))
        except (FileNotFoundError, NotADirectoryError):
            raise Refused(ErrorKind.NOT_FOUND, "there is no such file") from None
        except beneath.Outside as outside:
            raise Refused(ErrorKind.BAD_ARGS, str(outside)) from None
        except OSError as error:
            raise Refused(ErrorKind.SERVER, error.strerror or "the file cannot be used") from None

    def _write(self, given: dict[str, Any]) -> str:
        name, text = given.get("path"), given.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise Refused(ErrorKind.BAD_ARGS, "path and text must be texts")
        data = text.encode("utf-8", "replace")
        count, size = 0, len(data)
        for _, _, status in self._found():
            count, size = count + 1, size + status.st_size
        if size > self._config.megabytes << 20 or count >= self._config.count:
            raise Refused(ErrorKind.BUDGET, "the folder is full")
        beneath.write(self._folder, name, data)
        return f"{len(data)} bytes written"

    def _read(self, given: dict[str, Any]) -> str:
        name, start = given.get("path"), given.get("start", 0)
        if not isinstance(name, str) or not isinstance(start, int) or start < 0:
            raise Refused(ErrorKind.BAD_ARGS, "path must be a text, and start a number from 0")
        text = beneath.read(self._folder, name, self._config.megabytes << 20).decode("utf-8", "replace")
        return page(text, start, self._config.page_chars)

    def _list(self, given: dict[str, Any]) -> str:
        rows = [
            f"{os.path.relpath(path, self._folder)}\t{status.st_size}" for path, plain, status in self._found() if plain
        ]
        return "\n".join(sorted(rows)) or "no files"

    def _found(self) -> Iterator[tuple[str, bool, os.stat_result]]:
        """Files and folders, at most ``count`` and one; links are not followed."""
        folders, left = [self._folder], self._config.count + 1
        while folders and left > 0:
            try:
                entries = list(islice(os.scandir(folders.pop()), left))
            except OSError:  # code may remove it, or make paths that are too long
                continue
            left -= len(entries)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                try:
                    yield entry.path, entry.is_file(follow_symlinks=False), entry.stat(follow_symlinks=False)
                except OSError:
                    continue


def page(text: str, start: int, most: int) -> str:
    """``most`` characters of ``text`` from ``start`` on, and where the next part begins."""
    part, left = text[start : start + most], len(text) - start - most
    return f"{part}\n[{left} more characters: start={start + most}]" if left > 0 else part
