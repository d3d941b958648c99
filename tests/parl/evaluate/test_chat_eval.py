"""``parl eval --model URL``: a model of a chat server as swarm and as single agent, resumed, counted, and refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_stand_in import OUT, ChatStandIn, chat_server
from tiny import random_policy, tiny_config, tiny_model
from typer.testing import CliRunner

from envs.world.site.server import SocketServer
from model.chat.kimi import KimiChat
from model.decoder import export_weights
from model.tokenizer.tokenizer import Tokenizer
from parl.cli.main import app
from parl.collect.tasks import run_tasks
from parl.config.load import to_yaml
from parl.config.schema import Config
from parl.errors import UserError
from parl.evaluate.evaluation import run_eval
from rollouts.engine.base import Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.gateway.app import Gateway, GatewaySettings
from rollouts.store.outline import read_outlines, shard_paths

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def config(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr("parl.collect.tasks.policy_tokenizer", lambda config, **options: tokenizer)
    return tiny_config(tmp_path, eval={"tasks": 6})


@pytest.fixture
def stand_in(config: Config) -> ChatStandIn:
    return ChatStandIn(run_tasks(config).held_out())


@pytest.fixture
def url(stand_in: ChatStandIn) -> Iterator[str]:
    with chat_server(stand_in) as address:
        yield address


def test_a_model_of_a_server_is_evaluated_as_swarm_and_as_single_agent(config, stand_in, url):
    stand_in.fail = [429, 503]
    result = run_eval(config, model=url, prices=(2.0, 10.0))["policies"]
    assert list(result) == ["swarm", "single_agent"]
    for policy in result.values():
        assert policy["estimates"]["all"]["avg@1"]["value"] == 1.0 and policy["failed"] == 0
    assert result["swarm"]["means"]["all"]["subagents"] > 0 == result["single_agent"]["means"]["all"]["subagents"]
    used = [policy["account"]["usage"] for policy in result.values()]
    assert sum(one["requests"] for one in used) == len(stand_in.requests)
    assert sum(one["prompt_tokens"] for one in used) == stand_in.tokens_in
    assert sum(one["completion_tokens"] for one in used) == OUT * len(stand_in.requests)
    asked = stand_in.requests[0]
    assert asked["model"] == "reference" and asked["max_tokens"] == config.rollouts.budget.turn_tokens
    assert asked["temperature"] == config.eval.temperature and 0 <= asked["seed"] < 2**31
    cost, swarm = result["swarm"]["account"]["cost"], used[0]
    assert cost["total"] == pytest.approx((2 * swarm["prompt_tokens"] + 10 * swarm["completion_tokens"]) / 1e6)
    assert cost["per_solved"] == pytest.approx(cost["total"] / 6)


def test_an_evaluation_goes_on_with_what_is_missing_and_its_usage_with_it(config, stand_in, url):
    options = {"model": url, "single_agent": True}
    whole = run_eval(config.model_copy(update={"name": "whole"}), n=2, **options)["policies"]["single_agent"]
    needed = len(stand_in.requests)
    stand_in.requests.clear()
    stand_in.dies_after = needed // 2
    with pytest.raises(UserError, match=rf"--model {re.escape(url)}/v1/chat.* 401.*set OPENAI_API_KEY"):
        run_eval(config, n=2, **options)
    stand_in.dies_after = 1_000_000
    result = run_eval(config, n=2, **options)["policies"]["single_agent"]
    assert result["means"] == whole["means"] and result["failed"] == 0
    assert result["account"]["usage"]["requests"] == len(stand_in.requests) > needed  # what was spent in vain, too
    stored = [o.episode for o in read_outlines(shard_paths(Path(result["store"])))]
    tasks = [task.key for task in run_tasks(config).held_out()]
    assert sorted((e.task.key, e.index) for e in stored) == sorted((key, k) for key in tasks for k in range(2))
    asked = len(stand_in.requests)
    assert run_eval(config, n=2, **options)["policies"]["single_agent"] == result and len(stand_in.requests) == asked
    assert run_eval(config, n=1, **options)["policies"]["single_agent"]["account"]["usage"]["requests"] < asked


def test_another_model_of_the_server_has_a_store_of_its_own(config, stand_in, url):
    stores = {
        run_eval(config, model=url, model_name=name, limit=1, single_agent=True)["policies"]["single_agent"]["store"]
        for name in ("reference", "other", "reference")
    }
    assert len(stores) == 2 and {body["model"] for body in stand_in.requests} == {"reference", "other"}


def test_arguments_that_are_no_json_are_refused_by_the_tool_and_the_episode_goes_on(config, stand_in, url):
    stand_in.stutters = True
    result = run_eval(config, model=url)["policies"]
    for policy in result.values():
        assert policy["failed"] == 0 and policy["estimates"]["all"]["avg@1"]["value"] == 1.0
        episodes = [outline.episode for outline in read_outlines(shard_paths(Path(policy["store"])))]
        first = [episode.orchestrator.turns[0] for episode in episodes]
        assert all(turn.calls[0].arguments == {"malformed_arguments": '{"query": '} for turn in first)
        assert {turn.results[0].error for turn in first} == {"bad_args"}


def test_a_policy_behind_the_gateway_is_evaluated_through_it(config, tokenizer):
    shape = tiny_model()
    engine = EmbeddedEngine(shape)
    asyncio.run(engine.update(Update(version=1, weights=export_weights(random_policy(shape)))))
    settings = GatewaySettings(model="tiny", longest=shape.max_position_embeddings)
    budget = config.rollouts.budget.model_copy(update={"turn_tokens": 24})
    short = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"budget": budget})})
    server = SocketServer(Gateway(engine, KimiChat(tokenizer), settings, None).app())
    try:
        result = run_eval(short, model=server.url, limit=2)["policies"]
    finally:
        server.close()
    for policy in result.values():
        assert policy["failed"] == 0 and policy["account"]["usage"]["completion_tokens"] > 0


def test_a_server_that_is_not_there_is_named(config):
    for name in (None, "some-model"):
        with pytest.raises(UserError, match=rf"--model {DEAD}/v1 cannot be reached .*start the server"):
            run_eval(config, model=DEAD, model_name=name)


def test_mistakes_with_servers_are_named_before_anything_starts(config, tmp_path):
    with pytest.raises(UserError, match=r"--policy trained .* leave it out"):
        run_eval(config, model=DEAD, policies=["trained"])
    with pytest.raises(UserError, match="--model-name m is for servers"):
        run_eval(config, model_name="m")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    refused = CliRunner().invoke(app, ["eval", str(path), "--model", DEAD, "--price-in", "2"])
    assert refused.exit_code == 2 and "give both, or none" in refused.output


def test_the_command_prints_what_the_server_counted_and_what_it_cost(config, stand_in, url, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    given = ["eval", str(path), "--model", url, "--limit", "2", "--price-in", "2", "--price-out", "10"]
    shown = CliRunner().invoke(app, given)
    assert shown.exit_code == 0, shown.output
    assert "swarm: " in shown.output and "single_agent: " in shown.output
    assert re.search(r"server: [\d,]+ tokens in, [\d,]+ out in [\d,]+ requests · cost 0\.\d{4}", shown.output)
    assert json.loads((config.run_dir / "evals" / "summary.json").read_text())["tasks"] == 2
