"""The tools over HTTP: formats, errors, ranking, concurrency."""

from __future__ import annotations

import asyncio
import pickle
import re
from types import SimpleNamespace

import httpx
import pytest
from world_helpers import DEADLINE_S, call, only

from envs.base import Environment, ErrorKind, Role, Session, ToolCall
from envs.world.environment import World, WorldEnvironment
from envs.world.site.documents import page_ids
from envs.world.site.session import Http
from envs.world.wording import read_hits


@pytest.fixture
async def world():
    environment = WorldEnvironment(only("wide", "list", "swap", aliases=0.3))
    task = environment.task_stream("train", 0)[0]
    yield environment, await environment.open(task), environment.world.knowledge("train")
    await environment.close()


async def _result(session, name, arguments, deadline_s=DEADLINE_S):
    return await session.call("tester", ToolCall(id=f"{name}:0", name=name, arguments=arguments), deadline_s=deadline_s)


async def test_environment_and_session_keep_the_contract(world):
    environment, session, _ = world
    assert isinstance(environment, Environment) and isinstance(session, Session)
    assert session.tools(Role.ORCHESTRATOR) == session.tools(Role.SUBAGENT)
    assert [tool.name for tool in session.tools(Role.SUBAGENT)] == ["search", "open_page", "find_in_page"]


async def test_search_ranks_the_profile_first_unless_its_distractor_is_stuffed(world):
    _, session, knowledge = world
    ahead = 0
    for entity in knowledge.entities.values():
        titles = [title for title, _ in read_hits(await call(session, "search", query=entity.name))]
        expected = [entity.name] + [f"{entity.name} archive"] * (entity.archive is not None)
        assert titles[: len(expected)] == (expected[::-1] if entity.archive_first else expected)
        ahead += entity.archive_first
    outdated = sum(entity.archive is not None for entity in knowledge.entities.values())
    assert 0.1 < ahead / outdated < 0.4


async def test_an_alias_leads_to_the_profile(world):
    _, session, knowledge = world
    entity = next(e for e in knowledge.entities.values() if e.alias)
    hits = read_hits(await call(session, "search", query=entity.alias))
    assert hits[0][0] == entity.name
    assert f"alias | {entity.name} | {entity.alias}" in await call(session, "open_page", url=hits[0][1])


async def test_a_page_is_opened_by_its_id_or_by_the_hit_that_names_it(world):
    _, session, knowledge = world
    name = next(iter(knowledge.entities))
    page = read_hits(await call(session, "search", query=name))[0][1]
    text = await call(session, "open_page", url=page)
    for url in (f"{name}: {page}", f"3. {name}: {page}", f"  {page} ", f"a: b: {page}"):
        assert await call(session, "open_page", url=url) == text
        assert await call(session, "find_in_page", url=url, pattern=name) == text
    for url in (name, f"3. {name}", f"{page}: {name}", f"{name}:{page}", ""):
        assert await call(session, "open_page", url=url) == "error: not found"


async def test_pages_state_one_fact_a_line_with_the_name_on_it(world):
    _, session, knowledge = world
    entity = next(e for e in knowledge.entities.values() if e.next is None and e.alias is None)
    hits = read_hits(await call(session, "search", query=entity.name))
    text = await call(session, "open_page", url=dict(hits)[entity.name])
    facts = {**entity.values, **entity.relations}
    assert sorted(text.splitlines()) == sorted(f"{label} | {entity.name} | {value}" for label, value in facts.items())
    label = next(iter(entity.values))
    found = await call(session, "find_in_page", url=dict(hits)[entity.name], pattern=label.upper())
    assert f"{label} | {entity.name} | {entity.values[label]}" in found.splitlines()


async def test_groups_are_listed_or_chained(world):
    _, session, knowledge = world
    for chained in (False, True):
        group = next(g for g in knowledge.groups if g.chained == chained)
        page = dict(read_hits(await call(session, "search", query=group.name)))[group.name]
        members = ", ".join(f"{i}. {name}" for i, name in enumerate(group.members, 1))
        listed = f"members | {group.name} | {len(group.members)} in all, {members}"
        assert await call(session, "open_page", url=page) == (
            f"first | {group.name} | {group.members[0]}" if chained else listed
        )


@pytest.mark.parametrize(
    "query",
    [
        "",
        "   ",
        '"',
        "AND OR NOT",
        "NEAR(a b)",
        "title:x*",
        "(((",
        "Ж₿漢字",
        "a" * 5000,
        "\x00",
        "\ud800",
        "mass",
        "-^+{}",
    ],
)
async def test_any_text_is_a_valid_query(world, query):
    _, session, _ = world
    result = await _result(session, "search", {"query": query})
    assert result.error is None
    assert result.text == "no results" or read_hits(result.text)


async def test_operators_and_common_words_do_not_change_what_is_found(world):
    _, session, knowledge = world
    name = next(iter(knowledge.entities))
    plain = await call(session, "search", query=name)
    for query in (f'"{name}"', f"NOT {name}", f"{name.upper()}*", f"mass of {name}", f"({name}) OR"):
        assert await call(session, "search", query=query) == plain


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("fly", {}, ErrorKind.UNKNOWN_TOOL, "error: unknown tool"),
        ("open_page", {"url": "p0"}, ErrorKind.NOT_FOUND, "error: not found"),
        ("open_page", {"url": "\ud800"}, ErrorKind.NOT_FOUND, "error: not found"),
        ("find_in_page", {"url": "p0", "pattern": "x"}, ErrorKind.NOT_FOUND, "error: not found"),
        ("find_in_page", {"url": "p0"}, ErrorKind.BAD_ARGS, "error: missing pattern"),
        ("search", {}, ErrorKind.BAD_ARGS, "error: missing query"),
        ("search", {"query": 3}, ErrorKind.BAD_ARGS, "error: query must be a string"),
        ("search", {"query": "x", "k": "3"}, ErrorKind.BAD_ARGS, "error: unknown argument"),
        ("search", {"query": {1, 2}}, ErrorKind.BAD_ARGS, "error: bad JSON"),
    ],
)
async def test_failures_are_results(world, name, arguments, error, text):
    _, session, _ = world
    result = await _result(session, name, arguments)
    assert (result.error, result.text) == (error, text)


async def test_bad_json_and_unknown_paths_are_answered_by_the_application(world):
    environment, _, _ = world
    transport = httpx.ASGITransport(app=environment.world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://world") as client:
        for body in (b"{", b"[]", b"\xff", b""):
            reply = await client.post("/train/search", content=body)
            assert (reply.status_code, reply.json()["error"]) == (422, "bad_args")
        assert (await client.post("/nowhere/search", content=b"{}")).status_code == 404
        assert (await client.post("/train/fly", content=b"{}")).status_code == 404


async def test_a_deadline_is_a_timeout_and_cancellation_propagates(world):
    _, session, _ = world

    async def slow(*_, **__):
        await asyncio.sleep(30)

    session._client = SimpleNamespace(post=slow, is_closed=False)
    assert (await _result(session, "search", {"query": "x"}, deadline_s=0.02)).error is ErrorKind.TIMEOUT
    waiting = asyncio.create_task(_result(session, "search", {"query": "x"}))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_broken_server_is_a_server_error(world):
    _, session, _ = world
    for reply in (httpx.Response(500), httpx.Response(200, text="<html>"), httpx.Response(200, json=[])):
        transport = httpx.MockTransport(lambda _, reply=reply: reply)
        session._client = Http(transport, "http://world")
        assert (await _result(session, "search", {"query": "x"})).error is ErrorKind.SERVER
    session._client = Http(httpx.AsyncHTTPTransport(trust_env=False), "http://127.0.0.1:1")
    result = await _result(session, "search", {"query": "x"})
    assert result.error is ErrorKind.SERVER and result.machine


async def test_200_concurrent_calls_give_what_serial_calls_give(world):
    _, session, knowledge = world
    names = list(knowledge.entities)[:200]
    serial = [await call(session, "search", query=name) for name in names]
    assert await asyncio.gather(*(call(session, "search", query=name) for name in names)) == serial


async def test_a_closed_session_answers_cancelled(world):
    _, session, _ = world
    await session.close()
    await session.close()
    assert (await _result(session, "search", {"query": "x"})).error is ErrorKind.CANCELLED


async def test_socket_transport_gives_what_the_in_process_one_gives(world):
    environment, session, knowledge = world
    served = WorldEnvironment(environment.config.model_copy(update={"transport": "socket"}))
    remote = await served.open(served.task_stream("train", 0)[0])
    names = list(knowledge.entities)[:50]
    try:
        replies = await asyncio.gather(*(call(remote, "search", query=name) for name in names))
        assert replies == [await call(session, "search", query=name) for name in names]
        assert (await _result(remote, "open_page", {"url": "p0"})).error is ErrorKind.NOT_FOUND
    finally:
        await served.close()
    assert (await _result(remote, "search", {"query": "x"})).error is ErrorKind.CANCELLED


async def test_an_environment_is_lazy_picklable_and_its_world_is_shared():
    config = only("single_fact", seed=77)
    environment = WorldEnvironment(config)
    assert config.model_dump_json() not in World._shared
    copy = pickle.loads(pickle.dumps(environment))
    assert copy.world is environment.world
    assert copy.tasks("val")[:5] == environment.tasks("val")[:5]


def test_one_environment_serves_one_event_loop_after_another():
    environment = WorldEnvironment(only("single_fact"))
    task = environment.task_stream("val", 0)[0]

    async def once():
        return await call(await environment.open(task), "search", query=task.plan["names"][0])

    assert asyncio.run(once()) == asyncio.run(once()) != "no results"


def test_page_ids_widen_with_the_world():
    import random

    for count, pattern in ((8000, r"p\d{4}"), (8001, r"p\d{6}")):
        ids = page_ids(count, random.Random(0))
        assert len(set(ids)) == count and all(re.fullmatch(pattern, page) for page in ids)
