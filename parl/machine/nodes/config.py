"""The section ``cluster``: which machines a run uses. No Ray and no torch."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

Role = Literal["learner", "engine", "worker"]
_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})$")


class Ports(NamedTuple):
    """The first and last of a range of TCP ports."""

    first: int
    last: int


class ClusterConfig(BaseModel):
    """The machines of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(
        default=None, description="a running Ray's HOST:PORT, or auto; null: RAY_ADDRESS, or this machine alone"
    )
    ports: str = Field(default="20000-20999", description="range in which the learner's ranks meet, on rank 0's node")
    labels: dict[Role, dict[str, str]] = Field(
        default={},
        description="labels of the nodes (ray start --labels) for each of learner, engine, worker: learners run on no"
        " others; engines and rollout workers also go elsewhere when such a node is lost",
    )

    @field_validator("ports")
    @classmethod
    def _check_ports(cls, given: str) -> str:
        found = _RANGE.match(given)
        if found is None or not 1024 <= int(found[1]) <= int(found[2]) < 65536:
            raise ValueError(f"{given!r} is no range of ports: write FIRST-LAST, between 1024 and 65535")
        return given

    @property
    def port_range(self) -> Ports:
        """The range as numbers."""
        first, _, last = self.ports.partition("-")
        return Ports(int(first), int(last))
