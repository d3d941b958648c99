"""A black-box harness on OpenAI's own client, through the gateway, to trained rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import random_policy, tiny_model

from envs.world.site.server import SocketServer
from model.chat.kimi import Call, KimiChat, assistant_pieces
from model.decoder import export_weights
from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer
from model.tokenizer.tokenizer import Tokenizer
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.serve.gateway import recorded_episodes, recorded_rows
from rollouts.engine.base import Completion, Finish, Pictures, Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.gateway.app import Gateway, GatewaySettings
from rollouts.store.store import EpisodeStore

openai = pytest.importorskip("openai", reason="openai is not installed: pip install -e .[dev]")

TOOL: Any = {
    "type": "function",
    "function": {"name": "age", "description": "An age.", "parameters": {"type": "object", "properties": {}}},
}


class Told:
    """An engine of the policy with prescribed tokens, so that it calls tools."""

    def __init__(self, policy: Transformer, tokenizer: Tokenizer, turns: list[Any]) -> None:
        self.policy, self.tokenizer, self.turns = policy, tokenizer, turns
        self.fed: dict[str, int] = {}

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        said = self.turns.pop(0)
        text, calls = ("", said) if isinstance(said, list) else (said, [])
        new = self.tokenizer.encode_segments(assistant_pieces(text, calls, thinking=False))
        ids = torch.tensor([[*prompt, *new]])
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, len(prompt) :] = True
        with torch.no_grad():
            logprobs = self.policy(ids, mask)[0].tolist()
        start, end = self.fed.get(session, 0), len(prompt) + len(new) - 1
        self.fed[session] = end
        model = self.policy.config
        live = np.full((end - start, model.num_moe_layers, model.num_experts_per_tok), -1, np.int16)
        return Completion(
            tokens=new, logprobs=logprobs, finish=Finish.STOP, policy_version=0, routes=live, routes_start=start
        )

    async def release(self, session: str) -> None:
        self.fed.pop(session, None)


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return tiny_model()


@pytest.fixture(scope="module")
def learner(model: ModelConfig) -> Learner:
    own = Learner(model, OptimizerConfig(), seed=1)
    own.load_weights(export_weights(random_policy(model)))
    return own


def served(engine: Any, tokenizer: Tokenizer, folder: Path) -> Iterator[tuple[SocketServer, Any]]:
    settings = GatewaySettings(model="policy", longest=1024, max_tokens=12)
    gateway = Gateway(engine, KimiChat(tokenizer), settings, EpisodeStore(folder))
    server = SocketServer(gateway.app())
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:
            yield server, client
    finally:
        server.close()


def step(learner: Learner, folder: Path, episodes: int) -> dict[str, float]:
    found = recorded_episodes(folder)
    assert len(found) == episodes
    rows = recorded_rows(found, temperature=1.0, routed=True)
    before = {name: array.copy() for name, array in learner.weights().items()}
    trained = sum(row.trained for row in rows)
    metrics = learner.policy_step(rows, K25(), denominator=trained, temperature=1.0, micro_tokens=2048, lr_scale=1e-6)
    assert any((array != before[name]).any() for name, array in learner.weights().items())
    return metrics


def test_openais_client_streams_and_calls_tools_and_what_it_did_trains(learner, model, tokenizer, tmp_path):
    call = Call(id="functions.age:0", name="age", arguments={"of": "Kim"})
    policy = random_policy(model)
    for server, client in served(Told(policy, tokenizer, [[call], "It is 37.", [call], "No."]), tokenizer, tmp_path):
        assert [m.id for m in client.models.list()] == ["policy"]
        for attempt, reward in ((0, 1.0), (1, 0.0)):
            messages: list[Any] = [{"role": "user", "content": "How old is Kim?"}]
            headers = {"x-parl-episode": f"attempt-{attempt}"}
            options: Any = {"model": "policy", "tools": [TOOL], "extra_headers": headers}
            stream = client.chat.completions.create(messages=messages, stream=True, **options)
            parts = [chunk.choices[0].delta.tool_calls[0] for chunk in stream if chunk.choices[0].delta.tool_calls]
            arguments = "".join(part.function.arguments for part in parts)
            assert json.loads(arguments) == {"of": "Kim"} and parts[0].function.name == "age"
            asked = {"id": parts[0].id, "type": "function", "function": {"name": "age", "arguments": arguments}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [asked]})
            messages.append({"role": "tool", "tool_call_id": parts[0].id, "content": "37"})
            answer = client.chat.completions.create(messages=messages, logprobs=True, **options)
            assert answer.choices[0].message.content in ("It is 37.", "No.")
            assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 2
            assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
            with openai.DefaultHttpxClient(timeout=30) as plain:
                path = f"{server.url}/v1/parl/episodes/attempt-{attempt}/reward"
                assert plain.post(path, json={"reward": reward}).status_code == 200
    episodes = recorded_episodes(tmp_path)
    assert [len(episode.traces) for episode in episodes] == [1, 1] and [e.index for e in episodes] == [0, 1]
    assert [len(episode.orchestrator.turns) for episode in episodes] == [2, 2]
    rows = recorded_rows(episodes, temperature=1.0, routed=True)
    assert [sorted(set(row.advantages[row.mask])) for row in rows] == [[0.5], [-0.5]]  # one group: one task
    assert step(learner, tmp_path, 2)["logprob_gap"] < 1e-4


def test_what_the_embedded_engine_samples_over_several_turns_is_what_the_learner_computes(
    learner, model, tokenizer, tmp_path
):
    engine = EmbeddedEngine(model)
    asyncio.run(engine.update(Update(version=3, weights=learner.weights())))
    for server, client in served(engine, tokenizer, tmp_path):
        for attempt in range(2):
            messages: list[Any] = [{"role": "user", "content": "Say something"}]
            for _ in range(3):
                answer = client.chat.completions.create(messages=messages, model="policy", user=f"a{attempt}")
                messages.append(answer.choices[0].message)
                messages.append({"role": "user", "content": "More"})
            with openai.DefaultHttpxClient(timeout=30) as plain:
                path = f"{server.url}/v1/parl/episodes/a{attempt}/reward"
                assert plain.post(path, json={"reward": float(attempt)}).status_code == 200
    episodes = recorded_episodes(tmp_path)
    for episode in episodes:
        [trace] = episode.traces
        assert len(trace.turns) == 3 and sum(trace.mask) == 36
        assert {v for v in trace.versions if v >= 0} == {3}
        assert trace.routes is not None and (trace.routes[:-1] >= 0).all()
    assert step(learner, tmp_path, 2)["logprob_gap"] < 1e-4


def test_rows_of_another_temperature_are_refused(model, tokenizer, tmp_path):
    policy = random_policy(model)
    for server, client in served(Told(policy, tokenizer, ["A."]), tokenizer, tmp_path):
        client.chat.completions.create(
            messages=[{"role": "user", "content": "x"}], model="policy", user="u", temperature=0.5
        )
        with openai.DefaultHttpxClient(timeout=30) as plain:
            plain.post(f"{server.url}/v1/parl/episodes/u/reward", json={"reward": 1})
    with pytest.raises(ValueError, match=r"'u' was sampled at temperatures \[0.5\].*--temperature 1"):
        recorded_rows(recorded_episodes(tmp_path), temperature=1.0, routed=True)
