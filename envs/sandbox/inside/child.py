"""The confined child of a worker: a program by ``exec``, or Python code in this interpreter."""

from __future__ import annotations

import ast
import atexit
import fcntl
import linecache
import os
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from envs.sandbox.inside import confine

_KEPT = 64  # the child's own descriptors begin here
_ABSENT = b"\0"  # what the pipe of failures carries of a program that does not start
NAME = "main.py"  # what tracebacks call the code
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


class Child:
    """A running child: its streams, its process and, if it is kept, the pipes that carry code and answers.

    ``absent``: its program could not be started; the child only says so and ends.
    """

    def __init__(self, pid: int, out: Any, err: Any, orders: int, replies: int, *, absent: bool) -> None:
        self.absent = absent
        self.pid, self.out, self.err, self.orders, self.replies = pid, out, err, orders, replies
        self.pidfd, self.answer, self._code = os.pidfd_open(pid), 0, None

    def send(self, code: str) -> None:
        """Give a kept interpreter more code."""
        data = code.encode()
        with os.fdopen(os.dup(self.orders), "wb") as file:
            file.write(len(data).to_bytes(4, "big") + data)

    def read_answer(self) -> bool:
        """Whether a kept interpreter has finished its code; ``answer`` is then its exit code."""
        data = os.read(self.replies, 1)
        self.answer = data[0] if data else 0
        return bool(data)

    def drain(self) -> None:
        """Read what the streams still hold."""
        self.out.take()
        self.err.take()

    def close(self) -> None:
        """Close the pipes of a child that has ended."""
        for used in (self.out.source, self.err.source, self.orders, self.replies):
            os.close(used)

    def reap(self) -> int:
        """The exit code once it has ended, negative for a signal."""
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
            os.close(self.pidfd)
        while True:  # as process 1: what was left behind
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break
        return self._code


def start(rules: confine.Rules, order: dict[str, Any], most: int, capture: Callable[[int, int], Any]) -> Child:
    """Fork a child, confine it and let it run ``order``. OSError if it cannot be confined."""
    (out, out_in), (err, err_in), (failed, failed_in) = os.pipe(), os.pipe(), os.pipe()
    (orders, orders_in), (replies, replies_in) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid:
        for used in (out_in, err_in, failed_in, orders, replies_in):
            os.close(used)
        reason = os.read(failed, 4096)
        os.close(failed)
        if reason and reason != _ABSENT:
            os.waitpid(pid, 0)
            raise OSError(reason.decode("utf-8", "replace"))
        return Child(pid, capture(out, most), capture(err, most), orders_in, replies, absent=bool(reason))
    try:
        os.setsid()
        with tempfile.TemporaryFile(dir=rules.work) as given:
            given.write(order["stdin"].encode())
            given.seek(0)
            os.dup2(given.fileno(), 0)
        os.dup2(out_in, 1)
        os.dup2(err_in, 2)
        keep = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _KEPT) for source in (failed_in, orders, replies_in)]
        os.closerange(3, min(keep))
        os.closerange(max(keep) + 1, 4096)
        confine.confine(rules)
    except BaseException as error:
        os.write(failed_in, f"{type(error).__name__}: {error}".encode())
        os._exit(127)
    _go(rules, order, *keep)
    os._exit(126)


def _go(rules: confine.Rules, order: dict[str, Any], failed: int, orders: int, replies: int) -> None:
    environment = {**ENVIRONMENT, "HOME": rules.work, "TMPDIR": rules.work, **order["env"]}
    os.environ.clear()
    os.environ.update(environment)
    if order["argv"]:
        try:
            os.execvpe(order["argv"][0], order["argv"], environment)
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            os.write(failed, _ABSENT)
            os.close(failed)
            os.write(2, f"{order['argv'][0]}: {getattr(error, 'strerror', error)}\n".encode("utf-8", "replace"))
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    os.close(failed)
    _fresh_streams()
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    space = module.__dict__
    sys.argv, sys.path[0:0] = [NAME], [rules.work, *order["path"]]
    if not order["keep"]:
        os.close(orders)
        os.close(replies)
        _end(_execute(order["code"], space, show=False))
    code: str | None = order["code"]
    while code is not None:
        done = _execute(code, space, show=True)
        _flush()
        os.write(replies, bytes([done]))
        code = _next(orders)
    _end(0)


def _next(orders: int) -> str | None:
    with os.fdopen(os.dup(orders), "rb", buffering=0) as file:
        head = file.read(4)
        if not head:
            return None
        left, parts = int.from_bytes(head, "big"), []
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts).decode()


def _fresh_streams() -> None:
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)  # noqa: SIM115


def _execute(code: str, space: dict[str, Any], *, show: bool) -> int:
    """Run ``code`` in ``space``; its exit code. ``show``: the value of a last expression is printed."""
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
    try:
        tree = ast.parse(code, NAME)
        last = tree.body.pop() if show and tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NAME, "exec"), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), NAME, "eval"), space)
            if value is not None:
                print(repr(value))
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return (leaving.code or 0) & 255
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename != NAME:
            trace = trace.tb_next
        print("".join(traceback.format_exception(type(error), error, trace)), end="", file=sys.stderr)
        return 1
    return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the code closed it
            continue


def _end(code: int) -> None:
    """End as an interpreter does: threads are waited for, exit functions run."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        _flush()
    finally:
        os._exit(code)
