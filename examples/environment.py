"""Your own environment: towns, and a tool that looks one up. With this file's folder on PYTHONPATH:

envs: {name: "environment:Towns", config: {towns: 300}} model: {init: PATH}  # a pretrained checkpoint; a
policy from scratch needs a teacher (teacher.py)
"""

from __future__ import annotations

from random import Random

from pydantic import Field

from envs.base import Environment, ErrorKind, Gold, Oracle, Section, Task, ToolResult, ToolSpec, task_key

LOOK_UP = ToolSpec(
    name="look_up",
    description="Population of a town.",
    parameters={"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
)
SEEDS = {"train": 1, "val": 2, "test": 3}


class Settings(Section):
    """``envs.config``."""

    towns: int = Field(default=300, gt=20, description="towns there are")
    most: int = Field(default=6, gt=1, description="towns that a task asks for at most")


class Towns(Environment):
    """Asks for the populations of some towns, one call each, so that splitting many pays."""

    Config = Settings
    spreads = stateless = True  # nothing that an agent does changes anything

    def population(self, town: str) -> str:
        return f"{Random(town).randrange(10, 99)},000"

    def tools(self):
        return (LOOK_UP,)

    def tasks(self, split):
        rng = Random(SEEDS[split])
        for _ in range(200):
            towns = [f"Town {n}" for n in rng.sample(range(self.config.towns), rng.randint(1, self.config.most))]
            prompt = f"Table of town and population: {', '.join(towns)}"
            rows = tuple((town, self.population(town)) for town in towns)
            gold = Gold(kind="table", columns=("town", "population"), unique_columns=("town",), rows=rows)
            oracle = Oracle(serial_steps=len(towns) + 1, parallel_steps=min(len(towns) + 1, 4), width=len(towns))
            about = {"family": "towns", "split": split, "width": len(towns), "oracle": oracle}
            yield Task(key=task_key(prompt, gold.rows), prompt=prompt, gold=gold, **about)

    async def open(self, task, *, seed=0, attempt=0):
        return Lookup(self)


class Lookup:
    """The tools of one episode."""

    def __init__(self, environment: Towns) -> None:
        self.environment = environment

    def tools(self, role) -> list[ToolSpec]:
        return [LOOK_UP]

    async def call(self, agent_id: str, call, *, deadline_s: float) -> ToolResult:
        town = call.arguments.get("town")
        if call.name != LOOK_UP.name or not isinstance(town, str):
            return ToolResult(text="error: look_up takes a town", error=ErrorKind.BAD_ARGS)
        return ToolResult(text=f"{town}: {self.environment.population(town)}")

    async def close(self) -> None: ...
