"""The house rules: imports between packages, what starts without torch, and lengths of files and functions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from model.kimi.config import ModelConfig
from parl.config.schema import Config

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "envs", "rollouts", "rewards", "parl")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
names = pytest.mark.parametrize("file", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])

# What each package may import of the others (docs/architecture.md). A prefix allows what is below it.
TORCH_FREE_MODEL = (
    "model.chat",
    "model.family",
    "model.files",
    "model.tokenizer",
    "model.kimi.vision.picture_size",
    "model.kimi.vision.config",
)
FLOORS: dict[str, tuple[str, ...]] = {
    "model": (),
    "envs": (),
    "rollouts": ("envs", *TORCH_FREE_MODEL),
    "rollouts/engine": ("envs", "model"),
    "rewards": (
        *("envs.base", "envs.named", "envs.plugs.threads", "envs.sandbox", "model.files"),
        *("rollouts.episode", "rollouts.critical_path", "rollouts.costs", "rollouts.faults"),
        *("rollouts.engine.address", "rollouts.engine.chat.client"),
    ),
    "parl": ("model", "envs", "rollouts", "rewards"),
}
WITH_TORCH = ("model", "rollouts/engine", "parl")


def imports(file: Path) -> Iterator[str]:
    """Modules that ``file`` names in an import statement, anywhere."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{file}: relative import"
            yield node.module


def floor(file: Path) -> str:
    parts = file.relative_to(ROOT).parts
    return "rollouts/engine" if parts[:2] == ("rollouts", "engine") else parts[0]


def under(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(allowed + ".")


@names
def test_imports_go_down_the_floors_only(file: Path):
    own = file.relative_to(ROOT).parts[0]
    for module in imports(file):
        if module.split(".")[0] in PACKAGES and not under(module, own):
            assert any(under(module, allowed) for allowed in FLOORS[floor(file)]), f"{file} imports {module}"
        if module.split(".")[0] in ("torch", "deepspeed"):
            assert floor(file) in WITH_TORCH, f"{file} imports {module}"
        if own == "rollouts" and floor(file) == "rollouts":  # of the engines only those that need no torch
            heavy = ("embedded", "servers")
            assert not any(under(module, f"rollouts.engine.{name}") for name in heavy), f"{file} imports {module}"


@pytest.mark.parametrize(
    "modules",
    [
        "parl.config.schema, envs, rewards, rollouts.episode",
        "parl.cli.main, parl.config.load, parl.track.progress, parl.track.tracker, parl.report",
        "parl.config.plugin_kinds, parl.learn.objective.k25, parl.learn.objective.cispo, parl.learn.objective.gspo",
        "rewards.score, rewards.aggregate, rewards.parl_reward, rollouts.swarm.budget",
        "parl.evaluate.rescore, parl.evaluate.compare, parl.evaluate.compare_page",
        "parl.episodes.listing, parl.episodes.view",
        "parl.evaluate.statistics, parl.evaluate.table",
        "rollouts.worker, rollouts.swarm.swarm, rollouts.store.store, envs.world.environment",
    ],
)
def test_what_must_start_at_once_imports_no_torch(modules: str):
    heavy = ("torch", "deepspeed", "ray")
    code = f"import sys, {modules}; print([name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


@names
def test_files_and_functions_are_short_and_public_ones_say_what_they_do(file: Path):
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    if text.strip():
        assert ast.get_docstring(tree), f"{file} does not say what it is"
    for name, node, public in definitions(tree):
        if not isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{file}: {name} is too long"
        assert ast.get_docstring(node) or not public, f"{file}: {name} has no docstring"


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(node: ast.AST, prefix: str = "", public: bool = True) -> Iterator[tuple[str, Definition, bool]]:
    """All functions and classes below ``node`` with their dotted names, and whether callers may see them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            visible = public and not child.name.startswith("_")
            yield prefix + child.name, child, visible
            inner = visible and isinstance(child, ast.ClassDef)  # definitions inside functions are private
            yield from definitions(child, f"{prefix}{child.name}.", inner)
        else:
            yield from definitions(child, prefix, public)


def keys(model: type[BaseModel]) -> int:
    nested = [field.annotation for field in model.model_fields.values()]
    return sum(keys(a) if isinstance(a, type) and issubclass(a, BaseModel) else 1 for a in nested)


def test_the_configuration_stays_small():
    """115 keys at most; the model's shape, whose names are Hugging Face's, is not ours to cut."""
    assert keys(Config) - keys(ModelConfig) <= 115


# Who names the first family outside of ``model/``: only the built-in table.
FAMILY_NAMED = {"parl/config/plugin_kinds.py"}


def test_the_whole_configuration_is_taken_by_entries_alone():
    """Who needs some of a run's settings takes their section, or a dataclass that is made of a few once."""
    taken = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in sorted((ROOT / "parl").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for given in (*node.args.args, *node.args.kwonlyargs)
        if given.annotation and ast.unparse(given.annotation) in ("Config", "ConfigFields")
    ]
    assert len(taken) <= 28, "\n".join(taken)


def test_a_family_is_named_in_model_alone():
    named = re.compile(r"model\.kimi|model\.chat\.kimi|num_moe_layers|\bTransformer\b|thinking=False")
    outside = [file for file in FILES if file.relative_to(ROOT).parts[0] != "model"]
    found = {str(file.relative_to(ROOT)) for file in outside if named.search(file.read_text())}
    assert found == FAMILY_NAMED, "take it from the shape's family (model.family), or strike it off the list"


def test_blocks_know_no_family():
    for file in (ROOT / "model" / "blocks").glob("*.py"):
        assert not [
            module
            for module in imports(file)
            if under(module, "model") and not any(under(module, own) for own in ("model.blocks", "model.kernels"))
        ]


def test_the_world_is_named_in_envs_alone():
    """Except for the built-in table. Its classes, modules and task families are named in envs alone."""
    named = re.compile(r"envs\.world|WorldEnvironment|WorldConfig|\"(single_fact|chain|swap)\"")
    outside = [file for file in FILES if file.relative_to(ROOT).parts[0] != "envs"]
    found = {str(file.relative_to(ROOT)) for file in outside if named.search(file.read_text())}
    assert found == {"parl/config/plugin_kinds.py"}
