"""The chat format against K2.5's reference cases, and the laws that rollouts rely on."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.chat.kimi import (
    IM_END,
    SPECIAL_TOKENS,
    THINK,
    Call,
    assistant_pieces,
    call_id,
    chat_pieces,
    dump_arguments,
    join,
    prefill,
    render,
    render_assistant,
    render_prompt,
    render_tool_results,
    tool_result_pieces,
    user_pieces,
)
from model.chat.kimi_parser import ParsedTurn, parse, parse_pieces

KIMI = Path(__file__).parents[2] / "data" / "kimi"
TOOL_NAMES = ("search", "assign_task")
INSTANT = "<think></think>"


def cases(name: str) -> list[dict]:
    """Cases of one file; the lines are split on newlines only, since case texts hold other separators."""
    return [json.loads(line) for line in (KIMI / name).read_text(encoding="utf-8").split("\n") if line]


CHAT_CASES = cases("chat_cases.jsonl")
PARSE_CASES = cases("parse_cases.jsonl")

# Text that tries to look like the format.
text = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(SPECIAL_TOKENS)), max_size=4).map("".join)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), text)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2))
arguments = st.dictionaries(text, values, max_size=3)


@st.composite
def call_lists(draw: st.DrawFn) -> list[Call]:
    names = draw(st.lists(st.sampled_from(TOOL_NAMES), max_size=3))
    return [Call(id=call_id(name, i), name=name, arguments=draw(arguments)) for i, name in enumerate(names)]


# ------------------------------------------------------------------ reference cases


def test_all_reference_cases_are_here() -> None:
    assert (len(CHAT_CASES), len(PARSE_CASES)) == (66, 49)


@pytest.mark.parametrize("case", CHAT_CASES, ids=lambda case: case["name"])
def test_renders_a_reference_conversation(case: dict) -> None:
    assert render(case["messages"], case["tools"], **case["kwargs"]) == case["text"]


@pytest.mark.parametrize("case", PARSE_CASES, ids=lambda case: case["name"])
def test_parses_a_reference_turn(case: dict) -> None:
    turn = parse(case["text"], prefill=case["prefill"], tool_names=case["tools"])
    if case["expected"] == "malformed":
        assert turn.malformed and turn.tool_calls == ()
        return
    assert turn.malformed == ""
    assert (turn.content, turn.reasoning) == (case["content"], case["reasoning"] or "")
    calls = [{"name": call.name, "arguments": call.arguments, "id": call.id} for call in turn.tool_calls]
    assert calls == case["tool_calls"]


# ------------------------------------------------------------------ segments


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(st.tuples(text, text, call_lists(), text), max_size=3),
    prompt=text,
    thinking=st.booleans(),
    with_tools=st.booleans(),
)
def test_appended_segments_equal_the_rendered_history(turns, prompt, thinking: bool, with_tools: bool) -> None:
    function = {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}}
    tools = [{"type": "function", "function": function}] if with_tools else None
    messages: list[dict] = [{"role": "system", "content": "s"}, {"role": "user", "content": prompt}]
    appended = render_prompt(messages, tools, thinking=thinking)
    for content, reasoning, calls, answer in turns:
        reasoning = reasoning if thinking else ""
        appended += render_assistant(content, calls, reasoning=reasoning, thinking=thinking)
        messages.append({"role": "assistant", "content": content, "reasoning_content": reasoning})
        if calls:
            messages[-1]["tool_calls"] = [
                {"id": c.id, "function": {"name": c.name, "arguments": dump_arguments(c.arguments)}} for c in calls
            ]
            messages += [{"role": "tool", "tool_call_id": c.id, "name": c.name, "content": answer} for c in calls]
            appended += render_tool_results([(c.id, c.name, answer) for c in calls], thinking=thinking)
        else:
            messages.append({"role": "user", "content": answer})
            appended += join(user_pieces(answer, thinking=thinking))
    assert appended == render(messages, tools, thinking=thinking, preserve_thinking=True)


def test_a_finished_answer_rewrites_history_unless_reasoning_is_preserved() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "why"},
        {"role": "user", "content": "r"},
    ]
    assert "why" not in render(messages)
    assert "<think>why</think>a" in render(messages, preserve_thinking=True)


def test_reasoning_with_thinking_off_is_refused() -> None:
    with pytest.raises(ValueError, match="thinking off"):
        assistant_pieces("a", reasoning="r", thinking=False)


def test_an_unknown_content_part_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="audio"):
        render([{"role": "user", "content": [{"type": "audio"}]}])


@given(content=text, identifier=text, name=text)
def test_only_the_template_writes_control_pieces(content: str, identifier: str, name: str) -> None:
    benign = tool_result_pieces([("i", "n", "c")])
    hostile = tool_result_pieces([(identifier, name, content)])
    assert [p for p in hostile if p[1]] == [p for p in benign if p[1]]
    messages = [{"role": "user", "content": content, "name": name}]
    controls = [p for p in chat_pieces([{"role": "user", "content": "c"}]) if p[1]]
    assert [p for p in chat_pieces(messages) if p[1]] == controls


# ------------------------------------------------------------------ parser


@settings(max_examples=150, deadline=None)
@given(content=text, reasoning=text, calls=call_lists(), thinking=st.booleans())
def test_parsing_undoes_rendering(content: str, reasoning: str, calls: list[Call], thinking: bool) -> None:
    reasoning = reasoning if thinking else ""
    pieces = assistant_pieces(content, calls, reasoning=reasoning, thinking=thinking)
    turn = parse_pieces(pieces, prefill=prefill(thinking=thinking), tool_names=TOOL_NAMES)
    assert turn == ParsedTurn(content=content, reasoning=reasoning, tool_calls=tuple(calls))


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.text(string.printable, max_size=6),
            st.sampled_from(SPECIAL_TOKENS),
            st.sampled_from(["functions.search:0", '{"query":"a"}', "{", "[[", "functions.", ":", "1e999", "NaN"]),
        ),
        max_size=12,
    ),
    prompt=st.sampled_from([THINK, INSTANT, None]),
)
def test_any_stream_is_parsed_or_malformed_and_never_raises(parts: list[str], prompt: str | None) -> None:
    turn = parse("".join(parts), prefill=prompt, tool_names=TOOL_NAMES)
    assert not (turn.malformed and turn.tool_calls)


def one_call(identifier: str = "functions.search:0", body: str = '{"query":"a"}') -> str:
    return f"<|tool_call_begin|>{identifier}<|tool_call_argument_begin|>{body}<|tool_call_end|>"


def section(*calls: str) -> str:
    return f"<|tool_calls_section_begin|>{''.join(calls)}<|tool_calls_section_end|>"


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (section() + IM_END, "no calls"),
        (one_call() + IM_END, "expected"),
        (section(one_call(body="[1]")) + IM_END, "not a JSON object"),
        (section(one_call(body='{"query":NaN}')) + IM_END, "NaN"),
        (section(one_call(body='{"query":1e999}')) + IM_END, "too large"),
        (section(one_call(body="[" * 100_000)) + IM_END, "not JSON"),
        (section(one_call(body='{"query":' + "9" * 5000 + "}")) + IM_END, "not JSON"),
        (section(one_call("search:0")) + IM_END, "NAME:INDEX"),
        (section(one_call("functions.search:²")) + IM_END, "index"),
        (section(one_call(), one_call()) + IM_END, "same id"),
        (section(one_call(), "and") + IM_END, "outside its calls"),
        (section(one_call()) + "done" + IM_END, "outside its calls"),
        (section(one_call()) + section(one_call("functions.search:1")) + IM_END, "expected"),
        (f"done{IM_END}more", "text after"),
        (f"a<think>b</think>c{IM_END}", "<think>"),
        ("<|im_user|>user" + IM_END, "<|im_user|>"),
        ("", "cut off"),
    ],
)
def test_what_breaks_the_format_is_named_and_gives_no_calls(turn: str, reason: str) -> None:
    parsed = parse(turn, prefill=INSTANT, tool_names=TOOL_NAMES)
    assert reason in parsed.malformed
    assert parsed.tool_calls == ()
