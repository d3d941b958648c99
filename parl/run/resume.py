"""What ``--resume`` may change: how a run is executed and how long it is, but nothing else that it computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from model.files import write_text
from parl.config.load import to_yaml
from parl.config.mistakes import leaves
from parl.config.runs import LENGTHS, lengths, run_config
from parl.config.schema import Config
from parl.errors import UserError
from parl.run.checkpoints import newest_state
from parl.shown.terminal import echo
from rewards.base import Weights
from rollouts.config import CurriculumConfig
from rollouts.store.store import EpisodeStore

# Keys or sections. Episodes are functions of seeds for any number of engines and workers, unless deadlines or
# a staleness affect them; evaluation and tracking do not affect learning.
ROUNDING = ("trainer.ranks", "trainer.threads", "trainer.micro_tokens", "trainer.parallel")  # the order of sums
FREE = (
    *(
        "trainer.checkpoint_every",
        "trainer.keep_checkpoints",
        "trainer.keep_best",
        "trainer.step_s",
        "trainer.most_unread",
    ),
    *("rollouts.workers", "rollouts.concurrency", "rollouts.policy_engines", "rollouts.frozen_engines"),
    *("rollouts.max_restarts", "eval", "tracking", "cluster", "baseline", "root", "mirror"),
)
_STEPS = "trainer.steps"


def changes(run_dir: Path, text: str) -> dict[str, str]:
    """By dotted key, how the configuration in ``text`` differs from that of the run in ``run_dir``."""
    earlier, given = (yaml.safe_load(one) for one in (to_yaml(run_config(run_dir)), text))
    before, now = dict(leaves(earlier)), dict(leaves(given))
    return {
        key: f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
        for key in before | now
        if before.get(key) != now.get(key)
    }


def other_run(said: dict[str, str], *, longer: bool = False) -> list[str]:
    """Those of :func:`changes` that make another run; with ``longer`` its number of steps does not."""
    free = (*ROUNDING, *FREE, *([_STEPS] if longer else []))
    return [text for key, text in said.items() if not _within(key, free)]


def continue_run(run_dir: Path, config: Config) -> None:
    """Check that ``config`` may continue the run in ``run_dir``, which is locked, and write the changes.

    UserError names every key that makes it another run. Reports if the run becomes equal only to rounding, or
    longer.
    """
    earlier = run_config(run_dir)
    said = changes(run_dir, to_yaml(config))
    if other := other_run(said, longer=True):
        free = ", ".join((*ROUNDING, *FREE))
        raise UserError(
            f"{run_dir} is another run: {'; '.join(other)}. Resume it with what it was, or start another with another"
            f" name=; free to change are {free}, and {_STEPS} may grow"
        )
    if _STEPS in said:
        old, new, final_lr = earlier.trainer.steps, config.trainer.steps, config.optimizer.final_lr
        lambdas = partial(config.rewards.weights_after, newest_state(run_dir).schedule)
        schedules = partial(_schedules, lambdas, config.rollouts.budget.curriculum, final_lr)
        _lengthen(run_dir, old, new, said[_STEPS], schedules)
    for key in said:
        if _within(key, ROUNDING):
            echo(f"{said[key]} now: equal to rounding, not to the bit")
    if said:
        write_text(run_dir / "config.yaml", to_yaml(config, marked=True))


def _lengthen(run_dir: Path, old: int, new: int, said: str, schedules: Callable[[int, int], dict[str, float]]) -> None:
    """More steps: from the next one on, schedules use the new length. Reports the changes."""
    done = newest_state(run_dir).step
    if new < old:
        raise UserError(
            f"{said}: a run cannot become shorter, its learning rate and λ have fallen as in one of {old} steps;"
            " stop it where you like, or start another with another name="
        )
    if not done:
        raise UserError(f"{said}: nothing has been trained yet, so start it without --resume")
    echo(f"{said} now: from step {done + 1} on the schedules are those of {new} steps")
    will = schedules(done, new)
    for name, was in schedules(done, old).items():
        if was != will[name]:
            echo(f"  at step {done + 1}: {name} {was:.3f} -> {will[name]:.3f}")
    echo(f"  the result is not that of a run that was begun with {new} steps")
    for folder in (run_dir, run_dir / "single_agent"):  # collected but not trained, with rewards of the old schedule
        if folder.exists():
            EpisodeStore(folder / "episodes").discard_after(newest_state(folder).step)
    write_text(run_dir / LENGTHS, json.dumps([*lengths(run_dir, old), [done + 1, new]]) + "\n")
    if (run_dir / "summary.json").exists():  # of the shorter run
        (run_dir / "summary.json").rename(run_dir / f"summary-{old}-steps.json")


def _schedules(
    lambdas: Callable[[int, int], Weights], curriculum: CurriculumConfig, final_lr: float, done: int, steps: int
) -> dict[str, float]:
    """The values of the step after ``done``, of ``steps``, by name."""
    share = max(1.0 - done / steps * (1.0 - final_lr), final_lr)
    shown = {f"λ {name}": value for name, value in lambdas(done, steps).items()}
    return {"learning rate x": share, **shown, "critical budget x": curriculum.slack_at(done, steps)}


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
