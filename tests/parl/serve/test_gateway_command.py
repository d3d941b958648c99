"""``parl gateway`` as a command: addresses, access, and earlier recordings."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from envs.base import Gold, Role, Task
from parl.cli.main import app
from parl.errors import UserError
from parl.serve.gateway import KEY_VARIABLE, access_of, bound_sockets, recorded_episodes, recorded_rows
from rollouts.episode import Episode, EpisodeStatus, Trace
from rollouts.gateway.app import KIND
from rollouts.store.store import EpisodeStore

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.3", "localhost"])
def test_loopback_needs_no_key(host):
    sockets = bound_sockets(host, 0, keyed=False)
    assert sockets and len({one.getsockname()[1] for one in sockets}) == 1
    for one in sockets:
        one.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "10.255.255.1", "::ffff:10.0.0.1"])
def test_beyond_loopback_needs_a_key(host):
    with pytest.raises(UserError, match=f"reached from other machines: set {KEY_VARIABLE}"):
        bound_sockets(host, 0, keyed=False)


def test_with_a_key_it_may_listen_everywhere():
    for one in bound_sockets("0.0.0.0", 0, keyed=True):
        one.close()


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("", 8000, "give a name or address"),
        ("127.0.0.1", 65_536, "a port from 0 to 65535"),
        ("127.0.0.1", -1, "a port from 0 to 65535"),
        ("no such host", 8000, "no such address"),
        ("a" * 300, 8000, "no such address"),
        ("http://127.0.0.1", 8000, "no such address"),
        ("203.0.113.7", 8000, "--port"),
    ],
)
def test_an_address_that_cannot_be_had_is_named(host, port, said):
    with pytest.raises(UserError, match=r"--host") as raised:
        bound_sockets(host, port, keyed=True)
    assert said in str(raised.value)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
            bound_sockets("127.0.0.1", port, keyed=False)


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        (["--host", "0.0.0.0"], "", KEY_VARIABLE),
        (["--allow-origin", "*"], "", "--allow-origin '*'"),
        (["--allow-origin", "null"], "", "--allow-origin 'null'"),
        (["--allow-origin", "app.example"], "", "--allow-origin 'app.example'"),
        (["--allow-origin", "https://app.example/path"], "", "--allow-origin"),
        (["--allow-origin", "https://*.example"], "", "--allow-origin"),
        (["--allow-host", "*"], "", "--allow-host '*'"),
        (["--allow-host", "http://policy.lan"], "", "--allow-host"),
        (["--allow-host", "policy.lan:8000"], "", "--allow-host"),
        (["--allow-host", ""], "", "--allow-host ''"),
        ([], "two words", KEY_VARIABLE),
        ([], "schlüssel", KEY_VARIABLE),
        ([], "a\nb", KEY_VARIABLE),
        (["--temperature", "nan"], "", "--temperature"),
        (["--temperature", "-1"], "", "--temperature"),
        (["--top-p", "1.5"], "", "--top-p"),
        (["--port", "70000"], "", "--port 70000"),
        (["--record", "/dev/null"], "", "--record"),
    ],
)
def test_mistakes_on_the_command_line_end_with_2_and_say_the_cure(options, key, said, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, key)
    [starter, *_] = sorted((ROOT / "configs/starters").iterdir())
    result = CliRunner().invoke(app, ["gateway", str(starter), *options])
    assert result.exit_code == 2 and said in result.output, result.output
    assert not key or key not in result.output


def test_hosts_are_the_bound_name_and_those_given_and_never_the_wildcard():
    assert access_of("policy.lan", ["other.lan"], [], None).hosts == ("policy.lan", "other.lan")
    assert access_of("0.0.0.0", [], ["https://app.example:8443"], "k").hosts == ()


def recorded(folder: Path, *rewards: Any) -> list[Episode]:
    store = EpisodeStore(folder)
    for step, reward in enumerate(rewards, 1):
        task = Task(key="t", family="gateway", split="train", prompt="q", gold=Gold(kind="none"))
        trace = Trace(agent_id="0", role=Role.ORCHESTRATOR, name="gateway", trainable=True)
        trace.tokens, trace.mask, trace.logprobs, trace.versions = [1, 2], [False, True], [0.0, -1.0], [-1, 0]
        episode = Episode(task=task, index=step, seed=0, traces=[trace], status=EpisodeStatus.ANSWERED)
        episode.rewards = {} if reward is None else {"total": reward}
        episode.metrics = {"gateway/episode": f"episode-{step}", "gateway/temperatures": [1.0]}
        store.write(step, [episode], policy_version=0, kind=KIND)
    return recorded_episodes(folder)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e308, None, "1", True])
def test_a_recorded_reward_that_is_no_finite_number_is_refused_by_name(wrong, tmp_path):
    episodes = recorded(tmp_path, 1.0, wrong, 0.0)
    with pytest.raises(ValueError, match="'episode-2' of task t has the reward"):
        recorded_rows(episodes, temperature=1.0, routed=False)
    rows = recorded_rows([episodes[0], episodes[2]], temperature=1.0, routed=False)
    assert [row.advantages[1] for row in rows] == [0.5, -0.5]


def test_recorded_log_probs_that_are_none_are_refused_by_name(tmp_path):
    episodes = recorded(tmp_path, 1.0, 0.0)
    episodes[0].traces[0].logprobs[1] = math.nan
    with pytest.raises(ValueError, match="'episode-1' has log-probs"):
        recorded_rows(episodes, temperature=1.0, routed=False)


def test_a_name_of_which_this_machine_has_one_address_is_served_there(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("203.0.113.7", "127.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **more: found)
    [one] = bound_sockets("policy.lan", 0, keyed=True)
    assert one.getsockname()[0] == "127.0.0.1"
    one.close()


def test_the_largest_rewards_give_finite_advantages(tmp_path):
    rows = recorded_rows(recorded(tmp_path, 1e9, -1e9), temperature=1.0, routed=False, normalise_std=True)
    assert all(math.isfinite(row.advantages[1]) for row in rows)


@pytest.mark.slow
def test_bodies_that_once_were_500s_are_refused_by_a_running_gateway(tmp_path):
    [starter, *_] = sorted((ROOT / "configs/starters").iterdir())
    start = "from parl.cli.main import main; main()"
    command = [sys.executable, "-c", start, "gateway", str(starter), "--port", "0", "--record", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout and run.stderr
        url = run.stdout.readline().split(" at ")[1].strip()
        q = '"max_tokens":4,"messages":[{"role":"user","content":"q"}]'
        bodies = {
            f'{{"metadata":"a",{q}}}': "metadata",
            f'{{"stream_options":[1],{q}}}': "stream_options",
            f'{{"tools":[{{"type":"function","function":"f"}}],{q}}}': "tools[0].function",
            '{"messages":[{"role":"user","content":"half \\ud83d"}]}': "messages[0].content",
            f'{{"user":"\\ud83d",{q}}}': "user",
        }
        try:
            with httpx.Client(base_url=url, timeout=60, headers={"content-type": "application/json"}) as client:
                for body, field in bodies.items():
                    answer = client.post("chat/completions", content=body)
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
                assert client.get("parl/episodes").json() == {"episodes": []}
                assert client.post("chat/completions", content=f'{{"user":"a",{q}}}').status_code == 200
                for reward in ("NaN", "Infinity", "1e999", "true", '"1"'):
                    answer = client.post("parl/episodes/a/reward", content=f'{{"reward": {reward}}}')
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reward")
                assert client.post("parl/episodes/a/reward", content=json.dumps({"reward": 1})).status_code == 200
                assert client.get("models", headers={"host": "evil.example"}).status_code == 421
                assert client.get("models", headers={"origin": "https://evil.example"}).status_code == 403
        finally:
            run.send_signal(signal.SIGINT)
            give_up = time.monotonic() + 30
            while run.poll() is None and time.monotonic() < give_up:
                time.sleep(0.05)
            run.kill()
        assert "Traceback" not in run.stderr.read()
    assert [episode.rewards["total"] for episode in recorded_episodes(tmp_path)] == [1.0]
