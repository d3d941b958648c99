"""A run started by this process beside its own: its actors belong to its own heartbeat, and outlive our Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from parl.machine import processes, watch
from parl.machine.processes import no_leftovers
from parl.machine.watch import Watch

# Takes the first name for itself, starts the next ones below, prints, and waits.
NAMED = """
import subprocess, sys, time
code, name, *below = sys.argv[1:]
open("/proc/self/comm", "w").write(name)
child = below and subprocess.Popen([sys.executable, "-c", code, code, *below], stdout=subprocess.PIPE)
child and child.stdout.readline()
print("here", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes take names by /proc")


@contextmanager
def chain(*names: str) -> Iterator[list[psutil.Process]]:
    """Processes of these names, each the child of the one before."""
    with subprocess.Popen([sys.executable, "-c", NAMED, NAMED, *names], stdout=subprocess.PIPE) as first:
        assert first.stdout
        assert first.stdout.readline() == b"here\n"
        found = [psutil.Process(first.pid)]
        for _ in names[1:]:
            found += found[-1].children()
        try:
            assert [process.name() for process in found] == list(names)
            yield found
        finally:
            for process in found:
                if process.is_running():
                    process.kill()


def gone(process: psutil.Process) -> bool:
    """Whether it ends, or has ended."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_a_stopped_actor_of_another_run_below_us_is_left_to_that_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch, "STOPPED_S", 0.2)
    with chain("raylet", "ray::Own") as ours, chain("python", "raylet", "ray::Theirs") as theirs:
        heartbeat = Watch()
        heartbeat.guard([ours[0]])
        for process in (ours[-1], theirs[-1]):
            process.send_signal(signal.SIGSTOP)
        while {ours[-1].status(), theirs[-1].status()} != {psutil.STATUS_STOPPED}:
            time.sleep(0.01)
        heartbeat._end_stopped(set())
        time.sleep(0.3)
        heartbeat._end_stopped(set())
        assert gone(ours[-1])
        assert theirs[-1].status() == psutil.STATUS_STOPPED


def test_the_end_of_our_ray_leaves_the_ray_of_another_run_below_us_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "WATCH", Watch())
    shared = set(psutil.Process().children())  # the Ray of other tests in this process goes on
    with (
        chain("raylet", "ray::Earlier") as earlier,
        no_leftovers(own=True) as begun,
        chain("raylet", "ray::Own") as ours,
        chain("python", "raylet", "ray::Theirs") as theirs,
    ):
        begun()
        assert list(processes.WATCH._ray) == [ours[0]]
        processes.end_leftovers({*shared, earlier[0]})
        assert all(gone(process) for process in ours)
        assert all(process.status() == psutil.STATUS_SLEEPING for process in [*theirs, *earlier])
