"""How a command ends from outside: SIGTERM and SIGHUP do what Ctrl-C does, twice means at once, nothing stays behind.

Schedulers send SIGTERM, closed terminals SIGHUP. The first of them takes the way of an interrupt, so a save under way
is finished and ``--resume`` is named; the exit code is 128 and the signal's number. A second one ends everything at
once. When Ray itself is lost there is no way to end in order: :func:`abort` says why and ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from parl.shown.terminal import plain

_SIGNALS = ("SIGTERM", "SIGHUP")


class Ending:
    """What has been asked of this process so far. ``hint``: how to go on, for the last line."""

    def __init__(self, hint: str = "") -> None:
        self.hint, self.received = hint, 0

    @property
    def code(self) -> int:
        """The exit code of an interrupted command."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def word(self) -> str:
        """What happened to it."""
        return f"ended by {signal.Signals(self.received).name}" if self.received else "interrupted"

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A signal arrives in the main thread."""
        if self.received:
            say(f"\n{self.word} twice: ended at once{self.hint}")
            at_once(128 + number)
        self.received = number
        interrupt = signal.getsignal(signal.SIGINT)  # asyncio's own where a loop runs
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    def abort(self, cause: str) -> None:
        """Ray is lost: say why, end everything that is left of it, and end. From any thread."""
        say(f"error: {cause}. The run's folder is intact{self.hint}")
        at_once(1)


@contextmanager
def signals(hint: str) -> Iterator[Ending]:
    """Handle signals for the time of the block; in another thread than the main one nothing is done."""
    ending = Ending(hint)
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before: dict[int, Any] = {}
    for name in _SIGNALS:
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            before[number] = signal.signal(number, ending.handle)
    global _current
    outer, _current = _current, ending
    try:
        yield ending
    finally:
        _current = outer
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Signal handlers after the block are those before it: ray.init puts its own in their place, which exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as asked:
        if asked.code == signal.SIGTERM and _current:
            _current.handle(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def on_loss() -> Callable[[str], None]:
    """What is to be done when Ray is lost: a command ends, a library says it and lets its calls fail."""
    return _current.abort if _current else lambda cause: say(f"error: {cause}")


def say(text: str) -> None:
    """A line that is seen, whatever the terminal showed: past buffers and a hidden cursor."""
    cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""
    try:
        sys.stdout.flush()
        os.write(2, cursor + plain(text).encode(errors="replace") + b"\n")
    except (OSError, ValueError):  # nobody reads any more
        pass


def at_once(code: int) -> None:
    """End all processes below this one, and this one."""
    kill_below()
    os._exit(code)


def kill_below() -> None:
    """SIGKILL to everything that this process and what it started have started, and to actors of a dead raylet."""
    import psutil

    from parl.machine.watch import WATCH, kill_quietly

    for pid in [*(process.pid for process in psutil.Process().children(recursive=True)), *WATCH.local_pids()]:
        kill_quietly(pid)


_current: Ending | None = None
