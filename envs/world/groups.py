"""The world's groups of tasks, in the order of tables and reports."""

from __future__ import annotations

from envs.base import TaskGroup
from envs.world.config import PICTURE

GROUPS = (
    TaskGroup(name="wide", family="wide", title="wide tasks", highlight="item_f1"),
    TaskGroup(
        name="wide_12",
        family="wide",
        least_width=12,
        title="wide tasks of 12 rows and more",
        highlight="critical_steps",
    ),
    TaskGroup(name="list", family="list", title="lists"),
    TaskGroup(name="swap", family="swap", title="linked lists, asked for as lists are"),
    TaskGroup(name="chain", family="chain", highlight="spawn_rate"),
    TaskGroup(name="single_fact", family="single_fact", title="single fact", highlight="spawn_rate"),
    TaskGroup(name=PICTURE, family=PICTURE, title="pictures", always=False),
)
