"""A benchmark of your own: how its file is read, what is asked, how an answer is scored. In this file's folder:

parl bench prepare quiz:Quiz --from quiz.csv && parl bench run benchmarks/Quiz quiz.yaml
"""

import csv

from envs.base import Score
from envs.benchmarks.base import Benchmark
from envs.benchmarks.scoring.short_answers import final_answer


class Quiz(Benchmark):
    name = "quiz"
    about = "populations of two towns together; within one per cent is right"
    download = "quiz.csv, with the columns question and number"

    def read(self, path):
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                yield {"id": f"quiz-{number}", **row}

    def task(self, row):
        return self.problem(row, f"{row['question']}\n\nEnd with one line: Answer: NUMBER")

    async def score(self, row, answer, ask):
        said = final_answer(answer).replace(",", "")
        number = said.isdecimal() and len(said) < 16  # longer ones overflow
        off = abs(int(said) / float(row["number"]) - 1) if number else 1.0
        return Score(value=float(off <= 0.01), parts={"off": off})
