"""``parl export``: a run's policy as a folder for transformers, vLLM and other readers of their format."""

from __future__ import annotations

from pathlib import Path

from model.policy_files import INDEX, SINGLE
from model.tokenizer.tokenizer import load_tokenizer
from parl.config.family import family_at
from parl.errors import UserError

FORMATS = ("hf", "kimi_k25")
DTYPES = ("float32", "bfloat16")


def export(
    run: Path, out: Path | None = None, *, format: str = "hf", int4: bool = False, dtype: str | None = None
) -> Path:
    """Write the policy of ``run`` (a run's folder, its name below runs/, or a policy's folder) to ``out``.

    ``format``: ``hf`` (deepseek_v3) or ``kimi_k25``, which also supports vision. ``int4``: routed experts
    packed as in K2.5. ``dtype`` None: float32, or what a model of transformers was trained in. The default folder is
    in ``run``, named after the format. UserError says what is wrong.
    """
    for key, value, allowed in (("--format", format, FORMATS), ("--dtype", dtype, DTYPES)):
        if value is not None and value not in allowed:
            raise UserError(f"{key} {value}: must be one of {', '.join(allowed)}")
    policy = policy_folder(run)
    out = out or policy.parent / (f"{format}-int4" if int4 else format)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: remove it, or name another folder with --out")
    try:
        family = family_at(policy)
        model, tokenizer = family.load(policy), load_tokenizer(policy)
        if model.config.pictures is not None and format == "hf":
            raise UserError(f"{policy} sees, and deepseek_v3 has no place for its vision side: give --format kimi_k25")
        cast = {"dtype": dtype} if dtype else {}
        family.export(model, tokenizer, out, format=format, int4=int4, **cast)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{policy} cannot be exported: {error}") from error
    return out


def policy_folder(run: Path) -> Path:
    """The folder of the policy of ``run``; UserError if there is none."""
    for folder in (run, run / "policy", Path("runs") / run / "policy"):
        if (folder / SINGLE).exists() or (folder / INDEX).exists():
            return folder
    raise UserError(f"no policy in {run}: name a run that has been trained (it has a folder policy), or such a folder")
