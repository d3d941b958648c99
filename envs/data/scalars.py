"""Single values of a user's rows as text, and what no text may contain."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from typing import Any

from envs.data.fields import ANSWERS
from envs.data.json_rows import Written, parse_json
from envs.data.problems import Say

_PRINTED = re.compile(r"\s*(\[\s*['\"\[{]|\{\s*['\"])")  # how a printed Python list or object begins
_CHAT = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]")
_HALF = re.compile("[\ud800-\udfff]")


def scalar_text(value: Any, *, empty: bool = False) -> tuple[str, str]:
    """``value`` as text, and what is wrong with it ("" if nothing).

    Numbers are written as in the file (whole floats of Parquet without ``.0``, days without midnight), truth
    values as ``true`` and ``false``. ``empty``: null and NaN are an empty text instead of a mistake.
    """
    if isinstance(value, str):
        return value, text_fault(value)
    if isinstance(value, bool):
        return str(value).lower(), ""
    if isinstance(value, Written):
        return value.written, ""
    if isinstance(value, float) and not math.isfinite(value):
        return "", "" if empty and math.isnan(value) else "is no finite number; leave the row out or write text"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value), ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time() and value.tzinfo is None:
        return str(value.date()), ""  # a day: Parquet and pandas have no type for it
    if isinstance(value, int | decimal.Decimal | datetime.date | datetime.time):
        return str(value), ""
    if value is None:
        return "", "" if empty else "must be text, not null"
    kind = {dict: "an object", list: "a list", bytes: "bytes"}.get(type(value), type(value).__name__)
    return "", f"must be text, a number or a truth value, not {kind}"


def parsed(text: Any, field: str, say: Say) -> Any:
    """The list or object whose JSON a text file holds, else ``text``; reports Python's form to ``say``.

    pandas writes lists as Python does (``['Rome', 'Roma']``); as text they would be wrong answers.
    """
    asked = field in ("prompt", "messages")  # a question may quote anything but a conversation
    if not isinstance(text, str) or not (_CHAT if asked else _PRINTED).match(text):
        return text
    try:
        return parse_json(text)
    except ValueError:
        if asked:
            say(field, "is a conversation, but no JSON; write it with json.dumps, or the question alone", text)
        elif field in ANSWERS:
            say(field, 'is a list or an object as Python prints it; write JSON (json.dumps): ["Rome", "Roma"]', text)
        return text


def text_fault(text: str) -> str:
    """Why ``text`` cannot be stored or given to a model; "" if it can."""
    if found := _HALF.search(text):
        return f"holds half of a character (\\u{ord(found[0]):04x}); write the whole character"
    if "\0" in text:
        return "holds the character U+0000; remove it"
    return ""
