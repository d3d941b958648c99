"""Weight updates of a server, and their verification."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from replay import Replay

from parl.machine.faults import curable
from rollouts.config import HttpConfig
from rollouts.engine.base import Delivery
from rollouts.engine.servers.blobs import Manifest
from rollouts.engine.servers.dialects import Sglang, Vllm
from rollouts.engine.servers.http import EngineGone, HttpEngine
from rollouts.engine.servers.weight_update import Deliverer, StaleWeights, Verifier
from rollouts.faults import EngineSilent

PROBE = [1, 2, 3, 4]
VALUES = {0: [-1.0, -2.0, -3.0], 1: [-1.5, -2.5, -3.5], 2: [-1.6, -2.6, -3.6]}


class Server(httpx.AsyncBaseTransport):
    """A stand-in for vLLM: ``loaded`` is its weights. ``stale``: a reload in place changes nothing.

    ``started``: the file into which the restart command writes the folder's name.
    """

    def __init__(self, started: Path, *, stale: bool = False, noise: float = 0.0, broken: bool = False) -> None:
        self.started, self.stale, self.noise, self.broken = started, stale, noise, broken
        self.loaded, self.label, self.paths, self.paused = 0, "default", list[str](), False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.paths.append(path)
        body = json.loads(request.content) if request.content else {}
        if self.started.exists():
            self.loaded, self.label = int(self.started.read_text().strip()[-1]), "default"
            self.started.unlink()
        if path == "/pause":
            self.paused = True
        if path == "/resume":
            self.paused = False
        if path == "/collective_rpc":
            assert self.paused
            if self.broken:
                return httpx.Response(501, text="no such thing", request=request)
            if not self.stale:
                self.loaded = int(body["kwargs"]["weights_path"][-1])
        if path == "/update_weight_version":
            self.label = body["new_version"]
        answer: dict[str, Any] = {}
        if path == "/inference/v1/generate":
            scores = [value + self.noise for value in VALUES[self.loaded]]
            tokens = body["token_ids"][1:]
            answer["prompt_logprobs"] = [
                None, *({str(t): {"logprob": s}} for t, s in zip(tokens, scores, strict=True))
            ]  # fmt: skip
        return httpx.Response(200, json=answer, request=request)


def delivery(version: int, values: int | None = None) -> Delivery:
    wanted = VALUES[version if values is None else values]
    return Delivery(version=version, folder=Path(f"/weights/{version}"), probe=PROBE, logprobs=wanted)


def deliverer(server: Server, **settings: Any) -> Deliverer:
    engine = HttpEngine("http://server:1", Vllm(), pool="policy", longest=100, transport=server)
    return Deliverer(engine, HttpConfig(**settings))


async def test_the_first_version_is_a_start_and_later_ones_go_in_place(tmp_path):
    server = Server(tmp_path / "started", noise=1e-4)
    one = deliverer(server, restart=f"echo {{folder}} > {tmp_path}/started")
    await one.deliver(delivery(0))
    assert one.restarts == 1 and one.verifier.rounding == pytest.approx(1e-4)
    await one.deliver(delivery(1))
    assert (one.restarts, one.engine.policy_version, server.label, server.loaded) == (1, 1, "1", 1)
    order = [path for path in server.paths if path != "/health"]
    updating = ["/pause", "/collective_rpc", "/update_weight_version", "/reset_prefix_cache", "/resume"]
    assert order[-6:] == [*updating, "/inference/v1/generate"]


async def test_a_silently_stale_update_is_noticed_and_the_server_started_again(tmp_path, caplog):
    server = Server(tmp_path / "started", stale=True)
    one = deliverer(server, restart=f"echo {{folder}} > {tmp_path}/started")
    with caplog.at_level(logging.WARNING):
        await one.deliver(delivery(0))
        await one.deliver(delivery(1))
        await one.deliver(delivery(2))
    assert (one.restarts, one.in_place, server.loaded, server.label) == (3, False, 2, "2")
    [message] = [record.getMessage() for record in caplog.records]
    assert "version 1 in place failed (it computes exactly what it computed before" in message
    assert server.paths.count("/collective_rpc") == 1  # it is not tried again


async def test_without_a_way_to_restart_a_stale_server_ends_the_run(tmp_path):
    server = Server(tmp_path / "started", stale=True)
    one = deliverer(server)
    await one.deliver(delivery(0))
    with pytest.raises(StaleWeights, match=r"does not serve version 1.*set rollouts.http.restart"):
        await one.deliver(delivery(1))
    assert one.engine.policy_version == 0


async def test_an_update_that_the_server_refuses_falls_back_too(tmp_path, caplog):
    server = Server(tmp_path / "started", broken=True)
    one = deliverer(server, restart=f"echo {{folder}} > {tmp_path}/started")
    await one.deliver(delivery(0))
    await one.deliver(delivery(1))
    assert one.restarts == 2 and server.loaded == 1 and "no such thing" in caplog.text


async def test_a_server_that_computes_something_else_is_never_trained_on(tmp_path):
    server = Server(tmp_path / "started", noise=0.1)
    one = deliverer(server, restart=f"echo {{folder}} > {tmp_path}/started")
    with pytest.raises(StaleWeights, match=r"off by 0.1 on average, more than rollouts.http.tolerance=0.02"):
        await one.deliver(delivery(0))


async def test_a_restart_command_that_fails_says_why(tmp_path):
    one = deliverer(Server(tmp_path / "started"), restart="echo no such GPU; exit 3", weights="restart")
    with pytest.raises(EngineGone, match=r"(?s)ended with 3: no such GPU"):
        await one.deliver(delivery(0))


async def test_a_restart_command_may_leave_a_process_that_keeps_its_output_open(tmp_path):
    one = deliverer(Server(tmp_path / "started"), restart=f"echo {{folder}} > {tmp_path}/started; sleep 30 &")
    await asyncio.wait_for(one.deliver(delivery(0)), 25)
    assert one.restarts == 1


async def test_an_update_that_takes_too_long_says_which_setting_bounds_it(tmp_path):
    one = deliverer(Server(tmp_path / "started"), restart="sleep 5", weights="restart", update_s=0.05)
    with pytest.raises(TimeoutError, match=r"did not take version 0: within rollouts.http.update_s=0.05"):
        await one.deliver(delivery(0))


@pytest.mark.parametrize("weights", ["reload", "transfer", "pull"])
async def test_a_server_lost_during_an_update_costs_a_restart_of_the_actors_and_not_the_run(
    tmp_path, weights, monkeypatch
):
    server = Server(tmp_path / "started")
    one = deliverer(server, weights=weights)
    one.engine.policy_version = 0

    async def lost(*_: Any, **__: Any) -> Any:
        raise EngineGone("http://server:1 cannot be reached")

    monkeypatch.setattr(one.engine, "call", lost)
    given = delivery(1)
    manifest = Manifest(version=1, where="http://127.0.0.1:9", shards=())
    monkeypatch.setattr(Delivery, "files", lambda self: [])
    with pytest.raises(EngineGone) as raised:
        await one.deliver(replace(given, manifest=manifest))
    assert curable(raised.value)


async def test_a_server_that_falls_silent_in_an_update_is_lost_too(tmp_path, monkeypatch):
    one = deliverer(Server(tmp_path / "started"), update_s=0.05)
    one.engine.policy_version = 0

    async def silent(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(5)

    monkeypatch.setattr(one.engine, "call", silent)
    with pytest.raises(EngineSilent, match=r"did not take version 1: within rollouts\.http\.update_s") as raised:
        await one.deliver(delivery(1))
    assert curable(raised.value)


async def test_a_server_that_never_had_weights_ends_the_run_with_the_cure(tmp_path, monkeypatch):
    one = deliverer(Server(tmp_path / "started"))

    async def gone(*_: Any, **__: Any) -> Any:
        raise EngineGone("http://server:1 cannot be reached")

    monkeypatch.setattr(one.engine, "wait_healthy", gone)
    with pytest.raises(StaleWeights, match=r"cannot be reached; set rollouts.http.restart"):
        await one.deliver(delivery(0))


async def test_weights_do_not_change_under_a_running_request(tmp_path):
    one = deliverer(Server(tmp_path / "started"))
    one.engine.running = 2
    with pytest.raises(RuntimeError, match="update of http://server:1 while 2 requests run"):
        await one.deliver(delivery(0))


def test_partly_stale_weights_stand_out_against_the_engines_own_rounding():
    verifier = Verifier(tolerance=0.05)
    assert verifier.judge([-1.0, -2.0001], [-1.0, -2.0], fresh=True)[1] == ""
    assert verifier.judge([-1.1, -2.1001], [-1.1, -2.1], fresh=False)[1] == ""
    gap, wrong = verifier.judge([-1.15, -2.2], [-1.2, -2.2], fresh=False)  # within the tolerance, but not the rounding
    assert gap == pytest.approx(0.025) and "off by 0.025 on average, by 5e-05" in wrong


async def test_sglang_takes_weights_as_its_source_says():
    replay = Replay("sglang")
    engine = HttpEngine("http://server:1", Sglang(), pool="policy", longest=100, transport=replay)
    given = Delivery(version=3, folder=Path("FOLDER"), probe=replay.probe, logprobs=replay.logprobs)
    one = Deliverer(engine, HttpConfig())
    await one.deliver(given)
    assert engine.policy_version == 3 and one.gap == 0.0 and len(replay.exchanges) == 2
