"""The heartbeat on Ray: stopped and blocked actors are found within half a minute, named, and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from parl.machine.cluster import actor, stop, wait
from parl.machine.faults import ActorLost
from parl.machine.watch import WATCH
from rollouts.beat import AsyncBeating, Beating

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Sleeper(AsyncBeating):
    """Waits, with or without blocking its event loop."""

    async def nap(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return os.getpid()

    async def block(self, seconds: float) -> None:
        time.sleep(seconds)


class Rank(Beating):
    """Computes when asked."""

    def spin(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return os.getpid()


def known(handle: object) -> int:
    """The actor's pid, once it has answered the heartbeat."""
    end = time.monotonic() + 60
    while not (found := WATCH.about(handle._actor_id.hex())) or not found.pid:  # type: ignore[attr-defined]
        assert time.monotonic() < end
        time.sleep(0.2)
    return found.pid


@pytest.mark.parametrize("cls", [Sleeper, Rank])
def test_a_stopped_actor_is_found_named_and_killed(one_ray: None, cls: type):
    handle = actor(cls, _label="the tested one 7", **({"concurrency": 10} if cls is Sleeper else {}))
    pid = known(handle)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    call = handle.nap.remote(100) if cls is Sleeper else handle.spin.remote(100)
    with pytest.raises(ActorLost, match=rf"the tested one 7 \(pid {pid} on .*is stopped") as found:
        wait(call, 120.0, [handle])
    assert time.monotonic() - began < 30
    assert "Traceback" not in str(found.value)
    time.sleep(1.0)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_blocked_event_loop_is_told_from_a_long_computation(one_ray: None):
    sleeper, rank = actor(Sleeper, _label="the blocked one", concurrency=10), actor(Rank, _label="the busy one")
    known(sleeper), known(rank)
    began = time.monotonic()
    spun = rank.spin.remote(40.0)
    with pytest.raises(ActorLost, match=r"the blocked one .*its event loop has been blocked"):
        wait(sleeper.block.remote(100.0), 120.0, [sleeper])
    assert time.monotonic() - began < 40
    assert wait(spun, 60.0, [rank], computing=True) == known(rank)
    stop([sleeper, rank])


def test_a_late_actor_is_named_by_its_deadline(one_ray: None):
    handle = actor(Sleeper, _label="the late one", concurrency=10)
    known(handle)
    with pytest.raises(Exception, match=r"the late one \(pid \d+ on .*: no answer within 1 s"):
        wait([handle.nap.remote(30.0), handle.nap.remote(0.0)], 1.0, [handle, handle])
    stop([handle])
