"""Your own functions as tools. With this file's folder as the working directory:

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
        yield {"prompt": f"How many people live in {town}?", "answer": str(POPULATIONS[town])}
