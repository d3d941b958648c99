"""Settings of the embedded wide-search world. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from envs.base import Section

DEEP = ("deep", "long", "deep_list", "two_phase", "trail")  # about facts that lie in dossiers
FAMILIES = ("wide", "chain", "list", "swap", "single_fact", *DEEP)
PICTURE = "picture"  # only if `mix` names it, for a policy with vision (envs/world/site/pictures.py)


class WorldConfig(Section):
    """What the world holds and which tasks it asks. Keys of ``optional`` are left out of dumps at their default."""

    optional: ClassVar[tuple[str, ...]] = ("deep_widths", "depth", "length", "lines", "direct")

    source: Path | None = Field(
        default=None,
        description="table (CSV, TSV, Parquet, JSON; rows = entities, columns = attributes) as the world",
    )
    seed: int = Field(default=1, ge=0, description="seed of the generated knowledge base")
    entities: int = Field(
        default=2400, gt=0, description="entities of the train split; validation and test have a quarter each"
    )
    distractors: float = Field(
        default=0.5, ge=0, le=1, description="share of entities with an outdated or look-alike page"
    )
    aliases: float = Field(
        default=0.0, ge=0, le=1, description="share of entities that a task may call by another name"
    )
    search_results: int = Field(default=3, gt=0, description="hits that one search returns")
    mix: dict[str, float] = Field(
        default_factory=lambda: {"wide": 0.4, "chain": 0.2, "list": 0.15, "swap": 0.1, "single_fact": 0.15},
        description="weights of the task families",
    )
    widths: tuple[int, int] = Field(default=(2, 16), description="smallest and largest number of rows of a wide table")
    hops: tuple[int, int] = Field(default=(2, 4), description="shortest and longest chain")
    attributes: tuple[int, int] = Field(default=(1, 1), description="fewest and most value columns of a wide table")
    deep_widths: tuple[int, int] = Field(default=(2, 16), description="rows of a table of the families deep and long")
    depth: tuple[int, int] = Field(default=(2, 4), description="pages of a file, each linked from the one before")
    length: tuple[int, int] = Field(default=(1, 3), description="pages of a scan; nothing can be found in one")
    lines: int = Field(default=8, gt=0, description="lines of a page of a dossier: the right one and facts of others")
    direct: float = Field(
        default=0.0, ge=0, le=1, description="share of the demonstrations without spawning that call in parallel"
    )
    transport: Literal["asgi", "socket"] = Field(
        default="asgi", description="how httpx reaches the tools: in process or over a socket"
    )

    @model_validator(mode="after")
    def _check(self) -> WorldConfig:
        unknown = sorted(set(self.mix) - {*FAMILIES, PICTURE})
        if unknown:
            raise ValueError(f"mix names unknown task families {unknown}; known: {[*FAMILIES, PICTURE]}")
        if not any(weight > 0 for weight in self.mix.values()) or min(self.mix.values()) < 0:
            raise ValueError(f"mix={self.mix} needs at least one positive weight and no negative one")
        for name in ("widths", "hops", "attributes", "deep_widths", "depth", "length"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name}=({low}, {high}) must be 1 <= smallest <= largest")
        return self

    @property
    def pictures(self) -> bool:
        """Whether some tasks need vision."""
        return self.mix.get(PICTURE, 0.0) > 0

    @property
    def deep(self) -> bool:
        """Whether entities have dossiers: some family asks about them."""
        return any(self.mix.get(family, 0.0) > 0 for family in DEEP)

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if name not in self.optional or getattr(self, name) != fields[name].default
        }
