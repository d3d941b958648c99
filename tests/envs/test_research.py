"""The environment over a corpus folder: its tools, its questions, and what a damaged or missing folder says."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path

import pytest

from envs.base import ErrorKind, Gold, Task, ToolCall
from envs.research.corpus import Corpus, CorpusError, Page, write_corpus
from envs.research.environment import ResearchConfig, ResearchEnvironment
from envs.research.site import split_parts

LONG = "It is high. " * 200 + "The first ascent was in 1932. " + "Snow. " * 100
DRAFTS = (
    ("p11", "Peru: Geography", "Area: total: 1,285,216 sq km\nElevation: highest point: Nevado Huascarán 6,768 m"),
    ("p12", "Peru: People and Society", "Median age: total: 30.2 years (2025 est.)\nMedian age: male: 29 years"),
    ("p13", "Chad: Geography", "Area: total: 1.284 million sq km"),
    ("p14", "Huandoy", "Mountain in Peru\n" + LONG),
    ("p15", "Huascarán", "Mountain in the Ancash region of Peru, south of the Huandoy, and the highest of the range"),
)
PAGES = tuple(Page(id=page, title=title, text=text) for page, title, text in DRAFTS)


def task(number: int, split: str, family: str = "wide", width: int = 2) -> Task:
    gold = Gold(kind="exact", answers=(str(number),))
    return Task(
        key=f"k{split}{number}", family=family, split=split, prompt=f"Question {number}?", gold=gold, width=width
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    path.mkdir()
    asked = {"train": [task(n, "train", "wide" if n % 2 else "fact", n) for n in range(1, 9)], "val": [task(1, "val")]}
    write_corpus(path, "tiny", PAGES, asked, [{"file": "none"}])
    return path


def environment(folder: Path, **settings) -> ResearchEnvironment:
    return ResearchEnvironment(ResearchConfig(corpus=folder, **settings))


def ask(env: ResearchEnvironment, name: str, **arguments):
    async def one():
        session = await env.open(env.tasks("train")[0])
        result = await session.call(
            "0", ToolCall(id=f"functions.{name}:0", name=name, arguments=arguments), deadline_s=20
        )
        await session.close()
        await env.close()
        return result

    return asyncio.run(one())


@pytest.mark.parametrize("transport", ["asgi", "socket"])
def test_several_queries_at_once(folder: Path, transport: str):
    found = ask(
        environment(folder, transport=transport, results=2), "search", queries=["Peru median age", "area of Chad"]
    )
    assert found.error is None
    assert found.text.splitlines()[:2] == ["Peru median age", "p12 Peru: People and Society"]
    assert "area of Chad\np13 Chad: Geography" in found.text


def test_a_title_weighs_more_than_the_text_and_accents_do_not_matter(folder: Path):
    hits = Corpus(folder).search("HUASCARAN", 3)
    assert [hit.id for hit in hits] == ["p15", "p11"]


def test_snippets_only_on_request(folder: Path):
    assert "1932" not in ask(environment(folder), "search", queries=["ascent"]).text
    assert "1932" in ask(environment(folder, snippet=20), "search", queries=["ascent"]).text


def test_find_matches_words_across_punctuation_and_alternatives(folder: Path):
    env = environment(folder)
    assert ask(env, "find", page="p12", text="median age (total)").text == "Median age: total: 30.2 years (2025 est.)"
    assert ask(env, "find", page="p11", text="highest point|area").text.count("\n") == 1
    assert ask(env, "find", page="p12", text="coastline").text == "no match"
    assert ask(env, "find", page="p12", text="dian").text == "no match", "words, not letters"


def test_find_in_a_long_line_shows_the_passage(folder: Path):
    shown = ask(environment(folder), "find", page="p14", text="first ascent").text
    assert "first ascent was in 1932" in shown and len(shown) < 400


def test_a_long_page_comes_in_parts_that_make_the_whole(folder: Path):
    env = environment(folder, part=1000)
    first = ask(env, "open", page="p14")
    assert first.text.startswith("Huandoy (part 1 of 4)")
    parts = split_parts(PAGES[3].text, 1000)
    assert all(0 < len(part) <= 1000 for part in parts)
    assert " ".join(" ".join(parts).split()) == " ".join(PAGES[3].text.split())
    assert ask(env, "open", page="p14", part=4).error is None
    assert ask(env, "open", page="p14", part=5).error is ErrorKind.NOT_FOUND


@pytest.mark.parametrize("text", ["", "a", "x" * 5000, "no blank" * 900, "a\n" * 3000, "word " * 2000])
def test_parts_lose_no_letter(text: str):
    assert "".join("".join(split_parts(text, 300)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("search", {}, ErrorKind.BAD_ARGS),
        ("search", {"queries": []}, ErrorKind.BAD_ARGS),
        ("search", {"queries": ["x"] * 9}, ErrorKind.BAD_ARGS),
        ("search", {"queries": [1]}, ErrorKind.BAD_ARGS),
        ("search", {"queries": ["x"], "k": 3}, ErrorKind.BAD_ARGS),
        ("open", {"page": "p99"}, ErrorKind.NOT_FOUND),
        ("open", {"page": "p11", "part": True}, ErrorKind.BAD_ARGS),
        ("open", {"page": "p11", "part": -1}, ErrorKind.NOT_FOUND),
        ("open", {"page": "\ud800"}, ErrorKind.NOT_FOUND),
        ("find", {"page": "p11", "text": "|"}, ErrorKind.BAD_ARGS),
        ("find", {"page": "../corpus.db", "text": "x"}, ErrorKind.NOT_FOUND),
        ("shell", {"command": "ls"}, ErrorKind.UNKNOWN_TOOL),
    ],
)
def test_a_wrong_call_is_a_result(folder: Path, name: str, arguments: dict, error: ErrorKind):
    assert ask(environment(folder), name, **arguments).error is error


@pytest.mark.parametrize(
    "query", ["", "AND OR NOT", '"', "a* NEAR(b)", "title:x", "(((", "💥", "the of", "\x00", "-1", "x" * 10_000]
)
def test_any_text_is_a_query(folder: Path, query: str):
    assert ask(environment(folder), "search", queries=[query]).error is None


def test_one_text_stands_for_a_list_of_one(folder: Path):
    assert "p13" in ask(environment(folder), "search", queries="Chad").text


def test_tasks_by_family_and_width_in_a_stream_that_a_seed_determines(folder: Path):
    env = environment(folder, families=("wide",), widths=(1, 5))
    assert [t.width for t in env.tasks("train")] == [1, 3, 5]
    stream, again = (
        env.task_stream("train", 3),
        environment(folder, families=("wide",), widths=(1, 5)).task_stream("train", 3),
    )
    drawn = [stream[i].key for i in range(9)]
    assert drawn == [again[i].key for i in range(9)]
    assert all(set(drawn[i : i + 3]) == {"ktrain1", "ktrain3", "ktrain5"} for i in (0, 3, 6))
    assert [t.key for t in env.held_out("val", 0, 5)] == ["kval1"]
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        env.tasks("dev")
    with pytest.raises(ValueError, match="no question of split test"):
        env.task_stream("test", 0)


def test_a_family_that_the_corpus_lacks_is_named(folder: Path):
    with pytest.raises(ValueError, match=r"families = \['deep'\].*\['fact', 'wide'\]"):
        list(environment(folder, families=("deep",)).notes())


def test_it_is_pickled_without_its_corpus(folder: Path):
    env = environment(folder)
    assert len(env.corpus) == 5
    copy = pickle.loads(pickle.dumps(env))
    assert "p13" in ask(copy, "search", queries="Chad").text


def test_the_digest_changes_with_the_questions(folder: Path):
    before = environment(folder).digest()
    path = folder / "tasks" / "val.jsonl"
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"prompt": "Another?"}) + "\n")
    assert environment(folder).digest() != before


def test_a_folder_that_is_no_corpus(folder: Path, tmp_path: Path):
    with pytest.raises(CorpusError, match=r"holds no corpus\.json.*parl env build"):
        Corpus(tmp_path)
    (folder / "corpus.db").unlink()
    with pytest.raises(CorpusError, match=r"corpus\.db is missing"):
        Corpus(folder)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(CorpusError, match="build the corpus again"):
        Corpus(folder)


def test_a_damaged_index_is_named_before_a_run(folder: Path):
    whole = (folder / "corpus.db").read_bytes()
    (folder / "corpus.db").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(CorpusError, match=r"corpus\.db.*build the corpus again"):
        list(environment(folder).notes())
    (folder / "corpus.db").write_bytes(whole)
    manifest = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(manifest | {"pages": 7}))
    with pytest.raises(CorpusError, match="has 5 pages, not 7"):
        Corpus(folder).check()


def test_damaged_questions_name_their_file(folder: Path):
    (folder / "tasks" / "train.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(CorpusError, match=r"train\.jsonl"):
        Corpus(folder).tasks("train")
