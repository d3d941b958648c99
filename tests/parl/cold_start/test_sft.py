"""The cold start: kept by a hash of what it depends on, taught by demonstrations that are always the same."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tiny import tiny_config

from envs.base import Role
from envs.teacher import Part
from envs.world.corpus import reading_pieces
from envs.world.knowledge import DOSSIERS
from envs.world.teacher import agenda_parts
from model.chat.kimi import KimiChat
from model.kimi.family import Kimi
from model.policy_files import load_policy
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start import imitation as sft
from parl.cold_start.demos import Demonstrator
from parl.cold_start.drills import copying_drill, drill_batches, exercise_row
from parl.cold_start.imitation import learning_rate, run_sft
from parl.cold_start.rows import text_rows
from parl.cold_start.shipped import Recipe, cold_start_hash
from parl.cold_start.vocabulary import build_tokenizer
from parl.config.load import load_config
from parl.config.schema import Config
from parl.learn.batch import TextRow
from rollouts.episode import Episode, EpisodeStatus, TraceStatus


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    tree = config.model_dump(mode="json")
    for name, values in sections.items():
        tree[name] = {**tree[name], **values} if isinstance(values, dict) else values
    return Config.model_validate(tree)


# ---------------------------------------------------------------- kept by hash


def test_the_hash_changes_with_what_the_cold_start_depends_on_and_with_nothing_else(tmp_path: Path):
    config = tiny_config(tmp_path)
    key = cold_start_hash(Recipe.of(config))
    depends: list[dict[str, Any]] = [
        {"model": {"hidden_size": 40}},
        {"tokenizer": {"vocab_size": 790}},
        {"envs": {"config": {**config.envs.config.model_dump(mode="json"), "seed": 9}}},
        {"sft": {"seed": 5}},
        {"sft": {"tokens": 9_000_000}},
    ]
    assert len({key, *(cold_start_hash(Recipe.of(changed(config, **change))) for change in depends)}) == 6
    independent: list[dict[str, Any]] = [
        {"trainer": {"steps": 3}},
        {"rewards": {"lambda_parallel": 0.0}},
        {"rollouts": {"group_size": 3}},
        {"eval": {"tasks": 9}},
        {"seed": 7},
        {"name": "other"},
        {"root": str(tmp_path / "elsewhere")},
    ]
    assert {cold_start_hash(Recipe.of(changed(config, **change))) for change in independent} == {key}


def test_the_hash_knows_a_table_by_its_content(tmp_path: Path):
    keys = []
    for name, text in (("a", "x,y\np,1\n"), ("b", "x,y\np,1\n"), ("c", "x,y\np,2\n")):
        table = tmp_path / f"{name}.csv"
        table.write_text(text)
        keys.append(cold_start_hash(Recipe.of(tiny_config(tmp_path, envs={"config": {"source": table}}))))
    assert keys[0] == keys[1] != keys[2]


def test_the_shipped_starter_is_that_of_the_quickstart():
    config = load_config(Path(__file__).parents[3] / "configs" / "quickstart.yaml", [])
    assert config.starter is not None
    folder = config.starter / cold_start_hash(Recipe.of(config))
    weights, shape, tokenizer, meta = load_policy(folder, Kimi())
    assert meta["hash"] == folder.name and shape == config.model.shape and tokenizer.vocab_size <= shape.vocab_size
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6e6 and weights
    seeds = [load_config(Path(__file__).parents[3] / "configs" / "quickstart.yaml", [f"sft.seed={i}"]) for i in (1,)]
    assert {one.name for one in config.starter.iterdir()} == {cold_start_hash(Recipe.of(seed)) for seed in seeds}


class Trained(Exception):
    """Raised where the cold start would have been trained."""


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def trains(*args: object) -> None:
        raise Trained

    monkeypatch.setattr(sft, "_train", trains)


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
def test_a_starter_of_the_same_hash_is_taken_and_no_other(cold_start: Path, tiny_run: Config, tmp_path: Path):
    starter = tmp_path / "starter"
    shutil.copytree(cold_start, starter / cold_start.name)
    config = changed(tiny_run, root=str(tmp_path / "runs"), starter=str(starter))
    folder = run_sft(config)
    assert folder == tmp_path / "runs" / "cold_start" / cold_start_hash(Recipe.of(tiny_run))
    assert (folder / "model.safetensors").read_bytes() == (cold_start / "model.safetensors").read_bytes()
    shutil.rmtree(starter)
    assert run_sft(config) == folder  # now it is cached
    with pytest.raises(Trained):
        run_sft(config, from_scratch=True)
    with pytest.raises(Trained):
        run_sft(changed(config, starter=str(cold_start.parent), sft={"seed": 99}))


@pytest.mark.slow
def test_a_copy_for_shipping_is_half_as_large_and_nearly_the_same(cold_start: Path, tiny_run: Config, tmp_path: Path):
    out = run_sft(tiny_run, out=tmp_path / "out")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, cold_start)]
    assert sizes[0] < 0.6 * sizes[1]
    (first, shape, tokenizer, meta), (second, *_) = load_policy(out, Kimi()), load_policy(cold_start, Kimi())
    assert shape == tiny_run.model.shape and meta["hash"] == cold_start.name
    assert tokenizer.vocab_size == tiny_run.tokenizer.vocab_size
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=2**-8)


@pytest.mark.slow
def test_the_cold_start_learned(cold_start: Path):
    meta = json.loads((cold_start / "meta.json").read_text())
    assert meta["loss"] < 6.0  # of about log(800) = 6.7 at the beginning


# ---------------------------------------------------------------- the recipe


def test_the_learning_rate_warms_up_and_falls_and_never_stops():
    assert learning_rate(0.0) == 0.0 and learning_rate(0.01) < learning_rate(0.02) == learning_rate(0.6) == 1
    assert 1 > learning_rate(0.7) > learning_rate(0.9)
    assert all(0 < learning_rate(i / 100) <= 1 for i in range(1, 101))


def test_a_copying_drill_trains_only_what_its_pieces_tell_and_never_at_one_distance():
    distances = set()
    for seed in range(20):
        row = copying_drill(500, np.random.default_rng(seed))
        half = len(row.tokens) // 2
        trained = np.flatnonzero(row.weights)
        assert len(trained) >= 5 and trained[0] > half
        for i in trained:  # somewhere in the first half it stands behind one of the last few tokens
            spots = np.flatnonzero(row.tokens[:half] == row.tokens[i])
            near = set(row.tokens[i - 7 : i].tolist())
            assert any(near & set(row.tokens[max(s - 7, 0) : s].tolist()) for s in spots)
            distances |= {int(i - s) for s in spots}
    assert len(distances) > 40


def said(row: TextRow, tokenizer: Tokenizer, least: float) -> list[str]:
    """The runs of a row's tokens that weigh at least ``least``, as text."""
    cuts = np.flatnonzero(np.diff(row.weights >= least)) + 1
    parts = zip(np.split(row.tokens, cuts), np.split(row.weights, cuts), strict=True)
    return [tokenizer.decode(tokens.tolist()) for tokens, weights in parts if weights[0] >= least]


def test_a_reading_drill_trains_answers_that_follow_from_its_facts(tokenizer: Tokenizer):
    for seed in range(20):
        row = exercise_row(KimiChat(tokenizer), [Part(pieces=reading_pieces(Random(seed), 4, 8))])
        text = tokenizer.decode(row.tokens.tolist())
        facts = {line.split(" | ")[1]: line.split(" | ")[2] for line in text.splitlines()[:4]}
        answers = said(row, tokenizer, 0.1)
        assert answers and set(said(row, tokenizer, 1.0)) & set(facts.values())
        for name, value in re.findall(r"\| (?:\d+\. )?([A-Z][a-z]{5}) \| (\w+)", "".join(answers)):
            assert facts.get(name, value) == value


@pytest.mark.parametrize("form", ["table", "assign", "search"])
def test_an_agenda_drill_trains_the_items_that_follow_from_its_list_wherever_it_begins(tokenizer: Tokenizer, form: str):
    starts, numbers = set(), set()
    for seed in range(40):
        row = exercise_row(KimiChat(tokenizer), agenda_parts(Random(seed), 5, 12, form))
        text = tokenizer.decode(row.tokens.tolist())
        listed = re.findall(r", (\d+)\. ([A-Z][a-z]{5})", text.partition("<|")[0].partition("| name")[0])
        assert [int(n) for n, _ in listed] == list(range(int(listed[0][0]), int(listed[0][0]) + 5))
        trained = [re.findall(r"[A-Z][a-z]{5}", run) for run in said(row, tokenizer, 1.0)]
        names = [name for run in trained for name in run]
        order = [name for _, name in listed]
        known = names if form != "table" else [order[order.index(names[0]) - 1], *names]  # a table's first is free
        assert known == order[-len(known) :]
        starts.add(len(known))
        numbers |= {int(n) for n, _ in listed}
    assert starts == {2, 3, 4, 5} and numbers == set(range(1, 13))


@pytest.mark.parametrize("seed", range(20))
def test_a_drill_in_choosing_goes_through_the_candidates_up_to_the_one_with_the_value(seed: int):
    asked, told, called = agenda_parts(Random(seed), 2 + seed % 9, 16, "choice")
    facts = [text.split(" | ") for _, _, text in told.results]
    ((_, tool, arguments),) = called.calls
    seen = re.findall(r", [0-9]+\. (\w+) ([0-9]+)", arguments["query"])
    assert seen == [(name, value) for _, name, value in facts][: len(seen)] and tool == "search"
    label, value = re.search(r"with (\w+) ([0-9]+) among", asked.said).groups()
    assert [v for _, v in seen].index(value) == len(seen) - 1 and {fact[0] for fact in facts} == {label}
    assert called.wanted == [arguments["query"] + '"}']


@pytest.mark.parametrize("seed", range(20))
def test_a_drill_in_links_opens_the_page_that_was_told_last_of_every_row(seed: int):
    parts = agenda_parts(Random(seed), 2 + seed % 9, 16, "links")
    pages: dict[str, str] = {}
    for part in parts[1:]:
        for _, _, text in part.results:
            for line in text.splitlines():
                if line.count(" | ") == 2:
                    label, name, page = line.split(" | ")
                    pages[name] = page if label in DOSSIERS else ""
                elif " archive" not in line:
                    name, _, page = line.partition(": ")
                    pages[name] = page
        if part.calls:
            told = [re.fullmatch(r"[0-9]+\. (\w+): (\w+)", arguments["url"]).groups() for _, _, arguments in part.calls]
            assert told == [(name, page) for name, page in pages.items() if page] and told
            assert list(part.wanted) == [arguments["url"] for _, _, arguments in part.calls]


@pytest.mark.parametrize("seed", range(20))
def test_a_drill_with_two_facts_of_a_name_asks_for_the_second(seed: int):
    _, asked, told, table = agenda_parts(Random(seed), 2 + seed % 9, 16, "again")
    label = next(label for label in DOSSIERS["file"] if f"the {label} " in asked.said)
    values = {name: value for _, _, text in told.results for _, name, value in [text.split(" | ")]}
    rows = [re.fullmatch(r"\| [0-9]+\. (\w+) \| ([0-9]+) \|", line).groups() for line in table.said.splitlines()[2:]]
    assert dict(rows) == values and all(text.startswith(f"{label} | ") for _, _, text in told.results)


def test_drill_batches_copy_first_and_then_mix_the_others(tokenizer: Tokenizer, tmp_path: Path):
    config = tiny_config(tmp_path, sft={"copying_tokens": 5_000, "drill_tokens": 20_000})
    batches = list(drill_batches(Recipe.of(config), tokenizer))
    sizes = [sum(len(row.tokens) for row in batch) for batch in batches]
    assert min(sizes) >= 1536 and 25_000 <= sum(sizes) < 30_000
    texts = [[tokenizer.decode(row.tokens.tolist()) for row in batch] for batch in batches]
    copying = [not any(re.search(r"(Find|Give|Get|State|Show|Report) ", text) for text in batch) for batch in texts]
    assert copying == sorted(copying, reverse=True) and 0 < sum(copying) <= 4
    reading = [[bool(re.match(r"\w+ \| [A-Z][a-z]{5} \| ", text)) for text in batch] for batch in texts[sum(copying) :]]
    assert np.mean([len(set(kinds)) == 2 for kinds in reading]) > 0.5


def test_a_world_of_single_rows_still_has_drills(tokenizer: Tokenizer, tmp_path: Path):
    config = tiny_config(tmp_path, envs={"config": {"widths": [1, 1]}}, sft={"drill_tokens": 5_000})
    assert len(list(drill_batches(Recipe.of(config), tokenizer))) > 3


# ---------------------------------------------------------------- demonstrations


def demonstrations(config: Config, tokenizer: Tokenizer, order: list[int]) -> dict[int, Episode]:
    demonstrator = Demonstrator(Recipe.of(config), tokenizer)

    async def all_of_them() -> list[Episode]:
        return list(await asyncio.gather(*(demonstrator.episode(index) for index in order)))

    return dict(zip(order, asyncio.run(all_of_them()), strict=True))


def test_demonstrations_are_all_answered_and_a_function_of_their_number(tokenizer: Tokenizer, tmp_path: Path):
    config = tiny_config(tmp_path, sft={"parallel": 0.5, "wrong": 0.4})
    first = demonstrations(config, tokenizer, list(range(60)))
    again = demonstrations(config, tokenizer, list(range(59, -1, -1)))
    for index, episode in first.items():
        assert episode.status is EpisodeStatus.ANSWERED, f"{index}: {episode.error or episode.limit}"
        assert {trace.status for trace in episode.traces} == {TraceStatus.FINISHED}
        assert [trace.tokens for trace in episode.traces] == [trace.tokens for trace in again[index].traces]
    useful = [episode for episode in first.values() if episode.task.oracle.width]
    useless = [episode for episode in first.values() if not episode.task.oracle.width]
    for episodes in (useful, useless):  # both ways are shown for both kinds: the choice is left open
        assert 0 < sum(bool(episode.subagents) for episode in episodes) < len(episodes)
    assert Counter(episode.task.family for episode in first.values()).keys() >= {"wide", "chain", "single_fact"}


def test_rows_weigh_what_an_agent_wrote_and_a_little_of_what_it_read(tokenizer: Tokenizer, tmp_path: Path):
    config = tiny_config(tmp_path, sft={"parallel": 1.0})
    episodes = demonstrations(config, tokenizer, list(range(20))).values()
    crowd = max(episodes, key=lambda episode: len(episode.subagents))
    rows = text_rows(crowd, 0.1, Random(0))
    assert len(rows) == 1 + 2 < 1 + len(crowd.subagents)  # sub-agents are all alike: two are enough
    for row, trace in zip(rows[:1], crowd.traces[:1], strict=True):
        assert row.tokens.tolist() == trace.tokens
        np.testing.assert_array_equal(row.weights, np.where(trace.mask, np.float32(1), np.float32(0.1)))
    assert crowd.orchestrator.role is Role.ORCHESTRATOR


def test_the_tokenizer_is_the_same_every_time(tokenizer: Tokenizer, tmp_path: Path):
    again = build_tokenizer(Recipe.of(tiny_config(tmp_path)))
    files = [chosen.save(tmp_path / name) for chosen, name in ((tokenizer, "a.json"), (again, "b.json"))]
    assert files[0].read_bytes() == files[1].read_bytes()
