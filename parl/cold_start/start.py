"""What a run starts from: the cold start, or the weights that ``model.init`` names."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.decoder import export_weights
from model.family import Shape, family_of
from model.policy_files import SINGLE, save_policy
from model.tokenizer.tokenizer import load_tokenizer
from parl.cold_start.imitation import Report, check_placeholder, owning_cold_start, run_sft
from parl.config.load import config_hash
from parl.config.schema import Config
from parl.errors import UserError
from parl.track.progress import Progress


def starting_policy(config: Config, *, from_scratch: bool = False, report: Report | None = None) -> Path:
    """The folder of the policy that training begins with and that sub-agents are frozen at.

    With ``model.init`` a copy of it in a run's own layout, cached as the cold start is; UserError says what is wrong
    with it, by file and tensor.
    """
    if config.model.init is None:
        folder = run_sft(config, from_scratch=from_scratch, report=report)
        check_policy_files(folder, f"delete {folder}, the next start makes it again")
        return folder
    folder = config.root / "cold_start" / f"init-{_key(config.model.init, config.model.shape)}"
    if from_scratch or not (folder / SINGLE).exists():
        with owning_cold_start(folder):
            _take_over(config.model.init, config.model.shape, folder)
    check_policy_files(folder, f"delete {folder}, the next start makes it again")
    return folder


def shown_start(config: Config, from_scratch: bool) -> Path:
    """:func:`starting_policy` with its progress shown, a line every 5 %."""
    shown = -1

    with Progress(1, f"{config.name}: cold start") as progress:

        def report(done: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal shown
            if done * 20 // total != shown:
                shown = done * 20 // total
                progress.phase(f"loss {metrics['loss']:.2f}, accuracy {metrics['accuracy']:.3f}", done, total)

        return starting_policy(config, from_scratch=from_scratch, report=report)


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


def _take_over(init: Path, shape: Shape, folder: Path) -> None:
    try:
        model, tokenizer = family_of(shape).load(init), load_tokenizer(init)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"model.init: {error}") from error
    except ModuleNotFoundError as error:  # Kimi's vocabulary without its extra
        raise UserError(f"model.init = {init}: {error}") from error
    if tokenizer.vocab_size > shape.vocab_size:
        raise UserError(
            f"model.init: the tokenizer of {init} has {tokenizer.vocab_size} ids, its config.json has"
            f" vocab_size={shape.vocab_size} rows of the embedding: they are not of one model"
        )
    try:
        family_of(shape).chat(shape, tokenizer)
    except ValueError as error:
        raise UserError(f"model.init = {init}: {error}") from error
    check_placeholder(shape, tokenizer)
    save_policy(folder, shape, export_weights(model), tokenizer, {"init": str(init)})


def _key(init: Path, shape: Shape) -> str:
    """Changes when another folder is named, or when its files change."""
    files = sorted(file for file in init.iterdir() if file.is_file())
    seen = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return config_hash(shape, str(init.resolve()), *seen)
