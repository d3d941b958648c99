"""``parl episodes``: list, show and search stored episodes.

An episode is named by shard and row, ``train-000012:5``, as in every listing, or by task and attempt,
``KEY#INDEX``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import ToolResult
from model.tokenizer.tokenizer import Tokenizer
from parl.episodes.stores import Store, find_stores, readable
from parl.errors import UserError
from rollouts.critical_path import critical_steps, total_steps
from rollouts.episode import Episode, Trace, Turn
from rollouts.store.outline import Outline, read_outlines
from rollouts.store.store import read_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which episodes; an empty field matches all."""

    kind: str | None = None
    step: int | None = None
    family: str | None = None
    status: str | None = None
    task: str | None = None

    def takes(self, outline: Outline) -> bool:
        """Whether the episode matches."""
        episode = outline.episode
        pairs = (
            (self.kind, outline.kind),
            (self.step, outline.step),
            (self.family, episode.task.family),
            (self.status, str(episode.status)),
            (self.task, episode.task.key),
        )
        return all(wanted in (None, found) for wanted, found in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One match of a search; ``turn`` is None outside of turns."""

    store: str
    ref: str
    agent: str
    turn: int | None
    where: str  # prompt, content, call, result, answer
    text: str
    start: int  # the match in ``text``
    end: int

    def row(self) -> dict[str, Any]:
        """As a JSON object, with the text around the match."""
        place = {"store": self.store, "episode": self.ref, "agent": self.agent, "turn": self.turn, "where": self.where}
        before, match, after = self.around()
        return place | {"before": before, "match": match, "after": after}

    def around(self, reach: int = 40) -> tuple[str, str, str]:
        """(text before, match, text after), on one line."""
        before, after = self.text[max(0, self.start - reach) : self.start], self.text[self.end : self.end + reach]
        before = ("…" if self.start > reach else "") + before
        after += "…" if self.end + reach < len(self.text) else ""
        lines = (before, self.text[self.start : self.end], after)
        return tuple(part.replace("\n", "⏎") for part in lines)  # type: ignore[return-value]


def list_episodes(given: Path, chosen: Filter, *, texts: bool = False) -> Iterator[tuple[Store, Outline]]:
    """(its store, episode) of those that match ``chosen``, in stored order."""
    for store in find_stores(given):
        with readable():
            for outline in store.outlines(texts=texts, kind=chosen.kind):
                if chosen.takes(outline):
                    yield store, outline


def listing_row(store: Store, outline: Outline) -> dict[str, Any]:
    """One row of a listing. Rewards are the stored ones, steps are recomputed."""
    episode = outline.episode
    return {
        "store": store.name,
        "episode": outline.ref,
        "step": outline.step,
        "task": episode.task.key,
        "attempt": episode.index,
        "family": episode.task.family,
        "width": episode.task.width,
        "status": str(episode.status),
        "limit": episode.limit,
        "reward": episode.rewards.get("total"),
        "perf": episode.rewards.get("perf"),
        "critical_steps": critical_steps(episode),
        "total_steps": total_steps(episode),
        "subagents": len(episode.subagents),
        "tokens": sum(outline.lengths),
    }


def find_episode(given: Path, name: str) -> tuple[Store, Outline]:
    """(its store, the episode called ``name``); UserError if there is none, or more than one."""
    shard, colon, row = name.rpartition(":")
    key, sharp, index = name.rpartition("#")
    if colon and row.isdigit():
        return _by_place(given, shard, int(row))
    if not sharp or not index.isdigit():
        raise UserError(f"{name!r} names no episode: give SHARD:ROW, e.g. train-000012:5, or KEY#ATTEMPT")
    found = list_episodes(given, Filter(task=key), texts=True)
    hits = [(store, outline) for store, outline in found if outline.episode.index == int(index)]
    if len(hits) == 1:
        return hits[0]
    if not hits:
        raise UserError(f"no episode {name} in {given}: parl episodes ls {given} lists them")
    places = ", ".join(f"{outline.ref} in {store.name}" for store, outline in hits[:6])
    raise UserError(f"{len(hits)} episodes are called {name}: name one by its place, {places}")


def _by_place(given: Path, shard: str, row: int) -> tuple[Store, Outline]:
    hits = [(store, path) for store in find_stores(given) for path in store.shards if path.stem == shard]
    if not hits:
        raise UserError(f"no shard {shard} in {given}: parl episodes ls {given} lists what there is")
    if len(hits) > 1:
        places = ", ".join(str(path) for _, path in hits)
        raise UserError(f"{len(hits)} shards are called {shard}: give one of them as STORE, {places}")
    store, path = hits[0]
    with readable():
        count = 0
        for outline in read_outlines([path]):
            if outline.row == row:
                return store, outline
            count += 1
    raise UserError(f"{path} has {count} episodes, numbered from 0: there is no {row}")


def raw_streams(outline: Outline, tokenizer: Path | None, run: Path | None) -> Iterator[tuple[str, str]]:
    """(agent, its token stream as text with control tokens) of a stored episode.

    The vocabulary is that of ``tokenizer``, else of the run's policy; UserError without one.
    """
    path = tokenizer or (run / "policy" / "tokenizer.json" if run else None)
    if path is None or not path.is_file():
        where = f"{path}: no such file" if path else "the store belongs to no run"
        raise UserError(f"no vocabulary to decode tokens with ({where}): name a tokenizer.json with --tokenizer")
    try:
        vocabulary = Tokenizer.load(path)
    except ValueError as error:
        raise UserError(f"{error}: name another with --tokenizer") from None
    episodes, _ = read_shard(outline.path)
    for trace in episodes[outline.row].traces:
        yield trace.agent_id, vocabulary.decode(trace.tokens)


def search(given: Path, pattern: re.Pattern[str], chosen: Filter) -> Iterator[Hit]:
    """Every match of ``pattern`` in prompts, turns, calls, results and answers."""
    for store, outline in list_episodes(given, chosen, texts=True):
        for agent, turn, where, text in _texts(outline.episode):
            for match in pattern.finditer(text):
                place = {"store": store.name, "ref": outline.ref, "agent": agent, "turn": turn, "where": where}
                yield Hit(text=text, start=match.start(), end=match.end(), **place)


def _texts(episode: Episode) -> Iterator[tuple[str, int | None, str, str]]:
    """(agent, turn, kind, text) of everything readable, each text once."""
    for trace in episode.traces:
        yield trace.agent_id, None, "prompt", trace.prompt
        for number, turn in enumerate(trace.turns):
            yield trace.agent_id, number, "content", turn.content
            for call in turn.calls:
                yield trace.agent_id, number, "call", call_text(call.name, call.arguments)
            for result in turn.results:
                yield trace.agent_id, number, "result", result.text
    if episode.answer != episode.orchestrator.message:  # otherwise it is the last turn's content
        yield "0", None, "answer", episode.answer


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """``search(query="Karona")``."""
    return f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments.items())})"


def episode_row(store: Store, outline: Outline) -> dict[str, Any]:
    """The whole episode as one JSON object, without token arrays and gold."""
    episode = outline.episode
    return listing_row(store, outline) | {
        "prompt": episode.task.prompt,
        "answer": episode.answer,
        "error": episode.error,
        "rewards": episode.rewards,
        "metrics": episode.metrics,
        "agents": [_agent_row(trace) for trace in episode.traces],
    }


def _agent_row(trace: Trace) -> dict[str, Any]:
    return {
        "id": trace.agent_id,
        "name": trace.name,
        "role": str(trace.role),
        "parent": trace.parent,
        "status": str(trace.status),
        "prompt": trace.prompt,
        "message": trace.message,
        "turns": [_turn_row(turn) for turn in trace.turns],
    }


def _result_row(result: ToolResult) -> dict[str, Any]:
    row = {"text": result.text, "error": str(result.error) if result.error else None}
    return row | ({"pictures": len(result.images)} if result.images else {})


def _turn_row(turn: Turn) -> dict[str, Any]:
    return {
        "content": turn.content,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in turn.calls],
        "results": [_result_row(result) for result in turn.results],
        "spawned": turn.spawned,
        "malformed": turn.malformed,
        "sampled_tokens": turn.end - turn.start,
        "seconds": [turn.t_start, turn.t_model, turn.t_end],
    }
