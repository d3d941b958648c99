"""What ``--resume`` may change: how a run is carried out, never what it computes."""

from __future__ import annotations

from pathlib import Path

import yaml

from model.files import write_text
from parl.config import Config
from parl.errors import UserError
from parl.loading import to_yaml
from parl.terminal import echo

ROUNDING = ("ranks", "threads", "micro_tokens", "parallel")  # of trainer: these change the order of sums
FREE = ("checkpoint_every", "keep_checkpoints", "keep_best", "step_s")  # ... and these nothing


def continue_run(file: Path, config: Config) -> None:
    """Check that ``config`` may continue the run whose configuration is ``file``, and write what it changes there.

    UserError when it is another run. A line is printed where the run will be equal to rounding only.
    """
    before, now = yaml.safe_load(file.read_text()), yaml.safe_load(to_yaml(config))
    was, will = (tree.pop("trainer") for tree in (before, now))
    changed = [name for name in sorted(was.keys() | will) if was.get(name) != will.get(name)]
    if before != now or not set(changed) <= {*ROUNDING, *FREE}:
        allowed = ", ".join(f"trainer.{name}" for name in (*ROUNDING, *FREE))
        raise UserError(
            f"{file} differs from this configuration in more than {allowed}: resume with the same one, or start"
            " without --resume"
        )
    for name in changed:
        if name in ROUNDING:
            echo(f"trainer.{name} was {was.get(name)} and is {will[name]} now: equal to rounding, not to the bit")
    if changed:
        write_text(file, to_yaml(config))
