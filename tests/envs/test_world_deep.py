"""Tasks about dossiers: found by reading alone, not by guessing, and priced by depth, length and width."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from world_helpers import call, only, play

from envs.base import Session, Task
from envs.world.config import DEEP, WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy

Ask = Callable[..., Awaitable[str]]


async def _solved(task: Task, session: Session) -> dict[str, str]:
    """The table or value (under ""), by a reader that has the question's text and the tools, and no plan."""

    async def ask(name: str, **arguments) -> str:
        return await call(session, name, **arguments)

    words = re.match(r"\w+ (?:the )?(?:known )?(\w+) (?:of|for|in|within) (.*)\.$", task.prompt)
    assert words, task.prompt
    attribute, about = words.groups()
    if task.family == "trail":
        return {"": await _fact(ask, about, attribute)}
    names = re.findall(r"\d+\. (\w+)", about)
    if task.family == "two_phase":
        known, wanted = re.search(r"with (\w+) (\d+) among", about).groups()
        (chosen,) = [name for name in names if await _fact(ask, name, known) == wanted]
        profile = await ask("open_page", url=await _page(ask, chosen))
        names = await _members(ask, _told(profile, "group", chosen))
    elif not names:
        names = await _members(ask, about.rpartition(" ")[2])
    return {name: await _fact(ask, name, attribute) for name in names}


async def _page(ask: Ask, name: str) -> str:
    hits = dict(line.split(": ") for line in (await ask("search", query=name)).splitlines())
    return hits[name]


async def _members(ask: Ask, group: str) -> list[str]:
    return re.findall(r"\d+\. (\w+)", await ask("open_page", url=await _page(ask, group)))


async def _fact(ask: Ask, name: str, attribute: str) -> str:
    """Opens every page linked from the profile until one states the fact."""
    todo, read = [await _page(ask, name)], set()
    while todo:
        url = todo.pop()
        read.add(url)
        text = await ask("open_page", url=url)
        if (value := _told(text, attribute, name)) is not None:
            return value
        links = (_told(text, kind, name) for kind in ("file", "scan"))
        todo += [link for link in links if link is not None and link not in read]
    raise AssertionError(f"no page states the {attribute} of {name}")


def _told(text: str, label: str, name: str) -> str | None:
    found = [line.split(" | ")[2] for line in text.splitlines() if line.startswith(f"{label} | {name} | ")]
    assert len(found) <= 1, text
    return found[0] if found else None


@pytest.mark.parametrize("family", DEEP)
@pytest.mark.parametrize("split", ["train", "val", "test"])
async def test_a_reader_without_the_plan_finds_the_gold(family, split):
    environment = WorldEnvironment(only(family, entities=1000))
    for task in environment.held_out(split, 5, 12):
        found = await _solved(task, await environment.open(task))
        gold = task.gold
        assert found == (dict(gold.rows) if gold.kind == "table" else {"": gold.answers[0]})
    await environment.close()


async def test_no_search_finds_a_dossier_and_nothing_is_found_in_a_scan():
    environment = WorldEnvironment(only("deep", "long"))
    task = environment.task_stream("val", 0)[0]
    session = await environment.open(task)
    knowledge = environment.world.knowledge("val")
    for name in list(knowledge.entities)[:30]:
        hits = await call(session, "search", query=f"{name} file scan toll fee")
        assert not re.search(r": [fs]\d", hits)
        profile = await call(session, "open_page", url=await _page(lambda tool, **a: call(session, tool, **a), name))
        scan = _told(profile, "scan", name)
        assert await call(session, "find_in_page", url=scan, pattern="fee|quota|scan") == "no match"
        assert name in await call(session, "open_page", url=scan)
        assert not re.search(r"^(toll|rank|fee|quota) ", profile, re.MULTILINE)
    await environment.close()


def test_a_guess_without_the_tools_is_right_once_in_ninety_at_most():
    environment = WorldEnvironment(only("deep", "long", "trail", entities=2400))
    values = Counter()
    for task in environment.held_out("train", 2, 400):
        rows = [row[1] for row in task.gold.rows] if task.gold.kind == "table" else task.gold.answers
        values.update(rows)
    assert max(values.values()) / sum(values.values()) < 0.02


async def test_depth_and_width_are_what_a_row_costs():
    for depth in (1, 5):
        environment = WorldEnvironment(only("deep", depth=(depth, depth), deep_widths=(6, 6)))
        task = environment.task_stream("train", 0)[1]
        assert task.oracle.serial_steps == 6 * (2 + depth) + 1
        assert task.oracle.direct_steps == 2 + depth + 1
        assert task.oracle.parallel_steps == 1 + 2 + depth + 1 + 1
        assert task.oracle.width == 6
        played = await play(ReferencePolicy("direct"), task, await environment.open(task))
        assert played.critical_steps == task.oracle.direct_steps
    pair = WorldEnvironment(only("deep", deep_widths=(2, 2))).task_stream("train", 0)[0]
    assert pair.oracle.width == 0, "two rows are cheaper by one agent"


def test_keys_of_dossiers_are_left_out_of_dumps_at_their_defaults():
    plain = WorldConfig().model_dump()
    assert not set(WorldConfig.optional) & set(plain)
    assert WorldConfig(depth=(1, 9)).model_dump()["depth"] == (1, 9)


def test_a_world_without_deep_families_has_no_dossiers_and_its_facts_stay():
    old, deep = (WorldEnvironment(only(*names)).world.knowledge("val") for names in (("wide",), ("wide", "deep")))
    assert not any(entity.dossiers or entity.group for entity in old.entities.values())
    assert all(entity.dossiers for entity in deep.entities.values())
    assert {n: e.values for n, e in old.entities.items()} == {n: e.values for n, e in deep.entities.items()}


def test_a_table_of_a_user_has_no_dossiers(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("name,age\n" + "".join(f"Row {i},{i + 10}\n" for i in range(30)))
    with pytest.raises(ValueError, match="can ask none of these families"):
        WorldEnvironment(WorldConfig(source=table, mix={"deep": 1.0})).task_stream("train", 0)
    stream = WorldEnvironment(WorldConfig(source=table, mix={"deep": 1.0, "wide": 1.0})).task_stream("train", 0)
    assert {stream[i].family for i in range(20)} == {"wide"}
