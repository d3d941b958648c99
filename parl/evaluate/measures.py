"""Measures of attempts by policy, for ``parl eval`` and ``parl compare``, computed from stored traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from parl.evaluate.statistics import Bootstrap, Interval, best_of
from rollouts.store.outline import Outline

SCORE = (0.0, 1.0)
COSTS = (
    *("critical_steps", "total_steps", "path_tokens", "makespan_s", "makespan_capped_s"),
    *("subagents", "sampled_tokens", "prompt_tokens", "new_prompt_tokens"),
)
_TOKENS = ("sampled_tokens", "prompt_tokens", "new_prompt_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One episode in numbers; steps in turns, tokens of all its agents together."""

    task: str
    family: str
    width: int
    index: int
    ref: str
    status: str
    score: float | None  # of the answer (item-F1), whatever the policy is paid for; None if nothing scores it
    success: float | None
    range: tuple[float, float] = SCORE  # of the score
    spawned: float
    critical_steps: int
    total_steps: int
    path_tokens: int  # sampled tokens on the longest path
    makespan_s: float  # modelled seconds (rollouts.costs), without and with a cap on sub-agents at once
    makespan_capped_s: float
    subagents: int
    sampled_tokens: int
    prompt_tokens: int  # sum over all model calls of their whole context
    new_prompt_tokens: int  # with each token of a stream counted once, as with a perfect prefix cache


def attempt(outline: Outline) -> Attempt:
    """The numbers of a scored episode (``Episode.rewards`` and ``.metrics`` filled)."""
    episode = outline.episode
    metrics = episode.metrics
    turns = [turn for trace in episode.traces for turn in trace.turns]
    sampled = sum(turn.end - turn.start for turn in turns)
    return Attempt(
        task=episode.task.key,
        family=episode.task.family,
        width=episode.task.width,
        index=episode.index,
        ref=outline.ref,
        status=str(episode.status),
        score=metrics.get("score"),
        success=float(metrics["success"]) if "success" in metrics else None,
        range=SCORE if episode.score is None else (episode.score.low, episode.score.high),
        spawned=float(metrics["spawned"]),
        critical_steps=metrics["critical_steps"],
        total_steps=metrics["total_steps"],
        path_tokens=metrics["path_tokens"],
        makespan_s=metrics["makespan_s"],
        makespan_capped_s=metrics["makespan_capped_s"],
        subagents=metrics["subagents"],
        sampled_tokens=sampled,
        prompt_tokens=sum(t.start - trace.context_of(t.start) for trace in episode.traces for t in trace.turns),
        new_prompt_tokens=sum(outline.lengths) - sampled,
    )


class Sample:
    """The attempts of one policy, by task."""

    def __init__(self, label: str, attempts: Iterable[Attempt], families: Sequence[str] = ()) -> None:
        """``families``: their display order."""
        self.label, self.families = label, families
        self.by_task: dict[str, list[Attempt]] = {}
        for one in attempts:
            self.by_task.setdefault(one.task, []).append(one)
        for tries in self.by_task.values():
            tries.sort(key=lambda one: one.index)

    def of(self, belongs: Callable[[Attempt], bool]) -> Sample:
        """Only the tasks that ``belongs`` selects."""
        chosen = (one for tries in self.by_task.values() for one in tries if belongs(one))
        return Sample(self.label, chosen, self.families)

    def only(self, tasks: Iterable[str]) -> Sample:
        """Only these tasks, in this order."""
        return Sample(self.label, (one for key in tasks for one in self.by_task[key]), self.families)

    @property
    def attempts(self) -> int:
        """The fewest attempts at any task: the k of avg@k."""
        return min((len(tries) for tries in self.by_task.values()), default=0)

    def has(self, name: str) -> bool:
        """Whether every attempt has this field."""
        return all(getattr(one, name) is not None for tries in self.by_task.values() for one in tries)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and highest possible score."""
        ranges = [one.range for tries in self.by_task.values() for one in tries]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def means(self, name: str) -> list[float]:
        """Each task's mean of a field of :class:`Attempt`."""
        return [sum(getattr(one, name) for one in tries) / len(tries) for tries in self.by_task.values()]

    def best(self, name: str, k: int) -> list[float]:
        """Each task's expected best of k attempts."""
        return [best_of([getattr(one, name) for one in tries], k) for tries in self.by_task.values()]


def width_group(width: int) -> str:
    """``width 8-15``: powers of two."""
    low = 1 << (width.bit_length() - 1)
    return f"width {low}" if low == 1 else f"width {low}-{2 * low - 1}"


def groups(samples: Sequence[Sample]) -> dict[str, Callable[[Attempt], bool]]:
    """All, each family and each group of widths, by name, in this order."""
    known = list(dict.fromkeys(family for sample in samples for family in sample.families))
    every = [one for sample in samples for tries in sample.by_task.values() for one in tries]
    families = sorted({one.family for one in every}, key=lambda f: (known.index(f) if f in known else len(known), f))
    widths = sorted({one.width for one in every if one.width > 1})
    found: dict[str, Callable[[Attempt], bool]] = {"all": lambda one: True}
    for family in families:
        found[family] = lambda one, family=family: one.family == family
    for width in widths:
        name = width_group(width)
        found[name] = lambda one, name=name: width_group(one.width) == name
    return found


def estimates(sample: Sample, k: int, *, seed: int = 0) -> dict[str, Interval | int]:
    """avg@k, max@k, pass@k, success and costs of one policy over its tasks, with intervals, and counts.

    Without scores of all attempts only the costs.
    """
    boot = Bootstrap(len(sample.by_task), seed=seed)
    numbers: dict[str, Interval | int] = {
        "tasks": len(sample.by_task),
        "attempts": sum(map(len, sample.by_task.values())),
    }
    if sample.has("score"):
        numbers |= {
            f"avg@{k}": boot.mean(sample.means("score"), bounds=sample.range),
            f"max@{k}": boot.mean(sample.best("score", k), bounds=sample.range),
            f"pass@{k}": boot.mean(sample.best("success", k), bounds=SCORE),
            "success": boot.mean(sample.means("success"), bounds=SCORE),
        }
    numbers["spawn_rate"] = boot.mean(sample.means("spawned"), bounds=SCORE)
    return numbers | {name: boot.mean(sample.means(name)) for name in COSTS}


def account(sample: Sample) -> dict[str, Any]:
    """Tokens of all attempts together, and per solved task; None if none was solved."""
    tries = [one for attempts in sample.by_task.values() for one in attempts]
    sums = {name: sum(getattr(one, name) for one in tries) for name in _TOKENS}
    solved = sum(one.success or 0.0 for one in tries)
    return sums | {"solved": solved, "sampled_tokens_per_solved": sums["sampled_tokens"] / solved if solved else None}


def cost(sums: dict[str, Any], prices: tuple[float, float]) -> dict[str, Any]:
    """The cost of an account at ``prices`` per million tokens in and out, in total and per solved task.

    Uses the server's count of tokens if there is one, else ours, with each call's whole context.
    """
    usage = sums.get("usage")
    tokens = (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
    tokens = tokens or (sums["prompt_tokens"], sums["sampled_tokens"])
    total = sum(price * count for price, count in zip(prices, tokens, strict=True)) / 1e6
    per_solved = total / sums["solved"] if sums["solved"] else None
    return {"price_in": prices[0], "price_out": prices[1], "total": total, "per_solved": per_solved}


def plain(value: Any) -> Any:
    """Intervals as objects with ``value``, ``low`` and ``high``, for JSON; infinite ends become None."""
    if isinstance(value, Interval):
        ends = {"low": value.low, "high": value.high}
        return {"value": value.value} | {name: end if abs(end) < float("inf") else None for name, end in ends.items()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def shown(interval: Interval, digits: int = 3) -> str:
    """``0.812 [0.760, 0.861]``."""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def latest(outlines: Iterable[Outline]) -> dict[tuple[str, int], Outline]:
    """By task and attempt, the last episode that did not fail."""
    found: dict[tuple[str, int], Outline] = {}
    for outline in outlines:
        key = (outline.episode.task.key, outline.episode.index)
        if key not in found or not outline.episode.void:
            found[key] = outline
    return found
