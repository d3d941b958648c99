"""A Search-R1-like retriever as a tool: both forms of request, forms of replies, failures; SkyRL-Gym's own client."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from envs.base import ErrorKind, Gold, Task, ToolCall, ToolResult
from envs.plugs.retrieve import RetrieveConfig, RetrieveEnvironment
from envs.world.site.server import SocketServer

TASK = Task(key="k", family="user", split="train", prompt="?", gold=Gold(kind="exact", answers=("1",)))
TEXTS = {"Rome": "Capital of Italy.", "Paris": "Capital of France.", "Po": "A river of Italy."}


def found(query: str, topk: int) -> list[tuple[str, str]]:
    words = set(re.findall(r"\w+", query.lower()))
    ranked = sorted(TEXTS.items(), key=lambda item: -len(words & set(re.findall(r"\w+", " ".join(item).lower()))))
    return ranked[:topk]


async def retrieve(request: Request) -> Response:
    """Search-R1's server, which also takes SkyRL's single query."""
    body = await request.json()
    assert body["return_scores"] is True
    queries = body.get("queries", [body["query"]] if "query" in body else [])
    hits = [
        [{"document": {"id": t, "contents": f'"{t}"\n{text}'}, "score": 0.5} for t, text in found(query, body["topk"])]
        for query in queries
    ]
    return JSONResponse({"result": hits})


async def single(request: Request) -> Response:
    """BrowseComp-Plus's: one query, one list."""
    body = await request.json()
    if "query" not in body:
        return JSONResponse({"detail": "query is missing"}, status_code=422)
    hits = [{"docid": t, "document": {"title": t, "text": text}} for t, text in found(body["query"], 2)]
    return JSONResponse({"result": hits})


async def broken(request: Request) -> Response:
    kind = request.path_params["kind"]
    if kind.isdigit():
        return PlainTextResponse("no", status_code=int(kind))
    if kind == "slow":
        await asyncio.sleep(2)
    return {"text": PlainTextResponse("<html>"), "empty": JSONResponse({})}.get(
        kind, JSONResponse({"result": [[{"document": {"id": 1}}]]})
    )


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    routes = [
        Route("/retrieve", retrieve, methods=["POST"]),
        Route("/single", single, methods=["POST"]),
        Route("/broken/{kind}", broken, methods=["POST"]),
    ]
    running = SocketServer(Starlette(routes=routes))
    yield running.url
    running.close()


def run(config: dict[str, Any], *wanted: dict[str, Any], deadline_s: float = 5.0) -> list[ToolResult]:
    env = pickle.loads(pickle.dumps(RetrieveEnvironment(RetrieveConfig.model_validate(config))))

    async def all_of_it() -> list[ToolResult]:
        session = await env.open(TASK)
        calls = (ToolCall(id=str(i), name="search", arguments=given) for i, given in enumerate(wanted))
        try:
            return list(await asyncio.gather(*(session.call("0", call, deadline_s=deadline_s) for call in calls)))
        finally:
            await session.close()
            await env.close()

    return asyncio.run(all_of_it())


def test_several_queries_at_once_and_a_single_one(server: str):
    both, one = run(
        {"url": f"{server}/retrieve", "topk": 1},
        {"queries": ["capital of France", "river"]},
        {"queries": ["capital of Italy"]},
    )
    assert both.text == "capital of France\n[1] Paris\nCapital of France.\n\nriver\n[1] Po\nA river of Italy."
    assert one.text == "[1] Rome\nCapital of Italy."


@pytest.mark.parametrize("path", ["retrieve", "single"])
def test_servers_that_take_one_query_are_asked_for_each(server: str, path: str):
    [both] = run({"url": f"{server}/{path}", "form": "query", "topk": 2}, {"queries": ["capital of France", "river"]})
    assert both.text.startswith("capital of France\n[1] Paris\nCapital of France.\n[2] ")
    assert "\n\nriver\n[1] Po\n" in both.text


def test_a_hundred_agents_at_once(server: str):
    results = run({"url": f"{server}/retrieve"}, *({"queries": [f"river {n}"]} for n in range(100)), deadline_s=60)
    assert {result.error for result in results} == {None}


@pytest.mark.parametrize("given", [{}, {"queries": []}, {"queries": [1]}, {"queries": {"a": 1}}, {"queries": [" "]}])
def test_bad_arguments(server: str, given: dict[str, Any]):
    [result] = run({"url": f"{server}/retrieve"}, given)
    assert result.error is ErrorKind.BAD_ARGS and result.text == "error: queries must be a list of texts"


@pytest.mark.parametrize(
    ("kind", "error", "machine", "said"),
    [
        ("503", ErrorKind.SERVER, True, "status 503"),
        ("500", ErrorKind.SERVER, False, "answers 500"),
        ("429", ErrorKind.RATE_LIMITED, False, "too many requests"),
        ("slow", ErrorKind.TIMEOUT, False, "timeout"),
        ("text", ErrorKind.SERVER, False, "the retriever's reply"),
        ("empty", ErrorKind.SERVER, False, 'no list "result"'),
        ("other", ErrorKind.SERVER, False, 'a document without "contents" or "text"'),
    ],
)
def test_failures_are_results(server: str, kind: str, error: ErrorKind, machine: bool, said: str):
    [result] = run({"url": f"{server}/broken/{kind}"}, {"queries": ["a"]}, deadline_s=0.5)
    assert (result.error, result.machine) == (error, machine) and said in result.text


def test_a_server_that_is_not_there_is_the_machines_fault():
    [result] = run({"url": "http://127.0.0.1:9/retrieve"}, {"queries": ["a"]}, deadline_s=20)
    assert result.machine and "ConnectError" in result.text


def test_a_wrong_address_is_found_before_a_run(server: str):
    def notes(path: str, **more: Any) -> list[str]:
        return list(RetrieveEnvironment(RetrieveConfig(url=f"{server}/{path}", **more)).notes())

    assert notes("retrieve") == [] and notes("single", form="query") == []
    with pytest.raises(ValueError, match=r"answers 422: .*it may want the other of envs\.config\.form"):
        notes("single")
    with pytest.raises(ValueError, match="answers 404"):
        notes("nowhere")
    with pytest.raises(ValueError, match='no list "result"'):
        notes("broken/empty")
    with pytest.raises(ValueError, match="must begin with http"):
        RetrieveConfig(url="localhost:8000/retrieve")


def test_the_server_of_these_tests_satisfies_skyrls_client(server: str):
    search = pytest.importorskip("skyrl_gym.tools.search", reason="skyrl-gym is not installed")
    reply, error = search.call_search_api(f"{server}/retrieve", "capital of France", topk=1)
    assert error is None and search._passages2string(reply["result"][0]) == 'Doc 1: "Paris"\nCapital of France.\n'
