"""Partial rollouts: an episode that is halted at any moment, kept, and continued later, in any process.

Halting is not stopping: no new turn begins, a turn that is being written is cut where it stands, tools under way are
waited for (their own deadlines bound that), and what has been said and seen stays exactly as it was. Continued under
the same weights, the episode is the uninterrupted one, bit by bit, but for its times; under newer weights each token
keeps the version, the log-prob and the routes that it was sampled with.

All of an episode's state is its tree and two small things beside it: the registered sub-agents, and the answers that
the last turn of an agent has received so far. Its session with the environment is kept where the process lives on;
elsewhere a new one is opened and the tool calls so far are made again, in the order in which they were asked
(:func:`replay`), unless the environment says ``stateless = True``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from envs.base import Environment, ErrorKind, Session, Task, ToolCall, ToolResult
from rollouts.episode import Episode, Trace, TraceStatus, Turn
from rollouts.faults import MachineFault
from rollouts.prompts import SPAWNING_NAMES


@dataclass(slots=True, kw_only=True)
class Answers:
    """What the last turn of an agent has been answered so far, by the number of the call in the turn."""

    results: dict[int, ToolResult] = field(default_factory=dict)
    launched: dict[int, str] = field(default_factory=dict)  # agent id of the sub-agent that a call launched


@dataclass(slots=True, kw_only=True)
class Suspended:
    """An unfinished episode. ``answers`` by agent id, of agents whose last turn is not answered completely."""

    episode: Episode
    agents: dict[str, str]  # registered configurations: name -> system prompt
    answers: dict[str, Answers]


Outcome = Episode | Suspended | None  # of an attempt: finished, unfinished, not begun


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """One episode under way, as its owner holds it; ``saved`` and ``session`` are what it continues from.

    Set ``halting`` and interrupt its engines: ``rollouts.swarm.run_episode`` then returns, and ``halted`` says whether
    the episode is unfinished. ``state`` gives it at any moment; it is not a copy. ``fault``: the machine's, where that
    is why the episode failed.
    """

    saved: Suspended | None = None
    session: Session | None = None
    halting: bool = False
    halted: bool = False
    fault: MachineFault | None = None
    state: Callable[[], Suspended] | None = None

    def now(self) -> Suspended | None:
        """The episode as it stands; None where it has not begun."""
        return self.state() if self.state else self.saved

    async def open(self, environment: Environment, task: Task, call_s: float) -> Session:
        """The session: the one that was kept, or a new one brought to where the episode stands."""
        if self.session is None:
            self.session = await environment.open(task)
            if self.saved and not environment.stateless:
                await replay(self.saved, self.session, call_s)
        return self.session


def unanswered(trace: Trace) -> Turn | None:
    """The turn of ``trace`` whose calls have not all been answered; None where there is none."""
    turn = trace.turns[-1] if trace.turns else None
    return turn if turn and turn.calls and not turn.results and trace.status is TraceStatus.RUNNING else None


def turn_start(trace: Trace) -> int:
    """Where the next turn of ``trace`` begins: before the tokens of one that was cut short, else at the end."""
    start = len(trace.tokens)
    while start and trace.mask[start - 1]:
        start -= 1
    return start


async def replay(saved: Suspended, session: Session, call_s: float) -> None:
    """Make the episode's tool calls again in a new ``session``; each has ``call_s`` seconds; answers are dropped."""
    made: list[tuple[float, str, ToolCall]] = []
    for trace in saved.episode.traces:
        for turn in trace.turns:
            answers = saved.answers.get(trace.agent_id) if turn is unanswered(trace) else None
            results = answers.results if answers else dict(enumerate(turn.results))
            for number, call in enumerate(turn.calls):
                result = results.get(number)
                if call.name not in SPAWNING_NAMES and result and result.error is not ErrorKind.BUDGET:
                    made.append((turn.t_model, trace.agent_id, call))
    for _, agent_id, call in sorted(made, key=lambda item: item[0]):
        await session.call(agent_id, call, deadline_s=call_s)
