"""Where a run's tasks come from: the world's endless stream, or the user's own rows, by position."""

from __future__ import annotations

from envs.base import Task
from envs.tasks_io import load_tasks
from envs.world.environment import WorldEnvironment
from parl.config import Config
from parl.errors import UserError


class TrainTasks:
    """Training tasks by position in a stream that is a function of the config's seed."""

    def __init__(self, config: Config) -> None:
        self._own = _own_tasks(config, "train")
        self._stream = None if self._own else WorldEnvironment(config.envs.world).task_stream("train", config.seed)

    def take(self, start: int, count: int) -> list[Task]:
        """Tasks ``start`` to ``start + count``; own tasks are gone through in order, again and again."""
        if self._own:
            return [self._own[i % len(self._own)] for i in range(start, start + count)]
        assert self._stream is not None
        return [self._stream[i] for i in range(start, start + count)]


def held_out_tasks(config: Config) -> list[Task]:
    """The evaluation's tasks: the first ``eval.tasks`` distinct ones of its split."""
    own = _own_tasks(config, config.eval.split)
    if own:
        return own[: config.eval.tasks]
    stream = WorldEnvironment(config.envs.world).task_stream(config.eval.split, config.eval.seed)
    tasks: dict[str, Task] = {}
    for task in stream:
        tasks.setdefault(task.key, task)
        if len(tasks) == config.eval.tasks:
            break
    return list(tasks.values())


def check_tasks(config: Config) -> None:
    """Raise UserError now, not after the cold start, when the world's table or the task file is bad."""
    try:
        TrainTasks(config).take(0, 1)
        held_out_tasks(config)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error


def _own_tasks(config: Config, split: str) -> list[Task]:
    if not config.envs.tasks:
        return []
    try:
        tasks = load_tasks(config.envs.tasks, split)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    if not tasks:
        raise UserError(f"envs.tasks={config.envs.tasks} holds no task of split {split!r}")
    return tasks
