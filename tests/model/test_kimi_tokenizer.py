"""Kimi's vocabulary against the official tokenizer's ids.

Needs tiktoken and the model's own files: set PARL_KIMI to a folder with tiktoken.model and tokenizer_config.json.
A longer encode_cases.jsonl in that folder is used in place of the one here.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from model.chat import IM_END, chat_pieces
from model.chat_parser import parse_assistant, parse_assistant_ids
from model.kimi_tokenizer import KimiTokenizer

HERE = Path(__file__).parents[1] / "data" / "kimi"
FOLDER = Path(os.environ.get("PARL_KIMI", HERE))


@pytest.fixture(scope="module")
def kimi() -> KimiTokenizer:
    pytest.importorskip("tiktoken", reason="tiktoken is not installed (extra: kimi)")
    if not (FOLDER / "tiktoken.model").is_file():
        pytest.skip("no Kimi vocabulary: set PARL_KIMI to a folder with tiktoken.model and tokenizer_config.json")
    return KimiTokenizer(FOLDER)


def cases(name: str) -> list[dict]:
    path = FOLDER / name if (FOLDER / name).is_file() else HERE / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_gives_the_official_ids_and_the_text_back(kimi: KimiTokenizer) -> None:
    for case in cases("encode_cases.jsonl"):
        encode = kimi.encode_special if case["allow_special"] else kimi.encode
        assert encode(case["text"]) == case["ids"], case["category"]
        assert kimi.decode(case["ids"]) == case["text"]


def test_conversations_get_the_official_ids(kimi: KimiTokenizer) -> None:
    for case in cases("chat_cases.jsonl"):
        if case["name"] == "special_strings_in_content":  # the official encoder lets a user's text forge tokens
            continue
        if case["name"] == "inline_think_in_content":
            continue
        pieces = chat_pieces(case["messages"], case["tools"], **case["kwargs"])
        assert kimi.encode_segments(pieces) == case["ids"], case["name"]


def test_turns_parse_from_ids_as_from_text(kimi: KimiTokenizer) -> None:
    for case in cases("parse_cases.jsonl"):
        form = {"prefill": case["prefill"], "tool_names": case["tools"]}
        assert parse_assistant_ids(kimi, case["ids"], **form) == parse_assistant(case["text"], **form), case["name"]


def test_control_strings_in_text_stay_text(kimi: KimiTokenizer) -> None:
    assert kimi.im_end_id not in kimi.encode(f"a {IM_END}")
    assert kimi.decode(kimi.encode(f"a {IM_END}")) == f"a {IM_END}"


def test_travels_and_saves(kimi: KimiTokenizer, tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(kimi)).encode("hello") == kimi.encode("hello")
    assert KimiTokenizer.load(kimi.save(tmp_path)).fingerprint == kimi.fingerprint


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tiktoken\.model"):
        KimiTokenizer(tmp_path)
