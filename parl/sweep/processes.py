"""Runs the cells of a sweep as processes, some at once; a failure of one does not stop the others. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from parl.shown.redaction import without_credentials
from parl.sweep.estimate import Clock
from parl.sweep.show import Show
from parl.sweep.state import Folder, Order

COMMAND = (sys.executable, "-m", "parl", "sweep-cell")  # with an order's file
_POLL_S = 0.3
_END_S = 90.0  # for a run's orderly end
_TRACEBACK = "Traceback (most recent call last):"
_LINES = 60


@dataclass(slots=True, kw_only=True)
class Running:
    """A cell's process."""

    order: Order
    process: subprocess.Popen[bytes]
    began: float
    log: Path


class Processes:
    """Starts cells one after another, at most ``jobs`` at once."""

    def __init__(self, folder: Folder, jobs: int, show: Show, clock: Clock) -> None:
        self._folder, self._jobs, self._show, self._clock = folder, jobs, show, clock
        self.failed: dict[str, str] = {}  # cell -> what went wrong

    def run(self, orders: Sequence[Order]) -> None:
        """Run all ``orders`` to their end. An interrupt ends the running ones in order, and is raised."""
        waiting, running = list(orders), list[Running]()
        try:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    running.append(self._start(waiting.pop(0)))
                    self._show.begins(running[-1])
                time.sleep(_POLL_S)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    self._ended(one)
                self._show.going(running, waiting)
        finally:
            _end(running)

    def _start(self, order: Order) -> Running:
        spec, log = self._folder.tell(order), self._folder.log(order.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*COMMAND, str(spec)]
        with log.open("ab") as out:
            out.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} {order.id}\n".encode())
            out.flush()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Running(order=order, process=process, began=time.monotonic(), log=log)

    def _ended(self, one: Running) -> None:
        seconds, code = time.monotonic() - one.began, one.process.returncode
        if code == 0:
            self._clock.took(one.order, seconds)
            self._show.done(one, seconds)
            return
        what = excerpt(one.log)
        known = what in self.failed.values()
        self.failed[one.order.id] = what
        word = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._show.failed(one, word, "the same as above" if known else what)


def excerpt(log: Path) -> str:
    """The first traceback of a log's last try, else its last error or last lines."""
    text = log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- ")[2]
    lines = text.splitlines()[1:]
    begun = next((i for i, line in enumerate(lines) if line.endswith(_TRACEBACK)), None)
    if begun is not None:
        last = next(
            (i for i, line in enumerate(lines[begun + 1 :], begun + 1) if line[:1].strip() and line[0] != "("),
            len(lines) - 1,
        )
        part = lines[begun : last + 1]
        part = part if len(part) <= _LINES else [*part[:10], "  ...", *part[-_LINES + 11 :]]
    else:
        errors = [i for i, line in enumerate(lines) if line.startswith("error:")]
        part = lines[errors[0] :][:_LINES] if errors else lines[-10:]
    return without_credentials("\n".join(part).strip() or "it printed nothing")


def _end(running: Sequence[Running]) -> None:
    """End processes in order, and kill what does not end in time, with all below."""
    for one in running:
        one.process.terminate()
    deadline = time.monotonic() + _END_S
    for one in running:
        try:
            one.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(one.process.pid)
            one.process.wait(_END_S)


def _kill(pid: int) -> None:
    try:
        top = psutil.Process(pid)
        for process in [*top.children(recursive=True), top]:
            os.kill(process.pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError):
        pass
