"""``parl`` that kills itself: ``python killed_run.py MOMENT CALL train tiny.yaml ...``.

SIGKILL strikes at MOMENT, in the CALL-th call of its function.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from parl.cli.main import main
from parl.collect.collector import Collector
from parl.run.checkpoints import Checkpoints
from rollouts.store.store import EpisodeStore


def die(*_: Any) -> None:
    """Like ``kill -9``: no handler, no ``finally``, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def while_collecting(collect: Callable[..., Any]) -> Callable[..., Any]:
    """One group has arrived, the others have not."""
    return lambda *args, **kwargs: collect(*args, **{**kwargs, "progress": die})


def after_the_store_write(write: Callable[..., Any]) -> Callable[..., Any]:
    """The episodes are durable, but not trained on."""
    return lambda *args, **kwargs: die(write(*args, **kwargs))


def during_the_checkpoint(commit: Callable[..., Any]) -> Callable[..., Any]:
    """The step is logged and the learner's files are in the unfinished checkpoint."""
    return die


MOMENTS = {
    "collecting": (Collector, "collect", while_collecting),
    "stored": (EpisodeStore, "write", after_the_store_write),
    "checkpoint": (Checkpoints, "commit", during_the_checkpoint),
}


def arm(moment: str, call: int) -> None:
    """Replace the moment's function by one that dies in its ``call``-th call."""
    owner, name, deadly = MOMENTS[moment]
    original, count = getattr(owner, name), 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return (deadly(original) if count == call else original)(*args, **kwargs)

    setattr(owner, name, counting)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["parl", *sys.argv[3:]]
    main()
