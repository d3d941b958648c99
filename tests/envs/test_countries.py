"""The table of real countries: its properties, and that every split has tasks."""

from __future__ import annotations

import re
from pathlib import Path

from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.table import read_table
from rewards.outcome.reach import unreachable

TABLE = Path(__file__).parents[2] / "configs" / "tables" / "countries.csv"


def test_real_rows_with_units_decimals_accents_and_blanks():
    entities = read_table(TABLE)
    cells = [value for entity in entities for value in entity.values.values()]
    assert len(entities) >= 200
    assert sum(13 - len(entity.values) for entity in entities) > 100  # blanks
    assert sum(bool(re.search(r"\d (km|m|years)$", cell)) for cell in cells) > 600
    assert sum(bool(re.fullmatch(r"\d+\.\d+", cell)) for cell in cells) > 150
    assert any(re.search("[à-ÿ]", text) for text in [*cells, *(entity.name for entity in entities)])


def test_splits_share_no_row_and_every_gold_can_be_reached():
    config = WorldConfig(source=TABLE, widths=(2, 6), attributes=(1, 2))
    environment = WorldEnvironment(config)
    names = {split: set(environment.world.knowledge(split).entities) for split in ("train", "val", "test")}
    assert not names["train"] & names["val"] and not names["train"] & names["test"] and not names["val"] & names["test"]
    assert min(len(found) for found in names.values()) >= 25
    for split, known in names.items():
        for task in environment.held_out(split, 1, 120):
            assert set(task.plan["names"]) <= known
            assert unreachable(task.gold) is None, task.prompt
