"""The cost of an episode in tokens and in modelled seconds, beside its critical steps.

Critical steps count turns, which may be short or long. Here are

    path tokens   Σ_t ( main(t) + max_i sub_i(t) ) over sampled tokens: of each stage the orchestrator's, and those
                  of the sub-agent with most of them
    makespan      the same path in seconds under :class:`LatencyModel`, without and with a cap on sub-agents at once

Pure functions: the seconds do not depend on the machine that made the episode, so they are the same again when
it is scored again. Measured seconds are ``rollouts.critical_path.makespan``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from rollouts.critical_path import TurnSeconds, makespan
from rollouts.episode import Episode, Trace
from rollouts.prompts import SPAWNING_NAMES

COSTS = ("path_tokens", "total_tokens", "makespan_s", "makespan_capped_s")  # metrics of every episode


class LatencyModel(BaseModel):
    """Seconds of a turn: ``first_token_s`` + ``prefill_s`` · new tokens + ``decode_s`` · sampled tokens + ``tool_s``
    if it calls tools.

    New tokens are those of the agent's context that it has not read before, as with a cache of its own prefix.
    The tool calls of a turn run at once; spawning calls take no time of their own. The defaults describe a large
    model behind an API: Kimi K2 at 60 to 73 tokens a second (16x Eval's comparison of providers, 2025), its first token
    after 0.3 s (Artificial Analysis' figure for the fastest provider, Baseten 2025), prompts at 10,000 tokens a second,
    and a search API's answer, whose published medians lie between 0.3 and 1.2 s.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_token_s: float = Field(default=0.3, ge=0, description="seconds of each turn before its first token")
    decode_s: float = Field(default=0.016, ge=0, description="seconds of a sampled token")
    prefill_s: float = Field(default=0.0001, ge=0, description="seconds of a new token of a prompt")
    tool_s: float = Field(default=1.0, ge=0, description="seconds of a turn's tool calls, which run at once")
    concurrency: int = Field(default=8, gt=0, description="sub-agents that run at once in makespan_capped_s")

    def turn(self, trace: Trace, index: int) -> tuple[float, float]:
        """(own seconds, seconds of direct tools beside the sub-agents) of turn ``index`` of ``trace``."""
        turn = trace.turns[index]
        read = trace.turns[index - 1].end if index else 0
        new = turn.start - max(read, trace.context_of(turn.start))
        model = self.first_token_s + self.prefill_s * new + self.decode_s * (turn.end - turn.start)
        tools = self.tool_s if any(call.name not in SPAWNING_NAMES for call in turn.calls) else 0.0
        return (model, tools) if turn.spawned else (model + tools, 0.0)


def path_tokens(episode: Episode) -> int:
    """Sampled tokens on the longest path, longest in tokens."""
    return int(_longest(episode, _sampled))


def total_tokens(episode: Episode) -> int:
    """Sampled tokens of all agents."""
    return sum(turn.end - turn.start for trace in episode.traces for turn in trace.turns)


def modelled_makespan(episode: Episode, latency: LatencyModel, *, capped: bool = False) -> float:
    """Seconds of the episode under ``latency``; ``capped``: with at most ``latency.concurrency`` sub-agents at once."""
    if capped and len(episode.subagents) > latency.concurrency:
        return makespan(episode, latency.concurrency, seconds=latency.turn)
    return _longest(episode, latency.turn)


def costs_of(episode: Episode, latency: LatencyModel) -> dict[str, float]:
    """The metrics :data:`COSTS` of an episode, in sampled tokens and seconds."""
    return {
        "path_tokens": path_tokens(episode),
        "total_tokens": total_tokens(episode),
        "makespan_s": modelled_makespan(episode, latency),
        "makespan_capped_s": modelled_makespan(episode, latency, capped=True),
    }


def calls_in_parallel(episode: Episode) -> bool:
    """Whether the orchestrator made several of its own tool calls in one turn."""
    own = ([call for call in turn.calls if call.name not in SPAWNING_NAMES] for turn in episode.orchestrator.turns)
    return any(len(calls) > 1 for calls in own)


def tokens_per_success(episodes: Iterable[Episode]) -> float | None:
    """Sampled tokens of all scored ``episodes`` / solved ones; None without one. Needs their metrics."""
    scored = [episode.metrics for episode in episodes if "success" in episode.metrics]
    solved = sum(metrics["success"] for metrics in scored)
    return sum(metrics["total_tokens"] for metrics in scored) / solved if solved else None


def _sampled(trace: Trace, index: int) -> tuple[float, float]:
    turn = trace.turns[index]
    return turn.end - turn.start, 0.0


def _longest(episode: Episode, cost: TurnSeconds) -> float:
    by_id = {trace.agent_id: trace for trace in episode.traces}
    return _along(episode.orchestrator, by_id, cost)


def _along(trace: Trace, by_id: Mapping[str, Trace], cost: TurnSeconds) -> float:
    """The cost of one agent and all that it launched."""
    total = 0.0
    for index, turn in enumerate(trace.turns):
        own, beside = cost(trace, index)
        total += own + max([beside, *(_along(by_id[agent_id], by_id, cost) for agent_id in turn.spawned)])
    return total
