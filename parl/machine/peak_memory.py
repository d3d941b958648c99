"""Memory of a run's process tree, sampled."""

from __future__ import annotations

import threading

import psutil


class PeakMemory:
    """Peak memory of this process and its descendants, in GiB.

    Proportional set sizes: pages shared by several processes (libraries, the object store) count once.
    """

    def __init__(self, interval_s: float = 5.0) -> None:
        self.peak_gib = 0.0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(self._interval_s):
            self.peak_gib = max(self.peak_gib, sum(map(_bytes, [me, *me.children(recursive=True)])) / 2**30)


def _bytes(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
        return getattr(info, "pss", info.rss)
    except psutil.Error:  # it ended, or is not accessible
        return 0
