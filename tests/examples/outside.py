"""Runs with a user's own class: as a file in a folder, or as an installed package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "name": "mine",
    "model": {
        **{"vocab_size": 800, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48},
        **{"num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8},
        **{"qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 16, "max_position_embeddings": 1024},
    },
    "tokenizer": {"vocab_size": 800},
    "sft": {"tokens": 3_000, "copying_tokens": 500, "drill_tokens": 500, "batch_tokens": 500},
    "rollouts": {
        **{"group_size": 2, "tasks_per_step": 2, "concurrency": 4},
        "budget": {"orchestrator_steps": 4, "turn_tokens": 48},
    },
    "trainer": {"steps": 1, "ranks": 1, "most_unread": 1.0},
    "eval": {"tasks": 2},
    "tracking": {"wandb": "disabled"},
}


class Outside:
    """A folder with nothing of this project except copies of ``examples``."""

    def __init__(self, folder: Path, *examples: str) -> None:
        self.folder, self.modules, self.python = folder, folder / "their", sys.executable
        self.modules.mkdir()
        for name in examples:
            shutil.copy(ROOT / "examples" / f"{name}.py", self.modules)

    def needs(self, package: str, extra: str) -> None:
        """Run with an interpreter that has ``package``: this one, or that of PARL_EXTRA_PYTHON; else skip the test."""
        if importlib.util.find_spec(package) is not None:
            return
        variable = f"PARL_{extra.upper()}_PYTHON"
        if not (python := os.environ.get(variable)):
            pytest.skip(f"{package} is not installed (extra {extra}); {variable} names an interpreter that has it")
        self.python = python

    def install(self, group: str, name: str, value: str) -> None:
        """Declare an entry point, as an installed package's metadata would."""
        info = self.modules / "theirs-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[{group}]\n{name} = {value}\n")

    def config(self, **sections: Any) -> Path:
        """``run.yaml``: the tiny run merged with ``sections``."""
        tree = {name: dict(part) if isinstance(part, dict) else part for name, part in TINY.items()}
        for name, section in sections.items():
            tree[name] = {**tree[name], **section} if isinstance(tree.get(name), dict) else section
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def parl(self, *arguments: str, code: int = 0) -> str:
        """The output of ``parl ARGUMENTS`` in that folder; its exit code must be ``code``."""
        path = os.pathsep.join([str(ROOT), str(self.modules)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment.pop("RAY_ADDRESS", None)
        command = [self.python, "-m", "parl", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout + done.stderr

    def whole_run(self, *overrides: str) -> Path:
        """Train one step, resume to a second, evaluate again; returns the run's folder."""
        self.parl("train", "run.yaml", *overrides)
        self.parl("train", "run.yaml", *overrides, "trainer.steps=2", "--resume")
        said = self.parl("eval", "mine", "eval.seed=9")
        assert "held-out tasks" in said
        return self.folder / "runs" / "mine"
