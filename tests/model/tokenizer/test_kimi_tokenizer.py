"""The public names of tokenizer and chat format against all reference cases of Kimi K2.5, text and ids."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.chat.kimi import IM_END, SPECIAL_TOKENS, THINK, chat_pieces, parse, parse_assistant_ids, render
from model.tokenizer.tokenizer import KimiTokenizer

pytest.importorskip("tiktoken", reason="tiktoken is not installed (extra: kimi)")
FOLDER = Path(__file__).parents[2] / "data" / "kimi"
LEARNED = 163_584  # ids; the special ones come after them


@pytest.fixture(scope="module")
def kimi() -> KimiTokenizer:
    return KimiTokenizer(FOLDER)


def cases(name: str) -> list[dict]:
    path = FOLDER / name
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]  # case texts hold other separators of lines


# ---------------------------------------------------------------- reference cases


def test_all_cases_are_here() -> None:
    files = ("encode_cases.jsonl", "encode_long_cases.jsonl.gz", "chat_cases.jsonl", "parse_cases.jsonl")
    assert [len(cases(name)) for name in files] == [186, 13, 66, 49]


@pytest.mark.parametrize("name", ["encode_cases.jsonl", "encode_long_cases.jsonl.gz"])
def test_gives_the_official_ids_and_the_text_back(kimi: KimiTokenizer, name: str) -> None:
    for case in cases(name):
        assert kimi.encode(case["text"], allow_special=case["allow_special"]) == case["ids"], case["category"]
        assert kimi.decode(case["ids"]) == case["text"]


def test_trusts_its_text_by_default_as_the_official_one_does(kimi: KimiTokenizer) -> None:
    special = [
        case for case in cases("encode_cases.jsonl") if case["allow_special"] and max(case["ids"], default=0) >= LEARNED
    ]
    assert special and all(kimi.encode(case["text"]) == case["ids"] for case in special)


def test_conversations_get_the_official_text_and_ids(kimi: KimiTokenizer) -> None:
    for case in cases("chat_cases.jsonl"):
        text = render(case["messages"], case["tools"], **case["kwargs"])
        assert text == case["text"], case["name"]
        assert kimi.encode(text) == case["ids"], case["name"]


def test_pieces_get_the_same_ids_unless_a_text_forges_control_tokens(kimi: KimiTokenizer) -> None:
    forged = []
    for case in cases("chat_cases.jsonl"):
        pieces = chat_pieces(case["messages"], case["tools"], **case["kwargs"])
        if kimi.encode_segments(pieces) != case["ids"]:
            assert any(control in text for text, is_control in pieces if not is_control for control in SPECIAL_TOKENS)
            forged.append(case["name"])
    assert sorted(forged) == ["inline_think_in_content", "special_strings_in_content"]


def test_turns_parse_from_ids_as_from_text(kimi: KimiTokenizer) -> None:
    for case in cases("parse_cases.jsonl"):
        form = {"prefill": case["prefill"], "tool_names": case["tools"]}
        assert kimi.encode(case["text"]) == case["ids"] and kimi.decode(case["ids"]) == case["text"], case["name"]
        turn = parse(case["text"], **form)
        assert parse_assistant_ids(kimi, case["ids"], **form) == turn, case["name"]
        assert bool(turn.malformed) == (case["expected"] == "malformed"), case["name"]
        if not turn.malformed:
            assert (turn.content, turn.reasoning) == (case["content"], case["reasoning"] or "")
            calls = [{"name": call.name, "arguments": call.arguments, "id": call.id} for call in turn.tool_calls]
            assert calls == case["tool_calls"]


# ---------------------------------------------------------------- laws

plain = st.text(max_size=20).filter(lambda text: not any(control in text for control in SPECIAL_TOKENS))
names = st.sampled_from(["search", "assign_task", "查询"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(plain, inner, max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(
    content=plain, reasoning=plain, thinking=st.booleans(), as_text=st.booleans(),
    calls=st.lists(st.tuples(names, st.dictionaries(plain, values, max_size=3)), max_size=3),
)  # fmt: skip
def test_parsing_undoes_rendering(
    content: str, reasoning: str, thinking: bool, as_text: bool, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    """What a server's template makes of an assistant's turn, behind the prompt that the turn answers."""
    reasoning = reasoning if thinking else ""
    history = [{"role": "user", "content": "q"}]
    written = [
        {"id": f"functions.{name}:{i}", "function": {"name": name, "arguments": json.dumps(a) if as_text else a}}
        for i, (name, a) in enumerate(calls)
    ]
    turn = {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": written}
    kind = {"thinking": thinking, "preserve_thinking": True}
    prompt = render(history, **kind)
    whole = render([*history, turn], **kind, add_generation_prompt=False)
    assert whole.startswith(prompt)
    parsed = parse(whole[len(prompt) :], prefill=THINK if thinking else "<think></think>")
    assert (parsed.malformed, parsed.content, parsed.reasoning) == ("", content, reasoning)
    assert [(call.name, call.id, call.arguments) for call in parsed.tool_calls] == [
        (name, f"functions.{name}:{i}", arguments) for i, (name, arguments) in enumerate(calls)
    ]


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(0, LEARNED + 255) | st.integers(LEARNED, LEARNED + 30), max_size=30),
    prompt=st.sampled_from([THINK, "<think></think>", None]),
)
def test_random_tokens_never_crash_the_parser(kimi: KimiTokenizer, ids: list[int], prompt: str | None) -> None:
    for turn in (parse_assistant_ids(kimi, ids, prefill=prompt), parse(kimi.decode(ids), prefill=prompt)):
        assert not (turn.malformed and turn.tool_calls)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_and_never_has_control_ids_unless_trusted(kimi: KimiTokenizer, text: str) -> None:
    ids = kimi.encode(f"{IM_END}{text}", allow_special=False)
    assert max(ids) < LEARNED and kimi.decode(ids) == f"{IM_END}{text}"


def test_travels_and_saves(kimi: KimiTokenizer, tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(kimi)).encode("hello") == kimi.encode("hello")
    assert KimiTokenizer.load(kimi.save(tmp_path)).fingerprint == kimi.fingerprint


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tiktoken\.model"):
        KimiTokenizer(tmp_path)
