"""Crafted behaviours and the search of ``benchmarks/farm.py``: what does no work is not paid like work."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from benchmarks.farm import BEHAVIOURS, HOP, LINK, LINKS, TRAIL, table
from benchmarks.farm_plans import ROOT, Plan, Stage, honest, names_of, opening, parallel, serial
from benchmarks.farm_search import DEEP, search, spawns
from model.tokenizer.tokenizer import Tokenizer
from parl.config.load import load_config
from rewards.parl_reward import Parl

PLAIN = Parl(validity="any", cells="all", critical_failed="cost")  # the reward without its guards


@pytest.fixture
async def stages(tokenizer: Tokenizer) -> AsyncIterator[dict[str, Stage]]:
    made = {"one column": Stage(tokenizer), "two columns": Stage(tokenizer, attributes=2)}
    made |= {"deep": Stage(tokenizer, deep=True), "deep search": Stage(tokenizer, rows=5, deep=True)}
    made |= {"search": Stage(tokenizer, rows=5)}
    yield made
    for stage in made.values():
        await stage.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "wrong"),
    [
        pytest.param(Parl(), set(), id="default"),
        pytest.param(Parl(validity="news"), {TRAIL, HOP, LINK, LINKS}, id="news"),
        pytest.param(load_config(ROOT / "configs" / "quickstart.yaml").rewards, set(), id="quickstart"),
    ],
)
async def test_every_behaviour_is_in_its_right_order_at_every_lambda(stages: dict[str, Stage], reward, wrong: set[str]):
    rows = await table(stages, reward)
    assert len(rows) == len(BEHAVIOURS) >= 100
    assert {behaviour.name for behaviour, problem in rows if problem} == wrong


@pytest.mark.parametrize("family", DEEP)
async def test_honest_plans_about_dossiers_are_right_and_serial_ones_cost_what_the_oracle_says(
    stages: dict[str, Stage], family: str
):
    stage = stages["deep search"]
    task = stage.task(family)
    for plan in honest(task).values():
        episode = await stage.play(task, plan)
        assert episode.metrics["success"] == 1
        if plan == serial(task):
            spared = int(family == "two_phase")  # the chosen candidate is not searched a second time
            assert episode.metrics["critical_steps"] == task.oracle.serial_steps - spared


async def test_who_has_not_found_the_candidate_cannot_ask_for_its_group(stages: dict[str, Stage]):
    stage = stages["deep search"]
    task = stage.task("two_phase")
    found = await stage.play(task, Plan(turns=opening(task), answer="names"))
    short = [tuple(move for move in turn if move != ("know", task.plan["chosen"])) for turn in opening(task)]
    blind = await stage.play(task, Plan(turns=tuple(short), answer="names"))
    others = [name for name in names_of(task) if name not in task.prompt]
    assert all(name in found.answer for name in others) and not any(name in blind.answer for name in others)


@pytest.mark.slow
async def test_the_search_finds_delegated_hops_against_news_and_nothing_else(stages: dict[str, Stage]):
    news = Parl(validity="news")
    finds = await search(stages["search"], news, 60, seed=3)
    finds += await search(stages["deep search"], news, 45, seed=3, families=DEEP)
    assert {find.family for find in finds} == {"chain", "trail"}
    assert all(find.share and spawns(find.plan) and find.why == "paid more than honest work" for find in finds)


@pytest.mark.slow
async def test_the_search_finds_nothing_against_the_default_and_much_against_the_plain_form(stages: dict[str, Stage]):
    assert await search(stages["search"], Parl(), 60, seed=3) == []
    assert await search(stages["deep search"], Parl(), 45, seed=3, families=DEEP) == []
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
