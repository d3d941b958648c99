"""Benchmarks by name; another one is named by ``package.module:Class``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envs.benchmarks.base import MANIFEST, Benchmark
from envs.named import named

BENCHMARKS = {
    "widesearch": "envs.benchmarks.widesearch:WideSearch",
    "browsecomp": "envs.benchmarks.browsecomp:BrowseComp",
    "browsecomp-plus": "envs.benchmarks.browsecomp:BrowseCompPlus",
    "hotpotqa": "envs.benchmarks.multihop:HotpotQA",
    "2wiki": "envs.benchmarks.multihop:TwoWiki",
    "musique": "envs.benchmarks.multihop:MuSiQue",
    "frames": "envs.benchmarks.frames:Frames",
    "harbor": "envs.benchmarks.harbor:Harbor",
    "mockups": "envs.benchmarks.mockups:Mockups",
}


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of a benchmark; ValueError names those that there are."""
    if name not in BENCHMARKS and ":" not in name:
        raise ValueError(f"there is no benchmark {name!r}: {', '.join(BENCHMARKS)}, or package.module:Class")
    found = named(BENCHMARKS.get(name, name), "NAME")
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        raise ValueError(f"{name} is no class derived from envs.benchmarks.base.Benchmark")
    return found


def prepared(folder: Path, settings: dict[str, Any] | None = None) -> Benchmark:
    """The benchmark of a prepared folder; ValueError if it is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} is no prepared benchmark: parl bench prepare NAME --from PATH --to {folder}"
        ) from None
    return benchmark_class(manifest["benchmark"])(folder, settings)
