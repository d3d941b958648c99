"""``parl plan`` against figures worked out by hand for Kimi K2.5, and against the model itself."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tiny import tiny_model
from typer.testing import CliRunner

from model.kimi.config import ModelConfig
from model.kimi.files.hf_layout import our_shapes
from parl.cli.main import app
from parl.config.load import load_config
from parl.errors import UserError
from parl.learn.config import LoraConfig, OptimizerConfig, ParallelConfig
from parl.plan import limits as learner_limits
from parl.plan.gpus import GB, GPUS, Given, find_gpu
from parl.plan.limits import gaps, host_bytes, machine_bytes
from parl.plan.plan import RESERVE, Layout, check, count, degrees, fits, nearest, plan
from parl.plan.table import read_model

ROOT = Path(__file__).parents[3]
H200 = GPUS["h200"]
HOST = 2000 * GB
# by hand: 60 layers of 384 experts of three matrices of 7168 x 2048; all else is the difference to 1,026,408,209,408
ROUTED = 60 * 384 * 3 * 7168 * 2048
REST = 1_026_408_209_408 - ROUTED


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def k2_5() -> ModelConfig:
    return read_model(str(ROOT / "configs" / "models" / "kimi_k2_5.yaml"))[0]


def test_k2_5_counts(k2_5: ModelConfig):
    n = count(k2_5)
    assert (n.routed, round(n.total / 1e9, 2)) == (ROUTED, 1026.41)
    assert (round(n.active / 1e9, 1), round((n.active + n.embedding) / 1e9, 1)) == (31.7, 32.9)
    assert count(k2_5).cache == (512 + 64) * 61 * 2 == 70_272
    assert round(count(k2_5).cache * 262_144 / 2**30, 1) == 17.2


@pytest.mark.parametrize("name", ["tiny", "small_100m", "kimi_k2_5", "deepseek_v3", "moonlight_16b_a3b"])
def test_counts_are_those_of_the_model_itself(name: str):
    config = read_model(name)[0]
    sizes = {key: _product(shape) for key, shape in our_shapes(config).items() if "correction_bias" not in key}
    n = count(config)
    assert n.total == sum(sizes.values())
    assert n.routed == sum(size for key, size in sizes.items() if ".experts." in key)
    assert n.embedding == sizes["embed_tokens.weight"]


def test_the_small_shapes_have_the_sizes_of_their_names():
    assert round(count(read_model("tiny")[0]).total / 1e6, 1) == 0.1
    assert 90e6 < count(read_model("small_100m")[0]).total < 110e6


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result


def test_k2_5_on_256_gpus_by_hand(k2_5: ModelConfig):
    """Experts over 128 GPUs, twice; ZeRO 2."""
    made = plan(k2_5, Layout(gpus=256, zero=2, ep=128), H200)
    assert made.memory["weights"] == pytest.approx(2 * (ROUTED / 128 + REST))  # 15.9 + 23.4 GB
    assert made.memory["gradients"] == pytest.approx(2 * (ROUTED / 128 / 2 + REST / 256))  # 7.9 + 0.1
    assert made.memory["optimiser states"] == pytest.approx(12 * (ROUTED + REST) / 256)  # 48.1
    assert made.memory["activations: layers' inputs"] == 4096 * 7168 * 2 * 61
    assert made.memory["activations: logits"] == 4096 * 163_840 * 8
    assert (made.memory["gathered layer"], made.host) == (0, 0)
    assert fits(made, H200, HOST)
    assert made.layout.passes == 4  # 4,194,304 tokens / 256 / 4096
    # a token's 8 copies of 7168 bfloat16, out and back, in forward, recomputation and backward, in 60 layers
    assert made.all_to_all == pytest.approx(16_384 * 8 * 7168 * 2 * 2 * 3 * 60 * 127 / 128)
    # gradients scattered after each of the 4 passes, weights gathered once
    ring = REST * 255 / 256 + ROUTED / 128 * 1 / 2
    assert made.gathered == pytest.approx(ring * (2 * 4 + 2))
    # 4 x (2 FLOP a parameter and token, and attention over 16,384 positions on average)
    flop = 16_384 * 4 * (2 * count(k2_5).active + 2 * 64 * (192 + 128) * 16_384 * 61)
    assert made.seconds["compute"] == pytest.approx(flop / 790e12)
    assert made.seconds["all-to-all"] == pytest.approx(made.all_to_all / 61e9)


def test_zero_and_offload_move_what_they_say(k2_5: ModelConfig):
    base = Layout(gpus=64, zero=0, ep=64)
    stages = [plan(k2_5, replace(base, zero=zero), H200).memory for zero in range(4)]
    whole = ROUTED / 64 + REST
    shared = (ROUTED + REST) / 64
    assert [m["optimiser states"] for m in stages] == pytest.approx([12 * whole, *[12 * shared] * 3])
    assert [m["gradients"] for m in stages] == pytest.approx([2 * whole, 2 * whole, 2 * shared, 2 * shared])
    assert [m["weights"] for m in stages] == pytest.approx([2 * whole, 2 * whole, 2 * whole, 2 * shared])
    assert stages[3]["gathered layer"] > 2 * ROUTED / 60 / 64
    away = plan(k2_5, replace(base, zero=2, offload=True), H200)
    assert away.memory["optimiser states"] == 0
    assert away.host == pytest.approx(8 * 12 * shared)  # 1.5 TB a node
    assert fits(away, H200, HOST) and not fits(away, H200, 1500 * GB)


def test_without_expert_parallelism_no_token_travels_and_zero_3_gathers_all_weights(k2_5: ModelConfig):
    made = plan(k2_5, Layout(gpus=64, zero=3, ep=1), H200)
    assert made.all_to_all == 0
    once = (ROUTED + REST) * 63 / 64
    assert made.gathered == pytest.approx(once * (3 * 2 + 2) * 16)


def test_few_tokens_are_bound_by_reading_the_weights(k2_5: ModelConfig):
    made = plan(k2_5, Layout(gpus=64, zero=2, ep=64, micro_tokens=64, step_tokens=64 * 64), H200)
    resident = ROUTED / 64 + REST - count(k2_5).embedding
    assert made.seconds["compute"] == pytest.approx(2 * resident * 4 / 4.3e12)


def test_the_nearest_layout_fits_and_changes_no_more_than_it_must(k2_5: ModelConfig):
    asked = Layout(gpus=64, zero=2, ep=64)
    assert not fits(plan(k2_5, asked, H200), H200, HOST)
    found = nearest(k2_5, asked, H200, HOST)
    assert found and found.layout == replace(asked, offload=True)
    assert fits(found, H200, HOST)
    more = nearest(k2_5, replace(asked, gpus=8, ep=8), H200, HOST)
    assert more and more.layout.gpus == 64  # 16 and 32 cannot hold it, whatever is offloaded
    assert nearest(k2_5, replace(asked, micro_tokens=10**6), H200, HOST) is None  # logits alone are too many


def test_layouts_that_make_no_sense_are_named(k2_5: ModelConfig):
    assert degrees(k2_5, 256) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert degrees(tiny_model(first_k_dense_replace=3), 256) == [1]
    for layout, text in (
        (Layout(gpus=64, ep=48), "--ep 48: must divide --gpus 64"),
        (Layout(gpus=64, zero=4), "--zero 4"),
        (Layout(gpus=0), "--gpus 0: must be 1 or more"),
        (Layout(gpus=64, zero=0, offload=True), "--offload optimizer needs --zero 1"),
        (Layout(gpus=64, micro_tokens=0), "--micro-tokens 0"),
    ):
        with pytest.raises(UserError, match=text):
            check(k2_5, layout)


def test_the_command_prints_a_plan():
    done = CliRunner().invoke(app, ["plan", "kimi_k2_5", "--gpus", "256"])
    assert done.exit_code == 0, done.stderr
    for text in ("1,026.41 B", "31.69 B", "70,272 B", "39.3 GB", "48.1 GB", "of 141.0 GB", "671.2 GB", "8.65 s"):
        assert text in done.stdout


def test_a_layout_that_cannot_fit_is_refused_by_how_much_and_with_one_that_does():
    done = CliRunner().invoke(app, ["plan", "kimi_k2_5", "--gpus", "64"])
    assert done.exit_code == 2
    config = read_model("kimi_k2_5")[0]
    over = plan(config, Layout(gpus=64, ep=64), H200).used + RESERVE - H200.memory
    assert f"each GPU lacks {over / GB:.1f} GB of 141.0 GB" in done.stderr
    assert "the nearest that fits: --gpus 64 --zero 2 --ep 64 --offload optimizer" in done.stderr
    done = CliRunner().invoke(app, ["plan", "kimi_k2_5", "--gpus", "64", "--offload", "optimizer", "--host-gb", "512"])
    assert done.exit_code == 2 and "each node's host memory lacks" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nope", "--gpus", "8"], "no model nope"),
        (["tinny", "--gpus", "8"], "did you mean tiny?"),
        (["tiny", "--gpus", "8", "--gpu", "a100-8"], "did you mean a100-80?"),
        (["tiny", "--gpus", "8", "--gpu", "gtx1080"], "--gpu gtx1080 --gpu-gb N --gpu-tflops N"),
        (["tiny", "--gpus", "8", "--gpu", "mine", "--gpu-gb", "10"], "--gpu mine: must be one of h200"),
        (["tiny", "--gpus", "8", "--gpu", "mine", "--gpu-gb", "-1", "--gpu-tflops", "9"], "--gpu-gb -1: must be"),
        (["tiny", "--gpus", "8", "--gpu", "mine", "--gpu-gb", "nan", "--gpu-tflops", "9"], "--gpu-gb nan: must be"),
        (["tiny", "--gpus", "8", "--link-gbs", "0"], "--link-gbs 0: must be"),
        (["tiny", "--gpus", "8", "--host-gb", "nan"], "--host-gb nan: must be"),
        (["tiny", "--gpus", "8", "--offload", "disk"], "--offload disk"),
        (["tiny", "--gpus", "8", "--ep", "3"], "--ep 3"),
        (["tests", "--gpus", "8"], "config.json"),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str], text: str):
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert done.exit_code == 2 and text in done.stderr


CARDS = (
    *("a100", "A100-80GB", "nvidia a100", "a100-40", "h100", "H100-SXM5", "h200", "b200", "l40s", "a10", "rtx3090"),
    *("RTX_4090", "4090", "rtx5090", "GeForce RTX 5090", "a6000", "RTX A6000", "mi300x", "AMD Instinct MI300X"),
)


@pytest.mark.parametrize("name", CARDS)
def test_common_cards_are_known_by_the_names_that_people_write(name: str):
    assert find_gpu(name, Given()) in GPUS.values()


@pytest.mark.parametrize("name", GPUS)
def test_each_card_says_where_its_numbers_come_from_and_they_are_of_its_kind(name: str):
    card = GPUS[name]
    assert "data sheet" in card.source or "paper" in card.source or "sheets" in card.source
    assert 20 * GB <= card.memory <= 300 * GB and 0.2e12 <= card.copy <= 9e12 and 50e12 <= card.flops <= 2600e12
    assert card.tokens <= card.inside and card.outside <= card.inside  # no network is faster than a node's own links


def test_a_card_of_ones_own_is_what_was_said_of_it():
    card = find_gpu("mine", Given(gb=12, tflops=40, tbs=0.5, link_gbs=7, net_gbs=3))
    assert (card.memory, card.flops, card.copy) == (12 * GB, 40e12, 0.5e12)
    assert (card.inside, card.tokens, card.outside) == (7e9, 3e9, 3e9)
    assert (
        find_gpu("h200", Given(gb=100)).memory == 100 * GB and "what was given" in find_gpu("h200", Given(gb=1)).source
    )
    assert "assumed" in find_gpu("mine", Given(gb=12, tflops=40)).source


GAPS = [
    ({}, {}, {}, ["over nccl, never were", "float32"]),
    ({"gpus": 16}, {}, {}, ["16 GPUs are 2 nodes"]),
    ({"zero": 1, "offload": True}, {}, {}, ["offloading was run on one GPU only"]),
    ({"zero": 2}, {}, {"lora": LoraConfig()}, ["configuration refuses it: .*optimizer.lora"]),
    ({"ep": 2}, {}, {"lora": LoraConfig()}, ["configuration refuses it: .*expert_parallel=2"]),
]


@pytest.mark.parametrize(("layout", "model", "optimizer", "said"), GAPS)
def test_what_the_learner_cannot_do_is_said_of_each_layout(layout, model, optimizer, said):
    told = list(gaps(tiny_model(**model), OptimizerConfig(**optimizer), Layout(**{"gpus": 2, "zero": 0, **layout})))
    for pattern in said:
        assert any(re.search(pattern, line) for line in told), told


def test_a_plan_that_fits_is_not_called_trainable():
    done = CliRunner().invoke(app, ["plan", "tiny", "--gpus", "8", "--gpu", "a100"])
    assert done.exit_code == 0 and "the learner cannot do this yet:" in done.stdout
    assert "it is no promise that parl trains it" in done.stdout.replace("\n", " ")


def test_the_least_that_a_run_holds_by_hand():
    config = load_config(ROOT / "configs" / "recipes" / "one_24gb.yaml", None, files=False)
    n, trainer = count(config.model), config.trainer
    assert trainer.parallel.zero == 0 and config.optimizer.muon_lr
    rest = n.ends + n.routed_layers * n.experts * n.hidden  # AdamW's, with two states each
    parts = host_bytes(config.model, config.optimizer, trainer, gpus=False)
    assert parts.pop("optimiser states") == pytest.approx(4.0 * (n.total + rest))
    assert parts == dict.fromkeys(("weights", "gradients", "weights for engines"), 4.0 * n.total)
    split = trainer.model_copy(update={"ranks": 4, "parallel": ParallelConfig(zero=1, expert_parallel=2)})
    parts = host_bytes(config.model, config.optimizer, split, gpus=False)
    assert parts["weights"] == 4.0 * (4 * n.rest + 2 * n.routed)
    assert parts["gradients"] == parts["weights"]  # ZeRO 1 splits states alone
    assert parts["masters"] == parts["weights for engines"] == pytest.approx(4.0 * n.total)


def test_a_container_has_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for text, bytes_ in (("1048576\n", 2**20), ("max\n", None)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(learner_limits, "_CGROUPS", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
        assert machine_bytes() == (bytes_ or psutil.virtual_memory().total)


def test_planning_needs_no_torch():
    code = (
        "import sys\nfrom parl.plan.table import print_plan\n"
        "print_plan('kimi_k2_5', 'h200', host_gb=2000, gpus=256, zero=2, ep=0, offload='none')\n"
        "print([name for name in ('torch', 'deepspeed', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
