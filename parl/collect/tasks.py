"""The tasks of a run by position: from the environment's stream, or the user's own rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial, wraps
from pathlib import Path
from typing import Any

from envs.base import Environment, Readings, Repeated, Task, TaskStream
from envs.tasks_io import TaskSource, is_there, names_file, read_tasks
from parl.cold_start.conversations import read_conversations
from parl.cold_start.demos import Demonstrator
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import teacher_of
from parl.collect.fit import Context, demonstrations_that_fit, policy_tokenizer
from parl.config.schema import TEACHER, Config, EnvsFields, EvalConfig
from parl.episodes.groups import families
from parl.errors import UserError
from parl.shown.terminal import echo
from rewards.base import Reward
from rewards.outcome.reach import unreachable
from rewards.parl_reward import Parl
from rewards.scoring import check_scoring

_LISTED = 5
_FAULTS = (ValueError, OSError, ModuleNotFoundError)  # the last: an extra is missing


class Tasks:
    """The tasks of one run: the user's, as far as they fit ``context``, else the environment's."""

    def __init__(
        self, envs: EnvsFields, environment: Environment, evaluation: EvalConfig, context: Context, seed: int
    ) -> None:
        """``seed``: of the training stream."""
        self.environment, self.context = environment, context
        self._file, self._evaluation, self._seed = envs.tasks, evaluation, seed

    def take(self, start: int, count: int) -> list[Task]:
        """Training tasks ``start`` to ``start + count``; own tasks are repeated in order."""
        return [self._stream[i] for i in range(start, start + count)]

    @cached_property
    def _stream(self) -> TaskStream:
        own = self._own("train")
        return Repeated(own) if own else self.environment.task_stream("train", self._seed)

    def held_out(self) -> list[Task]:
        """The evaluation's tasks: the first ``eval.tasks`` distinct ones of its split, or as many as exist."""
        asked = self._evaluation
        own = self._own(asked.split)
        return own[: asked.tasks] if own else self.environment.held_out(asked.split, asked.seed, asked.tasks)

    def known(self) -> list[Task]:
        """All own tasks of training and evaluation; of the environment's the first and the held-out ones."""
        return [*(self._own("train") or self.take(0, 1)), *self.held_out()]

    def families(self) -> set[str] | None:
        """The families that there are; None if an environment does not tell its own."""
        told = () if self._file else families(self.environment.groups)
        return {*told, *(task.family for task in self.known())} if told or self._file else None

    def _own(self, split: str) -> list[Task]:
        if not self._file:
            return []
        try:
            fit = [task for _, task in _rows(self._file, split)[1] if self.context.too_long(task) is None]
        except _FAULTS as error:
            raise UserError(str(error)) from error
        if not fit:
            raise UserError(f"envs.tasks = {self._file}: no prompt of split {split!r} fits the context")
        return fit


def run_tasks(config: Config, *, estimate: bool = False) -> Tasks:
    """The tasks of a run of ``config``; ``estimate`` as in :func:`data_notes`."""
    environment = config.envs.build()
    tokenizer = partial(policy_tokenizer, Recipe.of(config), estimate=estimate)
    context = Context(config.model, config.rollouts, environment.tools(), tokenizer)
    return Tasks(config.envs, environment, config.eval, context, config.seed)


def check_tasks(config: Config) -> Tasks:
    """The run's tasks. UserError if the environment's data or the task file are bad.

    Prints notes to standard error, one per line.
    """
    tasks = run_tasks(config)
    for note in data_notes(config, tasks):
        echo(f"note: {note}", err=True)
    return tasks


def _once(notes: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """Each note once; faults in the data are UserErrors."""

    @wraps(notes)
    def told(*given: Any) -> Iterator[str]:
        seen: set[str] = set()
        try:
            for note in notes(*given):
                if note not in seen:
                    yield note
                seen.add(note)
        except _FAULTS as error:
            raise UserError(str(error)) from error

    return told


@_once
def data_notes(config: Config, tasks: Tasks) -> Iterator[str]:
    """Check all data of ``config``, in order of cost, and yield notes for the user. UserError with all mistakes."""
    environment, evaluation, scratch = tasks.environment, config.eval, config.model.init is None
    taught = scratch or config.sft.data == TEACHER
    yield from environment.notes()
    if environment.drives and config.trainer.staleness:
        raise UserError(
            f"trainer.staleness={config.trainer.staleness}: programs of envs.name={config.envs.name} cannot be halted"
            " while weights change: set it to 0"
        )
    if taught:
        teacher_of(Recipe.of(config), environment)
    elif config.sft.data is not None:
        read_conversations(Path(config.sft.data))
    if own := config.envs.tasks:
        wanted = ("rollouts.tasks_per_step", config.rollouts.tasks_per_step)
        yield from _own_notes(own, "train", wanted, tasks.context)
        yield from _own_notes(own, evaluation.split, ("eval.tasks", evaluation.tasks), tasks.context)
        if config.sft.enough is not None:
            yield from _own_notes(own, "val", ("sft.check_tasks", config.sft.check_tasks), tasks.context)
    else:
        tasks.take(0, 1)
        found = len(tasks.held_out())
        if found < evaluation.tasks:
            yield (
                f"eval.tasks = {evaluation.tasks}: this environment has {found} distinct tasks of split"
                f" {evaluation.split}; the evaluation takes these"
            )
    check_scoring(config.rewards, tasks.known())
    _check_families(config.rewards, tasks)
    if (own or environment.foreign) and scratch:
        yield (
            "the policy is trained from scratch on the generated world's words and cannot read real ones: of your own"
            " words expect an item-F1 near 0; name a pretrained checkpoint with model.init to go beyond that"
        )
    if (readings := environment.readings()) is not None:
        yield from _reading_notes(readings, tasks.context)
        if taught:
            demos = Demonstrator(Recipe.of(config), tasks.context.tokenizer)
            yield from _demonstration_notes(readings.source, demos, config.model.max_position_embeddings)


def _check_families(rewards: Reward, tasks: Tasks) -> None:
    """UserError for a family to be measured that no task has, where all families are known."""
    asked = rewards.saturation.families if isinstance(rewards, Parl) else ()
    known = tasks.families() if asked else None
    if known is not None and (unknown := [name for name in asked if name not in known]):
        raise UserError(
            f"rewards.saturation.families: no task is of the family {', '.join(unknown)}; there are:"
            f" {', '.join(sorted(known))}"
        )


# ---------------------------------------------------------------- what agents read


def _reading_notes(readings: Readings, context: Context) -> Iterator[str]:
    """Notes on texts that do not fit."""
    source, texts = readings.source, readings.texts
    long = [name for name, text in texts if context.page_too_long(text)]
    if long:
        shown = ", ".join(name[:40] for name in long[:_LISTED]) + (" ..." if len(long) > _LISTED else "")
        said = f"{source}: {len(long)} of {len(texts)} {readings.what} that do not fit {context.name} = {context.limit}"
        if len(long) == len(texts):
            raise UserError(f"{said} ({shown}); nothing is left: shorten their cells or raise {context.name}")
        yield f"{said}, so nothing about them can be read: {shown}"


def _demonstration_notes(source: str, demos: Demonstrator, limit: int) -> Iterator[str]:
    """Notes on demonstrations that do not fit ``limit`` tokens."""
    fit, made, shortest = demonstrations_that_fit(demos, limit)
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


def _own_notes(file: str, split: str, wanted: tuple[str, int], context: Context) -> Iterator[str]:
    """Notes on the user's tasks. ``wanted``: the key with the number of tasks, and that number."""
    source, rows = _rows(file, split)
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
    key, number = wanted
    if left >= number:
        return
    if split == "train":
        yield (
            f"{source.name}: {left} tasks to train on, fewer than {key} = {number}: a step asks some twice and gets"
            f" the same episodes; set it to {left} or give more rows"
        )
    else:
        yield f"{key} = {number}: {source.name} has {left} of split {split}; all are used"


def _rows(spec: str, split: str) -> tuple[TaskSource, list[tuple[str, Task]]]:
    """The source of own tasks, and those of ``split``, each with its line or row. A file is read once."""
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
    """The rows of a file; rows without a split have none yet."""
    return read_tasks(spec, "", _fault)


def _fault(task: Task) -> str | None:
    return unreachable(task.gold)


def _places(long: Sequence[tuple[str, int]]) -> str:
    kind = long[0][0].partition(" ")[0]
    numbers = ", ".join(f"{where.partition(' ')[2]} ({tokens} tokens)" for where, tokens in long[:_LISTED])
    more = f" and {len(long) - _LISTED} more" if len(long) > _LISTED else ""
    return f"{kind}{'s' if len(long) > 1 else ''} {numbers}{more}"
