"""Ending a command from outside: SIGTERM and SIGHUP act like Ctrl-C, a second signal ends it at once.

Schedulers send SIGTERM, closed terminals SIGHUP. The first signal acts as an interrupt: a save in progress is
finished and ``--resume`` is printed; the exit code is 128 plus the signal's number. If Ray itself is lost an
orderly end is impossible: :func:`abort` prints the cause and exits. No child process is left.
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
    """The signals that this process got. ``hint``: how to continue, for the last line."""

    def __init__(self, hint: str = "") -> None:
        self.hint, self.received = hint, 0

    @property
    def code(self) -> int:
        """The exit code of an interrupted command."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def word(self) -> str:
        """The cause in words."""
        return f"ended by {signal.Signals(self.received).name}" if self.received else "interrupted"

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread."""
        if self.received:
            say(f"\n{self.word} twice: ended at once{self.hint}")
            at_once(128 + number)
        self.received = number
        interrupt = signal.getsignal(signal.SIGINT)  # asyncio's own in a running loop
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    def abort(self, cause: str) -> None:
        """Ray is lost: print the cause, kill its processes, and exit. From any thread."""
        say(f"error: {cause}. The run's folder is intact{self.hint}")
        at_once(1)


@contextmanager
def signals(hint: str) -> Iterator[Ending]:
    """Handle signals inside the block; does nothing outside the main thread."""
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
    """Restore signal handlers after the block: ray.init installs its own, which exit."""
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
    """What to do when Ray is lost: a command exits, a library prints it and lets its calls fail."""
    return _current.abort if _current else lambda cause: say(f"error: {cause}")


def say(text: str) -> None:
    """Print a line directly to the terminal, without buffers and with a visible cursor."""
    cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""
    try:
        sys.stdout.flush()
        os.write(2, cursor + plain(text).encode(errors="replace") + b"\n")
    except (OSError, ValueError):  # nobody reads the output
        pass


def at_once(code: int) -> None:
    """Kill all processes below this one, and exit."""
    kill_below()
    os._exit(code)


def kill_below() -> None:
    """SIGKILL all descendants, and actors of a dead raylet."""
    import psutil

    from parl.machine.watch import WATCH, kill_quietly

    for pid in [*(process.pid for process in psutil.Process().children(recursive=True)), *WATCH.local_pids()]:
        kill_quietly(pid)


_current: Ending | None = None
