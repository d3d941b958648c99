"""Where a run's tasks come from: the environment's stream, or the user's own rows, by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from envs.base import Readings, Task
from envs.tasks_io import TaskSource, is_there, names_file, read_tasks
from parl.cold_start.vocabulary import teacher_of
from parl.collect.fit import Context, demonstrations_that_fit, fitting
from parl.config.schema import Config
from parl.errors import UserError
from parl.shown.terminal import echo
from rewards.outcome.reach import unreachable

_LISTED = 5
_FAULTS = (ValueError, OSError, ModuleNotFoundError)  # the last: of Kimi's vocabulary, or of an extra


class TrainTasks:
    """Training tasks by position in a stream that is a function of the config's seed."""

    def __init__(self, config: Config) -> None:
        self._own = _own_tasks(config, "train")
        self._stream = None if self._own else config.envs.build().task_stream("train", config.seed)

    def take(self, start: int, count: int) -> list[Task]:
        """Tasks ``start`` to ``start + count``; own tasks are gone through in order, again and again."""
        if self._own:
            return [self._own[i % len(self._own)] for i in range(start, start + count)]
        assert self._stream is not None
        return [self._stream[i] for i in range(start, start + count)]


def held_out_tasks(config: Config) -> list[Task]:
    """The evaluation's tasks: the first ``eval.tasks`` distinct ones of its split, or as many as there are."""
    own = _own_tasks(config, config.eval.split)
    if own:
        return own[: config.eval.tasks]
    return config.envs.build().held_out(config.eval.split, config.eval.seed, config.eval.tasks)


def check_tasks(config: Config) -> None:
    """Raise UserError now, not after the cold start, when the environment's data or the task file are bad.

    What is worth a word but no mistake is printed to standard error, a line each, as soon as it is known.
    """
    for note in data_notes(config):
        echo(f"note: {note}", err=True)


def data_notes(config: Config, *, estimate: bool = False) -> Iterator[str]:
    """Check all data of ``config``; what its user should know before it is used. UserError with all mistakes.

    ``estimate``: count tokens with another starter's vocabulary rather than train the run's own.
    """
    seen: set[str] = set()
    try:
        for note in _checked(config, Context(config, estimate=estimate)):
            if note not in seen:
                yield note
            seen.add(note)
    except _FAULTS as error:
        raise UserError(str(error)) from error


def _checked(config: Config, context: Context) -> Iterator[str]:
    """What takes long comes last."""
    environment, own = config.envs.build(), config.envs.tasks
    yield from environment.notes()
    if config.model.init is None:
        teacher_of(config, environment)
    if own:
        for split in ("train", config.eval.split):
            yield from _own_notes(config, split, context)
    else:
        TrainTasks(config).take(0, 1)
        found = len(held_out_tasks(config))
        if found < config.eval.tasks:
            yield (
                f"eval.tasks = {config.eval.tasks}: this environment has {found} distinct tasks of split"
                f" {config.eval.split}; the evaluation takes these"
            )
    if (own or environment.foreign) and config.model.init is None:
        yield (
            "the policy is trained from scratch on the generated world's words and cannot read real ones: of your own"
            " words expect an item-F1 near 0; name a pretrained checkpoint with model.init to go beyond that"
        )
    if (readings := environment.readings()) is not None:
        yield from _reading_notes(config, readings, context)


# ---------------------------------------------------------------- what agents read


def _reading_notes(config: Config, readings: Readings, context: Context) -> Iterator[str]:
    """Of texts and demonstrations, as far as they do not fit."""
    source, texts = readings.source, readings.texts
    long = [name for name, text in texts if context.page_too_long(text)]
    if long:
        shown = ", ".join(name[:40] for name in long[:_LISTED]) + (" ..." if len(long) > _LISTED else "")
        said = f"{source}: {len(long)} of {len(texts)} {readings.what} that do not fit {context.name} = {context.limit}"
        if len(long) == len(texts):
            raise UserError(f"{said} ({shown}); nothing is left: shorten their cells or raise {context.name}")
        yield f"{said}, so nothing about them can be read: {shown}"
    if config.model.init is not None:
        return
    fit, made, shortest = demonstrations_that_fit(config, context)
    limit = config.model.max_position_embeddings
    if not fit:
        raise UserError(
            f"{source}: none of {made} demonstrations over this table fits model.max_position_embeddings = {limit} (the"
            f" shortest has {shortest} tokens): shorten its cells, use fewer columns, lower envs.config.widths, or"
            " raise model.max_position_embeddings"
        )
    if fit < made:
        yield (
            f"{source}: {made - fit} of {made} demonstrations are longer than model.max_position_embeddings = {limit}"
            " and are left out of the cold start: it sees fewer wide tables"
        )


# ---------------------------------------------------------------- own tasks


def _own_notes(config: Config, split: str, context: Context) -> Iterator[str]:
    assert config.envs.tasks
    source, rows = _rows(config.envs.tasks, split)
    yield from (f"{source.name}: {note}" for note in source.notes)
    long = [(where, tokens) for where, task in rows if (tokens := context.too_long(task)) is not None]
    if long:
        said = (
            f"{source.name}: {len(long)} of {len(rows)} prompts of split {split} leave no room to answer within"
            f" {context.name} = {context.limit}: {_places(long)}"
        )
        if len(long) == len(rows):
            raise UserError(f"{said}; nothing is left: shorten the prompts or raise {context.name}")
        yield f"{said}; they are left out"
    left = len(rows) - len(long)
    if split == "train" and left < config.rollouts.tasks_per_step:
        yield (
            f"{source.name}: {left} tasks to train on, fewer than rollouts.tasks_per_step ="
            f" {config.rollouts.tasks_per_step}: a step asks some twice and gets the same episodes; set it to {left} or"
            " give more rows"
        )
    if split != "train" and left < config.eval.tasks:
        yield f"eval.tasks = {config.eval.tasks}: {source.name} has {left} of split {split}; all are used"


def _rows(spec: str, split: str) -> tuple[TaskSource, list[tuple[str, Task]]]:
    """The source of own tasks, and what of it belongs to ``split``, each with its line or row. A file is read once."""
    if names_file(spec) and is_there(path := Path(spec)):
        stamp = path.stat()
        source = _file(spec, stamp.st_mtime_ns, stamp.st_size)
    else:
        source = read_tasks(spec, split, _fault)
    pairs = zip(source.where, source.tasks, strict=True)
    rows = [(where, replace(task, split=split)) for where, task in pairs if task.split in ("", split)]
    if not rows:
        counts = Counter(task.split for task in source.tasks)
        counted = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
        raise UserError(
            f"{source.name}: no task of split {split!r}, where at least one is needed; the file has {counted}. Give"
            f" rows the split {split!r}, or leave the column out: then training and evaluation share all rows"
        )
    return source, rows


@lru_cache(maxsize=2)
def _file(spec: str, changed_ns: int, size: int) -> TaskSource:
    """The rows of a file; those without a split have none yet."""
    return read_tasks(spec, "", _fault)


def _fault(task: Task) -> str | None:
    return unreachable(task.gold)


def _places(long: Sequence[tuple[str, int]]) -> str:
    kind = long[0][0].partition(" ")[0]
    numbers = ", ".join(f"{where.partition(' ')[2]} ({tokens} tokens)" for where, tokens in long[:_LISTED])
    more = f" and {len(long) - _LISTED} more" if len(long) > _LISTED else ""
    return f"{kind}{'s' if len(long) > 1 else ''} {numbers}{more}"


def _own_tasks(config: Config, split: str) -> list[Task]:
    if not config.envs.tasks:
        return []
    try:
        fit = fitting(config, [task for _, task in _rows(config.envs.tasks, split)[1]])
    except _FAULTS as error:
        raise UserError(str(error)) from error
    if not fit:
        raise UserError(f"envs.tasks = {config.envs.tasks}: no prompt of split {split!r} fits the context")
    return fit
