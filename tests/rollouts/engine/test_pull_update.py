"""A server that fetches its weights: order of the calls, errors of the pull, restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from rollouts.config import HttpConfig, RolloutsConfig
from rollouts.engine.base import Delivery
from rollouts.engine.built_in import Sglang as SglangEngine
from rollouts.engine.servers.blobs import Blob, Manifest, Shard
from rollouts.engine.servers.dialects import Vllm
from rollouts.engine.servers.http import HttpEngine
from rollouts.engine.servers.weight_update import Deliverer, StaleWeights

PROBE = [1, 2, 3]
VALUES = {0: [-1.0, -2.0], 1: [-1.5, -2.5], 2: [-1.6, -2.6]}


class Server(httpx.AsyncBaseTransport):
    """A stand-in for vLLM with our worker extension. ``errors``: of the next pulls; ``started``: a restart's mark."""

    def __init__(self, started: Path, *errors: str) -> None:
        self.started, self.errors = started, list(errors)
        self.fetched, self.loaded, self.paused, self.asked = -1, 0, False, 0
        self.paths: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path, answer = request.url.path, dict[str, Any]()
        self.paths.append(body.get("method", path))
        if self.started.exists():
            self.started.unlink()
            self.fetched = self.loaded = -1
        if path == "/pause":
            self.paused = True
        if path == "/resume":
            self.paused = False
        if body.get("method") == "parl_pull":
            assert not self.paused  # the server goes on while it fetches
            self.fetched, self.asked = Manifest.read(body["kwargs"]["manifest"]).version, 0
        if body.get("method") == "parl_pulled":
            self.asked += 1
            error = self.errors[0] if self.errors else ""
            done = self.asked > 1
            if done and error:
                self.errors.pop(0)
            one = {"version": self.fetched, "done": done, "error": error if done else "", "fetched": 10 * self.asked}
            answer["results"] = [one | {"seconds": 0.1, "deltas": 0, "wholes": 1}] * 2  # two workers
        if path == "/finish_weight_update":
            assert self.paused
            self.loaded = int(body["weight_version"])
        if path == "/inference/v1/generate":
            pairs = zip(PROBE[1:], VALUES[max(self.loaded, 0)], strict=True)
            answer["prompt_logprobs"] = [None, *({str(t): {"logprob": s}} for t, s in pairs)]
        return httpx.Response(200, json=answer, request=request)


def delivery(version: int) -> Delivery:
    shards = (Shard(whole=Blob(sha256="a" * 64, size=5)), Shard(whole=Blob(sha256="b" * 64, size=5)))
    manifest = Manifest(version=version, where="http://127.0.0.1:9", shards=shards)
    folder = Path("/nowhere")
    return Delivery(version=version, folder=folder, probe=PROBE, logprobs=VALUES[version], manifest=manifest)


def deliverer(server: Server, **settings: Any) -> Deliverer:
    engine = HttpEngine("http://server:1", Vllm(), pool="policy", longest=100, transport=server)
    return Deliverer(engine, HttpConfig(weights="pull", **settings))


async def test_weights_are_fetched_before_the_pause_and_loaded_by_name_in_it(tmp_path):
    server = Server(tmp_path / "started")
    one = deliverer(server)
    await one.deliver(delivery(1))
    assert server.paths == [
        "/health", "parl_pull", "parl_pulled", "parl_pulled", "/pause", "/init_weight_transfer_engine",
        "/start_weight_update", "/update_weights", "/update_weights", "/finish_weight_update", "/reset_prefix_cache",
        "/resume", "/inference/v1/generate",
    ]  # fmt: skip
    assert (one.pulled_bytes, one.restarts, server.loaded) == (40, 0, 1) and one.pull_s > 0 and one.pause_s > 0


async def test_a_pull_that_fails_leaves_the_server_unpaused_and_ends_the_run_without_a_restart_command(tmp_path):
    server = Server(tmp_path / "started", "Corrupt: not blob")
    one = deliverer(server)
    with pytest.raises(StaleWeights, match=r"could not fetch version 0: Corrupt: not blob; .* starts it anew"):
        await one.deliver(delivery(0))
    assert "/pause" not in server.paths and one.engine.policy_version == -1


async def test_after_a_restart_the_version_is_fetched_again_and_later_ones_go_in_place(tmp_path, caplog):
    server = Server(tmp_path / "started", "disk full")
    one = deliverer(server, restart=f"touch {tmp_path}/started")
    with caplog.at_level(logging.WARNING):
        for version in (0, 1, 2):
            await one.deliver(delivery(version))
    assert (one.restarts, one.in_place, server.loaded) == (1, True, 2)
    assert "version 0 did not get there" in caplog.text and "disk full" in caplog.text


async def test_a_server_that_stays_stale_ends_the_run(tmp_path):
    server = Server(tmp_path / "started", "no room", "no room")
    one = deliverer(server, restart=f"touch {tmp_path}/started")
    with pytest.raises(StaleWeights, match=r"was restarted, and still does not serve the policy.*no room"):
        await one.deliver(delivery(0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": "pull", "publish": "0.0.0.0:80"}, "not all of them"),
        ({"weights": "pull", "publish": "a b"}, "neither HOST"),
        ({"weights": "pull", "publish": "s3://key:secret@bucket"}, "credentials"),
        ({"weights": "reload", "publish": "10.0.0.1"}, "is for weights=pull"),
        ({"weights": "pull", "restart": "serve {folder}"}, "cannot read {folder}"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ValidationError) as error:
        HttpConfig(**settings)
    assert said in str(error.value) and "secret" not in str(error.value).split("[type")[0]


@pytest.mark.parametrize("place", ["10.0.0.1", "10.0.0.1:8100", "node-3:8100", "s3://bucket/run", "file:///mnt/x"])
def test_an_address_of_this_machine_or_of_storage_is_taken(place):
    assert HttpConfig(weights="pull", publish=place).publish == place


def test_sglang_is_refused():
    rollouts = RolloutsConfig(engine="sglang", http=HttpConfig(urls=("http://127.0.0.1:1",), weights="pull"))
    with pytest.raises(ValueError, match=r"weights=pull needs rollouts.engine=vllm"):
        SglangEngine.check(rollouts)
