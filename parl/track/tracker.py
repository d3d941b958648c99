"""Tracks a run's numbers: ``metrics.jsonl`` (each row once) and one W&B run (each row at least once).

If W&B fails, hangs or is absent, there is one warning and training continues. After a kill, the JSONL is
truncated to the last checkpoint's step, and rows that W&B lacks are logged again.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from model.files import write_text
from parl.config.schema import TrackingConfig
from parl.errors import UserError
from parl.machine.shell_variables import WandbMode, wandb_mode
from parl.shown.redaction import redact
from parl.track.sinks import make_sinks
from parl.track.wandb_reader import is_complete, read_history

_T = TypeVar("_T")
_KINDS = ("train", "eval")
_SETTLE_S = 5.0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without an incomplete last line; none for a missing file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines) - 1:
                break
            raise ValueError(f"{path}:{number + 1}: not a JSON row: {line[:80]!r}") from None
        if not isinstance(row, dict) or not {"step", "kind"} <= row.keys():
            raise ValueError(f"{path}:{number + 1}: no row of metrics: {line[:80]!r}")
        rows.append(row)
    return rows


def train_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of training steps; UserError if the file is damaged."""
    try:
        return [row for row in read_rows(path) if row["kind"] == "train"]
    except ValueError as error:
        raise UserError(str(error)) from None


class Tracker:
    """One run's numbers. To continue a run, create it with the last checkpoint's ``run_id`` and step.

    ``settings``: the whole configuration for W&B.
    """

    def __init__(
        self,
        run_dir: Path,
        tracking: TrackingConfig,
        run_id: str | None = None,
        resumed_step: int = 0,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.path = self.run_dir / "metrics.jsonl"
        self._run_id = run_id or secrets.token_hex(4)  # of the W&B run
        kept = self._cut(resumed_step) if run_id or resumed_step else []
        self._kept = {_identity(row) for row in kept}
        self._write_all(kept)
        self._file: IO[str] = self.path.open("a", encoding="utf-8")
        self._sinks = make_sinks(tracking, self.run_dir)
        self._run: Any = None
        mode = wandb_mode(tracking.wandb)
        self._off = mode == "disabled"
        self._run = self._safely(lambda: self._start_or_offline(tracking.project, settings or {}, mode))
        self._safely(lambda: self._log_missing(kept))

    def log(self, step: int, metrics: Mapping[str, float], kind: str = "train") -> None:
        """One row of numbers at ``step`` on the axis of ``kind`` (``train``, ``eval``)."""
        row = {"step": int(step), "kind": kind, **{name: float(value) for name, value in metrics.items()}}
        if _identity(row) in self._kept:  # logged before the resume
            return
        self._file.write(_dumps(row) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.log(step, _named(row))
        self._log_wandb(row)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run."""
        self._safely(lambda: self._run.summary.update(redact(dict(values))))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A W&B table, e.g. the evaluation's verdict."""

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Table(columns=list(columns), data=redact([list(row) for row in rows]))})

        self._safely(send)

    def artifact(self, path: Path, name: str, kind: str = "file") -> None:
        """A file or folder as a W&B artifact."""

        def send() -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind)
            path_ = Path(path)
            add = artifact.add_dir if path_.is_dir() else artifact.add_file
            add(str(path_), policy="immutable", skip_cache=True)  # no second copy on disk
            self._run.log_artifact(artifact)

        self._safely(send)

    def finish(self) -> None:
        """Close the W&B run and the JSONL; safe to call twice."""
        self._safely(self._finish_wandb)
        self._off = True
        for sink in self._sinks:
            sink.close()
        self._file.close()

    def _safely(self, act: Callable[[], _T]) -> _T | None:
        """Run ``act`` unless W&B is off; its first failure is a warning that turns W&B off."""
        if self._off:
            return None
        try:
            return act()
        except Exception as error:
            self._off = True
            warnings.warn(f"W&B failed ({type(error).__name__}: {error}); {self.path} goes on", stacklevel=3)
            return None

    def _start_or_offline(self, project: str, settings: Mapping[str, Any], mode: WandbMode) -> Any:
        """Start online; without a network keep the run on disk, for ``wandb sync``."""
        if mode != "online":
            return self._start(project, settings, mode)
        try:
            return self._start(project, settings, mode)
        except Exception as error:
            text = f"W&B is out of reach ({type(error).__name__}: {error}); the run is kept offline in {self.run_dir}"
            warnings.warn(text, stacklevel=5)
            import wandb

            wandb.teardown()  # the failed attempt's service still holds the run's id
            return self._start(project, settings, "offline")

    def _start(self, project: str, shown: Mapping[str, Any], mode: WandbMode) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            init_timeout=30,
            login_timeout=10,
            finish_timeout=120,
        )
        run = wandb.init(
            project=project,
            name=self.run_dir.name,
            id=self._run_id,
            resume="allow",
            mode=mode,
            dir=self.run_dir,
            config=redact(dict(shown)),
            settings=settings,
        )
        for kind in _KINDS:
            run.define_metric(f"{kind}/step", hidden=True)
            run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
        return run

    def _finish_wandb(self) -> None:
        self._run.finish()
        deadline = time.monotonic() + _SETTLE_S
        while not is_complete(self.run_dir, self._run_id) and time.monotonic() < deadline:
            time.sleep(0.02)  # wandb's process writes its last block a moment after finish() returns

    def _log_wandb(self, row: dict[str, Any]) -> None:
        values = _named(row)
        self._safely(lambda: self._run.log(values))

    def _log_missing(self, rows: list[dict[str, Any]]) -> None:
        """Log rows again whose W&B records were lost with the killed process."""
        if not rows:
            return
        there = {
            (kind, row[f"{kind}/step"], frozenset(name for name in row if not name.startswith("_")))
            for row in read_history(self.run_dir, self._run_id)
            for kind in _KINDS
            if f"{kind}/step" in row
        }
        for row in rows:
            kind = row["kind"]
            names = frozenset(_qualified(kind, name) for name in _finite_names(row))
            if (kind, row["step"], names) not in there:
                self._log_wandb(row)

    def _cut(self, resumed_step: int) -> list[dict[str, Any]]:
        return [row for row in read_rows(self.path) if row["step"] <= resumed_step]

    def _write_all(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.path, "".join(_dumps(row) + "\n" for row in rows))


def _named(row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row as ``KIND/NAME``."""
    return {_qualified(row["kind"], name): row[name] for name in _finite_names(row)}


def _qualified(kind: str, name: str) -> str:
    return name if name.startswith(f"{kind}/") else f"{kind}/{name}"


def _finite_names(row: dict[str, Any]) -> list[str]:
    """A row for W&B: its step and all finite numbers."""
    return [name for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)]


def _identity(row: dict[str, Any]) -> tuple[str, int, frozenset[str]]:
    return row["kind"], row["step"], frozenset(row)


def _dumps(row: dict[str, Any]) -> str:
    """JSON has no NaN and infinity: they become null."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean, ensure_ascii=False, allow_nan=False)
