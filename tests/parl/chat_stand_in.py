"""A chat server for tests: the world's reference policies behind OpenAI's API, from requests alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envs.base import Task
from envs.world.reference import ReferencePolicy, subagent_act
from envs.world.site.server import SocketServer
from rollouts.prompts import PromptsConfig

OUT = 7  # output tokens that each answer reports


class ChatStandIn:
    """``requests``: answered bodies. ``fail``: statuses of the next requests instead of answers."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks = {task.prompt: task for task in tasks}
        self.requests: list[dict[str, Any]] = []
        self.fail: list[int] = []
        self.dies_after = 1_000_000  # answers
        self.stutters = False  # the first call of each conversation has invalid arguments
        self.given: set[str] = set()

    @property
    def tokens_in(self) -> int:
        return sum(len(body["messages"]) for body in self.requests)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "reference"}, {"id": "other"}]})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        if self.fail:
            return JSONResponse({"error": {"message": "later"}}, self.fail.pop(0), headers={"retry-after": "0"})
        if len(self.requests) >= self.dies_after:
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        self.requests.append(body)
        action = self.act(body)
        message: dict[str, Any] = {"role": "assistant", "content": action if isinstance(action, str) else None}
        if not isinstance(action, str):
            message["tool_calls"] = [self.call(name, arguments) for name, arguments in action]
        if (
            self.stutters
            and not any(m["role"] == "assistant" for m in body["messages"])
            and not isinstance(action, str)
        ):
            message["tool_calls"][0]["function"]["arguments"] = '{"query": '
        usage = {"prompt_tokens": len(body["messages"]), "completion_tokens": OUT}
        choice = {"message": message, "finish_reason": "stop" if isinstance(action, str) else "tool_calls"}
        return JSONResponse({"choices": [choice], "usage": usage})

    def act(self, body: dict[str, Any]) -> Any:
        messages, names = body["messages"], {tool["function"]["name"] for tool in body["tools"]}
        assert [message["role"] for message in messages[:2]] == ["system", "user"]
        question, history = messages[1]["content"], list(self.history(messages[2:]))
        if messages[0]["content"] != PromptsConfig().orchestrator:
            assert not names & {"create_subagent", "assign_task"}
            return subagent_act(question, history)
        style = "parallel" if "assign_task" in names else "serial"
        return ReferencePolicy(style).act(self.tasks[question], history)

    def history(self, messages: list[dict[str, Any]]) -> Iterator[list[tuple[str, dict[str, Any], str]]]:
        results = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
        for message in messages:
            if message["role"] != "assistant":
                continue
            calls = [(call["id"], call["function"]) for call in message["tool_calls"]]
            assert {identifier for identifier, _ in calls} <= self.given
            turn = [(f["name"], json.loads(f["arguments"]), results[identifier]) for identifier, f in calls]
            yield [entry for entry in turn if "malformed_arguments" not in entry[1]]

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        identifier = f"call_{len(self.given):09d}"
        self.given.add(identifier)
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"id": identifier, "type": "function", "function": function}


@contextmanager
def chat_server(stand_in: ChatStandIn) -> Iterator[str]:
    """The URL at which ``stand_in`` is served meanwhile."""
    routes = [
        Route("/v1/models", stand_in.models),
        Route("/v1/chat/completions", stand_in.chat, methods=["POST"]),
    ]
    server = SocketServer(Starlette(routes=routes))
    try:
        yield server.url
    finally:
        server.close()
