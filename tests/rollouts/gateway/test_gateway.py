"""The gateway: recorded conversations, answers, refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.chat.kimi import Call, KimiChat, assistant_pieces, chat_pieces, prompt_pieces
from model.tokenizer.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.episode import EpisodeStatus, TraceStatus
from rollouts.gateway.app import KIND, Gateway, GatewaySettings
from rollouts.store.store import EpisodeStore

TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search.",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    },
}
USER = {"role": "user", "content": "What is the age of Kim?"}
LAYERS, EXPERTS = 2, 2


class Said:
    """An engine that returns ``turns`` in order: text, calls, or raw tokens. Routes encode positions."""

    def __init__(self, tokenizer: Tokenizer, *turns: Any) -> None:
        self.tokenizer, self.turns = tokenizer, list(turns)
        self.asked: list[tuple[list[int], Sampling, str]] = []
        self.reported: dict[str, int] = {}
        self.released: list[str] = []

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        self.asked.append((list(prompt), sampling, session))
        said = self.turns.pop(0)
        if isinstance(said, Exception):
            raise said
        finish = Finish.STOP
        if isinstance(said, tuple):
            tokens, finish = list(said), Finish.LENGTH
        elif isinstance(said, list):
            tokens = self.tokenizer.encode_segments(assistant_pieces("Looking.", said, thinking=False))
        else:
            tokens = self.tokenizer.encode_segments(assistant_pieces(said, thinking=False))
        start = self.reported.get(session, 0)
        end = self.reported[session] = len(prompt) + len(tokens) - 1
        routes = np.arange(start, end, dtype=np.int16)[:, None, None].repeat(LAYERS, 1).repeat(EXPERTS, 2)
        logprobs = [-0.5 - 0.001 * i for i in range(len(tokens))]
        return Completion(
            tokens=tokens, logprobs=logprobs, finish=finish, policy_version=4, routes=routes, routes_start=start
        )

    async def release(self, session: str) -> None:
        self.released.append(session)


def call(index: int, **arguments: Any) -> Call:
    return Call(id=f"functions.search:{index}", name="search", arguments=arguments)


class Served:
    """A gateway and a client to it."""

    def __init__(self, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.gateway, self.client = gateway, client

    async def chat(self, *messages: dict[str, Any], status: int = 200, **body: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/chat/completions", json={"model": "m", "messages": messages, **body})
        assert answer.status_code == status, answer.text
        return answer.json()

    async def finish(self, name: str, reward: float = 1.0, **parts: float) -> None:
        body = {"reward": reward, "parts": parts}
        answer = await self.client.post(f"/v1/parl/episodes/{name}/reward", json=body)
        assert answer.status_code == 200, answer.text

    @property
    def episode(self) -> Any:
        store = self.gateway.store
        assert store is not None
        stored = store.read(max(store.steps(KIND)), KIND)
        assert stored is not None
        return stored[0][0]


async def serve(tokenizer: Tokenizer, folder: Path, *turns: Any, **settings: Any) -> AsyncIterator[Served]:
    engine = Said(tokenizer, *turns)
    options = GatewaySettings(**{"model": "policy", "longest": 2000, **settings})
    gateway = Gateway(engine, KimiChat(tokenizer), options, EpisodeStore(folder))
    app = gateway.app()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield Served(gateway, client)


def message_of(answer: dict[str, Any]) -> dict[str, Any]:
    return answer["choices"][0]["message"]


async def test_a_conversation_with_tools_becomes_one_trace_with_each_sampled_token_once(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, [call(0, q="Kim")], "It is 37."):
        first = await served.chat(USER, tools=[TOOL], user="one")
        assert first["choices"][0]["finish_reason"] == "tool_calls"
        asked = message_of(first)["tool_calls"][0]
        assert asked["id"] == "functions.search:0" and json.loads(asked["function"]["arguments"]) == {"q": "Kim"}
        result = {"role": "tool", "tool_call_id": asked["id"], "content": "Kim: 37"}
        second = await served.chat(USER, message_of(first), result, tools=[TOOL], user="one")
        assert message_of(second)["content"] == "It is 37." and second["choices"][0]["finish_reason"] == "stop"
        engine = served.gateway.engine
        assert isinstance(engine, Said) and engine.asked[0][2] == engine.asked[1][2]  # one session
        await served.finish("one", 0.75, format=0.25)
        episode = served.episode
        [trace] = episode.traces
        history = [USER, {**message_of(first), "content": "Looking."}, {**result, "name": "search"}]
        pieces = [*prompt_pieces(history, [TOOL], thinking=False), *assistant_pieces("It is 37.", thinking=False)]
        assert tokenizer.decode(trace.tokens) == "".join(text for text, _ in pieces)
        assert trace.tokens[: len(engine.asked[1][0])] == engine.asked[1][0]  # what was sampled is what was fed
        sampled = [token for token, mask in zip(trace.tokens, trace.mask, strict=True) if mask]
        usage = [answer["usage"]["completion_tokens"] for answer in (first, second)]
        assert len(sampled) == sum(usage) and second["usage"]["prompt_tokens"] == len(engine.asked[1][0])
        assert [v for v, mask in zip(trace.versions, trace.mask, strict=True) if mask] == [4] * len(sampled)
        assert trace.routes[:-1, 0, 0].tolist() == list(range(len(trace.tokens) - 1)) and trace.routes[-1, 0, 0] == -1
        assert episode.status is EpisodeStatus.ANSWERED and trace.status is TraceStatus.FINISHED
        assert episode.rewards == {"format": 0.25, "total": 0.75} and episode.answer == "It is 37."
        assert trace.turns[0].results[0].text == "Kim: 37" and engine.released == [engine.asked[0][2]]


async def test_a_request_that_goes_back_gets_a_trace_of_its_own_whose_beginning_is_not_trained_again(
    tokenizer, tmp_path
):
    async for served in serve(tokenizer, tmp_path, "One.", "Two.", "Other."):
        first = await served.chat(USER, user="x")
        more, other = {"role": "user", "content": "And Lee?"}, {"role": "user", "content": "And Max?"}
        await served.chat(USER, message_of(first), more, user="x")
        await served.chat(USER, message_of(first), other, user="x")
        await served.finish("x")
        whole, branch = served.episode.traces
        common = len(served.gateway.engine.asked[0][0]) + first["usage"]["completion_tokens"]
        assert branch.tokens[:common] == whole.tokens[:common] and branch.agent_id == "0/0" and branch.trainable
        assert any(whole.mask[:common]) and not any(branch.mask[:common]) and any(branch.mask[common:])
        assert len(branch.routes) == len(branch.tokens)


async def test_conversations_without_a_name_are_episodes_of_their_own_and_found_again(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "One.", "Two.", "Three."):
        first = await served.chat(USER)
        second = await served.chat({"role": "user", "content": "Something else"})
        third = await served.chat(USER, message_of(first), {"role": "user", "content": "More"})
        names = [answer["parl"]["episode"] for answer in (first, second, third)]
        assert names[0] == names[2] != names[1]
        rows = (await served.client.get("/v1/parl/episodes")).json()["episodes"]
        assert [row["episode"] for row in rows] == [names[0], names[1]] and rows[0]["task"] != rows[1]["task"]


async def test_other_tools_begin_another_trace(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "One.", "Two."):
        first = await served.chat(USER, user="x", tools=[TOOL])
        await served.chat(USER, message_of(first), {"role": "user", "content": "More"}, user="x")
        await served.finish("x")
        assert len(served.episode.traces) == 2 and not served.episode.traces[1].mask[0]


async def test_a_turn_that_was_cut_off_is_closed_before_the_next(tokenizer, tmp_path):
    cut = tuple(tokenizer.encode("It is"))
    async for served in serve(tokenizer, tmp_path, cut, "37."):
        first = await served.chat(USER, user="x", max_tokens=2)
        assert first["choices"][0]["finish_reason"] == "length" and message_of(first)["content"] == "It is"
        await served.chat(USER, message_of(first), {"role": "user", "content": "Go on"}, user="x")
        prompt = served.gateway.engine.asked[1][0]
        rest = chat_pieces([{"role": "user", "content": "Go on"}], thinking=False)
        assert tokenizer.decode(prompt).endswith("It is<|im_end|>" + "".join(text for text, _ in rest))
        await served.finish("x")
        [trace] = served.episode.traces
        assert not trace.mask[trace.turns[0].end]  # the closing token was not sampled


async def test_after_a_failure_the_same_request_gets_a_fresh_trace(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "One.", TimeoutError("engine"), "Two."):
        first = await served.chat(USER, user="x")
        again = (USER, message_of(first), {"role": "user", "content": "More"})
        answer = await served.chat(*again, user="x", status=504)
        assert "no answer within" in answer["error"]["message"]
        await served.chat(*again, user="x")
        assert served.gateway.engine.asked[1][0] == served.gateway.engine.asked[2][0]
        assert served.gateway.engine.asked[1][2] != served.gateway.engine.asked[2][2]
        await served.finish("x")
        broken, fresh = served.episode.traces
        assert (broken.status, fresh.status) == (TraceStatus.FAILED, TraceStatus.FINISHED)


async def test_text_that_looks_like_control_tokens_stays_text(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "No."):
        await served.chat({"role": "user", "content": "<|im_end|><|im_system|>"}, user="x")
        prompt = served.gateway.engine.asked[0][0]
        assert (
            prompt.count(tokenizer.special["<|im_end|>"]) == 1 and prompt.count(tokenizer.special["<|im_system|>"]) == 0
        )


async def test_a_stream_carries_the_same_answer_in_chunks_and_ends_with_done(tokenizer, tmp_path):
    long = "word " * 40 + "end"
    async for served in serve(tokenizer, tmp_path, [call(0, q="a" * 100), call(1, q="b")], long):
        tree = {"messages": [USER], "tools": [TOOL], "stream": True, "stream_options": {"include_usage": True}}
        answer = await served.client.post("/v1/chat/completions", json=tree)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        chunks = [json.loads(event) for event in events[:-1]]
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
        arguments = {0: "", 1: ""}
        for chunk in chunks[:-1]:
            for part in chunk["choices"][0]["delta"].get("tool_calls", []):
                arguments[part["index"]] += part["function"]["arguments"]
        assert [json.loads(text)["q"] for text in arguments.values()] == ["a" * 100, "b"]
        assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
        answer = await served.client.post("/v1/chat/completions", json={"messages": [USER], "stream": True})
        texts = [json.loads(line[6:]) for line in answer.text.splitlines() if line and "[DONE]" not in line]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in texts) == long
        assert len(texts) > 4 and "usage" not in texts[-1]


async def test_log_probs_are_those_of_the_tokens(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "It is 37."):
        answer = await served.chat(USER, logprobs=True)
        items = answer["choices"][0]["logprobs"]["content"]
        assert "".join(item["token"] for item in items) == "It is 37.<|im_end|>"
        assert [item["logprob"] for item in items] == [-0.5 - 0.001 * i for i in range(len(items))]


async def test_settings_of_the_gateway_win_over_those_of_a_request(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "One.", temperature=1.0):
        await served.chat(USER, temperature=0.2, top_p=0.9, user="x")
        sampling = served.gateway.engine.asked[0][1]
        assert (sampling.temperature, sampling.top_p) == (1.0, 0.9)
        await served.finish("x")
        assert served.episode.metrics["gateway/temperatures"] == [1.0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": 2}, "n: 2"),
        ({"stop": ["x"]}, "stop"),
        ({"temperature": "hot"}, "temperature: 'hot'"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"tools": [{"type": "web"}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "user", "content": "word " * 900}]}, "context_length_exceeded"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(tokenizer, tmp_path, change, named):
    async for served in serve(tokenizer, tmp_path, longest=400):
        answer = await served.client.post("/v1/chat/completions", json={"messages": [USER], **change})
        assert answer.status_code == 400 and named in answer.json()["error"]["message"]


async def test_rewards_are_checked_and_an_episode_ends_once(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "One."):
        await served.chat(USER, user="team/1")
        path = "/v1/parl/episodes/team/1/reward"
        assert (await served.client.post(path, json={"reward": "high"})).status_code == 400
        assert (await served.client.post(path, json=[1])).status_code == 400
        assert (await served.client.post("/v1/parl/episodes/nobody/reward", json={"reward": 1})).status_code == 404
        await served.finish("team/1")
        assert (await served.client.post(path, json={"reward": 1})).status_code == 404


async def test_each_use_of_a_name_draws_noise_of_its_own_also_after_a_restart(tokenizer, tmp_path):
    async def drawn(folder: Path) -> list[int]:
        """Of an episode and its branch, of its name used again, of one that looks like a branch, of one without a name,
        and of two with a seed."""
        seeds = []
        async for served in serve(tokenizer, folder, *["One."] * 7):
            for name, count in (("a", 2), ("a", 1), ("a/0", 1), (None, 1)):
                for _ in range(count):
                    await served.chat(USER, user=name)
                if name:
                    await served.finish(name)
            for _ in range(2):
                await served.chat(USER, user="b", seed=7)
                await served.finish("b")
            assert isinstance(served.gateway.engine, Said)
            seeds = [sampling.seed for _, sampling, _ in served.gateway.engine.asked]
        return seeds

    first, second, fresh = [await drawn(tmp_path / folder) for folder in ("x", "x", "y")]
    store = EpisodeStore(tmp_path / "x")
    read = [store.read(step, KIND) for step in store.steps(KIND)]
    attempts = [(stored[0][0].task.key, stored[0][0].index) for stored in read if stored]
    assert len(set(attempts)) == len(attempts) == 12  # rows and reports tell episodes apart by them
    own = [*first[:5], *second[:5]]
    assert len(set(own)) == len(own)
    assert len({*first[5:], *second[5:]}) == 1  # a request's own seed is what it asks for
    assert fresh == first


async def test_what_has_no_name_never_goes_on_in_an_episode_that_has_one(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "One.", "One.", "Two."):
        named = await served.chat(USER, user="named")
        without = await served.chat(USER)
        more = await served.chat(USER, message_of(without), USER)
        assert message_of(named) == message_of(without)
        assert more["parl"]["episode"] == without["parl"]["episode"] != "named" and more["parl"]["agent"] == "0"


async def test_what_got_no_reward_is_stored_as_failed(tokenizer, tmp_path):
    async for served in serve(tokenizer, tmp_path, "One.", "Two.", idle_s=0.0):
        await served.chat(USER, user="idle")
        await served.chat(USER, user="stopped")
    store = EpisodeStore(tmp_path)
    read = [store.read(step, KIND) for step in store.steps(KIND)]
    episodes = [stored[0][0] for stored in read if stored]
    assert [episode.status for episode in episodes] == [EpisodeStatus.FAILED] * 2
    assert "nothing was heard" in episodes[0].error and "stopped before a reward" in episodes[1].error
