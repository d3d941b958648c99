"""Scores of replies in a file, one JSON object per line (``parl bench score NAME CASES.jsonl``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.benchmarks.scoring.short_answers import exact, word_f1
from envs.benchmarks.scoring.widesearch import Recorded, Scores, Unavailable
from envs.benchmarks.scoring.widesearch_compat import compat
from envs.benchmarks.scoring.widesearch_sane import sane
from parl.errors import UserError

Score = Callable[[dict[str, Any], str], dict[str, Any]]  # (row, mode) -> its scores


def score_cases(name: str, path: Path, mode: str) -> Iterator[dict[str, Any]]:
    """One row of scores per line of ``path``: ``id``, and what the benchmark ``name`` computes."""
    if name not in SCORES:
        raise UserError(f"NAME = {name!r}: scores of files are there for {', '.join(SCORES)}")
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield {"id": row["id"]} | SCORES[name](row, mode)
        except Unavailable as error:
            raise UserError(str(error)) from None
        except KeyError as error:
            raise UserError(f"{path}:{number}: the row has no {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def _widesearch(row: dict[str, Any], mode: str) -> dict[str, Any]:
    evaluation = row["evaluation"]
    evaluation = json.loads(evaluation) if isinstance(evaluation, str) else evaluation
    judge = Recorded(row.get("key_maps"), row.get("judge"))
    given = (evaluation, row["answer_csv"], row["response"], judge)
    if mode == "compat":
        return asdict(compat(*given))
    try:
        return asdict(sane(*given))
    except ValueError as error:  # of the task, not of the reply: say so, and go on
        return asdict(Scores()) | {"error": str(error)}


def _short(closed: bool, one_gold: bool = False) -> Score:
    def scores(row: dict[str, Any], mode: str) -> dict[str, Any]:
        golds = row["answers"][:1] if one_gold else row["answers"]
        if not isinstance(golds, list) or not golds:
            raise ValueError(f"answers = {golds!r}: a list of accepted answers")
        return {"em": exact(row["response"], golds), "f1": word_f1(row["response"], golds, closed=closed)}

    return scores


SCORES: dict[str, Score] = {
    "widesearch": _widesearch,
    "hotpotqa": _short(closed=True, one_gold=True),
    "2wiki": _short(closed=True),
    "musique": _short(closed=False),
}
