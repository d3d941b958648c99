"""``parl replay``: repeats the tool calls of stored episodes without a model, and compares the answers.

Each episode's session is opened again and every agent's calls are made in the order of its turns,
concurrently within a turn. Calls that depend on time or a budget (timeouts, cancelled and refused calls) are
skipped. A difference is drift: the tools or their data have changed since.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from envs.base import Environment, ErrorKind, Session, ToolCall, ToolResult
from parl.config.runs import configuration, run_config
from parl.episodes.exchange import whole_episodes
from parl.episodes.listing import Filter, list_episodes
from parl.episodes.stores import find_stores
from parl.errors import UserError
from parl.shown.terminal import console, echo, plain
from rollouts.episode import Episode, Trace
from rollouts.prompts import SPAWNING_NAMES
from rollouts.swarm.partial import session_seed

_PASSING = frozenset({ErrorKind.TIMEOUT, ErrorKind.CANCELLED, ErrorKind.BUDGET, ErrorKind.RATE_LIMITED})
CALL_S = 60.0  # deadline of one call
_SHOWN = 3  # differences printed per episode


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One call with another answer: where, the stored one and the new one."""

    agent: str
    turn: int
    call: int
    name: str
    arguments: dict[str, Any]
    stored: str
    now: str

    def lines(self) -> list[str]:
        """The difference, line by line."""
        pair = self.stored.splitlines(), self.now.splitlines()
        return list(difflib.unified_diff(*pair, "stored", "now", lineterm="", n=0))[2:]


@dataclass(slots=True, kw_only=True)
class Replayed:
    """One episode: how many calls were repeated and skipped, and the drift."""

    ref: str
    task: str
    calls: int = 0
    skipped: int = 0
    drift: list[Drift] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


async def replay_episode(episode: Episode, environment: Environment, ref: str = "") -> Replayed:
    """Repeat the calls of ``episode``, agent by agent: their tools' state is separate."""
    out = Replayed(ref=ref, task=episode.task.key)
    session = await environment.open(episode.task, seed=session_seed(episode.seed, episode.task), attempt=episode.index)
    try:
        for trace in episode.traces:
            await _agent(trace, session, out)
    finally:
        await session.close()
    return out


async def _agent(trace: Trace, session: Session, out: Replayed) -> None:
    for number, turn in enumerate(trace.turns):
        again: list[tuple[int, ToolCall, ToolResult]] = []
        for place, (call, result) in enumerate(zip(turn.calls, turn.results, strict=False)):
            if call.name in SPAWNING_NAMES:
                continue
            if result.error in _PASSING:
                out.skipped += 1
            else:
                again.append((place, call, result))
        answers = await asyncio.gather(*(session.call(trace.agent_id, call, deadline_s=CALL_S) for _, call, _ in again))
        out.calls += len(again)
        for (place, call, result), answer in zip(again, answers, strict=True):
            if _said(result) != _said(answer):
                drift = Drift(
                    agent=trace.agent_id,
                    turn=number,
                    call=place,
                    name=call.name,
                    arguments=call.arguments,
                    stored=_said(result),
                    now=_said(answer),
                )
                out.drift.append(drift)


def _said(result: ToolResult) -> str:
    """All that an agent could read in a result, with hashes of pictures."""
    pictures = [f"[picture {hashlib.sha256(image).hexdigest()[:12]}]" for image in result.images]
    return "\n".join([result.text, *pictures, *([f"(error: {result.error})"] if result.error else [])])


def replay(given: Path, wanted: Filter, config: Path | None = None) -> Iterator[Replayed]:
    """Replay every stored episode that ``wanted`` matches in the environment of its run, or of ``config``.

    UserError: no episode, no run, or episodes with tools of another environment.
    """
    run = next((store.run for store in find_stores(given) if store.run), None)
    if config is not None:
        envs = configuration(config, files=False).envs
    elif run is not None:
        envs = run_config(run).envs
    else:
        raise UserError(f"{given} belongs to no run (no config.yaml above it): name its configuration, --config FILE")
    environment = envs.build()
    if environment.drives:
        raise UserError(f"envs.name={envs.name}: the tools are the programs' own, so no call can be repeated")
    with asyncio.Runner() as runner:
        try:
            for ref, episode in whole_episodes(given, wanted):
                yield runner.run(replay_episode(episode, environment, ref))
        finally:
            runner.run(environment.close())


def print_replay(given: Path, wanted: Filter, config: Path | None = None, *, as_json: bool = False) -> int:
    """Replay with progress and print the verdict, or a JSON line per episode; returns the number drifted."""
    from rich.progress import track

    out = console(highlight=False)
    total = sum(1 for _ in list_episodes(given, wanted))
    if not total:
        raise UserError("no episode matches: parl episodes ls STORE lists all")
    found = replay(given, wanted, config)
    drifted = calls = skipped = 0
    shown = found if as_json else track(found, "replaying", total=total, console=console(stderr=True))
    for one in shown:
        calls, skipped = calls + one.calls, skipped + one.skipped
        drifted += bool(one.drift)
        if as_json:
            echo(json.dumps(one.row()))
            continue
        for drift in one.drift[:_SHOWN]:
            where = f"{one.ref} ({one.task}), agent {drift.agent}, turn {drift.turn}, call {drift.call}"
            out.print(plain(f"{where}: {drift.name} {json.dumps(drift.arguments)}"))
            for line in drift.lines():
                out.print(plain(f"    {line}"))
        if len(one.drift) > _SHOWN:
            out.print(f"    and {len(one.drift) - _SHOWN} more in this episode")
    if not as_json:
        left = f", {skipped} left out (timeouts, cancelled, refused)" if skipped else ""
        verdict = f"{drifted} of {total} episodes drifted" if drifted else f"no drift in {total} episodes"
        out.print(f"{verdict}: {calls} calls made again{left}")
    return drifted
