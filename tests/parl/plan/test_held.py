"""What a rank of the learner holds, by hand; and runs that cannot fit on their GPUs are refused with bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_model

from model.hf.shape import HfShape
from parl.config.schema import TrainerConfig
from parl.errors import UserError
from parl.learn.config import LoraConfig, OptimizerConfig, ParallelConfig
from parl.plan.held import BUCKET, held
from parl.plan.limits import check_memory, gpu_bytes
from parl.plan.plan import count

LLAMA = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
MUON = OptimizerConfig()


def shape(dtype: str) -> HfShape:
    return HfShape(transformers=LLAMA, dtype=dtype)  # type: ignore[call-arg, arg-type]


def parallel(**given: object) -> ParallelConfig:
    return ParallelConfig.model_validate({"recompute": True, **given})


def test_one_rank_in_float32_keeps_weights_gradients_and_states():
    n = count(shape("float32"))
    one = held(shape("float32"), MUON, parallel(), ranks=1, tokens=16)
    assert one.kept["weights"] == one.kept["gradients"] == 4 * n.total
    assert one.kept["optimiser states"] == pytest.approx(4 * (n.total + n.ends))  # AdamW keeps two for the ends
    adam = held(shape("float32"), OptimizerConfig(muon_lr=None), parallel(), ranks=1, tokens=16)
    assert adam.kept["optimiser states"] == 8 * n.total
    assert one.update == {"one gradient in float64": 8 * n.embedding}


def test_ranks_at_zero_0_hold_the_updates_of_all_matrices():
    few = HfShape(transformers=LLAMA | {"vocab_size": 10})  # type: ignore[call-arg]
    n = count(few)
    two = held(few, MUON, parallel(), ranks=2, tokens=16)
    assert two.update["updates of all matrices"] == pytest.approx(4 * (n.total - n.ends) * 1.5)


def test_zero_1_splits_states_but_not_gradients():
    n = count(shape("float32"))
    one, two = (held(shape("float32"), MUON, parallel(zero=zero), ranks=2, tokens=16).kept for zero in (1, 2))
    assert one["gradients"] == 4 * n.total == 2 * two["gradients"] and one["masters"] == two["masters"] == 2 * n.total


def test_a_second_micro_batch_of_a_float32_policy_needs_its_gradients_beside_their_sum():
    n = count(shape("float32"))
    several, alone, short = (
        held(shape(dtype), MUON, parallel(zero=2), ranks=1, tokens=1, several=many)
        for dtype, many in (("float32", True), ("float32", False), ("bfloat16", True))
    )
    assert several.passes["gradients of a micro-batch"] == 4 * n.total
    assert alone.passes["gradients of a micro-batch"] == 0
    assert short.passes["gradients of a micro-batch"] == 4 * n.embedding  # one tensor, added to the sum
    assert short.update["gradients, flat"] == 0 < several.update["gradients, flat"]


@pytest.mark.parametrize("ranks", [2, 8])
def test_zero_3_keeps_a_share_of_everything(ranks: int):
    one = held(shape("bfloat16"), MUON, parallel(zero=3), ranks=1, tokens=16)
    many = held(shape("bfloat16"), MUON, parallel(zero=3), ranks=ranks, tokens=16)
    assert many.kept.pop("bucket of gradients") == one.kept.pop(
        "bucket of gradients"
    )  # of all gradients, on every rank
    assert {part: size * ranks for part, size in many.kept.items()} == pytest.approx(one.kept)


def test_split_experts_leave_the_rest_on_every_rank():
    model = tiny_model()
    n = count(model)
    one = held(model, MUON, parallel(expert_parallel=2), ranks=2, tokens=16)
    assert one.kept["weights"] == 4 * (n.rest + n.routed / 2)


def test_offloading_moves_masters_gradients_states_and_the_update_to_the_host():
    here = held(shape("bfloat16"), MUON, parallel(zero=2), ranks=1, tokens=16)
    away = held(shape("bfloat16"), MUON, parallel(zero=2, offload="cpu"), ranks=1, tokens=16)
    assert set(away.kept) == {"weights"} and not away.update and away.peak < here.peak
    moved = {part: size for part, size in here.kept.items() if part != "weights"}
    assert away.host == pytest.approx(moved | {"update": sum(here.update.values())})


def test_recomputation_keeps_one_layers_inside_and_adapters_no_states():
    whole, less = (
        held(shape("float32"), MUON, parallel(recompute=on), ranks=1, tokens=64).passes["layers' inside"]
        for on in (False, True)
    )
    assert whole == 1.5 * less  # three layers against value and gradient of one
    lora = held(shape("float32"), OptimizerConfig(lora=LoraConfig()), parallel(), ranks=1, tokens=16)
    assert set(lora.kept) == {"weights"}


def test_the_bucket_of_gradients_is_bounded():
    big = HfShape(transformers=LLAMA | {"vocab_size": 2_000_000}, dtype="bfloat16")  # type: ignore[call-arg]
    one = held(big, MUON, parallel(zero=2), ranks=1, tokens=16)
    assert one.passes["bucket of gradients"] == 2 * BUCKET


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose ``nvidia-smi`` tells of two GPUs of 1 MiB."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 1\necho 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("card")
def test_a_layout_that_a_gpu_cannot_hold_is_refused_with_bytes():
    assert gpu_bytes() == [2**20, 2**21]
    with pytest.raises(UserError, match=r"each rank needs [\d.]+ GB on its GPU \(weights .*which has 1\.0 MB"):
        check_memory(shape("bfloat16"), MUON, TrainerConfig(device="auto"))
    check_memory(shape("bfloat16"), MUON, TrainerConfig(device="cpu"))


def test_a_driver_that_does_not_answer_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho failed; exit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_bytes() == []
