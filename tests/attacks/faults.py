"""Process faults: runs of ``benchmarks/faults.py``. Faults are reported, and learning is unchanged."""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack, NotHere

sys.path.append(str(Path(__file__).resolve().parents[2]))  # folder of the benchmarks


@functools.cache
def _striker() -> Any:
    """One for all cases, which share the undisturbed runs until the process ends."""
    from benchmarks.faults import Striker

    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Striker(folder)


def _strike(fault: Any, _: Path) -> None:
    from benchmarks import faults

    try:
        row = _striker().strike(fault)
    except faults.NotHere as lacks:
        raise NotHere(str(lacks)) from lacks
    assert not faults.bad(row), row


def cases() -> list[Attack]:
    """One for each fault of the benchmark."""
    from benchmarks.faults import FAULTS

    return [Attack(area="process faults", name=fault.name, run=partial(_strike, fault)) for fault in FAULTS]
