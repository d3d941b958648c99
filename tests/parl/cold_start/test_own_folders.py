"""Folders that users bring, as transformers and tokenizers write them: what is taken over, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")

import torch
import transformers
from safetensors.torch import load_file

from benchmarks.tiny_models import write
from model.policy_files import load_policy
from parl.cold_start.imitation import run_sft
from parl.cold_start.starting_policy import starting_policy
from parl.config.family import chat_format, family_at
from parl.config.load import load_config
from parl.config.schema import Config
from parl.errors import UserError
from parl.serve.export import export

OWN_MODEL = Path(__file__).parents[3] / "configs" / "own_model.yaml"


def run_over(folder: Path, *more: str) -> Config:
    settings = [f"model.init={folder}", "sft.data=null", "sft.enough=null", f"root={folder.parent / 'runs'}"]
    return load_config(OWN_MODEL, [*settings, *more])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3", {}),
        ("qwen3", {"tied": True, "spoken": False, "dtype": "float32"}),
        ("qwen3_moe", {"sharded": True}),
        ("gpt_oss", {}),
    ],
)
def test_a_folder_is_taken_over_and_exported_as_it_was(kind: str, settings: dict[str, Any], tmp_path: Path):
    folder = write(kind, tmp_path / "given", **settings)
    (folder / "generation_config.json").unlink()
    for name, key in (("config.json", "pad_token_id"), ("tokenizer_config.json", "pad_token")):
        tree = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(tree | {key: None}))
    assert len(list(folder.glob("*.safetensors"))) == (6 if settings.get("sharded") else 1)
    dtype = settings.get("dtype", "bfloat16")
    config = run_over(folder, f"model.dtype={dtype}")
    start = starting_policy(config)
    _, shape, tokenizer, _ = load_policy(start, family_at(start))
    assert shape == config.model.shape and (shape.routes is not None) == (kind != "qwen3")
    stops = chat_format(shape, config.rollouts, tokenizer).stop_ids
    out = export(start, tmp_path / "out")
    given, found = (transformers.AutoModelForCausalLM.from_pretrained(at, dtype="auto") for at in (folder, out))
    assert found.dtype == getattr(torch, dtype)
    ours, theirs = found.state_dict(), given.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"][: len(stops)] == list(stops)
    tokenizers = [transformers.AutoTokenizer.from_pretrained(at) for at in (folder, out)]
    ids = [tokenizer("Straße 42 <|im_end|>\n")["input_ids"] for tokenizer in tokenizers]
    assert ids[0] == ids[1] and tokenizers[0].chat_template == tokenizers[1].chat_template


def test_an_export_is_cut_in_files_of_the_size_asked_for_and_cast(tmp_path: Path):
    folder = write("qwen3", tmp_path / "given")
    start = starting_policy(run_over(folder))
    family = family_at(start)
    policy, tokenizer = family.load(start), load_policy(start, family)[2]
    family.export(policy, tokenizer, tmp_path / "out", dtype="float32", shard_bytes=600_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 700_000 for file in files)
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float32}


def without(name: str, folder: Path) -> None:
    (folder / name).unlink()


def narrow(folder: Path) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"vocab_size": 2000}))


@pytest.mark.parametrize(
    ("kind", "spoken", "damage", "said"),
    [
        ("gemma3_text", True, None, "the chat template writes no tool calls"),
        ("gpt_oss", False, None, "the tokenizer has no chat template: take a model that was taught to call tools"),
        ("qwen3", True, lambda folder: without("tokenizer.json", folder), "AutoTokenizer.from_pretrained"),
        ("qwen3", True, lambda folder: without("model.safetensors", folder), "it lacks model.safetensors"),
        ("qwen3", True, narrow, "2057 ids, its config.json has vocab_size=2000 rows"),
    ],
)
def test_what_a_folder_lacks_is_said_with_the_cure(kind: str, spoken: bool, damage: Any, said: str, tmp_path: Path):
    folder = write(kind, tmp_path / "given", spoken=spoken)
    if damage:
        damage(folder)
    with pytest.raises(UserError, match=r"model\.init") as raised:
        starting_policy(run_over(folder))
    assert said in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [("qwen3", "float32"), ("qwen3_moe", "bfloat16")])
def test_a_cold_start_with_adapters_changes_their_matrices_by_their_rank(
    one_ray: None, kind: str, dtype: str, tmp_path: Path
):
    folder = write(kind, tmp_path / "given", dtype=dtype)
    settings = [f"model.dtype={dtype}", "sft.data=teacher", "sft.lora={rank: 3, targets: [attention]}"]
    settings += ["sft.tokens=16000", "sft.check_tokens=8000", "sft.enough=0.9", "sft.lr=1e-2", "trainer.threads=1"]
    losses: list[float] = []
    scores = iter([0.1, 0.95])
    start = run_sft(
        run_over(folder, *settings),
        report=lambda done, total, metrics: losses.append(metrics["loss"]),
        check=lambda *_: {"score": next(scores)},
    )
    assert losses[-1] < losses[0] - 0.1
    out = export(start, tmp_path / "out")
    given, taught = (transformers.AutoModelForCausalLM.from_pretrained(at).state_dict() for at in (folder, out))
    assert given.keys() == taught.keys()
    changed = {name: taught[name] - given[name] for name in given if not torch.equal(given[name], taught[name])}
    assert changed.keys() == {
        f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(3) for part in "qkvo"
    }
    if dtype == "float32":  # the sum is rounded to bfloat16 otherwise
        assert {int(torch.linalg.matrix_rank(change.double(), rtol=1e-4)) for change in changed.values()} == {3}
