"""The heartbeat: asks every actor of a run every few seconds whether it is alive, and kills hung ones.

Ray reports dead actors, but not hung ones: a call to a stopped process waits for its deadline. A thread of
the driver asks each actor for a :class:`rollouts.beat.Beat`, answered there by a separate thread. An actor is
hung if

- its process is stopped (SIGSTOP, a debugger) for ``STOPPED_S``;
- it has neither answered for ``SILENT_S`` nor computed in that time (checked on this machine only);
- it answers, but its event loop or step has stood still for ``SILENT_S`` without computing, or its loop has
  been blocked for ``BLOCKED_S``, computing or not.

On a busy machine or in a long kernel, CPU time passes. A killed actor is handled like any dead one: engines
and workers are replaced, a learner's rank ends the run. :data:`WATCH` has the cause.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from parl.shown.terminal import echo
from rollouts.beat import GROUP, Beat, cpu_seconds

PING_S = 4.0
STOPPED_S = 8.0
SILENT_S = 25.0
BLOCKED_S = 300.0
_IDLE = 0.02  # share of a core below which a process counts as idle: Ray's own threads use as much
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(slots=True, kw_only=True)
class Watched:
    """One actor. Times are ``time.monotonic``; ``why`` is set when it was found hung, and killed."""

    handle: Any
    label: str
    asynchronous: bool
    answered: float
    pid: int = 0
    host: str = ""
    why: str = ""
    ping: Any = None
    cpu: tuple[float, float] = (0.0, 0.0)  # time of the last look, CPU seconds then
    idle_since: float = field(default_factory=time.monotonic)
    stopped_since: float | None = None

    @property
    def name(self) -> str:
        """Role, number, process and machine."""
        return f"{self.label} (pid {self.pid or '?'} on {self.host or socket.gethostname()})"

    @property
    def local(self) -> psutil.Process | None:
        """Its process, if it exists on this machine."""
        if not self.pid or self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.pid)
            return process if " ".join(process.cmdline()).startswith("ray::") else None
        except psutil.Error:
            return None

    @property
    def stopped(self) -> bool:
        """Whether its process is stopped (SIGSTOP)."""
        try:
            return (process := self.local) is not None and process.status() in _STOPPED
        except psutil.Error:
            return False

    @property
    def helped(self) -> bool:
        """Whether it has child processes that may compute for it, such as a compiler."""
        try:
            return (process := self.local) is not None and bool(process.children())
        except psutil.Error:
            return False

    def computed(self, now: float, cpu_s: float) -> None:
        """Record its CPU seconds at ``now``."""
        before, used = self.cpu
        if now - before < 1.0:
            return
        if cpu_s < used or (cpu_s - used) / (now - before) > _IDLE:
            self.idle_since = now
        self.cpu = (now, cpu_s)

    def beat(self, now: float, beat: Beat) -> str:
        """Process an answer; returns what is wrong, or an empty string."""
        if not self.pid:
            self.idle_since = now
        self.pid, self.host, self.answered, self.stopped_since = beat.pid, beat.host, now, None
        self.computed(now, beat.cpu_s)
        idle = now - self.idle_since
        for seconds, what in ((beat.loop_s, "its event loop has been blocked"), (beat.step_s, "its step has run")):
            if seconds > SILENT_S and idle > SILENT_S - PING_S and not self.helped:
                return f"{what} for {seconds:.0f} s without computing anything"
        return f"its event loop has been blocked for {beat.loop_s:.0f} s" if beat.loop_s > BLOCKED_S else ""

    def silent(self, now: float) -> str:
        """Process a missing answer; returns what is wrong, or an empty string."""
        process, silence = self.local, now - self.answered
        if process is None:  # on another machine, or not known yet: its calls have deadlines
            return f"it has not answered for {silence:.0f} s" if self.pid and silence > 2 * SILENT_S else ""
        try:
            stopped = process.status() in _STOPPED
            self.computed(now, cpu_seconds(process))
        except psutil.Error:
            return ""
        self.stopped_since = (self.stopped_since or now) if stopped else None
        if self.stopped_since is not None and now - self.stopped_since >= STOPPED_S:
            return f"its process is stopped (SIGSTOP) and has not answered for {silence:.0f} s"
        if silence > SILENT_S and now - self.idle_since > SILENT_S - PING_S:
            return f"it has neither answered nor computed for {silence:.0f} s"
        return ""


class Watch:
    """All actors of this process's runs. ``lost``: called with the cause when Ray itself is lost."""

    def __init__(self) -> None:
        self.lost: Callable[[str], None] = lambda cause: echo(f"error: {cause}", err=True)
        self._lock = threading.Lock()
        self._watched: dict[str, Watched] = {}
        self._gone: dict[str, Watched] = {}
        self._ray: dict[psutil.Process, float | None] = {}  # Ray's own processes, and since when stopped
        self._stopped: dict[int, float] = {}  # actors without a first answer, and since when stopped
        self._thread: threading.Thread | None = None

    def add(self, handle: Any, label: str, *, asynchronous: bool) -> None:
        """Watch the actor ``handle`` from here on."""
        key = handle._actor_id.hex()
        watched = Watched(handle=handle, label=label, asynchronous=asynchronous, answered=time.monotonic())
        with self._lock:
            self._watched[key] = watched
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def guard(self, processes: Sequence[psutil.Process]) -> None:
        """Watch Ray's own processes; none: Ray is about to be stopped."""
        with self._lock:
            self._ray = dict.fromkeys(processes)

    def clear(self) -> None:
        """Ray has ended, with every actor."""
        with self._lock:
            self._ray, self._watched, self._gone = {}, {}, {}

    def remove(self, handle: Any) -> Watched | None:
        """Stop watching an actor that is stopped on purpose."""
        with self._lock:
            return self._forget(handle._actor_id.hex())

    def about(self, actor_id: str | None) -> Watched | None:
        """What is known of an actor, also of a dead one."""
        with self._lock:
            return self._watched.get(actor_id or "") or self._gone.get(actor_id or "")

    def local_pids(self) -> list[int]:
        """Process ids of the actors on this machine."""
        with self._lock:
            return [one.pid for one in self._watched.values() if one.local]

    def silent_hosts(self, handles: Sequence[Any]) -> set[str]:
        """Other machines on which one of these is dead, or has not answered for some pings."""
        own, now = socket.gethostname(), time.monotonic()
        with self._lock:
            gone = [self._gone[key] for handle in handles if (key := handle._actor_id.hex()) in self._gone]
            known = [self._watched[key] for handle in handles if (key := handle._actor_id.hex()) in self._watched]
        late = [one for one in known if now - one.answered > 3 * PING_S]
        return {one.host for one in (*gone, *late) if one.host} - {own}

    def idle_s(self, handles: Sequence[Any]) -> float:
        """Seconds in which none of these computed; 0 if one of them is unknown or did."""
        known = [self.about(handle._actor_id.hex()) for handle in handles]
        since = [one.idle_since if one and one.pid else time.monotonic() for one in known]
        idle = time.monotonic() - max(since, default=time.monotonic())
        return 0.0 if idle > SILENT_S and any(one.helped for one in known if one) else idle

    def _forget(self, key: str) -> Watched | None:
        if (found := self._watched.pop(key, None)) is not None:
            self._gone[key] = found
            for old in list(self._gone)[:-200]:
                del self._gone[old]
        return found

    def _run(self) -> None:
        import ray

        last = time.monotonic()
        while ray.is_initialized():
            with self._lock:
                watched = dict(self._watched)
            began = time.monotonic()
            if began - last > 3 * PING_S:  # this process itself stood still
                for one in watched.values():
                    one.answered = one.idle_since = began
                    one.stopped_since = None
            last = began
            try:
                self._ask(watched)
            except Exception as error:  # Ray is shutting down
                if not ray.is_initialized():
                    return
                echo(f"the heartbeat could not ask: {error}", err=True)
            self._end_stopped({one.pid for one in watched.values()})
            while time.monotonic() - began < PING_S:
                self._look_at_ray()
                time.sleep(0.5)

    def _ask(self, watched: dict[str, Watched]) -> None:
        """One round over all actors."""
        import ray

        for key, one in list(watched.items()):
            try:
                if one.ping is None and one.asynchronous and not one.pid:
                    one.handle.pulse.remote()
                one.ping = one.ping or one.handle.beat.options(concurrency_group=GROUP).remote()
            except Exception:  # its Ray has ended
                del watched[key]
                with self._lock:
                    self._forget(key)
        pings = [one.ping for one in watched.values()]
        ready = set(ray.wait(pings, num_returns=len(pings), timeout=1.0)[0]) if pings else set()
        for key, one in watched.items():
            now, wrong = time.monotonic(), ""
            if one.ping in ready:
                ping, one.ping = one.ping, None
                try:
                    wrong = one.beat(now, ray.get(ping, timeout=PING_S))
                except Exception:  # it is dead: Ray tells its callers
                    with self._lock:
                        self._forget(key)
                    continue
            else:
                wrong = one.silent(now)
            if wrong:
                self._end(key, one, wrong)

    def _end(self, key: str, one: Watched, wrong: str) -> None:
        import ray

        with self._lock:
            if self._forget(key) is None:  # stopped on purpose meanwhile
                return
        one.why = f"it hung: {wrong}"
        echo(f"{one.name} hung: {wrong}; it is killed", err=True)
        if process := one.local:
            process.send_signal(signal.SIGKILL)
        else:
            ray.kill(one.handle)

    def _end_stopped(self, known: set[int]) -> None:
        """Kill actors that are stopped before their first answer; only of our own Ray.

        A run started by this process has its own Ray and heartbeat, which names its actors.
        """
        now, still = time.monotonic(), {}
        for process in self._actors():
            try:
                if process.pid in known or process.status() not in _STOPPED or not process.name().startswith("ray::"):
                    continue
                still[process.pid] = since = self._stopped.get(process.pid, now)
                if now - since >= STOPPED_S:
                    echo(f"{process.name()} (pid {process.pid}) hung: its process is stopped; it is killed", err=True)
                    process.kill()
            except psutil.Error:
                continue
        self._stopped = still

    def _actors(self) -> list[psutil.Process]:
        """Children of our Ray's own processes: actors, and others."""
        with self._lock:
            guarded = list(self._ray)
        found: list[psutil.Process] = []
        for process in guarded:
            with suppress(psutil.Error):
                found += process.children()
        return found

    def _look_at_ray(self) -> None:
        now = time.monotonic()
        with self._lock:
            guarded = list(self._ray.items())
        for process, since in guarded:
            try:
                status, name = process.status(), process.name()
            except psutil.Error:
                status, name = psutil.STATUS_DEAD, getattr(process, "_name", None) or "a process"
            wrong = ""
            if status in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE):
                wrong = "died (killed, or out of memory)"
            elif status in _STOPPED and since is not None and now - since >= STOPPED_S:
                wrong = f"hung: its process has been stopped for {now - since:.0f} s"
            with self._lock:
                if process not in self._ray:
                    return
                self._ray[process] = (since or now) if status in _STOPPED else None
                if wrong:
                    self._ray = {}
            if wrong:
                return self.lost(f"Ray's {name} (pid {process.pid} on {socket.gethostname()}) {wrong}")


def kill_quietly(pid: int) -> None:
    """SIGKILL, also to stopped processes; nothing if it is gone."""
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)


WATCH = Watch()
