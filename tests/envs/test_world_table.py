"""A user's CSV table becomes a world; a malformed one is refused with file, line, mistake and fix."""

from __future__ import annotations

import pytest
from world_helpers import call, only, play, right

from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy, subagent_act
from envs.world.table import read_table, table_knowledge

TABLE = """name,land area,area,Date of birth,motto
Isle of Man,572,"5,000",2 May 1900,small but free
São Tomé,1001,7,1 June 1975,"one | two"
South Korea,100,12,15 August 1948,benefit
North Korea,120,14,9 September 1948,
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "places.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


async def test_policies_solve_tasks_over_the_users_entities(table):
    environment = WorldEnvironment(only("wide", "single_fact", "chain", source=table, widths=(1, 4), attributes=(1, 3)))
    tasks = environment.tasks("test")
    assert {task.family for task in tasks} == {"wide", "single_fact"}
    for i, task in enumerate(tasks[:60]):
        for style in ("serial", "parallel"):
            played = await play(ReferencePolicy(style, i), task, await environment.open(task))
            assert right(task, played.answer), (task.prompt, played)
    await environment.close()


@pytest.mark.parametrize("prompt", ["Date of birth of Isle of Man", "Date of birth, 12. Isle of Man"])
async def test_a_subagent_finds_names_and_attributes_that_hold_of(table, prompt):
    environment = WorldEnvironment(only("wide", source=table))
    session, history = await environment.open(environment.tasks("val")[0]), []
    while not isinstance(action := subagent_act(prompt, history), str):
        history.append([(name, args, await call(session, name, **args)) for name, args in action])
    assert action == "Date of birth | Isle of Man | 2 May 1900"


async def test_a_row_without_any_value_is_a_page_but_never_asked_for(tmp_path):
    path = tmp_path / "sparse.csv"
    path.write_text("name,size\nfull,1\nempty,\nwhole,2\n")
    environment = WorldEnvironment(only("wide", "single_fact", source=path, widths=(1, 2)))
    stream = environment.task_stream("train", 0)
    assert {name for i in range(60) for name in stream[i].plan["names"]} == {"full", "whole"}
    await environment.close()


def test_large_tables_are_split_by_name_and_small_ones_shared(tmp_path, table):
    assert list(table_knowledge(table, "train").entities) == list(table_knowledge(table, "test").entities)
    large = tmp_path / "large.csv"
    large.write_text("name,size\n" + "".join(f"thing {i},{i}\n" for i in range(300)))
    parts = [set(table_knowledge(large, split).entities) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 300


def test_cells_lose_line_breaks_pipes_and_empty_values(table):
    entities = {e.name: e.values for e in read_table(table)}
    assert entities["São Tomé"]["motto"] == "one / two"
    assert "motto" not in entities["North Korea"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: the file is empty; write a header"),
        ("\n\n", r"line 1: the file is empty"),
        ("Rome,12\nParis,7\n", r"line 1: no header .*name every column"),
        ("name,,x\nA,1,2\n", r"line 1: no header"),
        ("name,mass\n", r"line 1: a header but no rows; add"),
        ("name\nRome\n", r"line 1: only one column"),
        ("name,mass,Mass\nA,1,2\n", r"line 1: column 'mass' appears twice"),
        ("name,mass\nRome,1\nParis,2\nrome,3\n", r"line 4: duplicate key 'rome' \(first in line 2\); keep one"),
        ("name,mass\nRome,1\nParis\n", r"line 3: 1 cells where the header has 2; add"),
        ("name,mass\nRome,1,2\n", r"line 2: 3 cells where the header has 2"),
        ("name,mass\n,1\n", r"line 2: the first column \('name'\) is empty"),
        ("name,mass\nRome,\n", r"no row has a value; fill"),
        ('name,mass\n"Rome,1\n', r"not a CSV file"),
    ],
)
def test_a_malformed_table_is_refused_with_line_fault_and_cure(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no such file; set envs.config.source"):
        WorldEnvironment(only("wide", source=tmp_path / "none.csv")).tasks("train")
    (tmp_path / "x.csv").write_bytes(b"name,a\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_table(tmp_path / "x.csv")
