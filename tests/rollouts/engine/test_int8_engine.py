"""``rollouts.engine_config.int8``: which pool's engines compute with int8 weights, and where there are none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")

from benchmarks.families import FAMILIES
from benchmarks.tiny_models import write
from model.decoder import Weights, export_weights
from model.hf.family import Hf
from model.hf.shape import HfShape
from model.kernels.native import load_library
from parl.config.load import ConfigError, load_config
from rollouts.config import RolloutsConfig
from rollouts.engine.base import Completion, EmbeddedConfig, Place, Sampling, Update
from rollouts.engine.built_in import Embedded

OWN_MODEL = Path(__file__).parents[3] / "configs" / "own_model.yaml"
SHAPE = HfShape(transformers=FAMILIES["qwen3"] | {"vocab_size": 96}, dtype="bfloat16")  # type: ignore[call-arg]


def sampled(int8: str, pool: str, weights: Weights) -> Completion:
    rollouts = RolloutsConfig(engine_config=EmbeddedConfig(int8=int8))  # type: ignore[arg-type]
    engine = Embedded.open(Place(pool=pool, number=0, model=SHAPE, rollouts=rollouts, tokenizer=""))

    async def run() -> Completion:
        await engine.update(Update(version=0, weights=weights))
        sampling = Sampling(seed=3, temperature=1.0, max_new_tokens=24)
        return await engine.generate(list(range(40)), sampling, session="a", deadline_s=60)

    return asyncio.run(run())


@pytest.mark.skipif(load_library() is None, reason="no compiler: the native decoder is not there")
def test_the_pools_that_it_names_compute_in_int8_and_no_other():
    weights = export_weights(Hf().policy(SHAPE))
    exact = {pool: sampled("none", pool, weights).logprobs for pool in ("policy", "frozen")}
    assert exact["policy"] == exact["frozen"] == sampled("frozen", "policy", weights).logprobs
    rounded = sampled("frozen", "frozen", weights).logprobs
    assert rounded == sampled("all", "policy", weights).logprobs != exact["frozen"]
    gaps = [abs(a - b) for a, b in zip(rounded, exact["frozen"], strict=False)]
    assert 0 < gaps[0] < 0.2


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("qwen3", ["rollouts.engine_config.int8=all", "model.dtype=float32"], "for model.dtype=bfloat16, not float32"),
        ("gpt_oss", ["rollouts.engine_config.int8=frozen"], "the decoder of model_type='gpt_oss' has no int8 weights"),
        ("qwen3", ["rollouts.engine_config.int8=frozen", "rollouts.rebalance=true"], "set rollouts.rebalance to false"),
        (
            "qwen3",
            ["rollouts.engine_config.int8=frozen", "rollouts.subagent_pool=co_trained"],
            "needs engines that serve frozen sub-agents alone",
        ),
        (
            "qwen3",
            ["rollouts.engine_config.int8=all", "rollouts.engine=vllm", "rollouts.http.urls=[http://127.0.0.1:1]"],
            "is a key of rollouts.engine = embedded; the rollouts.engine that was chosen has no keys",
        ),
    ],
)
def test_where_there_are_no_int8_weights_it_is_said(kind: str, overrides: list[str], said: str, tmp_path: Path):
    folder = write(kind, tmp_path / "given")
    with pytest.raises(ConfigError) as raised:
        load_config(OWN_MODEL, [f"model.init={folder}", *overrides])
    assert said in str(raised.value)


def test_the_default_is_left_out_of_dumps_and_kimi_has_none(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("")
    assert load_config(tmp_path / "run.yaml").model_dump(mode="json")["rollouts"]["engine_config"] == {}
    with pytest.raises(ConfigError, match="the family Kimi has no decoder with int8 weights"):
        load_config(tmp_path / "run.yaml", ["rollouts.engine_config.int8=frozen"])
