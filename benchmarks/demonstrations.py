"""Demonstrations of a configuration's cold start as rows, for benchmarks that need real traces."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from parl.cold_start.rows import DemoWorker
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import build_tokenizer
from parl.config.schema import Config
from parl.learn.batch import TextRow


def demonstration_rows(config: Config, tokens: int, start: int = 0, chunk: int = 24) -> list[TextRow]:
    """Traces of demonstrations from ``start`` on, until they have ``tokens`` tokens; the same every time."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.of(config)
        worker = DemoWorker(recipe, str(build_tokenizer(recipe).save(Path(folder) / "tokenizer.json")))

        async def collect() -> list[TextRow]:
            rows: list[TextRow] = []
            at = start
            while sum(len(row.tokens) for row in rows) < tokens:
                rows += await worker.rows(at, chunk)
                at += chunk
            return rows

        return asyncio.run(collect())
