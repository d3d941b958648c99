"""What a run starts from: a cold start, or the weights that ``model.init`` names as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.policy_files import SINGLE
from model.tokenizer.tokenizer import load_tokenizer
from parl.cold_start.given import taken_over
from parl.cold_start.imitation import Check, Report, run_sft
from parl.config.schema import Config
from parl.errors import UserError
from parl.track.progress import Progress


def starting_policy(
    config: Config, *, from_scratch: bool = False, report: Report | None = None, check: Check | None = None
) -> Path:
    """The folder of the policy that training begins with and that sub-agents are frozen at.

    With ``model.init`` and nothing to imitate (``sft.data``) a copy of it in a run's own layout, cached as cold starts
    are. ``check`` as in :func:`run_sft`. UserError says what is wrong, by file and tensor.
    """
    if config.model.init is None or config.sft.data is not None:
        folder = run_sft(config, from_scratch=from_scratch, report=report, check=check)
    else:
        folder = taken_over(config.model, config.root / "cold_start", again=from_scratch)
    check_policy_files(folder, f"delete {folder}, the next start makes it again")
    return folder


def shown_start(name: str, start: Callable[..., Path]) -> Path:
    """What ``start`` returns, :func:`starting_policy` of the run ``name``, with progress shown every 5 %."""
    shown = -1

    with Progress(1, f"{name}: cold start") as progress:

        def report(done: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal shown
            if done * 20 // total != shown:
                shown = done * 20 // total
                score = f", score {metrics['score']:.2f}" if "score" in metrics else ""
                progress.phase(f"loss {metrics['loss']:.2f}, accuracy {metrics['accuracy']:.3f}{score}", done, total)

        return start(report=report)


def check_policy_files(folder: Path, cure: str) -> None:
    """UserError, ending in ``cure``, where the vocabulary or the head of the weights in ``folder`` cannot be read."""
    weights = folder / SINGLE
    try:
        load_tokenizer(folder)
        with safe_open(weights, "numpy"):
            pass
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{error}: {cure}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} is damaged ({error}): {cure}") from None
