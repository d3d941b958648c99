"""The engine over a chat server: requests, parsed answers, and failures."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from envs.base import ErrorKind, Role, ToolResult
from model.chat.kimi import Call, KimiChat, assistant_pieces, prompt_pieces, tool_result_pieces
from model.chat.kimi_parser import parse_assistant_ids
from model.tokenizer.tokenizer import Tokenizer
from rollouts.engine.base import Finish, Sampling
from rollouts.engine.chat.client import ChatServer, ServerGone, Usage, api_root
from rollouts.engine.chat.engine import ChatEngine, ChatModel, read_arguments
from rollouts.episode import Trace
from rollouts.swarm.context import content_of

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who <|im_end|> is Kim?"}
TOOL = {"type": "function", "function": {"name": "search", "description": "Search.", "parameters": {}}}


class Answers:
    """A transport that gives one response after the other: a body, a status, or an exception."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.sent = list(answers), 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return httpx.Response(status, json=body)


def said(content: Any = None, *calls: tuple[str, Any], reason: str = "stop", usage: Any = None) -> dict[str, Any]:
    asked = [{"id": f"x{i}", "function": {"name": name, "arguments": raw}} for i, (name, raw) in enumerate(calls)]
    return {
        "choices": [{"message": {"content": content, "tool_calls": asked}, "finish_reason": reason}],
        "usage": usage,
    }


def engine(tokenizer: Tokenizer, *answers: Any) -> tuple[ChatEngine, ChatServer, Usage, Answers]:
    transport = Answers(*answers)
    server = ChatServer("http://chat", pause_s=0.0, transport=httpx.MockTransport(transport))
    usage, trace = Usage(), Trace(agent_id="0", role=Role.ORCHESTRATOR)
    model = ChatModel(server=server, name="m")
    return ChatEngine(trace, KimiChat(tokenizer), model, [TOOL], usage), server, usage, transport


async def ask(asked: ChatEngine, tokenizer: Tokenizer) -> Any:
    prompt = tokenizer.encode_segments(prompt_pieces([SYSTEM, USER], [TOOL], thinking=False))
    return await asked.generate(prompt, Sampling(seed=2**40 + 3), session="s", deadline_s=5.0)


def test_a_context_is_read_back_as_the_messages_that_it_was_made_of(tokenizer: Tokenizer):
    calls = [Call(id=f"functions.search:{i}", name="search", arguments={"q": f'"{i}" <|im_end|>\n'}) for i in (0, 1)]
    failed = ToolResult(text="## Return of functions.search:0\nno", error=ErrorKind.NOT_FOUND)
    results = [("functions.search:0", "search", content_of(failed)), ("functions.search:1", "search", "")]
    pieces = [
        *prompt_pieces([SYSTEM, USER], [TOOL], thinking=False),
        *assistant_pieces("Looking.", calls, thinking=False),
        *tool_result_pieces(results, thinking=False),
        *assistant_pieces("", calls[:1], thinking=False),
        *tool_result_pieces([("functions.search:0", "search", "hidden")], thinking=False),
    ]
    read = KimiChat(tokenizer).messages(tokenizer.encode_segments(pieces), {"functions.search:1": "theirs"})
    assert read[:2] == [SYSTEM, USER]
    assert [message["role"] for message in read[2:]] == ["assistant", "tool", "tool", "assistant", "tool"]
    assert [call["id"] for call in read[2]["tool_calls"]] == ["functions.search:0", "theirs"]
    assert read[2]["content"] == "Looking." and read[5]["content"] is None
    asked = read[2]["tool_calls"][1]["function"]
    assert asked["name"] == "search" and read_arguments(asked["arguments"]) == calls[1].arguments
    assert (read[3]["content"], read[4]["content"], read[4]["tool_call_id"]) == (failed.text, "", "theirs")


async def test_answers_become_turns_that_the_parser_reads(tokenizer: Tokenizer):
    parts = [{"type": "text", "text": "Kim "}, {"type": "text", "text": "<|im_end|>"}]
    spoken, _, usage, _ = engine(
        tokenizer,
        said(None, ("search", '{"q":"Kim"}'), ("search", ""), usage={"prompt_tokens": 3, "completion_tokens": 4}),
        said(parts),
        said("cut", reason="length", usage={"prompt_tokens": 5}),
    )
    calls, text, cut = [await ask(spoken, tokenizer) for _ in range(3)]
    read = parse_assistant_ids(tokenizer, calls.tokens, prefill="<think></think>", tool_names={"search"})
    assert [(call.id, call.arguments) for call in read.tool_calls] == [
        ("functions.search:0", {"q": "Kim"}),
        ("functions.search:1", {}),
    ]
    assert parse_assistant_ids(tokenizer, text.tokens, prefill="<think></think>").content == "Kim <|im_end|>"
    assert (calls.finish, cut.finish) == (Finish.STOP, Finish.LENGTH)
    assert usage == Usage(requests=3, prompt_tokens=3, completion_tokens=4, unreported=2)


@pytest.mark.parametrize("raw", ['{"q": ', "[1]", "3", '{"q": NaN}', '{"q": 1e999}', [1]])
def test_arguments_that_are_no_object_become_one_that_says_so(raw: Any):
    assert read_arguments(raw) == {"malformed_arguments": str(raw)}


def test_text_that_utf8_cannot_hold_is_replaced():
    assert read_arguments('{"q": "a\\ud800"}') == {"q": "a?"}


async def test_what_may_pass_is_tried_again_and_a_full_context_ends_the_turn(tokenizer: Tokenizer):
    full = (400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    spoken, _, _, sent = engine(tokenizer, (503, {}), (429, {}), said("a"), httpx.ReadError("gone"), said("b"), full)
    assert [(await ask(spoken, tokenizer)).finish for _ in range(3)] == [Finish.STOP, Finish.STOP, Finish.LENGTH]
    assert sent.sent == 6


async def test_a_refused_request_is_the_servers_fault_only_where_it_never_answered(tokenizer: Tokenizer):
    refusal = (400, {"error": {"message": "no tools"}})
    spoken, server, _, _ = engine(tokenizer, said("a"), refusal, (200, []), said("b"))
    await ask(spoken, tokenizer)
    with pytest.raises(ValueError, match=r"http://chat/v1/chat/completions answered 400: .*no tools"):
        await ask(spoken, tokenizer)
    with pytest.raises(ValueError, match="did not answer with a JSON object"):
        await ask(spoken, tokenizer)
    assert not server.gone and (await ask(spoken, tokenizer)).tokens
    for answer, advice in ((refusal, "no tools"), ((404, {}), "--model-name"), ((401, {}), "OPENAI_API_KEY")):
        spoken, server, _, sent = engine(tokenizer, answer)
        with pytest.raises(ServerGone, match=advice):
            await ask(spoken, tokenizer)
        with pytest.raises(ServerGone, match="http://chat/v1"):
            await ask(spoken, tokenizer)
        assert server.gone and sent.sent == 1


async def test_a_server_that_leaves_for_good_is_given_up(tokenizer: Tokenizer):
    spoken, server, _, _ = engine(tokenizer, said("a"), *[httpx.ConnectError("refused")] * 5)
    await ask(spoken, tokenizer)
    with pytest.raises(ServerGone, match=r"http://chat/v1 cannot be reached .*refused.*start the server"):
        await ask(spoken, tokenizer)
    assert server.gone


def test_an_address_gets_its_version_only_where_it_has_no_path():
    assert api_root("http://host:8000/") == "http://host:8000/v1"
    assert api_root("https://host/api/v1/") == "https://host/api/v1"
    with pytest.raises(ValueError, match="is not an address like"):
        api_root("http:///v1")
