"""WideSearch: tables to fill from the web, scored by row and by item."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.base import Score, Task
from envs.benchmarks.base import Ask, Benchmark, Limits, Row, json_lines
from envs.benchmarks.scoring.widesearch import Unavailable, fenced_json
from envs.benchmarks.scoring.widesearch_compat import compat
from envs.benchmarks.scoring.widesearch_sane import check, sane

_ALIGN = """Match two lists of names by meaning, not by position. For every name of the first list that means the same
as one of the second, give the second's spelling. Leave out names without a partner.

First list: {given}
Second list: {reference}

Reply with one JSON object in a json fence, first list's spelling -> second list's spelling, each exactly as above:
```json
{{"a name of the first list": "its partner in the second"}}
```"""
_CELLS = """Judge pairs of a given value and the right one. A pair is 1 if the given value is right by this criterion,
else 0: {criterion}

{pairs}

Reply with one JSON object in a json fence, a 0 or 1 for every pair:
```json
{{"idx_0": 1}}
```"""


class WideSearch(Benchmark):
    """WideSearch; ``settings.mode`` chooses ``sane`` (the default, in [0, 1]) or ``compat`` scores."""

    name = "widesearch"
    about = "200 wide tables in English and Chinese; item and row F1, sane or as the official script (MIT)"
    download = (
        "the data set ByteDance-Seed/WideSearch of the hub: the folder with widesearch.jsonl and widesearch_gold/"
    )
    limits = Limits(orchestrator_steps=100, subagent_steps=100, source="K2.5 report")
    judged = True

    def read(self, path: Path) -> Iterator[Row]:
        """Rows with their gold tables; a task whose gold lacks a required column is an error, not dropped."""
        for row in json_lines(path / "widesearch.jsonl"):
            rules = row["evaluation"]
            rules = json.loads(rules) if isinstance(rules, str) else rules
            gold = path / "widesearch_gold" / f"{row['instance_id']}.csv"
            if not gold.exists():
                raise ValueError(f"{gold} is not there; {self.download}")
            answer = gold.read_text(encoding="utf-8")
            try:
                check(rules, answer)
            except ValueError as error:
                raise ValueError(f"{gold}: task {row['instance_id']}: {error}") from None
            yield {"id": row["instance_id"], "query": row["query"], "evaluation": rules, "answer_csv": answer}

    def task(self, row: Row) -> Task:
        """The question; its width is the gold's number of lines."""
        return self.problem(row, row["query"], width=max(1, row["answer_csv"].strip().count("\n")))

    async def score(self, row: Row, answer: str, ask: Ask | None) -> Score:
        """Item F1; the six numbers are its parts."""
        mode = self.settings.get("mode", "sane")
        if mode not in ("sane", "compat"):
            raise ValueError(f"envs.config.settings.mode = {mode!r}: must be sane or compat")
        judge = _Asked(ask, asyncio.get_running_loop())
        rule = sane if mode == "sane" else compat
        six = await asyncio.to_thread(rule, row["evaluation"], row["answer_csv"], answer, judge)
        parts = {"item_f1": six.fi, "row_f1": six.fr, "pr": six.pr, "rr": six.rr, "pi": six.pi, "ri": six.ri}
        return Score(value=six.fi, success=bool(six.score), parts=parts, high=1.0 if mode == "sane" else 1000.0)


class _Asked:
    """A judge whose questions a language model answers. It is asked from a thread."""

    def __init__(self, ask: Ask | None, loop: asyncio.AbstractEventLoop) -> None:
        self._ask, self._loop = ask, loop

    def align(self, given: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
        """One question. Names that are all there need none."""
        if set(given) <= set(reference):
            return {}
        return fenced_json(self._reply(_ALIGN.format(given=list(given), reference=list(reference))))

    def cells(self, given: Sequence[str], target: Sequence[str], criterion: Any) -> list[Any] | None:
        """One question for all cells of a column."""
        pairs = {f"idx_{at}": {"given": a, "right": b} for at, (a, b) in enumerate(zip(given, target, strict=True))}
        asked = _CELLS.format(criterion=criterion, pairs=json.dumps(pairs, ensure_ascii=False, indent=0))
        found = fenced_json(self._reply(asked))
        return [found.get(name, 0) for name in pairs] if found else None

    def _reply(self, prompt: str) -> str:
        if self._ask is None:
            raise Unavailable(
                "envs.config.judge: WideSearch aligns names and judges cells with a model: set url and model"
            )
        try:
            return asyncio.run_coroutine_threadsafe(self._ask(prompt), self._loop).result()
        except Exception as error:
            raise Unavailable(f"the judge does not answer: {error}") from error
