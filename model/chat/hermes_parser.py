"""Reads ChatML turns with ``<tool_call>`` JSON: what the model wrote, and whole conversations.

``<tool_call>`` and ``<think>`` are control tokens in Qwen's vocabularies and ordinary text in others (SmolLM2). Where
they are text, they are looked for in the text; what a call's JSON holds inside its strings is never taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from model.chat.base import Call, ParsedTurn, Piece
from model.chat.hermes_tools import HEAD, to_json
from model.chat.reading import JSON, Malformed, Walk, known_name, read_object

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
RESULT, END_RESULT = "<tool_response>", "</tool_response>"
THINK, END_THINK = "<think>", "</think>"
_BLANKS = re.compile(r"\s*")


def call_id(name: str, index: int) -> str:
    """The id of the ``index``-th call of a trace; ChatML writes none."""
    return f"call_{index}_{name}"


def parse(
    pieces: Sequence[Piece],
    *,
    special: Collection[str],
    tools: Collection[str] | None,
    first: int,
    prefill: bool,
    reasons: bool,
) -> ParsedTurn:
    """One turn. ``special``: the tokenizer's control tokens; ``prefill``: the prompt has opened the reasoning;
    ``reasons``: there may be reasoning; ``first``: number of the first call."""
    marks = [mark for mark in (CALL, END_CALL, *((THINK, END_THINK) if reasons else ())) if mark not in special]
    reader = _Reader(cut(pieces, marks), tools, first)
    try:
        reader.turn(prefill, reasons)
    except Malformed as error:
        return ParsedTurn(content=reader.content, reasoning=reader.reasoning, malformed=str(error))
    return ParsedTurn(content=reader.content, reasoning=reader.reasoning, tool_calls=tuple(reader.calls))


class _Reader(Walk):
    """One method a rule of the grammar."""

    def __init__(self, pieces: Sequence[Piece], tools: Collection[str] | None, first: int) -> None:
        super().__init__(pieces)
        self.tools, self.first = tools, first
        self.content = self.reasoning = ""
        self.calls: list[Call] = []

    def turn(self, prefill: bool, reasons: bool) -> None:
        if prefill or (reasons and self.accept(THINK)):
            self.reasoning = self.text().strip("\n")
            self.expect(END_THINK, "the reasoning")
            self.content = self.text().lstrip("\n")
        else:
            self.content = self.text()
        while self.accept(CALL):
            self.calls.append(self._call())
            self.blank("the turn, after a call,")
        if self.calls:
            self.content = self.content.removesuffix("\n")
        self.expect(IM_END, "the calls" if self.calls else "the content")
        if not self.done:
            raise Malformed(f"text after {IM_END}")

    def _call(self) -> Call:
        tree = read_object(self.text().strip(), "the contents of a call")
        self.expect(END_CALL, "a call")
        if set(tree) != {"name", "arguments"}:
            raise Malformed("a call must have exactly the keys name and arguments")
        name = known_name(tree["name"], self.tools)
        if not isinstance(tree["arguments"], dict):
            raise Malformed("arguments are not a JSON object")
        return Call(id=call_id(name, self.first + len(self.calls)), name=name, arguments=tree["arguments"])


def cut(pieces: Iterable[Piece], marks: Collection[str]) -> list[Piece]:
    """``pieces`` with the ``marks`` in their plain text as pieces of their own, marked as control."""
    if not marks:
        return list(pieces)
    spelling = re.compile("|".join(map(re.escape, marks)))
    out: list[Piece] = []
    for text, control in pieces:
        if control:
            out.append((text, True))
            continue
        at = 0
        while found := spelling.search(text, at):
            end = found.end()
            after = _json_end(text, end) if found[0] == CALL else end
            out += [(text[at : found.start()], False), (found[0], True), (text[end:after], False)]
            at = after
        out.append((text[at:], False))
    return _joined(out)


def _json_end(text: str, at: int) -> int:
    """Where the JSON value that begins at ``at`` ends; ``at`` where there is none."""
    begin = _BLANKS.match(text, at).end()  # type: ignore[union-attr]
    try:
        return JSON.raw_decode(text, begin)[1]
    except (ValueError, RecursionError):
        return at


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for text, control in pieces:
        if text and out and not control and not out[-1][1]:
            out[-1] = (out[-1][0] + text, False)
        elif text:
            out.append((text, control))
    return out


def messages_of(pieces: Iterable[Piece], ids: Mapping[str, str], special: Collection[str]) -> list[dict[str, Any]]:
    """The conversation that ``pieces`` hold, without the declaration of tools. ``ids`` gives calls other ids."""
    messages: list[dict[str, Any]] = []
    waiting: list[str] = []  # ids of calls that have no results yet
    count = 0
    frame: list[Piece] = []
    for piece in pieces:  # what follows the last IM_END is the prompt of a turn
        if piece == (IM_START, True):
            frame = []
        elif piece != (IM_END, True):
            frame.append(piece)
        elif frame:
            role, _, body = frame[0][0].partition("\n")
            rest = [(body, False), *frame[1:]] if not frame[0][1] else frame
            if role == "assistant":
                turn = _assistant(rest, special, count)
                waiting = [call["id"] for call in turn.get("tool_calls", ())]
                count += len(waiting)
                for call in turn.get("tool_calls", ()):
                    call["id"] = ids.get(call["id"], call["id"])
                messages.append(turn)
            elif role == "user" and waiting:
                results = _results(rest, special)
                paired = zip(waiting, results, strict=False)
                messages += [
                    {"role": "tool", "tool_call_id": ids.get(one, one), "content": text} for one, text in paired
                ]
                waiting = []
            else:
                messages += _said(role, "".join(text for text, _ in rest))
            frame = []
    return messages


def _said(role: str, text: str) -> list[dict[str, Any]]:
    if role == "system":
        text = text.partition(HEAD)[0].removesuffix("\n\n")
        return [{"role": "system", "content": text}] if text else []
    return [{"role": role, "content": text}]


def _assistant(pieces: list[Piece], special: Collection[str], first: int) -> dict[str, Any]:
    pieces = _joined(pieces)
    reasons = THINK in special or pieces[:1] == [(THINK, True)]
    turn = parse([*pieces, (IM_END, True)], special=special, tools=None, first=first, prefill=False, reasons=reasons)
    if turn.malformed:
        return {"role": "assistant", "content": "".join(text for text, _ in pieces)}
    calls = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": to_json(one.arguments)}}
        for one in turn.tool_calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": turn.content or (None if calls else "")}
    return message | ({"tool_calls": calls} if calls else {})


def _results(pieces: list[Piece], special: Collection[str]) -> list[str]:
    """The texts between ``<tool_response>`` and its end."""
    if RESULT not in special:
        text = "".join(text for text, _ in pieces)
        text = text.removeprefix(f"{RESULT}\n").removesuffix(f"\n{END_RESULT}")
        return text.split(f"\n{END_RESULT}\n{RESULT}\n")
    texts: list[str] = []
    inside = False
    for text, control in pieces:
        if control and text in (RESULT, END_RESULT):
            inside = text == RESULT
            texts += [""] if inside else []
        elif inside:
            texts[-1] += text
    return [text.removeprefix("\n").removesuffix("\n") for text in texts]
