"""Scripted policies solve every family through the tools, at exactly the oracle's cost."""

from __future__ import annotations

import re

import pytest
from world_helpers import call, only, play, right

from envs.world.config import DEEP, FAMILIES
from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy, pick_hit, subagent_act
from envs.world.tasks import generate_tasks
from envs.world.wording import choice_query, read_choice, subject

COUNT = 60


async def _played(family: str, style: str, count: int = COUNT, **settings):
    environment = WorldEnvironment(only(family, **settings))
    tasks = generate_tasks(environment.world.knowledge("train"), "train", count, 3, environment.config)
    assert len(tasks) == count
    for seed, task in enumerate(tasks):
        policy = ReferencePolicy(style=style, seed=seed)
        yield task, policy, await play(policy, task, await environment.open(task))
    await environment.close()


@pytest.mark.parametrize("family", FAMILIES)
async def test_serial_policy_is_right_at_the_serial_oracle(family):
    async for task, _, played in _played(family, "serial"):
        assert right(task, played.answer), (task.prompt, played)
        assert played.critical_steps == task.oracle.serial_steps
        assert played.assigned == 0


@pytest.mark.parametrize("family", FAMILIES)
async def test_parallel_policy_is_right_at_the_parallel_oracle(family):
    separate = 0
    async for task, policy, played in _played(family, "parallel"):
        assert right(task, played.answer), (task.prompt, played)
        extra = int(policy.creates_first(task) and played.assigned > 0)
        assert played.critical_steps == task.oracle.parallel_steps + extra
        assert task.oracle.width in (0, played.assigned)
        separate += extra
    assert separate < COUNT / 2


@pytest.mark.parametrize("family", FAMILIES)
async def test_direct_policy_asks_for_independent_rows_in_one_turn(family):
    async for task, _, played in _played(family, "direct", count=25):
        assert right(task, played.answer), (task.prompt, played)
        assert played.assigned == 0
        if family == "wide":
            assert played.critical_steps == 3, "search all, look in all, answer"
        elif family in DEEP:
            assert played.critical_steps == task.oracle.direct_steps
        elif family != "list":
            assert played.critical_steps == task.oracle.serial_steps


@pytest.mark.parametrize("family", ["wide", "deep", "long", "two_phase"])
async def test_a_parallel_call_may_say_whose_page_it_opens(family):
    async for task, policy, played in _played(family, "direct", count=12):
        environment = WorldEnvironment(only(family))
        named = await play(ReferencePolicy("direct", policy.seed, named=True), task, await environment.open(task))
        assert named.answer == played.answer and named.critical_steps == played.critical_steps
        for told, plain in zip(named.history, played.history, strict=True):
            assert [text for _, _, text in told] == [text for _, _, text in plain]
            several = [(asked["url"], text) for _, asked, text in told if len(told) > 1 and "url" in asked]
            assert all(re.fullmatch(r"[0-9]+\. \w+: [pfs][0-9]+", url) for url, _ in several)
            assert all(subject(url.partition(": ")[0]) in text for url, text in several)
        await environment.close()


async def test_the_query_for_a_chosen_candidate_finds_its_profile():
    environment = WorldEnvironment(only("two_phase"))
    task = environment.task_stream("train", 0)[0]
    session = await environment.open(task)
    names = list(environment.world.knowledge("train").entities)
    for number, name in enumerate(names, 10):
        seen = [(f"{i}. {names[-i]}", str(90 + i)) for i in range(1, number % 5 + 1)]
        query = choice_query([*seen, (f"{len(seen) + 1}. {name}", str(number % 90))])
        assert read_choice(query) == name
        found = [await call(session, "search", query=asked) for asked in (query, name)]
        assert pick_hit(name, found[0]) == pick_hit(name, found[1])
    assert read_choice("mass, 3. Karona") is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("style", ["partial", "wrong"])
async def test_other_styles_are_right_but_never_below_the_oracle(family, style):
    spawned = 0
    async for task, _, played in _played(family, style, count=25):
        assert right(task, played.answer), (task.prompt, played)
        assert played.critical_steps >= task.oracle.parallel_steps
        spawned += played.assigned > 0
    assert spawned == 25 or style == "partial"
    assert spawned or family not in ("wide", "list", "deep", "long", "deep_list", "two_phase")


async def test_rows_that_subagents_lose_are_looked_up_by_the_orchestrator():
    environment = WorldEnvironment(only("wide", widths=(4, 4)))
    task = environment.task_stream("val", 0)[0]
    prompt = f"{task.plan['attributes'][0]}, 2. {task.plan['names'][1]}"
    played = await play(ReferencePolicy("parallel", 1), task, await environment.open(task), lost=frozenset({prompt}))
    assert right(task, played.answer)
    assert [name for turn in played.history for name, _, _ in turn][-2:] == ["search", "find_in_page"]


async def test_a_value_that_no_tool_gives_is_left_empty():
    environment = WorldEnvironment(only("wide", widths=(2, 2)))
    task = environment.task_stream("val", 0)[0]
    asked = ", ".join(task.plan["attributes"])
    queries = [f"{asked}, {i}. {name}" for i, name in enumerate(task.plan["names"], 1)]
    history = [[("search", {"query": query}, "no results")] for query in queries]
    answer = ReferencePolicy("serial").act(task, history)
    assert [line.split("|")[2].strip() for line in answer.splitlines()[2:]] == ["", ""]


async def test_aliases_and_several_columns_are_answered():
    async for task, _, played in _played("wide", "parallel", count=30, aliases=0.8, attributes=(2, 3), widths=(3, 5)):
        assert right(task, played.answer), (task.prompt, played)


def test_policy_is_a_pure_function_of_task_history_and_seed():
    environment = WorldEnvironment(only("wide"))
    task = environment.task_stream("train", 0)[4]
    for style in ("serial", "direct", "parallel", "partial", "wrong"):
        assert ReferencePolicy(style, 5).act(task, []) == ReferencePolicy(style, 5).act(task, [])


def test_subagent_reports_not_found_for_an_unknown_name():
    history = [[("search", {"query": "Nobody"}, "no results")]]
    assert subagent_act("mass of Nobody", []) == [("search", {"query": "Nobody"})]
    assert subagent_act("mass of Nobody", history) == "not found"
    assert subagent_act("nonsense", []) == "not found"


def test_subagent_looks_up_an_item_with_its_number():
    prompt = "mass, 3. Karona"
    history = [[("search", {"query": prompt}, "Karona archive: p1000\nKarona: p4217")]]
    assert subagent_act(prompt, []) == [("search", {"query": prompt})]
    assert subagent_act(prompt, history) == [("find_in_page", {"url": "p4217", "pattern": "mass"})]


async def test_an_item_is_found_by_its_name_whatever_its_number():
    environment = WorldEnvironment(only("wide"))
    task = environment.task_stream("val", 0)[0]
    session, name = await environment.open(task), task.plan["names"][0]
    found = [await call(session, "search", query=query) for query in (name, f"3. {name}", f"mass, 12. {name}")]
    assert len(set(found)) == 1 and name in found[0]


def test_a_hop_is_asked_for_with_its_number_first():
    prompt = "2. ally of Karona"
    history = [[("search", {"query": prompt}, "Karona archive: p1000\nKarona: p4217")]]
    assert subagent_act(prompt, []) == [("search", {"query": prompt})]
    assert subagent_act(prompt, history) == [("find_in_page", {"url": "p4217", "pattern": "ally"})]
    history.append([("find_in_page", {"url": "p4217", "pattern": "ally"}, "ally | Karona | Belmo")])
    assert subagent_act(prompt, history) == "ally | Karona | Belmo"


def test_a_task_without_plan_is_refused():
    task = WorldEnvironment(only("wide")).task_stream("train", 0)[0]
    bare = type(task)(key="k", family="user", split="test", prompt="?", gold=task.gold)
    with pytest.raises(ValueError, match="no plan"):
        ReferencePolicy("serial").act(bare, [])
