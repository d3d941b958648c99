"""The worker of a sandbox: it starts untrusted code in a confined child and watches it. Never runs it itself.

It speaks frames (four bytes of length, then JSON) on its standard input and output; its parent is the host.
The first frame sets it up, each later one is a job. A job is a program's ``argv`` or Python ``code``; with
``keep`` the code runs in one interpreter that stays between jobs. The end of input ends everything.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import struct
import sys
import tempfile
import time
from itertools import islice
from typing import Any

from envs.sandbox.inside import beneath, confine
from envs.sandbox.inside.child import start

_TICK_S, _FIRST_S = 0.05, 0.02  # how often memory and disk are looked at
_CHUNK = 1 << 16


def read_frame(source: int) -> dict[str, Any] | None:
    """The next frame, None at the end of input."""
    head = _exactly(source, 4)
    body = _exactly(source, struct.unpack(">I", head)[0]) if head else b""
    return json.loads(body) if body else None


def _exactly(source: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(source, min(count, _CHUNK))
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_frame(target: int, value: dict[str, Any]) -> None:
    """Write one frame."""
    body = json.dumps(value).encode()
    rest = memoryview(struct.pack(">I", len(body)) + body)
    while rest:
        rest = rest[os.write(target, rest) :]


class Capture:
    """One stream of a job: the first ``most`` bytes are kept, later ones are read and dropped."""

    def __init__(self, source: int, most: int) -> None:
        os.set_blocking(source, False)
        self.source, self.most, self.kept, self.seen = source, most, bytearray(), 0

    def take(self) -> bool:
        """Read what is there; False once the stream has ended."""
        for _ in range(64):  # not for ever: an endless writer must not keep the watch from its other duties
            try:
                part = os.read(self.source, _CHUNK)
            except BlockingIOError:
                return True
            if not part:
                return False
            self.seen += len(part)
            self.kept += part[: max(0, self.most - len(self.kept))]
        return True

    def text(self) -> str:
        """What was kept, with a note on what was not; the next job starts afresh."""
        left, text = self.seen - len(self.kept), bytes(self.kept).decode("utf-8", "replace")
        self.kept, self.seen = bytearray(), 0
        return f"{text}\n[{left} more bytes]" if left else text


class Worker:
    """One sandbox from inside. ``setup`` is the host's first frame."""

    def __init__(self, setup: dict[str, Any]) -> None:
        work = setup["work"] or tempfile.mkdtemp(prefix="parl-sandbox-")
        self.rules = confine.Rules(work=work, **setup["rules"])
        self.output, self.inodes, self.made = setup["output"], setup["inodes"], not setup["work"]
        self.sized = setup["sized"]  # a file system of its own size, None: the folder is on the host's
        self.kept: Any = None  # the interpreter that stays between jobs
        if self.made and self.rules.uid is not None:
            os.chown(work, self.rules.uid, self.rules.uid)
        os.umask(0)  # the code may change the files that it is given
        os.chdir(work)

    def job(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run one job to its end or its deadline, and kill what it left behind."""
        for name, data in order["files"].items():
            beneath.write(self.rules.work, name, base64.b64decode(data))
        child, fresh = self.kept, self.kept is None
        if child is None:
            child = start(self.rules, order, self.output, Capture)
        else:
            child.send(order["code"])
        code, why = self._watch(child, time.monotonic() + order["deadline_s"], order["keep"])
        if code is None:
            self.kept, code = child, child.answer
            for pid in self._members(child):  # nothing goes on computing between jobs
                if pid != child.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        else:
            self.kept = None
            self._kill(child)
            child.drain()
        ended = {"stdout": child.out.text(), "stderr": child.err.text(), "code": code, "why": why, "fresh": fresh}
        ended["absent"] = child.absent
        if self.kept is None:
            child.close()
        return {**ended, "files": self._collected(order["collect"])}

    def close(self) -> None:
        """Kill what stays, remove the folder that was made."""
        if self.kept is not None:
            self._kill(self.kept)
        if self.made:
            os.chdir("/")
            os.execv("/bin/rm", ["rm", "-rf", "--", self.rules.work])  # copes with any depth of folders

    def _watch(self, child: Any, deadline: float, keep: bool) -> tuple[int | None, str]:
        """Wait for the end: the exit code (None: a kept interpreter is ready), and why it was stopped."""
        poll = select.poll()
        for source in (0, child.out.source, child.err.source, child.pidfd, *([child.replies] if keep else [])):
            poll.register(source, select.POLLIN if source else select.POLLHUP)
        look = time.monotonic() + _FIRST_S
        while True:
            now = time.monotonic()
            if now >= deadline:
                return -signal.SIGKILL, "deadline"
            events = dict(poll.poll(max(0.0, min(deadline, look) - now) * 1000 + 1))
            if 0 in events:
                self._kill(child)
                self.close()
                os._exit(0)
            for stream in (child.out, child.err):
                if stream.source in events and not stream.take():
                    poll.unregister(stream.source)
            if keep and child.replies in events and child.read_answer():
                child.drain()
                return None, ""
            if child.pidfd in events:
                return child.reap(), ""
            if time.monotonic() >= look:
                look = time.monotonic() + _TICK_S
                if why := self._excess(child):
                    return -signal.SIGKILL, why

    def _excess(self, child: Any) -> str:
        """Which limit over all processes, or over the folder, is passed; empty if none."""
        if self._resident(child) > self.rules.memory:
            return "memory"
        if self.sized:
            status = os.statvfs(self.sized)
            if status.f_files - status.f_ffree > self.inodes:
                return "files"
            if self.rules.work.startswith(self.sized + "/") and not os.path.ismount(self.rules.work):
                return ""
        count, size, folders = 0, 0, [self.rules.work]
        while folders and count <= self.inodes and size <= self.rules.disk:
            try:
                entries = list(islice(os.scandir(folders.pop()), self.inodes + 1))  # it may grow for ever
            except OSError:  # removed meanwhile, or a path too long: its depth is counted as folders
                continue
            count += len(entries)
            if count > self.inodes:
                break
            folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            size += sum(_bytes(entry) for entry in entries)
        return "disk" if size > self.rules.disk else "files" if count > self.inodes else ""

    def _resident(self, child: Any) -> int:
        """Bytes of memory of the job's processes that they do not share with files."""
        total = 0
        for pid in self._members(child):
            try:
                with open(f"/proc/{pid}/statm") as file:
                    _, resident, shared, *_ = file.read().split()
                total += (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, ValueError):  # it ended
                continue
        return total

    def _members(self, child: Any) -> list[int]:
        """The job's processes: all but this one in a namespace, else those of its group or of its user."""
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        if self.rules.pids:
            return [pid for pid in numbers if pid != os.getpid()]
        found = []
        for pid in numbers:
            try:
                own = os.stat(f"/proc/{pid}").st_uid == self.rules.uid
                if own or os.getpgid(pid) == child.pid:
                    found.append(pid)
            except OSError:
                continue
        return found

    def _kill(self, child: Any) -> None:
        """Kill all processes of the job, also those that left its group where a namespace or a user tells."""
        for _ in range(100):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(-1, signal.SIGKILL) if self.rules.pids else os.killpg(child.pid, signal.SIGKILL)
            child.reap()
            others = [pid for pid in self._members(child) if not _dead(pid)] if self.rules.uid is not None else []
            for pid in others:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not others:
                return
            time.sleep(0.002)

    def _collected(self, names: list[str]) -> dict[str, str]:
        found = {}
        for name in names:
            try:
                data = beneath.read(self.rules.work, name, self.rules.disk)
            except (OSError, beneath.Outside):
                continue
            found[name] = base64.b64encode(data).decode()
        return found


def _bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:  # it is gone
        return 0


def _dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def main() -> None:
    """Serve jobs until the host closes the input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the host's to handle
    answers = os.dup(1)
    os.dup2(2, 1)
    setup = read_frame(0)
    if setup is None:
        return
    worker = Worker(setup)
    confine.protect()
    facts = {"landlock": confine.landlock_version(), "pid": os.getpid(), "python": sys.version_info[:2]}
    write_frame(answers, {"ready": facts})
    while order := read_frame(0):
        try:
            write_frame(answers, worker.job(order))
        except (OSError, ValueError) as error:
            write_frame(answers, {"failed": f"{type(error).__name__}: {error}"})
    worker.close()
