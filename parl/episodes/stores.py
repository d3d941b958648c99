"""Finds stored episodes: from a run, a store's folder or one shard to shards and their run.

A run keeps its training episodes in ``episodes/``, the single agent's in ``single_agent/episodes/``,
evaluations in ``evals/LABEL-HASH/``. Older runs have the evaluation of their end in ``eval/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parl.config.runs import named_path, runs_there
from parl.errors import UserError
from rollouts.store import lookup
from rollouts.store.outline import Outline, read_outlines, shard_paths
from rollouts.store.store import SHARD_NAME, StoreError

STORES = "stores"  # of a run's summary.json: label -> the store of the evaluation at its end
_DEPTH = 3  # maximum depth of a store below its run: RUN/single_agent/episodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A folder of shards, or one shard of it; ``run`` is its run, or None."""

    folder: Path
    shards: tuple[Path, ...]
    run: Path | None

    @property
    def name(self) -> str:
        """The folder relative to the run: ``episodes``, ``single_agent/episodes``, ``eval``, ..."""
        return str(self.folder.absolute().relative_to(self.run)) if self.run else self.folder.name

    @property
    def single_agent(self) -> bool:
        """Whether these episodes trained the single agent."""
        return self.name.startswith("single_agent")

    def outlines(self, *, texts: bool = True, kind: str | None = None) -> Iterator[Outline]:
        """Its episodes; StoreError if something is damaged."""
        shards = [path for path in self.shards if kind is None or kind_of(path) == kind]
        return read_outlines(shards, texts=texts)


def kind_of(shard: Path) -> str:
    """``train`` of ``train-000012.parquet``; UserError for a file with another form of name."""
    name = SHARD_NAME.fullmatch(shard.name)
    if not name:
        raise UserError(f"{shard}: a shard is named KIND-STEP.parquet, e.g. train-000012.parquet")
    return name[1]


def find_stores(given: Path) -> list[Store]:
    """The stores in ``given``: a run's folder or name, a store's folder, or a shard; UserError if none."""
    path = named_path(given)
    if path.is_file():
        kind_of(path)
        return [Store(folder=path.parent, shards=(path,), run=_run_of(path.parent))]
    if not path.is_dir():
        raise UserError(f"no run, store or shard {given}{runs_there()}")
    folders = [
        path,
        path / "episodes",
        path / "single_agent" / "episodes",
        path / "eval",
        *sorted(path.glob("evals/*")),
    ]
    stores = []
    for folder in folders:
        shards = tuple(shard_paths(folder)) if folder.is_dir() else ()
        if shards:
            stores.append(Store(folder=folder, shards=shards, run=_run_of(folder)))
    if not stores:
        raise UserError(
            f"{path} holds no episodes: no KIND-STEP.parquet in it, nor in its episodes/, eval/ or evals/*/"
        )
    return stores


def final_stores(run: Path) -> dict[str, Path]:
    """Label -> store of the evaluation at the end of ``run``; all in ``eval/`` for older runs."""
    file = run / "summary.json"
    found = {kind: run / "eval" for kind, _, _ in lookup.shards(run / "eval")}
    try:
        kept = json.loads(file.read_text(encoding="utf-8")).get(STORES, {}) if file.is_file() else {}
        return found | {label: run / "evals" / Path(store).name for label, store in kept.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}; parl train {run} --resume writes it again") from None


@contextmanager
def readable() -> Iterator[None]:
    """Turn StoreError inside the block into UserError, which ends the command without a traceback."""
    try:
        yield
    except StoreError as error:
        raise UserError(str(error)) from error


def _run_of(folder: Path) -> Path | None:
    folder = folder.absolute()
    for parent in (folder, *folder.parents)[: _DEPTH + 1]:
        if (parent / "config.yaml").is_file():
            return parent
    return None
