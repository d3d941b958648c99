"""Damaged files of a run: every command reports them with their path and exit 2."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from attacks.base import Attack

TRAINED, STEP = "eval/trained-000000.parquet", "episodes/train-000002.parquet"
READERS = {  # file -> commands that read it; RUN: the run's folder, OUT: a new path
    "config.yaml": (
        *("top RUN --once", "rescore RUN", "replay RUN", "eval RUN", "train RUN --resume", "sft RUN"),
        *("rescore RUN --rewards RUN", "rescore RUN rewards.anneal=0.5"),
    ),
    "summary.json": ("report RUN --out OUT", "compare RUN"),
    "evals/summary.json": ("compare RUN",),
    "lengths.json": ("rescore RUN",),
    "metrics.jsonl": ("top RUN --once", "report RUN --out OUT"),
    TRAINED: (
        *(
            "episodes ls RUN",
            "episodes grep x RUN",
            "episodes show RUN trained-000000:0",
            "compare RUN/eval",
            "rescore RUN",
        ),
        *(
            "replay RUN",
            "report RUN --out OUT",
            "episodes export RUN --format openai --out OUT",
            "report SHARD --out OUT",
        ),
    ),
    STEP: ("episodes ls RUN", "rescore RUN", "report RUN --out OUT", "episodes show RUN train-000002:1 --raw"),
    "policy/model.safetensors": ("export RUN --out OUT", "gateway RUN", "eval RUN", "eval RUN --model RUN/policy"),
    "policy/config.json": ("export RUN --out OUT", "gateway RUN", "eval RUN"),
    "policy/tokenizer.json": (
        *("export RUN --out OUT", "gateway RUN", "eval RUN"),
        "episodes show RUN/episodes train-000002:0 --raw",
    ),
    "policy/meta.json": ("gateway RUN",),
    "checkpoints/step-000002/manifest.json": ("train RUN --resume", "train RUN --resume trainer.steps=50"),
    "COLD/model.safetensors": ("eval RUN",),
    "COLD/tokenizer.json": ("eval RUN",),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "zeroes": lambda data: bytes(len(data)),
    "rubbish": lambda data: b"\xff\xfe\x00rubbish\x1b[2J\n" * 9,
    "another kind": lambda data: b"[1, 2]\n",
}


def cases() -> list[Attack]:
    """One case per command, file and damage. An incomplete last line of metrics.jsonl is no damage."""
    found = []
    for file, commands in READERS.items():
        for damage in DAMAGE:
            for command in commands if file != "metrics.jsonl" or damage in ("rubbish", "another kind") else ():
                name = f"{file} {damage}: parl {command}"
                found.append(Attack(area="torn files", name=name, run=_try(file, damage, command)))
    return found


def _try(file: str, damage: str, command: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        made = copy_of_a_run(folder)
        root = made.parent
        path = next((root / "cold_start").glob(f"*/{file[5:]}")) if file.startswith("COLD/") else made / file
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
        given = command.replace("RUN", str(made)).replace("OUT", str(folder / "out")).replace("SHARD", str(path))
        code, said = parl(given.split())
        assert "Traceback" not in said, said[-2000:]
        assert code == 2, f"exit {code}: {said[-500:]}"
        assert path.name in said.replace("\n", ""), said
        assert "\x1b" not in said, said

    return run


def copy_of_a_run(folder: Path) -> Path:
    """A copy of the complete run in ``folder``/runs."""
    root = folder / "runs"
    shutil.copytree(_whole(), root)
    settings = root / "mine" / "config.yaml"
    settings.write_text(settings.read_text().replace(str(_whole()), str(root)))
    return root / "mine"


def parl(arguments: list[str]) -> tuple[int, str]:
    """(exit code, output) of a command that must not start Ray or a server."""
    from unittest.mock import patch

    from typer.testing import CliRunner

    from parl.cli.main import app

    with patch("ray.init", _nothing_starts), patch("uvicorn.Server.serve", _nothing_starts):
        result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def _nothing_starts(*_: object, **__: object) -> None:
    raise AssertionError("something was started")


@cache
def _whole() -> Path:
    """A root with a complete run, made once and never changed."""
    import json

    from stored import make_run
    from tiny import random_weights, tiny_config

    from model.policy_files import save_policy
    from parl.cold_start.shipped import Recipe, cold_start_hash
    from parl.cold_start.vocabulary import build_tokenizer
    from parl.run.checkpoints import Checkpoints, State
    from parl.track.tracker import _dumps

    root = Path(tempfile.mkdtemp(prefix="parl-whole-"))
    config = tiny_config(root, trainer={"steps": 4}, eval={"tasks": 3}).model_copy(update={"name": "mine"})
    run = make_run(config, steps=2, tasks=3)
    rows = [{"step": step, "kind": "train", "reward/total": 0.5, "time/step_s": 1.0} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(_dumps(row) + "\n" for row in rows))
    checkpoints, state = Checkpoints(run / "checkpoints", 2), State(step=2, policy_version=2, episodes=6)
    checkpoints.commit(state, checkpoints.begin(state, 0))
    (run / "summary.json").write_text(json.dumps({"trained": {}, "seed": 1}))
    (run / "lengths.json").write_text("[[1, 4]]\n")
    stores = {label: {"store": str(run / "evals" / f"{label}-0123456789ab")} for label in ("trained", "single_agent")}
    for label, entry in stores.items():
        Path(entry["store"]).mkdir(parents=True)
        shutil.copy(run / "eval" / f"{label}-000000.parquet", entry["store"])
    (run / "evals" / "summary.json").write_text(json.dumps({"policies": stores}))
    weights, tokenizer = random_weights(config.model.shape), build_tokenizer(Recipe.of(config))
    for folder in (run / "policy", root / "cold_start" / cold_start_hash(Recipe.of(config))):
        save_policy(folder, config.model.shape, weights, tokenizer, {"step": 4, "policy_version": 4})
    return root
