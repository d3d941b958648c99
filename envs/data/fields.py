"""Names of fields: ours, those of other trainers' rows, and likely misspellings of ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

REQUIRED = ("prompt", "gold")
OPTIONAL = ("split", "family", "width", "oracle", "plan", "key")
ANSWERS = ("ground_truth", "answers", "answer", "solution", "completion")  # read as gold if there is none; in order
PROMPTS = ("question", "query", "instruction", "input", "problem", "text", "task")  # what others call a prompt
_CLOSE = 0.8
_GSM8K = re.compile(r"^####[ \t]*(\S.*?)\s*\Z", re.MULTILINE)
_SHORT = ("plan", "key")  # too short to guess: a column "planet" is not a misspelling


def near(name: str, known: Iterable[str], cutoff: float = _CLOSE) -> str | None:
    """The name in ``known`` that ``name`` was probably meant to be, else None."""
    known = list(known)
    folded = "".join(c for c in name.casefold() if c.isalnum())
    same = [one for one in known if one.replace("_", "") == folded and one != name]
    return next(iter(same or difflib.get_close_matches(name.casefold(), known, n=1, cutoff=cutoff)), None)


def slips(row: dict[str, Any]) -> dict[str, str]:
    """Columns of ``row`` that look like misspellings of absent fields of ours: column -> field."""
    absent = [name for name in (*REQUIRED, *OPTIONAL) if empty(row.get(name))]
    known = {*REQUIRED, *OPTIONAL, *ANSWERS, *PROMPTS, "messages", "reward_model", "data_source", "extra_info"}
    found = {name: near(name, absent) for name in row if isinstance(name, str) and name not in known}
    return {name: field for name, field in found.items() if field and (field not in _SHORT or name.casefold() == field)}


def last_line(answer: Any) -> Any:
    """The final answer of GSM8K's answers (a last line ``#### 72``); else ``answer`` unchanged."""
    found = _GSM8K.search(answer) if isinstance(answer, str) else None
    return found[1] if found else answer


def empty(value: Any) -> bool:
    """Whether a field is not given: absent, null, blank text, or Parquet's NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)
