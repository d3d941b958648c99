"""Crafted behaviours and the search of ``benchmarks/farm.py``: what does no work is not paid like work."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from benchmarks.farm import BEHAVIOURS, table
from benchmarks.farm_plans import Stage, names_of, parallel, serial
from benchmarks.farm_search import search
from model.tokenizer.tokenizer import Tokenizer
from rewards.parl_reward import Parl

PLAIN = Parl(validity="any", cells="all", critical_failed="cost")  # the reward without its guards


@pytest.fixture
async def stages(tokenizer: Tokenizer) -> AsyncIterator[dict[str, Stage]]:
    made = {"one column": Stage(tokenizer), "two columns": Stage(tokenizer, attributes=2)}
    yield made | {"search": Stage(tokenizer, rows=5)}
    for stage in made.values():
        await stage.close()


@pytest.mark.slow
async def test_every_behaviour_is_in_its_right_order_at_every_lambda(stages: dict[str, Stage]):
    rows = await table(stages, Parl())
    assert len(rows) == len(BEHAVIOURS) >= 25
    assert not {behaviour.name: problem for behaviour, problem in rows if problem}


@pytest.mark.slow
async def test_the_search_finds_nothing_against_the_default_and_much_against_the_plain_form(stages: dict[str, Stage]):
    assert await search(stages["search"], Parl(), 60, seed=3) == []
    reasons = {find.why for find in await search(stages["search"], PLAIN, 60, seed=3)}
    assert reasons == {"paid more than honest work", "paid for adding nothing"}


async def test_plans_know_only_what_they_have_read(stages: dict[str, Stage]):
    stage = stages["search"]
    task = stage.task("list")
    blind = await stage.play(task, parallel(task).__class__(turns=parallel(task).turns[2:]))
    assert blind.metrics["item_f1"] == 0.0  # it has not seen the names: its prompts are nonsense
    assert all("nobody" in trace.prompt for trace in blind.subagents)
    wide = stage.task("wide")
    some = await stage.play(wide, serial(wide).__class__(turns=serial(wide).turns[:4]))
    assert some.answer.count("| ") and some.metrics["values_f1"] == pytest.approx(2 / len(names_of(wide)))
