"""Scoring of a finished episode while its session is open."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

from envs.base import Score, Scorer, Session
from envs.driver import Driver
from rollouts.episode import Episode
from rollouts.faults import MachineFault, Unscored, first_cause

ScoreEpisode = Callable[[Session, Episode], Awaitable[Score | None]]
_LINES = 8  # of a traceback, counted from its end


class ScoringFailed(MachineFault):
    """An episode could not be scored: it is run again, never scored 0."""


async def by_session(session: Session, episode: Episode) -> Score | None:
    """The session's own score; None if it has none."""
    return await session.score(episode) if isinstance(session, Scorer) else None


async def scored(score: ScoreEpisode, session: Session, episode: Episode, deadline_s: float) -> Score | None:
    """The score within ``deadline_s`` seconds. ScoringFailed, with the traceback, for any error but Unscored."""
    try:
        async with asyncio.timeout(deadline_s) as clock:
            found = await score(session, episode)
    except TimeoutError as error:
        late = f"no score within rollouts.score_deadline_s={deadline_s:g} s"
        raise ScoringFailed(late if clock.expired() else said(error)) from error
    except Unscored:
        raise
    except Exception as error:
        raise ScoringFailed(said(error)) from error
    if found is None and isinstance(session, Driver) and episode.task.gold.kind == "none":
        raise Unscored("the program posted no reward, and the task's gold is of kind none: nothing scores the episode")
    if found is not None and not isinstance(found, Score):
        raise ScoringFailed(f"{type(session).__name__}.score returned {found!r:.80}, not an envs.base.Score")
    return found


def said(error: BaseException) -> str:
    """The error with the end of its traceback."""
    lines = "".join(traceback.format_exception(first_cause(error))).rstrip().splitlines()
    return "the episode could not be scored:\n" + "\n".join(lines[-_LINES:])
