"""Real files made for other purposes: read correctly, or refused by line and field."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack
from attacks.user_data import case_of, parquet, read_as, refused_with
from attacks.user_tables import KEY

GSM8K = "48/2 = <<48/2=24>>24\n48+24 = 72\n#### 72"
LIST = 'prompt,answers\nHow old?,"%s"\n'
LOOKALIKES = "name,age\nMa\u0301laga,1\nM\u00e1laga,2\n"  # one name with two spellings of its accent
SHARED = '{"question": "x", "answer": 1}\n' * 40 + '{"prompt": "x", "answer": 1, "width": 0}\n'
Case = tuple[str, str, str | partial[None], Any]


def cases() -> list[Attack]:
    """Tasks, then tables."""
    return [
        *(case_of("tasks refused", refused_with, "envs.tasks", *case) for case in _refused()),
        *(case_of("tasks read", read_as, "envs.tasks", *case) for case in _read()),
        *(case_of("table refused", refused_with, KEY, *case) for case in _bad_tables()),
        Attack(area="user data", name="table read: columns that are signs", run=_signs),
    ]


def _row(**fields: Any) -> str:
    return json.dumps({"prompt": "How old?", "answer": "42"} | fields)


def _refused() -> list[Case]:
    seen = {"prompt": ["x"], "answer": [1], "image": [b"P"]}
    chat = "prompt,answer\n\"[{'role': 'user', 'content': 'How old?'}]\",42\n"
    return [
        ("Kaggle's capitals", "t.csv", "id,Question,Answer\n1,x,2\n", ["line 2", "'Question'", "'Answer'", "Rename"]),
        ("an answer left empty", "t.csv", "prompt,answer\nx,\ny,2\n", ["line 2", "gold", "'answer'", "empty"]),
        ("a question left empty", "t.jsonl", _row(prompt="  "), ["line 1", "'prompt' is there but empty"]),
        ("a preference pair", "t.jsonl", '{"prompt": "x", "chosen": "y"}', ["gold", "'chosen'"]),
        ("a list as pandas prints it", "t.csv", LIST % "['Rome', 'Roma']", ["line 2", "answers", "JSON"]),
        ("a list as numpy prints it", "t.csv", LIST % "['Rome' 'Roma']", ["line 2", "answers", "JSON"]),
        ("an object as pandas prints it", "t.csv", "prompt,answer\nx,\"{'text': 'Rome'}\"\n", ["line 2", "answer"]),
        ("a conversation as pandas prints it", "t.csv", chat, ["line 2", "prompt", "conversation", "json.dumps"]),
        ("a picture beside the prompt", "t.jsonl", _row(images=["a.png"]), ["images", "only text"]),
        ("bytes of a picture", "t.parquet", partial(parquet, seen), ["image"]),
        ("a picture's place in the prompt", "t.jsonl", _row(prompt="<image>\nWhat is it?"), ["prompt", "<image>"]),
        ("a family called all", "t.jsonl", _row(family="all"), ["family", "another name"]),
        ("a family called like a width", "t.jsonl", _row(family="width 8-15"), ["family", "another name"]),
        ("rows of a list in one line", "t.json", f"[{_row()}, {_row(width=0)}]", ["line 1, row 2", "width"]),
        ("a fault behind forty of one kind", "t.jsonl", SHARED, ["line 1 (and 39 more like it)", "line 41: width"]),
    ]  # fmt: skip


def _read() -> list[Case]:
    days = {"prompt": ["How old?"], "answer": [_midnight()]}
    asked = {"prompt": "How old?"}
    return [
        ("GSM8K's answer", "t.jsonl", _row(answer=GSM8K), asked | {"answers": ("72",)}),
        ("GSM8K's answer with a comma", "t.jsonl", _row(answer="x\n#### 1,234\n"), {"answers": ("1,234",)}),
        ("four signs that are no such line", "t.jsonl", _row(answer="a #### b"), {"answers": ("a #### b",)}),
        ("a list as JSON in CSV", "t.csv", LIST % '[""42"", ""XLII""]', {"answers": ("42", "XLII")}),
        ("brackets that are no list", "t.csv", "prompt,answer\nHow old?,[42]\n", {"answers": ("[42]",)}),
        ("a question that quotes an object", "t.csv", "prompt,answer\n{'a'} is what?,42\n", {"answers": ("42",)}),
        ("a day in Parquet", "t.parquet", partial(parquet, days), {"answers": ("2024-01-02",)}),
        ("a long answer", "t.jsonl", _row(answer="42\nbecause"), {"said": "several lines): line 1"}),
        ("one question with two golds", "t.jsonl", f"{_row()}\n{_row(answer=7)}", {"said": "another gold: line 2"}),
        (
            "a held-out question that is trained on",
            "t.jsonl",
            f"{_row(split='train')}\n{_row(split='test')}",
            {"said": "row of another split asks: line 2"},
        ),
    ]  # fmt: skip


def _midnight() -> Any:
    import datetime

    return datetime.datetime(2024, 1, 2)


def _bad_tables() -> list[Case]:
    return [
        ("one name in two normal forms", "t.csv", LOOKALIKES, ["line 3", "duplicate", "line 2"]),
        ("rows of a list in one line", "t.json", '[{"n": "Rome", "a": 1}, {"n": "Oslo", "a": [1]}]', ["line 1, row 2"]),
    ]


def _signs(folder: Path) -> None:
    from envs.world.table import read_table

    path = folder / "t.csv"
    path.write_text("city,mass (kg),%\nRome,5 kg,50%\nOslo,6 kg,-\n")
    rome, oslo = read_table(path)
    assert rome.values == {"mass (kg)": "5 kg", "%": "50%"} and oslo.values == {"mass (kg)": "6 kg"}
