"""Partial rollouts: an episode halted at any moment, saved, and continued later, in any process.

When halted, no new turn begins, a turn in progress is cut, running tools are awaited up to their deadlines,
and the trace stays as it is. Continued under the same weights, the episode equals the uninterrupted one bit
by bit, except for its times; under newer weights each token keeps its version, log-prob and routes.

The state of an episode is its tree, the registered sub-agents, and the results that the last turn of an agent
has received so far. Its session with the environment is kept while the process lives; elsewhere a new one is
opened and the tool calls are repeated in order (:func:`replay`), unless the environment is ``stateless``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from envs.base import Environment, ErrorKind, Session, Task, ToolCall, ToolResult
from rollouts.episode import Episode, Trace, TraceStatus, Turn
from rollouts.faults import MachineFault
from rollouts.noise import noise_key
from rollouts.prompts import SPAWNING_NAMES


@dataclass(slots=True, kw_only=True)
class Answers:
    """Results of an agent's last turn so far, by the number of the call in the turn."""

    results: dict[int, ToolResult] = field(default_factory=dict)
    launched: dict[int, str] = field(default_factory=dict)  # agent id of the sub-agent launched by a call


@dataclass(slots=True, kw_only=True)
class Suspended:
    """An unfinished episode. ``answers`` by agent id, of agents whose last turn is not complete."""

    episode: Episode
    agents: dict[str, str]  # registered configurations: name -> system prompt
    answers: dict[str, Answers]


Outcome = Episode | Suspended | None  # of an attempt: finished, unfinished, not begun


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """A running episode and its owner's controls; ``saved`` and ``session`` are what it continues from.

    Set ``halting`` and interrupt its engines: ``rollouts.swarm.run_episode`` then returns, and ``halted``
    says whether the episode is unfinished. ``state`` is its current state, not a copy. ``fault``: the machine
    fault, if one made it fail.
    """

    saved: Suspended | None = None
    session: Session | None = None
    halting: bool = False
    halted: bool = False
    fault: MachineFault | None = None
    state: Callable[[], Suspended] | None = None

    def now(self) -> Suspended | None:
        """The episode's current state; None if it has not begun."""
        return self.state() if self.state else self.saved

    def forget_lost(self, environment: Environment) -> None:
        """Begin anew if the session is lost and its calls cannot be repeated."""
        if self.saved and self.session is None and not environment.repeatable:
            self.saved = None

    async def open(self, environment: Environment, task: Task, call_s: float, *, seed: int, attempt: int) -> Session:
        """The kept session, or a new one brought to the same state."""
        if self.session is None:
            self.session = await environment.open(task, seed=session_seed(seed, task), attempt=attempt)
            if self.saved and not environment.stateless:
                await replay(self.saved, self.session, call_s)
        return self.session


def session_seed(seed: int, task: Task) -> int:
    """The seed of all sessions of a task's group, below 2^31, from that of its episodes."""
    return noise_key(seed, task.key) % 2**31


def unanswered(trace: Trace) -> Turn | None:
    """The turn of ``trace`` with unanswered calls; None without one."""
    turn = trace.turns[-1] if trace.turns else None
    return turn if turn and turn.calls and not turn.results and trace.status is TraceStatus.RUNNING else None


def turn_start(trace: Trace) -> int:
    """Where the next turn of ``trace`` begins: before the tokens of an interrupted one, else at the end."""
    start = len(trace.tokens)
    while start and trace.mask[start - 1]:
        start -= 1
    return start


async def replay(saved: Suspended, session: Session, call_s: float) -> None:
    """Repeat the episode's tool calls in a new ``session``, each within ``call_s`` seconds."""
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
