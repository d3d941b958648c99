"""WideSearch's scores of one reply, in two modes: ``compat`` and ``sane``.

``compat`` gives the numbers of the official script (ByteDance-Seed/WideSearch at 0e664c3, MIT licence, with its
pinned pandas 2.3.1 and dateparser 1.2.2), its defects included; tests/data/widesearch has its outputs on cases
that hit them. ``sane`` gives what the same rules mean without the defects (docs/benchmarks.md compares them).

A row has ``evaluation`` (``unique_columns``, ``required``, ``eval_pipeline``), ``answer_csv`` (the gold as CSV
text) and ``response``. Both modes ask a judge twice at most for each column: to align keys, and for cells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlparse

FENCE = re.compile(r"```markdown(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+\.?\d*)%?")
_URL = re.compile(r"https?://[!$-_a-z]+")
_REPLY = re.compile(r"```json\s*(\{.*?\})\s*```", re.DOTALL)
_MONTH_DAYS = 31


class Unavailable(Exception):
    """Nothing can be scored: a package or the judge is missing. Never a score of 0."""


class Judge(Protocol):
    """What a language model decides in WideSearch."""

    def align(self, given: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
        """Names of ``given`` -> the same names as ``reference`` writes them; empty without a usable reply."""
        ...

    def cells(self, given: Sequence[str], target: Sequence[str], criterion: Any) -> list[Any] | None:
        """A score for each pair of cells of one column, 0 where the reply has none; None: no usable reply."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Success, then precision, recall and F1 by row and by item; the names of ``parl bench score``."""

    score: float = 0.0
    pr: float = 0.0
    rr: float = 0.0
    fr: float = 0.0
    pi: float = 0.0
    ri: float = 0.0
    fi: float = 0.0


class Recorded:
    """A judge whose replies were written down.

    ``key_maps``: replies to :meth:`align`, in order: a map, the reply's text, or None for no reply. ``judge``:
    ``mode`` (``equal`` texts score 1, ``all1``, ``all0``, ``none``: no reply, or ``map``) and for ``map``
    the scores by ``given||target``.
    """

    def __init__(self, key_maps: Sequence[Any] | None, judge: dict[str, Any] | None) -> None:
        self._maps: Iterator[Any] = iter(key_maps or ())
        self._mode = (judge or {}).get("mode") or "equal"
        self._map = (judge or {}).get("map") or {}
        if self._mode not in ("equal", "all1", "all0", "none", "map"):
            raise ValueError(f"judge.mode = {self._mode!r}: must be equal, all1, all0, none or map")

    def align(self, given: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
        """The next of the recorded maps."""
        reply = next(self._maps, None)
        return dict(reply) if isinstance(reply, dict) else fenced_json(reply or "")

    def cells(self, given: Sequence[str], target: Sequence[str], criterion: Any) -> list[Any] | None:
        """Scores by the mode."""
        if self._mode == "none":
            return None
        if self._mode == "equal":
            return [int(a == b) for a, b in zip(given, target, strict=True)]
        if self._mode == "map":
            return [self._map.get(f"{a}||{b}", 0) for a, b in zip(given, target, strict=True)]
        return [int(self._mode == "all1")] * len(given)


def fenced_json(reply: str) -> dict[str, Any]:
    """The object in the last ``json`` fence of a judge's reply; empty if there is none that parses."""
    found = _REPLY.findall(reply)
    try:
        value = json.loads(found[-1]) if found else {}
    except ValueError:
        return {}
    return value


def reply_lines(response: str) -> list[str] | None:
    """The lines of the reply's table, as written; None without one.

    They are the first ``markdown`` fence, else, with four pipes or more, the text from the first pipe to its
    line's end and the lines after it that begin with a pipe.
    """
    fence = FENCE.search(response)
    if fence:
        return fence.group(1).strip().split("\n")
    if response.count("|") < 4:
        return None
    first, *rest = response[response.index("|") :].split("\n")
    lines = [first]
    for line in rest:
        if not line.startswith("|"):
            break
        lines.append(line)
    return "\n".join(lines).strip().split("\n")


def is_table_line(line: str) -> bool:
    """Whether a line belongs to a table and is more than a rule."""
    return "|" in line and not set("|- :").issuperset(line.strip())


def column_name(name: str) -> str:
    """A column's name as the official script compares it."""
    return name.strip().lower().replace(" ", "")


def f1(precision: float, recall: float) -> float:
    """The harmonic mean; 0 below 1e-9."""
    return 2 * precision * recall / (precision + recall) if precision + recall > 1e-9 else 0.0


def preprocess(name: str, cell: Any) -> str:
    """A cell after ``norm_str``, ``extract_number`` (``NULL`` if there is none) or ``norm_date``."""
    if name == "norm_str":
        return str(cell).lower().strip().replace(" ", "").replace("*", "")
    if name == "extract_number":
        found = _NUMBER.search(str(cell).replace(",", ""))
        return found.group() if found else "NULL"
    if name == "norm_date":
        date = parse_date(cell)
        return cell if date is None else date.strftime("%Y-%m-%d")
    raise ValueError(f"eval_pipeline: unknown preprocess {name!r}; known: norm_str, extract_number, norm_date")


def metric(name: str, given: str, target: str, criterion: Any) -> float:
    """Whether a cell is right, 0 or 1, by any metric but the judge's."""
    if name not in METRICS:
        raise ValueError(f"eval_pipeline: unknown metric {name!r}; known: {', '.join(METRICS)}, llm_judge")
    return float(METRICS[name](given, target, criterion))


def _number(text: str) -> float | None:
    try:
        return float(text.replace("%", "")) / 100.0 if "%" in text else float(text)
    except (ValueError, TypeError):
        return None


def _number_near(given: str, target: str, criterion: Any) -> bool:
    a, b = _number(given), _number(target)
    if a is None or b is None:
        return a is b and given == target
    return abs(a - b) <= abs(b) * criterion


def _hosts(text: str) -> set[str]:
    return {urlparse(url).netloc for url in _URL.findall(text)}


def parse_date(text: str) -> Any:
    """The ``datetime`` that dateparser reads in ``text``, the month's first day by default; None if none."""
    try:
        import dateparser
    except ImportError:
        raise Unavailable("columns with dates need dateparser: pip install 'parl-swarm[bench]'") from None
    return dateparser.parse(text, settings={"PREFER_DAY_OF_MONTH": "first"})


def date_or_none(text: str) -> Any:
    """The date in ``text``; None also where the parser fails."""
    try:
        return parse_date(text)
    except Unavailable:
        raise
    except Exception:  # the official script treats any failure of the parser as "no date"
        return None


def _date_near(given: str, target: str, criterion: Any) -> bool:
    a, b = date_or_none(given), date_or_none(target)
    if a is None or b is None:
        return a is b
    return abs((a - b).days) <= _MONTH_DAYS


METRICS: dict[str, Callable[[str, str, Any], bool]] = {
    "exact_match": lambda given, target, criterion: given.lower() == target.lower(),
    "in_match": lambda given, target, criterion: given in target,
    "url_match": lambda given, target, criterion: _hosts(given) == _hosts(target),
    "number_near": _number_near,
    "date_near": _date_near,
}
