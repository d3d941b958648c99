"""What ``--resume`` may change: how a run is executed and how long it is, but nothing else that it computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from model.files import write_text
from parl.config.load import to_yaml, whole_yaml
from parl.config.mistakes import leaves
from parl.config.runs import LENGTHS, lengths, run_config
from parl.config.schema import Config
from parl.errors import UserError
from parl.run.checkpoints import newest_state
from parl.shown.terminal import echo
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
    *("rollouts.max_restarts", "eval", "tracking", "baseline", "root"),
)
_STEPS = "trainer.steps"


def continue_run(run_dir: Path, config: Config) -> None:
    """Check that ``config`` may continue the run in ``run_dir``, which is locked, and write the changes.

    UserError names every key that makes it another run. Reports if the run becomes equal only to rounding, or
    longer.
    """
    earlier = run_config(run_dir)
    before, now = (dict(leaves(yaml.safe_load(to_yaml(one)))) for one in (earlier, config))
    changed = [key for key in before | now if before.get(key) != now.get(key)]
    said = {key: f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}" for key in changed}
    other = [said[key] for key in changed if key != _STEPS and not _within(key, (*ROUNDING, *FREE))]
    if other:
        free = ", ".join((*ROUNDING, *FREE))
        raise UserError(
            f"{run_dir} is another run: {'; '.join(other)}. Resume it with what it was, or start another with another"
            f" name=; free to change are {free}, and {_STEPS} may grow"
        )
    if _STEPS in changed:
        _lengthen(run_dir, earlier, config, said[_STEPS])
    for key in changed:
        if _within(key, ROUNDING):
            echo(f"{said[key]} now: equal to rounding, not to the bit")
    if changed:
        write_text(run_dir / "config.yaml", whole_yaml(config))


def _lengthen(run_dir: Path, earlier: Config, config: Config, said: str) -> None:
    """More steps: from the next one on, schedules use the new length. Reports the changes."""
    old, new = earlier.trainer.steps, config.trainer.steps
    done = newest_state(run_dir).step
    if new < old:
        raise UserError(
            f"{said}: a run cannot become shorter, its learning rate and λ have fallen as in one of {old} steps;"
            " stop it where you like, or start another with another name="
        )
    if not done:
        raise UserError(f"{said}: nothing has been trained yet, so start it without --resume")
    echo(f"{said} now: from step {done + 1} on the schedules are those of {new} steps")
    for name, (was, will) in _scheduled(earlier, config, done).items():
        echo(f"  at step {done + 1}: {name} {was:.3f} -> {will:.3f}")
    echo(f"  the result is not that of a run that was begun with {new} steps")
    for folder in (run_dir, run_dir / "single_agent"):  # collected but not trained, with rewards of the old schedule
        if folder.exists():
            EpisodeStore(folder / "episodes").discard_after(newest_state(folder).step)
    write_text(run_dir / LENGTHS, json.dumps([*lengths(run_dir, old), [done + 1, new]]) + "\n")
    if (run_dir / "summary.json").exists():  # of the shorter run
        (run_dir / "summary.json").rename(run_dir / f"summary-{old}-steps.json")


def _scheduled(earlier: Config, config: Config, done: int) -> dict[str, tuple[float, float]]:
    """Name -> (value by the old length, by the new one) for the step after ``done``, if different."""

    def values(one: Config) -> dict[str, float]:
        weights = one.rewards.weights(done, one.trainer.steps)
        share = max(1.0 - done / one.trainer.steps * (1.0 - one.optimizer.final_lr), one.optimizer.final_lr)
        return {"learning rate x": share, **{f"λ {name}": value for name, value in weights.items()}}

    was, will = values(earlier), values(config)
    return {name: (was[name], will[name]) for name in was if was[name] != will[name]}


def _within(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
