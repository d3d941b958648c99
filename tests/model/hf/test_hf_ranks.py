"""Two ranks that share a policy of the family, under each layout of ``benchmarks/families_ranks.py``."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")

from benchmarks.families_ranks import layouts_of, ranks


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one_process_and_resume():
    families = ["llama_tied", "qwen3_moe"]
    rows = ranks(families)
    assert len(rows) == sum(len(layouts_of(family)) for family in families)
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]
