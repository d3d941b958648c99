"""Groups of episodes that run beside the learner, admitted by the scheduler and taken a step at a time.

New groups are admitted only when a version is trained, so the driver need not act in between. Workers run the
oldest groups first, at most ``rollouts.concurrency`` episodes each. Unfinished groups are part of a run's
state: ``save`` writes them beside the learner's files, ``load`` restores them.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from envs.base import Task
from model.files import write_text
from parl.collect.collector import Collector
from parl.collect.rerun import StepFailed, Tries, whole
from parl.collect.tasks import Tasks
from parl.config.schema import TrainerConfig
from rollouts.config import RolloutsConfig
from rollouts.episode import Episode
from rollouts.scheduler import End, Scheduler
from rollouts.store.store import EpisodeStore, result_json, tool_result
from rollouts.swarm.partial import Answers, Outcome, Suspended

_FILE = "unfinished.json"
_ANSWER_S = 60.0


@dataclass(slots=True, kw_only=True)
class _Begun:
    """An admitted group. ``outcomes``: the last known ones; ``call``: the running worker call.

    ``slack``: of its critical budget, that of the version at which it was admitted.
    """

    task: Task
    slack: float
    outcomes: list[Outcome]
    call: Any = None
    tries: Tries = field(default_factory=Tries)

    @property
    def finished(self) -> bool:
        return all(isinstance(outcome, Episode) for outcome in self.outcomes)


class EpisodeStream:
    """Training episodes by the step, with at most ``trainer.staleness``. ``version``: of the served weights."""

    def __init__(
        self, rollouts: RolloutsConfig, trainer: TrainerConfig, collector: Collector, tasks: Tasks, version: int
    ) -> None:
        self.scheduler = Scheduler(
            batch=rollouts.tasks_per_step,
            group_size=rollouts.group_size,
            staleness=trainer.staleness,
            steps=trainer.steps,
            version=version,
        )
        self._step_s, self._collector, self._tasks = trainer.step_s, collector, tasks
        self._curriculum = rollouts.budget.curriculum
        self._begun: dict[int, _Begun] = {}
        self._restarts = collector.restarts
        self._fruitless = 0  # groups in a row without a usable episode

    def take(self, progress: Callable[[int, int], None]) -> list[Episode]:
        """The episodes of the next step, groups in order; waits at most trainer.step_s (StepFailed)."""
        deadline = time.monotonic() + self._step_s
        taken: list[int] | None = None

        def attempt() -> None:
            nonlocal taken
            self._begin()
            while (taken := self.scheduler.take()) is None:
                ready = sum(group.ready for group in self.scheduler.groups.values())
                progress(min(ready, self.scheduler.batch), self.scheduler.batch)
                self._wait(deadline)
                self._begin()

        self._collector.retrying(attempt)
        groups = [self._begun.pop(number) for number in taken or []]
        return [outcome for group in groups for outcome in group.outcomes if isinstance(outcome, Episode)]

    def halt(self) -> None:
        """Suspend running groups to free the machine for the learner; :meth:`advance` resumes them."""

        def attempt() -> None:
            self._forget_dead_calls()
            if calls := self._calls():
                self._collector.suspend()
                for call, number in calls.items():
                    self._arrived(number, ray.get(call, timeout=_ANSWER_S))

        self._collector.retrying(attempt)

    def advance(self) -> None:
        """The step is trained and its weights are served: admit new groups, resume halted ones."""
        self.scheduler.advance()
        self._collector.retrying(self._begin)

    def metrics(self) -> dict[str, float]:
        """Episodes by outcome since the run began."""
        counts = self.scheduler.counts
        names = ("submitted", "accepted", "filtered", "failed", "cancelled")
        ended = {f"rollouts/{name}": float(getattr(counts, name)) for name in names}
        return ended | {"rollouts/running": float(self.scheduler.running)}

    def save(self, folder: Path, step: int) -> None:
        """Write the current state of all unfinished groups into ``folder``, without halting them."""
        self._collector.retrying(self._update)
        episodes: list[Episode] = []

        def described(outcome: Outcome) -> dict[str, Any] | None:
            if outcome is None:
                return None
            episodes.append(outcome if isinstance(outcome, Episode) else outcome.episode)
            rest = {} if isinstance(outcome, Episode) else {"agents": outcome.agents, "answers": _answers(outcome)}
            return {"row": len(episodes) - 1, **rest}

        groups = {number: list(map(described, begun.outcomes)) for number, begun in self._begun.items()}
        slack = {number: begun.slack for number, begun in self._begun.items()}
        EpisodeStore(folder).write(step, episodes, policy_version=self.scheduler.version, kind="unfinished")
        write_text(
            folder / _FILE, json.dumps({"scheduler": self.scheduler.to_json(), "groups": groups, "slack": slack})
        )

    def load(self, folder: Path, step: int) -> None:
        """Restore what :meth:`save` wrote; it continues with the next :meth:`take`."""
        data = json.loads((folder / _FILE).read_text())
        episodes, _ = EpisodeStore(folder).read(step, "unfinished") or ([], 0)
        self.scheduler = Scheduler.from_json(
            data["scheduler"] | {"steps": self.scheduler.steps}
        )  # it may be longer now
        slack = data.get("slack", {})
        for number, rows in sorted((int(number), rows) for number, rows in data["groups"].items()):
            outcomes: list[Outcome] = [None if row is None else _outcome(row, episodes) for row in rows]
            self._begun[number] = self._group(number, outcomes, slack.get(str(number), 1.0))
        self.scheduler.check()

    def close(self) -> None:
        """End the run: running episodes are cancelled, and the counters must add up."""
        self.scheduler.cancel()

    def _begin(self) -> None:
        """Admit groups, and start workers on all that are idle."""
        self._forget_dead_calls()
        slack = self._curriculum.slack_at(self.scheduler.version, self.scheduler.steps)
        for number in self.scheduler.admit():
            self._begun[number] = self._group(number, [None] * self.scheduler.group_size, slack)
        for number, begun in self._begun.items():  # oldest first
            if begun.call is None and not begun.finished:
                more = {"pause_s": begun.tries.pause_s, "slack": begun.slack}
                begun.call = self._collector.begin(number, begun.task, begun.outcomes, **more)

    def _group(self, number: int, outcomes: list[Outcome], slack: float) -> _Begun:
        return _Begun(task=self._tasks.take(number, 1)[0], outcomes=outcomes, slack=slack)

    def _forget_dead_calls(self) -> None:
        if self._restarts != self._collector.restarts:  # the actors were replaced: restart from the last known state
            self._restarts = self._collector.restarts
            for begun in self._begun.values():
                begun.call = None

    def _calls(self) -> dict[Any, int]:
        return {begun.call: number for number, begun in self._begun.items() if begun.call is not None}

    def _wait(self, deadline: float) -> None:
        calls = self._calls()
        ready, _ = ray.wait(list(calls), timeout=max(deadline - time.monotonic(), 0.0))
        if not ready:
            raise StepFailed(f"{len(calls)} groups unfinished at trainer.step_s={self._step_s}")
        for call in ready:
            self._arrived(calls[call], ray.get(call, timeout=_ANSWER_S))

    def _arrived(self, number: int, outcomes: list[Outcome]) -> None:
        begun = self._begun[number]
        begun.outcomes, begun.call = outcomes, None
        again = begun.tries.again([outcome for outcome in outcomes if isinstance(outcome, Episode)])
        repeated = set(map(id, again))
        begun.outcomes = [None if id(outcome) in repeated else outcome for outcome in outcomes]
        if not begun.finished:
            return
        episodes = [outcome for outcome in outcomes if isinstance(outcome, Episode)]
        ends = self._ends(episodes)
        if not all(episode.void for episode in episodes):
            whole(episodes)
        self.scheduler.end(number, ends)
        if End.ACCEPTED not in ends:
            del self._begun[number]

    def _ends(self, episodes: list[Episode]) -> list[End]:
        """Outcomes; a group with fewer than two usable episodes has no baseline and is filtered."""
        failed = [episode.void for episode in episodes]
        use = End.ACCEPTED if failed.count(False) > 1 else End.FILTERED
        self._fruitless = 0 if use is End.ACCEPTED else self._fruitless + 1
        if self._fruitless >= self.scheduler.batch:
            error = next((episode.error for episode in episodes if episode.error), "")
            raise StepFailed(f"all episodes of {self._fruitless} groups in a row failed, the last of: {error}")
        return [End.FAILED if bad else use for bad in failed]

    def _update(self) -> None:
        """Get current states from the workers."""
        self._forget_dead_calls()
        calls = self._calls()
        known = self._collector.snapshots() if calls else {}
        for call, number in calls.items():
            if number in known:
                self._begun[number].outcomes = pickle.loads(known[number])
            elif ray.wait([call], timeout=0)[0]:  # it has just ended; otherwise it is in transfer
                self._arrived(number, ray.get(call, timeout=_ANSWER_S))


def _answers(saved: Suspended) -> dict[str, Any]:
    return {
        agent_id: {
            "results": {number: result_json(result) for number, result in answers.results.items()},
            "launched": answers.launched,
        }
        for agent_id, answers in saved.answers.items()
    }


def _outcome(row: dict[str, Any], episodes: list[Episode]) -> Outcome:
    episode = episodes[row["row"]]
    if "agents" not in row:
        return episode
    answers = {
        agent_id: Answers(
            results={int(number): tool_result(*result) for number, result in part["results"].items()},
            launched={int(number): launched for number, launched in part["launched"].items()},
        )
        for agent_id, part in row["answers"].items()
    }
    return Suspended(episode=episode, agents=row["agents"], answers=answers)
