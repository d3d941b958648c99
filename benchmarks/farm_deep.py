"""What ``benchmarks/farm_plans.py`` needs for tasks about dossiers (``envs/world/deep_tasks.py``).

A row takes several calls there, each known only after the one before. The move ``dig`` is the next of them towards the
asked fact of a name, ``know`` that towards the fact by which a candidate of ``two_phase`` is chosen, and ``group`` that
towards the group of the chosen one: it needs the fact that chooses it to have been read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from envs.base import Task
from envs.world.deep_tasks import PROFILE
from envs.world.knowledge import DOSSIER_OF, Entity
from envs.world.notes import Notes, Turn
from envs.world.wording import read_fact

MIX: dict[str, float] = dict.fromkeys(("deep", "long", "deep_list", "two_phase", "trail"), 1.0)
FEWEST_ROWS = 4  # of a listed group that is taken


def with_calls(task: Task, entities: Mapping[str, Entity]) -> Task:
    """``task`` whose plan also has the ``calls`` of each (move, name); of two_phase also ``chosen`` and its group."""
    plan = task.plan
    attribute = plan["attributes"][0]
    if attribute not in DOSSIER_OF:
        return task

    def count(name: str, label: str) -> int:
        return PROFILE + entities[name].dossiers[DOSSIER_OF[label]].pages

    names = [row[0] for row in task.gold.rows] or plan["names"]
    more: dict[str, Any] = {"calls": {("dig", name): count(name, attribute) for name in names}}
    if "candidates" in plan:
        known = plan["known"]
        chosen = next(name for name in plan["candidates"] if entities[name].fact(known) == plan["wanted"])
        more["calls"] |= {("know", name): count(name, known) for name in plan["candidates"]}
        more |= {"chosen": chosen, "group": entities[chosen].group}
    return replace(task, plan=plan | more)


def next_call(task: Task, kind: str, name: str, history: Sequence[Turn], text: str) -> tuple[str, dict[str, Any]]:
    """The call of the move ``kind`` about ``name``, after ``history``, whose results are ``text``."""
    label = {"dig": task.plan["attributes"][0], "know": task.plan.get("known", ""), "group": "group"}[kind]
    if kind == "group" and read_fact(text, task.plan["known"], name) != task.plan["wanted"]:
        name = "unknown"
    call, _ = Notes.of(history).towards(name, [label])
    return call or ("search", {"query": name})
