"""Weights that ``model.init`` names, in a run's own layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.decoder import export_weights
from model.family import Shape, either_chat, family_of
from model.files import remove_leftovers
from model.policy_files import SINGLE, save_policy
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer
from parl.cold_start.shipped import init_key
from parl.config.schema import PolicyFields
from parl.errors import UserError
from parl.machine.ownership import owning


def taken_over(model: PolicyFields, work: Path, *, again: bool = False) -> Path:
    """A copy of ``model.init`` as a policy's folder in ``work``, cached until its files change.

    UserError says what is wrong with it, by file and tensor.
    """
    assert model.init is not None
    folder = work / f"init-{init_key(model)}"
    if again or not (folder / SINGLE).exists():
        with owning_cold_start(folder):
            _take_over(model.init, model.shape, folder)
    return folder


@contextmanager
def owning_cold_start(folder: Path) -> Iterator[None]:
    """To make the cold start in ``folder``; UserError where another process is making it."""
    cure = "start again when it is there: runs of the same configuration share it"
    with owning(folder.parent, f"the cold start {folder.name}", cure, name=f".{folder.name}.lock"):
        remove_leftovers(folder.parent, f"{folder.name}.*")
        yield


def check_placeholder(model: Shape, tokenizer: Tokenizer) -> None:
    """UserError where ``model`` takes another token for a picture's placeholder than the template writes."""
    if model.pictures is None:
        return
    chat, given = family_of(model).chat(model, tokenizer), model.picture_id
    if given != chat.picture_id:
        raise UserError(
            f"model.media_placeholder_token_id={given} is not the tokenizer's id of {chat.picture}: set it to"
            f" {chat.picture_id}"
        )


def _take_over(init: Path, shape: Shape, folder: Path) -> None:
    try:
        tokenizer = load_tokenizer(init)
        check_tokenizer(shape, tokenizer, init)
        model = family_of(shape).load_parts(init, shape)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"model.init: {error}") from error
    except ModuleNotFoundError as error:  # Kimi's vocabulary without its extra
        raise UserError(f"model.init = {init}: {error}") from error
    save_policy(folder, shape, export_weights(model), tokenizer, {"init": str(init)}, dtype=shape.weights_dtype)


def check_tokenizer(shape: Shape, tokenizer: Tokenizer, init: Path) -> None:
    """UserError where the tokenizer does not go with the embedding, or has no chat format. Reads no weights."""
    if tokenizer.vocab_size > shape.vocab_size:
        raise UserError(
            f"model.init: the tokenizer of {init} has {tokenizer.vocab_size} ids, its config.json has"
            f" vocab_size={shape.vocab_size} rows of the embedding: they are not of one model"
        )
    try:
        either_chat(shape, tokenizer)
    except ValueError as error:
        raise UserError(f"model.init = {init}: {error}") from error
    check_placeholder(shape, tokenizer)
