"""The built-in objectives as one type, chosen by ``name``. No torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from parl.learn.objective.cispo import Cispo
from parl.learn.objective.grpo import Grpo
from parl.learn.objective.gspo import Gspo
from parl.learn.objective.k25 import K25


def objective_name(value: Any) -> str | None:
    """``name`` of a section as read or as built; k25 where it has none."""
    return value.get("name", "k25") if isinstance(value, dict) else getattr(value, "name", "k25")


AnyObjective = Annotated[
    Annotated[K25, Tag("k25")]
    | Annotated[Grpo, Tag("grpo")]
    | Annotated[Gspo, Tag("gspo")]
    | Annotated[Cispo, Tag("cispo")],
    Discriminator(objective_name),
]
