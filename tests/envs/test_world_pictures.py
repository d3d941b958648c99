"""Pictures: they can be read back, only the tool shows them, and worlds without the family are unchanged."""

from __future__ import annotations

import io
from random import Random

import pytest
from world_helpers import call, only

from envs.base import ErrorKind, Role, ToolCall
from envs.world.config import PICTURE, WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.site.app import TOOLS
from envs.world.site.pictures import (
    COUNT,
    OPEN_PICTURE,
    ROWS,
    SQUARE,
    draw_picture,
    draw_table,
    picture_act,
    picture_table,
    read_table,
)
from envs.world.tasks import TaskStream, generate_tasks

image = pytest.importorskip("PIL.Image", reason="pictures: pip install -e '.[vision]'")


def test_what_is_drawn_is_read_whatever_ink_paper_and_place():
    for seed in range(60):
        rng = Random(seed)
        table = [str(rng.randint(10, 99)) for _ in range(rng.randint(1, 6))]
        assert read_table(draw_table(table, rng)) == table
    digits = [f"{d}{9 - d}" for d in range(9)]
    assert read_table(draw_table(digits, Random(0))) == digits


def test_pictures_follow_from_seed_split_and_url():
    drawn = draw_picture(1, "train", "i7")
    assert drawn is not None and drawn == draw_picture(1, "train", "i7")
    others = [draw_picture(2, "train", "i7"), draw_picture(1, "val", "i7"), draw_picture(1, "train", "i8")]
    assert drawn not in others
    tables = [picture_table(1, "train", f"i{n}") for n in range(400)]
    assert {len(table or ()) for table in tables} == {2, 3, 4}
    for bad in ("", "i", "7", "p7", "i07", "i-1", "i٣", f"i{COUNT}", "i7 "):
        assert draw_picture(1, "train", bad) is None


def test_a_picture_is_small_and_cut_in_squares_of_one_token():
    png = draw_picture(1, "train", "i7")
    table = picture_table(1, "train", "i7")
    assert png is not None and table is not None
    assert image.open(io.BytesIO(png)).size == (3 * SQUARE, len(table) * SQUARE)
    assert ROWS[1] * SQUARE <= 112


async def test_the_tool_shows_a_picture_and_only_in_a_world_that_asks_for_it():
    environment = WorldEnvironment(only(PICTURE))
    session = await environment.open(environment.tasks("val")[0])
    assert session.tools(Role.ORCHESTRATOR) == [*TOOLS, OPEN_PICTURE] == session.tools(Role.SUBAGENT)
    wanted = ToolCall(id="functions.open_picture:0", name="open_picture", arguments={"url": "i12"})
    result = await session.call("a", wanted, deadline_s=10.0)
    assert (result.text, result.error) == ("", None)
    assert result.images == (draw_picture(environment.config.seed, "val", "i12"),)
    assert await call(session, "open_picture", url="i99999") == "error: not found"
    assert await call(session, "open_picture") == "error: missing url"
    assert await call(session, "open_page", url="i12") == "error: not found"
    await environment.close()

    plain = WorldEnvironment(WorldConfig(entities=120))
    session = await plain.open(plain.tasks("val")[0])
    refused = await session.call("a", wanted, deadline_s=10.0)
    assert (refused.error, refused.images) == (ErrorKind.UNKNOWN_TOOL, ())
    assert session.tools(Role.ORCHESTRATOR) == list(TOOLS)
    await plain.close()


async def test_the_scripted_policy_answers_from_what_it_sees():
    environment = WorldEnvironment(only(PICTURE))
    tasks = generate_tasks(environment.world.knowledge("train"), "train", 40, 3, environment.config)
    assert len({task.gold.answers for task in tasks}) > 20
    for task in tasks:
        assert task.oracle is not None and (task.oracle.serial_steps, task.oracle.width) == (2, 0)
        session = await environment.open(task)
        [(name, arguments)] = picture_act(task, [])  # type: ignore[misc]
        shown = await session.call("a", ToolCall(id="x:0", name=name, arguments=arguments), deadline_s=10.0)
        answer = picture_act(task, [(0, png) for png in shown.images])
        assert str(answer).rpartition("\nAnswer: ")[2] in task.gold.answers
    await environment.close()


def test_a_world_without_the_family_asks_what_it_asked():
    """The family has no weight by default, and a weight of zero means the same: equal tasks in equal order."""
    plain = WorldConfig(entities=240)
    assert PICTURE not in plain.mix and not plain.pictures
    none = plain.model_copy(update={"mix": {**plain.mix, PICTURE: 0.0}})
    knowledge = WorldEnvironment(plain).world.knowledge("train")
    streams = [TaskStream(knowledge, config, 5) for config in (plain, none)]
    assert [streams[0][i] for i in range(100)] == [streams[1][i] for i in range(100)]
    mixed = TaskStream(knowledge, plain.model_copy(update={"mix": {**plain.mix, PICTURE: 1.0}}), 5)
    assert {mixed[i].family for i in range(100)} > {PICTURE, "wide"}


def test_no_page_says_what_a_picture_shows():
    environment = WorldEnvironment(only(PICTURE))
    task = environment.task_stream("train", 0)[0]
    hits = environment.world.index("train").search(task.prompt, 5)
    assert task.plan["picture"] not in hits
    assert not any(answer in task.prompt.split() for answer in task.gold.answers)
