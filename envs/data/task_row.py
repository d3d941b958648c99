"""One row as a task, each mistake of it named by its field. Reads our rows, and those of verl and TRL.

===================  ==========================================================================================
question             ``prompt`` (text or messages), else the questions in ``messages``
hidden answer        ``gold``; else ``reward_model.ground_truth``, ``ground_truth``, ``answers``, ``answer``,
                     ``solution``, ``completion`` or the last of ``messages``, as the accepted text or texts
===================  ==========================================================================================
"""

from __future__ import annotations

import re
from typing import Any

from envs.base import Oracle, Task, task_key
from envs.data import fields
from envs.data.gold import gold_of
from envs.data.json_rows import parse_json
from envs.data.messages import answer_of, are_messages, no_pictures, prompt_of
from envs.data.problems import NOTHING, Problems, Say, show
from envs.data.scalars import parsed, scalar_text, text_fault

SPLITS = ("train", "val", "test")
_SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "eval": "val", "testing": "test"}
_GOLDS = ("label", "target", "output", "response", "expected", "reference", "chosen")  # other names for an answer
_TAKEN = re.compile(r"all|width \d+(-\d+)?")
_LONGEST_NAME = 200  # characters of a key or a family


def task_of(row: Any, where: str, split: str, problems: Problems, *, as_text: bool = False) -> Task | None:
    """The task of ``row``, of ``split`` if it names none; None if a mistake went to ``problems``.

    ``as_text``: the file holds only texts (CSV), also for numbers.
    """
    before = len(problems)

    def say(field: str, text: str, value: Any = NOTHING) -> None:
        problems.add(where, f"{field}: {text}" if value is NOTHING else f"{field} = {show(value)}: {text}")

    if not isinstance(row, dict):
        problems.add(where, f'not an object but {type(row).__name__}; write {{"prompt": ..., "gold": ...}}')
        return None
    if as_text:
        row = {name: parsed(value, str(name), say) for name, value in row.items()}
    slips = fields.slips(row)
    for name, meant in slips.items():
        if meant not in fields.REQUIRED:
            say(name, f"unknown column (given {show(row[name])}); did you mean {meant}? Rename it, or leave it out")
    no_pictures(row, say)
    prompt = _prompt(row, slips, say)
    given, field = _given_gold(row, slips, say)
    gold = gold_of(given, say, field) if isinstance(given, dict) else None
    number = _number(row.get("width"), "width", 1, say, as_text=as_text)
    oracle = _oracle(row.get("oracle"), say)
    plan = _object(row.get("plan"), "plan", say)
    names = {name: _name(row.get(name), name, say) for name in ("key", "family")}
    chosen = _split(row.get("split"), say) or split
    if len(problems) > before or gold is None:
        return None
    key = names["key"] or task_key(prompt, given)
    return Task(
        key=key,
        family=names["family"] or "user",
        split=chosen,
        prompt=prompt,
        gold=gold,
        oracle=oracle,
        width=1 if number is None else number,
        plan=plan or {},
    )


def _prompt(row: dict[str, Any], slips: dict[str, str], say: Say) -> str:
    field = "messages" if fields.empty(row.get("prompt")) and row.get("messages") else "prompt"
    value = row.get(field)
    if fields.empty(value):
        _missing("prompt", row, slips, say)
        return ""
    if isinstance(value, list):
        text = prompt_of(value, field, say)
        if text is None:
            return ""
    elif isinstance(value, str):
        text = value
    else:
        say(field, "must be text or a list of messages", value)
        return ""
    if fault := text_fault(text) or ("" if text.strip() else "is empty; write the question"):
        say(field, f"{fault}", text)
    return text


def _given_gold(row: dict[str, Any], slips: dict[str, str], say: Say) -> tuple[Any, str]:
    """The row's gold as an object, and its field; None without one."""
    if not fields.empty(row.get("gold")) and row["gold"] != {}:
        gold = _object(row["gold"], "gold", say, 'write {"kind": "exact", "answers": ["Paris"]}')
        return gold, "gold"
    for field, value in _answers(row):
        if fields.empty(value):
            continue
        if field.endswith("completion") or field == "messages":
            value = answer_of(value, field, say) if are_messages(value) else value
            if value is None:
                return None, field
        if isinstance(value, dict) and "kind" in value:
            return value, field
        if isinstance(value, dict) and "target" in value:
            value = value["target"]
        if isinstance(value, dict):
            say(field, "must be the answer or a list of accepted ones, or a gold with its kind", value)
            return None, field
        answers = value if isinstance(value, list) else [value]
        return {"kind": "exact", "answers": [fields.last_line(answer) for answer in answers]}, field
    _missing("gold", row, slips, say)
    return None, "gold"


def _answers(row: dict[str, Any]) -> list[tuple[str, Any]]:
    model = row.get("reward_model")
    found = [("reward_model.ground_truth", model.get("ground_truth"))] if isinstance(model, dict) else []
    found += [(name, row.get(name)) for name in fields.ANSWERS]
    messages: Any = row.get("messages")
    if are_messages(messages) and messages[-1].get("role") == "assistant":
        found.append(("messages", messages))
    return found


def _missing(field: str, row: dict[str, Any], slips: dict[str, str], say: Say) -> None:
    names = ("prompt", "messages") if field == "prompt" else ("gold", *fields.ANSWERS)
    if there := [name for name in names if name in row]:
        say(f"missing column {field!r}", f"{there[0]!r} is there but empty; write it, or leave the row out")
        return
    close = next((name for name, meant in slips.items() if meant == field), None)
    others = fields.PROMPTS if field == "prompt" else (*fields.ANSWERS, *_GOLDS)
    close = close or next((name for name in row if str(name).strip().casefold() in others), None)
    hint = f"did you mean it by {close!r}? Rename that column" if close else f"columns here: {sorted(map(str, row))}"
    say(f"missing column {field!r}", hint)


def _object(value: Any, field: str, say: Say, cure: str = "write an object") -> dict[str, Any] | None:
    """An object, or the one in a JSON text; None if it is neither."""
    if fields.empty(value):
        return None
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as fault:
            say(field, f"must be an object or its JSON ({fault}); {cure}", value)
            return None
    if not isinstance(value, dict):
        say(field, f"must be an object; {cure}", value)
        return None
    return {name: part for name, part in value.items() if part is not None}


def _number(value: Any, field: str, least: int, say: Say, *, as_text: bool = False) -> int | None:
    if fields.empty(value):
        return None
    if as_text and isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.0)?", value.strip()):
        value = float(value)  # pandas writes 3.0 where a column has gaps
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        say(field, f"must be a whole number of at least {least}", value)
        return None
    return value


def _oracle(value: Any, say: Say) -> Oracle | None:
    given = _object(value, "oracle", say)
    if not given:
        return None
    least = {"serial_steps": 1, "parallel_steps": 1, "width": 0}
    for name in given:
        if name not in least:
            close = fields.near(name, least)
            hint = f"; did you mean {close}?" if close else f"; it has {', '.join(least)}"
            say(f"oracle.{name}", f"unknown key (given {show(given[name])}){hint}")
    for name in least:
        if name not in given:
            say(f"oracle.{name}", "missing; give all three of serial_steps, parallel_steps, width, or no oracle")
    numbers = {name: _number(given.get(name), f"oracle.{name}", low, say) for name, low in least.items()}
    serial, parallel, width = (numbers[name] for name in least)
    if serial is None or parallel is None or width is None:
        return None
    if parallel > serial:
        say("oracle.parallel_steps", f"{parallel}: is above serial_steps = {serial}; without a gain they are equal")
    return Oracle(serial_steps=serial, parallel_steps=parallel, width=width)


def _name(value: Any, field: str, say: Say) -> str | None:
    if fields.empty(value):
        return None
    text, fault = scalar_text(value)
    if not fault and (not text.isprintable() or len(text) > _LONGEST_NAME):
        fault = f"must be one line of at most {_LONGEST_NAME} characters that can be printed"
    if fault:
        say(field, f"{fault}", value)
    if field == "family" and _TAKEN.fullmatch(text.strip()):
        say(field, "is what reports call a group of tasks of all families; take another name", value)
    return text.strip()


def _split(value: Any, say: Say) -> str | None:
    if fields.empty(value):
        return None
    if value in SPLITS:
        return str(value)
    close = _SPLITS.get(str(value).strip().casefold()) or fields.near(str(value).strip(), SPLITS)
    say("split", f"must be one of {', '.join(SPLITS)}" + (f"; did you mean {close}?" if close else ""), value)
    return None
