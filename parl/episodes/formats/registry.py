"""All formats by name: how they are written and read.

``docs/formats.md`` lists exactly what a round trip of an episode with every field loses
(``test_formats.py``). Metrics and critical steps are never read, but computed from the traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl.episodes.formats import atif, otel, rows, trace_events, verifiers
from parl.episodes.formats.common import ExportOptions
from rollouts.episode import Episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format. ``files``: a file per episode in a folder; else one file of lines."""

    name: str
    what: str
    export: Callable[[Episode, ExportOptions], Iterator[dict[str, Any]]]
    load: Callable[[dict[str, Any], Path], Iterator[Episode]] | None
    files: bool = False


def _one(
    export: Callable[[Episode, ExportOptions], dict[str, Any]],
) -> Callable[[Episode, ExportOptions], Iterator[dict[str, Any]]]:
    def iterate(episode: Episode, options: ExportOptions) -> Iterator[dict[str, Any]]:
        yield export(episode, options)

    return iterate


def _single(load: Callable[[dict[str, Any]], Episode]) -> Callable[[dict[str, Any], Path], Iterator[Episode]]:
    def iterate(data: dict[str, Any], folder: Path) -> Iterator[Episode]:
        yield load(data)

    return iterate


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format(
            name="atif",
            what="Harbor's ATIF v1.8 (1.0 to 1.8 are read): a JSON file an episode, sub-agents embedded",
            export=_one(atif.export),
            load=lambda data, folder: iter([atif.load(data, folder)]),
            files=True,
        ),
        Format(
            name="verifiers",
            what="Episode records of verifiers 0.4 (traces.jsonl); one message graph with an edge for each spawn",
            export=_one(verifiers.export),
            load=lambda data, folder: verifiers.load(data),
        ),
        Format(
            name="verifiers-results",
            what="rows of results.jsonl, verifiers up to 0.3; the orchestrator's conversation",
            export=_one(verifiers.export_result),
            load=_single(verifiers.load_result),
        ),
        Format(
            name="openai",
            what="rows of OpenAI messages, for fine-tuning; one row an agent, of which the orchestrator's is read",
            export=rows.export_messages,
            load=lambda data, folder: rows.load_messages(data),
        ),
        Format(
            name="widesearch",
            what="WideSearch's response file: the answer and the orchestrator's messages",
            export=_one(rows.export_widesearch),
            load=_single(rows.load_widesearch),
        ),
        Format(
            name="browsecomp-plus",
            what="a BrowseComp-Plus run: a JSON file a query with the answer and the number of calls",
            export=_one(rows.export_browsecomp_plus),
            load=_single(rows.load_browsecomp_plus),
            files=True,
        ),
        Format(
            name="swe-bench",
            what="SWE-bench's predictions: the patch in the answer, for its own harness; only written",
            export=_one(rows.export_swe_bench),
            load=None,
        ),
        Format(
            name="otel",
            what="OpenTelemetry spans (GenAI conventions) as OTLP JSON lines; only written",
            export=_one(otel.export),
            load=None,
        ),
        Format(
            name="trace-events",
            what="Chrome's trace events, which Perfetto opens: a JSON file an episode, a track an agent; only written",
            export=_one(trace_events.export),
            load=None,
            files=True,
        ),
    )
}
