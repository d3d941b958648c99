"""An actor's heartbeat: a compiler that it started counts as computing."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from rollouts.beat import Beating, cpu_seconds


def test_a_child_that_computes_counts_while_it_runs_and_after():
    before, own = Beating().beat().cpu_s, time.process_time()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        give_up = time.monotonic() + 30
        while cpu_seconds(psutil.Process()) < before + 0.2 and time.monotonic() < give_up:
            time.sleep(0.02)
        running = cpu_seconds(psutil.Process())
        child.kill()
    assert running >= before + 0.2 > before + time.process_time() - own
    assert Beating().beat().cpu_s >= running - 0.02, "of a child that has ended nothing is taken back"
