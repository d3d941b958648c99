"""BrowseComp and BrowseComp-Plus: hard questions with short answers, encrypted so that no search finds them.

The prepared folder holds what was downloaded, encrypted; questions are decrypted in memory, when a task is made, and
answers when one is scored. Stored episodes hold the question as the policy read it, never the gold: keep them off
the web.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from envs.base import Score, Task
from envs.benchmarks.base import Ask, Benchmark, Limits, Row, json_lines
from envs.benchmarks.scoring.short_answers import MEANING, STRICT, judged

_PROMPT = """{question}

Your reply ends with three lines:
Explanation: why
Exact Answer: the short final answer
Confidence: 0% to 100%"""


def decrypt(text: str, password: str) -> str:
    """The plain text of base64 ``text``: XOR with the repeated SHA-256 of ``password``; ValueError if it is none."""
    data = base64.b64decode(text, validate=True)
    return bytes(a ^ b for a, b in zip(data, cycle(hashlib.sha256(password.encode()).digest()))).decode("utf-8")


class BrowseComp(Benchmark):
    """BrowseComp, judged."""

    name = "browsecomp"
    about = "1,266 questions that need persistent browsing; a judge compares the exact answer (MIT)"
    download = "browse_comp_test_set.csv, which github.com/openai/simple-evals names (encrypted; leave it so)"
    limits = Limits(orchestrator_steps=15, subagent_steps=100, source="K2.5 report")
    judged = True
    rule = STRICT

    def read(self, path: Path) -> Iterator[Row]:
        """Rows of the CSV, still encrypted; ValueError if they cannot be decrypted."""
        csv.field_size_limit(sys.maxsize)
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                for name in ("problem", "answer", "canary"):
                    if not row.get(name):
                        raise ValueError(f"{path}: row {number} has no {name}; {self.download}")
                kept = {name: row[name] for name in ("problem", "answer", "canary")}
                yield {"id": f"browsecomp-{number:04}", **kept}

    def task(self, row: Row) -> Task:
        """The decrypted question."""
        return self.problem(row, _PROMPT.format(question=self._plain(row, "problem")))

    async def score(self, row: Row, answer: str, ask: Ask | None) -> Score:
        """1 if the judge says that the answer is right; an empty one is wrong without a judge."""
        if not answer.strip():
            return Score(value=0.0)
        assert ask is not None, "envs.config.judge"
        question, reference = self._plain(row, "problem"), self._plain(row, "answer")
        return Score(value=float(await judged(ask, question, answer, reference, self.rule)))

    @staticmethod
    def _plain(row: Row, name: str) -> str:
        try:
            return decrypt(row[name], row["canary"])
        except ValueError as error:
            raise ValueError(f"{row['id']}: {name} cannot be decrypted ({error}): is the file as downloaded?") from None


class BrowseCompPlus(BrowseComp):
    """BrowseComp-Plus: the same kind of questions over a fixed corpus, which the user's retriever serves."""

    name = "browsecomp-plus"
    about = "830 questions over a fixed corpus of about 100,000 documents; a judge compares meanings (MIT)"
    download = (
        "the data set Tevatron/browsecomp-plus of the hub as JSON lines, encrypted as it comes; serve its corpus with"
        " the retriever of github.com/texttron/BrowseComp-Plus, and name it: envs.config.tools={name: retrieve, ...}"
    )
    limits = Limits(orchestrator_steps=100, subagent_steps=100)
    rule = MEANING

    def read(self, path: Path) -> Iterator[Row]:
        """Rows as they come, with the canary that ``settings.canary`` or each row names."""
        for row in json_lines(path):
            canary = row.get("canary") or self.settings.get("canary")
            if not canary:
                raise ValueError(f"{path}: name the canary of its repository: --set canary=TEXT")
            yield {"id": str(row["query_id"]), "problem": row["query"], "answer": row["answer"], "canary": canary}
