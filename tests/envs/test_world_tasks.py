"""Tasks: disjoint splits, streams that depend on (seed, index), values independent of names."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from world_helpers import only

from envs.world.config import FAMILIES, WorldConfig
from envs.world.corpus import corpus_texts
from envs.world.environment import WorldEnvironment
from envs.world.knowledge import build_knowledge
from envs.world.lexicon import FIRSTS, SECONDS, SPLITS, names_of_split
from envs.world.tasks import TaskStream, generate_tasks
from envs.world.wording import CONNECTORS, EACH, MEMBERS, ONE, VERBS, templates

CONFIG = WorldConfig(aliases=0.2, hops=(2, 5), attributes=(1, 3))


@pytest.fixture(scope="module")
def tasks():
    environment = WorldEnvironment(CONFIG)
    return {split: environment.tasks(split) for split in SPLITS}


def _all_names(split: str) -> set[str]:
    knowledge = build_knowledge(split, CONFIG)
    aliases = {e.alias for e in knowledge.entities.values() if e.alias}
    return {*knowledge.entities, *(g.name for g in knowledge.groups), *aliases}


def test_names_are_disjoint_but_every_syllable_is_everywhere():
    names = {split: _all_names(split) for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not names[a] & names[b]
        assert not set(names_of_split(a)) & set(names_of_split(b))
    for split in SPLITS:
        assert {name[:3] for name in names_of_split(split)} == set(FIRSTS)
        assert {name[3:] for name in names_of_split(split)} == set(SECONDS)
        assert all(re.fullmatch(r"[A-Z][a-z]{5}", name) for name in names[split])


def test_templates_are_disjoint_but_every_slot_word_is_in_train():
    for family in FAMILIES:
        parts = [set(templates(family, split)) for split in SPLITS]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert {t.split()[0] for t in parts[0]} == set(VERBS)
        assert {t.split(" ", 1)[1] for t in parts[0]} == set(CONNECTORS[family])
    assert CONNECTORS["list"] is CONNECTORS["swap"]
    assert len({*EACH, *MEMBERS, *ONE}) == 18


def test_questions_of_different_splits_share_no_eight_words_in_a_row(tasks):
    grams = {}
    for split in SPLITS:
        words = [[w for w in task.prompt.split() if not w[:1].isdigit()] for task in tasks[split]]  # no list numbers
        grams[split] = {tuple(w[i : i + 8]) for w in words for i in range(len(w) - 7)}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not grams[a] & grams[b]
        assert not {t.prompt for t in tasks[a]} & {t.prompt for t in tasks[b]}


def test_worlds_differ_by_split_and_by_seed():
    values = [
        [e.values for e in build_knowledge(split, only("wide", seed=seed)).entities.values()][:40]
        for split, seed in (("train", 1), ("val", 1), ("test", 1), ("train", 2))
    ]
    assert all(a != b for a, b in itertools.combinations(values, 2))


def test_majority_guess_of_an_attribute_is_near_chance():
    entities = build_knowledge("train", CONFIG).entities.values()
    for attribute in ("mass", "year", "color"):
        counts = Counter(e.values[attribute] for e in entities if attribute in e.values)
        assert counts.most_common(1)[0][1] / counts.total() < 0.13


def test_a_task_depends_on_seed_and_index_alone():
    knowledge = build_knowledge("train", CONFIG)
    forward = list(itertools.islice(TaskStream(knowledge, CONFIG, 5), 30))
    again = TaskStream(build_knowledge("train", CONFIG), CONFIG, 5)
    assert [again[i] for i in reversed(range(30))] == forward[::-1]
    assert TaskStream(knowledge, CONFIG, 6)[0] != forward[0]
    with pytest.raises(IndexError):
        again[-1]


def test_the_mix_is_followed_and_lists_are_distinct(tasks):
    shares = Counter(task.family for task in tasks["train"])
    for family, weight in CONFIG.mix.items():
        assert abs(shares[family] / len(tasks["train"]) - weight) < 0.08
    assert len({task.key for task in tasks["train"]}) == len(tasks["train"]) == 512


def test_oracles_follow_the_count_of_turns(tasks):
    for task in tasks["val"]:
        n, oracle = task.width, task.oracle
        serial = {"wide": 2 * n + 1, "list": 2 * n + 3, "swap": 2 * n + 3, "single_fact": 3}
        if task.family == "chain":
            assert oracle.serial_steps == 2 * (len(task.plan["hops"]) + 1) + 1
        else:
            assert oracle.serial_steps == serial[task.family]
        best = {"wide": 5, "list": 7}.get(task.family, oracle.serial_steps)
        assert oracle.parallel_steps == min(oracle.serial_steps, best)
        assert oracle.width == (n if oracle.parallel_steps < oracle.serial_steps else 0)
        assert n == (len(task.gold.rows) or 1)


@pytest.mark.parametrize("entities", [1, 4, 17, 100])
def test_a_tiny_world_still_gives_tasks(entities):
    config = WorldConfig(entities=entities, widths=(1, 16))
    for split in SPLITS:
        made = generate_tasks(build_knowledge(split, config), split, 10, 0, config)
        assert made and all(task.gold.rows or task.gold.answers for task in made)


def test_a_world_larger_than_the_two_syllable_names_grows_longer_ones():
    names = list(build_knowledge("val", WorldConfig(entities=8000)).entities)
    assert len(set(names)) == 2000 and {len(name) for name in names} == {6, 9}


def test_unknown_splits_and_impossible_mixes_are_refused():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        WorldEnvironment(only("wide")).tasks("dev")
    with pytest.raises(ValueError, match="can ask none"):
        WorldEnvironment(only("list", entities=1)).tasks("train")
    with pytest.raises(ValueError, match="cannot give tasks"):
        generate_tasks(build_knowledge("val", CONFIG), "train", 1, 0, CONFIG)


def test_corpus_names_stay_rare_and_never_come_from_held_out_splits():
    texts = list(corpus_texts(1, 3000))
    names = Counter(re.findall(r"\b[A-Z][a-z]{5}\b", "\n".join(texts)))
    names = Counter({name: n for name, n in names.items() if name[:3] in FIRSTS and name[3:] in SECONDS})
    assert names.most_common(1)[0][1] < 30
    assert not set(names) & ({*names_of_split("val"), *names_of_split("test")})
    assert texts == list(corpus_texts(1, 3000)) != list(corpus_texts(2, 3000))
    assert not any("<|" in text for text in texts)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("chained", [False, True])
def test_groups_of_every_size_exist_in_every_split_of_the_default_world(split, chained):
    groups = [g for g in build_knowledge(split, WorldConfig()).groups if g.chained == chained]
    assert {len(group.members) for group in groups} == set(range(2, 11))
