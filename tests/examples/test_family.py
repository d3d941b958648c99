"""``examples/family.py`` from outside the package: as one file on PYTHONPATH, or an installed package."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from model.decoder import PAGE, export_weights
from model.family import family_of
from model.policy_files import load_policy, save_policy
from model.tokenizer.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

ROOT = Path(__file__).parents[2]
SHAPE = {"width": 32, "layers": 2, "heads": 4, "head_dim": 8, "max_position_embeddings": 1024}
RUN = """\
name: dense
model: {{family: "{family}", width: 32, layers: 1, heads: 2, head_dim: 8{more}}}
sft: {{tokens: 30000, copying_tokens: 2000, drill_tokens: 2000}}
rollouts: {{group_size: 2, tasks_per_step: 2, budget: {{turn_tokens: 8, orchestrator_steps: 2}}}}
trainer: {{ranks: 1, minibatches: 1, keep_best: null, most_unread: 1}}
eval: {{tasks: 2}}
tracking: {{wandb: disabled}}
"""


@pytest.fixture(scope="module")
def dense() -> ModuleType:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import family  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return family


def policy_of(dense: ModuleType, **changes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return dense.Dense().policy(dense.DenseShape(**{**SHAPE, **changes})).eval()


def test_the_example_is_as_short_as_it_is_said_to_be():
    assert len((ROOT / "examples" / "family.py").read_text().splitlines()) <= 80


def test_rows_end_to_end_are_those_alone_and_no_row_looks_into_another(dense: ModuleType):
    policy, lengths = policy_of(dense), [7, 1, 12, 7]
    rows = [torch.randint(0, 1152, (1, length)) for length in lengths]
    together = policy.hidden(torch.cat(rows, dim=1), lengths=lengths)
    alone = torch.cat([policy.hidden(row) for row in rows], dim=1)
    assert torch.allclose(together, alone, atol=2e-6)


async def ask(engine: EmbeddedEngine, prompt: list[int], session: str) -> Completion:
    sampling = Sampling(seed=int(session[1:]), temperature=1.0, top_p=1.0, max_new_tokens=6, stop=(1,))
    return await engine.generate(prompt, sampling, session=session, deadline_s=60.0)


def test_without_a_decoder_the_engine_samples_exactly_from_the_policy_whatever_runs_beside(dense: ModuleType):
    policy = policy_of(dense)

    async def run() -> None:
        engine = EmbeddedEngine(policy.config, pages=256)
        await engine.update(Update(version=3, weights=export_weights(policy)))
        prompts = {f"s{i}": np.random.default_rng(i).integers(2, 1152, 3 * PAGE + i).tolist() for i in range(4)}
        prompts["s9"] = prompts["s1"][: 2 * PAGE] + prompts["s2"][: PAGE + 1]  # starts with existing pages
        alone = {name: await ask(engine, prompt, name) for name, prompt in prompts.items()}
        fresh = EmbeddedEngine(policy.config, pages=256)
        await fresh.update(Update(version=3, weights=export_weights(policy)))
        beside = await asyncio.gather(*(ask(fresh, prompt, name) for name, prompt in prompts.items()))
        for (name, prompt), together in zip(prompts.items(), beside, strict=True):
            found = alone[name]
            assert (found.tokens, found.logprobs) == (together.tokens, together.logprobs)
            assert found.routes is None and found.policy_version == 3
            tokens = torch.tensor([[*prompt, *found.tokens]])
            mask = torch.zeros_like(tokens, dtype=torch.bool)
            mask[0, len(prompt) :] = True
            learner, _ = policy(tokens, mask)
            assert np.allclose(found.logprobs, learner.detach().numpy(), atol=1e-5)

    asyncio.run(run())


def test_its_policies_are_files_that_say_whose_they_are(dense: ModuleType, tokenizer: Tokenizer, tmp_path: Path):
    policy = policy_of(dense)
    weights = export_weights(policy)
    save_policy(tmp_path / "p", policy.config, weights, tokenizer, {"step": 1})
    assert json.loads((tmp_path / "p" / "meta.json").read_text())["family"] == "family:Dense"
    found, shape, _, meta = load_policy(tmp_path / "p", family_of(policy.config))
    assert shape == policy.config and meta["step"] == 1
    assert all(np.array_equal(found[name], weights[name]) for name in weights)
    from model.kimi.family import Kimi

    with pytest.raises(ValueError, match=r"of the family family:Dense, not of model\.kimi\.family:Kimi"):
        load_policy(tmp_path / "p", Kimi())


def parl(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the command as a user would, with ``folder`` on PYTHONPATH and its own Ray."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-m", "parl", *arguments],
        cwd=folder,
        env=keep | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with the example as a module, also installed under the name ``dense``."""
    shutil.copy(ROOT / "examples" / "family.py", tmp_path / "their_family.py")
    info = tmp_path / "theirs-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[parl.families]\ndense = their_family:Dense\n")
    return tmp_path


@pytest.mark.slow
def test_mistakes_in_its_section_are_reported_as_ours_are(outside: Path):
    (outside / "run.yaml").write_text(RUN.format(family="their_family:Dense", more=", heds: 3"))
    said = parl(outside, "train", "run.yaml", "--dry-run", code=2)
    assert "unknown key model.heds" in said and "did you mean model.heads" in said
    (outside / "run.yaml").write_text(RUN.format(family="dense", more=", max_position_embeddings: -1"))
    assert "model.max_position_embeddings = -1" in parl(outside, "train", "run.yaml", "--dry-run", code=2)
    (outside / "run.yaml").write_text(RUN.format(family="dens", more=""))
    assert "did you mean dense" in parl(outside, "train", "run.yaml", "--dry-run", code=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_run_with_workers_resumed_and_evaluated(outside: Path):
    """Trained by the module's name; evaluated by the entry point's name."""
    (outside / "run.yaml").write_text(RUN.format(family="their_family:Dense", more=""))
    parl(outside, "train", "run.yaml", "trainer.steps=1")
    parl(outside, "train", "run.yaml", "trainer.steps=2", "--resume")
    lines = [json.loads(line) for line in (outside / "runs/dense/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line and "reward/total" in line][:2] == [1, 2]
    assert json.loads((outside / "runs/dense/policy/meta.json").read_text())["family"] == "their_family:Dense"
    assert "trained" in parl(outside, "eval", "run.yaml", "model.family=dense", "--policy", "trained")
