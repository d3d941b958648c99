"""Recorded answers of a real vLLM, through our client."""

from __future__ import annotations

import pytest
from replay import Replay

from rollouts.config import HttpConfig
from rollouts.engine.base import Delivery, Sampling
from rollouts.engine.servers.dialects import Vllm
from rollouts.engine.servers.http import HttpEngine
from rollouts.engine.servers.weight_update import Deliverer


async def test_a_recorded_vllm_takes_weights_and_samples(tmp_path):
    """The scenario of benchmarks/record_vllm.py, against what vLLM 0.32 answered."""
    replay = Replay("vllm", tmp_path)
    probe = replay.probe
    folders = [tmp_path / f"policy-{version:06d}" for version in (0, 1)]
    for folder in folders:
        folder.mkdir()
        (folder / "model.safetensors").touch()
    deliveries = [
        Delivery(version=v, folder=folder, probe=probe, logprobs=replay.logprobs[v]) for v, folder in enumerate(folders)
    ]
    engine = HttpEngine("http://server:1", Vllm(), pool="policy", longest=2048, transport=replay)
    await Deliverer(engine, HttpConfig(restart="true", weights="transfer")).deliver(deliveries[0])
    one = Deliverer(engine, HttpConfig(weights="transfer"))
    await one.deliver(deliveries[1])
    assert one.gap < 1e-4 and engine.policy_version == 1
    prompt = list(range(40, 60))
    first = await engine.generate(
        prompt, Sampling(seed=5, temperature=1.0, max_new_tokens=6), session="a", deadline_s=60
    )
    assert len(first.tokens) == len(first.logprobs) == 6 and first.policy_version == 1
    stop = Sampling(seed=5, temperature=1.0, max_new_tokens=6, stop=(first.tokens[2],))
    second = await engine.generate(prompt, stop, session="b", deadline_s=60)
    assert second.finish == "stop" and second.tokens == first.tokens[: len(second.tokens)]
    assert second.tokens[-1] == first.tokens[2]  # the stop token is part of the tokens
    greedy = Sampling(seed=5, temperature=0.0, max_new_tokens=3)
    third = await engine.generate(prompt, greedy, session="c", deadline_s=60)
    assert third.finish == "length" and len(third.tokens) == 3
    for wrong in ([10**6], prompt * 200):
        with pytest.raises(ValueError, match="answered 400"):
            await engine.call(engine.dialect.score(wrong, salt="wrong"), 60)
    assert not replay.exchanges
