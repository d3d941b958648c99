"""``parl plugins``: installed plug-ins of each kind, their origin, and the keys of their sections."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from parl.config.plugin import PluginError
from parl.config.plugin_sections import CHOICES, Choice
from parl.shown.terminal import cell, console, echo


def installed() -> list[dict[str, Any]]:
    """One row per plug-in: ``kind``, its ``key``, ``name``, ``origin``, ``section`` and its ``keys``.

    An unusable class has an ``error`` and no keys.
    """
    return [_row(choice, name) for choice in CHOICES for name in choice.kind.names()]


def _row(choice: Choice, name: str) -> dict[str, Any]:
    origin = choice.kind.origin(name)
    row = {"kind": choice.kind.what, "key": choice.at, "name": name, "origin": origin, "section": choice.place}
    try:
        keys = [key for key in choice.own_section(name).model_fields if choice.inner or key != choice.key]
        return row | {"keys": keys}
    except PluginError as error:
        return row | {"keys": [], "error": str(error)}


def print_plugins(*, as_json: bool = False) -> None:
    """Print a table, or with ``as_json`` one JSON array."""
    rows = installed()
    if as_json:
        echo(json.dumps(rows))
        return
    table = Table(title="what a configuration can name; package.module:Class names any class on PYTHONPATH")
    for name in ("kind", "named by", "name", "from"):
        table.add_column(name)
    table.add_column("keys of its section", max_width=70, overflow="fold")
    for row in rows:
        keys = f"{row['section']}: {', '.join(row['keys']) or 'none'}"
        about = (row["kind"], row["key"], row["name"], row["origin"], row.get("error") or keys)
        table.add_row(*(cell(part) for part in about))
    console().print(table)
