"""All formats by name: how they are written and read, and which fields of an episode do not come back.

``loses`` names what differs after going there and back, as ``part.field``: all of it for an episode that uses every
field, and nothing else (``test_formats.py``); ``docs/formats.md`` prints the same. Metrics, critical
steps among them, are never read: they are computed again from the traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl.episodes.formats import atif, otel, rows, trace_events, verifiers
from parl.episodes.formats.common import ExportOptions
from rollouts.episode import Episode

_TOKENS = ("trace.tokens", "trace.mask", "trace.logprobs", "trace.versions", "trace.routes", "turn.start", "turn.end")
_TIMES = ("turn.t_start", "turn.t_model", "turn.t_end")
_RESULT = ("result.error", "result.latency_s", "result.images")
_PICTURES = ("trace.media_at", "result.images", "result.text")  # of what showed pictures a word is left
_TURN = ("turn.content", "turn.calls", "turn.results")
_END = ("trace.status", "trace.message")
_AGENT = ("episode.traces", *_TOKENS, *_RESULT, *_PICTURES, "turn.spawned", "turn.malformed")  # no sub-agents
_TASK = ("task.family", "task.split", "task.gold", "task.oracle", "task.width", "task.plan")
_EPISODE = ("episode.seed", "episode.status", "episode.limit", "episode.critical_budget", "episode.wall_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format. ``files``: a file an episode in a folder; else one file of lines."""

    name: str
    what: str
    export: Callable[[Episode, ExportOptions], Iterator[dict[str, Any]]]
    load: Callable[[dict[str, Any], Path], Iterator[Episode]] | None
    files: bool = False
    loses: tuple[str, ...] = ()


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
            loses=("trace.routes", *_PICTURES),
        ),
        Format(
            name="verifiers",
            what="Episode records of verifiers 0.4 (traces.jsonl); one message graph with an edge for each spawn",
            export=_one(verifiers.export),
            load=lambda data, folder: verifiers.load(data),
            loses=(
                "trace.routes",
                "trace.versions",
                "trace.logprobs",
                *_PICTURES,
                *_RESULT,
                "turn.malformed",
                "turn.t_end",
            ),
        ),
        Format(
            name="verifiers-results",
            what="rows of results.jsonl, verifiers up to 0.3; the orchestrator's conversation",
            export=_one(verifiers.export_result),
            load=_single(verifiers.load_result),
            loses=(*_AGENT, *_END),
        ),
        Format(
            name="openai",
            what="rows of OpenAI messages, for fine-tuning; one row an agent, of which the orchestrator's is read",
            export=rows.export_messages,
            load=lambda data, folder: rows.load_messages(data),
            loses=(*_AGENT, *_END, *_TIMES, *_TASK, *_EPISODE, "episode.answer", "episode.rewards"),
        ),
        Format(
            name="widesearch",
            what="WideSearch's response file: the answer and the orchestrator's messages",
            export=_one(rows.export_widesearch),
            load=_single(rows.load_widesearch),
            loses=(*_AGENT, "trace.status", *_TIMES, *_TASK, *_EPISODE, "episode.rewards"),
        ),
        Format(
            name="browsecomp-plus",
            what="a BrowseComp-Plus run: a JSON file a query with the answer and the number of calls",
            export=_one(rows.export_browsecomp_plus),
            load=_single(rows.load_browsecomp_plus),
            files=True,
            loses=("episode.traces", "trace.status", "trace.media_at", "trace.turns", *_TOKENS, *_TIMES, *_TURN),
        ),
        Format(
            name="otel",
            what="OpenTelemetry spans (GenAI conventions) as OTLP JSON lines; only written",
            export=_one(otel.export),
            load=None,
            loses=("episode",),
        ),
        Format(
            name="trace-events",
            what="Chrome's trace events, which Perfetto opens: a JSON file an episode, a track an agent; only written",
            export=_one(trace_events.export),
            load=None,
            files=True,
            loses=("episode",),
        ),
    )
}
