"""FRAMES: questions over two to fifteen Wikipedia pages, judged by meaning."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from envs.base import Score, Task
from envs.benchmarks.base import Ask, Benchmark, Row
from envs.benchmarks.scoring.short_answers import MEANING, final_answer, judged


class Frames(Benchmark):
    """FRAMES."""

    name = "frames"
    about = "824 questions over several Wikipedia pages; a judge compares meanings (Apache-2.0)"
    download = "test.tsv of the data set google/frames-benchmark of the hub"
    judged = True

    def read(self, path: Path) -> Iterator[Row]:
        """Rows of the table."""
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter="\t"), 1):
                if not row.get("Prompt") or not row.get("Answer"):
                    raise ValueError(f"{path}: row {number} has no Prompt or no Answer; {self.download}")
                yield {"id": f"frames-{number:03}", "question": row["Prompt"], "answer": row["Answer"]}

    def task(self, row: Row) -> Task:
        """The question."""
        return self.problem(row, f"{row['question']}\n\nEnd with one line: Answer: ...")

    async def score(self, row: Row, answer: str, ask: Ask | None) -> Score:
        """1 if the judge says that the answer means the same."""
        if not answer.strip():
            return Score(value=0.0)
        assert ask is not None, "envs.config.judge"
        right = await judged(ask, row["question"], final_answer(answer), row["answer"], MEANING)
        return Score(value=float(right))
