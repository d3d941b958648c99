"""An event loop on a clock of its own: the process's CPU time, with the time that it would have slept skipped.

What runs on it takes as long as on an idle core and a perfect timer, whatever else the machine does, and sleeping costs
nothing. For benchmarks and tests: nothing outside the process may be waited for, since waiting takes no time here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any


class SkippingLoop(asyncio.SelectorEventLoop):
    """``time()`` is the CPU seconds of this process plus the seconds of sleep that were skipped."""

    def __init__(self, *, cpu: bool = True) -> None:
        """``cpu=False``: computing takes no time either, which makes a run on this clock repeatable."""
        super().__init__()
        self._cpu, self._skipped = cpu, 0.0
        select = self._selector.select  # pyright: ignore[reportAttributeAccessIssue]

        def skip(timeout: float | None) -> Any:
            events = select(0)
            if not events and timeout:
                self._skipped += timeout
            return events

        self._selector.select = skip  # pyright: ignore[reportAttributeAccessIssue]

    def time(self) -> float:
        """Seconds on this loop's clock."""
        return (time.process_time() if self._cpu else 0.0) + self._skipped


def run_on(loop: type[asyncio.AbstractEventLoop] | Any, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``work`` on a loop that ``loop()`` makes."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)
