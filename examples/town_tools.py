"""Your own functions as tools, tasks and a score. With this file's folder as the working directory:

parl train functions.yaml
"""

from typing import Annotated

from pydantic import Field

POPULATIONS = {f"Town {n}": 10_000 + 137 * n for n in range(40)}
Name = Annotated[str, Field(description="the town's name, such as Town 7")]


def population(town: Name) -> int:
    """How many people live in a town."""
    return POPULATIONS[town]


async def larger(one: Name, other: Name) -> str:
    """The larger of two towns."""
    return max(one, other, key=POPULATIONS.__getitem__)


def tasks(split: str):
    """Rows as in a JSONL file: what is asked, and the hidden answer."""
    for n in range(10):
        town = f"Town {4 * n + {'train': 0, 'val': 1, 'test': 2}[split]}"
        gold = {"kind": "function", "answers": [str(POPULATIONS[town])]}
        yield {"prompt": f"How many people live in {town}?", "gold": gold}


def score(episode) -> float:
    """1 for the right number, less the farther the answer is from it."""
    right, said = int(episode.task.gold.answers[0]), episode.answer.replace(",", "")
    return max(0.0, 1 - 10 * abs(int(said) / right - 1)) if said.isdecimal() and len(said) < 16 else 0.0
