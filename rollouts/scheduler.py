"""Which groups may begin, and which are trained next. Pure: only numbers, no clock, no Ray, no episodes.

A step at learner version V trains ``batch`` groups and makes version V + 1. A group that begins at version v
has no token older than v, so it must be trained at version v + ``staleness`` at the latest: its due version.
Nothing is discarded or restarted because of its age. Instead

* **admission is limited**: a group begins only while fewer than ``batch * (staleness + 1)`` groups are begun
and untrained (those in training count for their step), so that it has a place in the steps up to its due
version; * **the oldest are trained first**: the ``batch`` oldest finished groups make a step, as soon as the
rest fit into the steps before they are due; until then the step waits for a slow group.

Together they keep the bound whatever the delays: earliest due first is a feasible order, and admission keeps
it so. With ``staleness`` 0 all groups of a step begin at its version and are trained in it, in order.

Every episode has exactly one outcome; ``submitted == accepted + filtered + failed + cancelled + running`` is
checked after every change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class End(StrEnum):
    """The outcome of an episode."""

    ACCEPTED = "accepted"  # goes to the learner
    FILTERED = "filtered"  # finished, but its group has no baseline
    FAILED = "failed"
    CANCELLED = "cancelled"  # the run ended first


@dataclass(slots=True, kw_only=True)
class Group:
    """The episodes of one task. ``number`` is its position in the stream of tasks."""

    number: int
    version: int  # served when it began
    running: int  # episodes that have not ended
    ready: bool = False  # all ended, and it will be trained

    @property
    def ended(self) -> bool:
        """Whether all its episodes have ended."""
        return self.running == 0


@dataclass(slots=True, kw_only=True)
class Counts:
    """Episodes since the run began."""

    submitted: int = 0
    accepted: int = 0
    filtered: int = 0
    failed: int = 0
    cancelled: int = 0


class Imbalance(RuntimeError):
    """An episode was lost, ended twice, or exceeded the age bound: a bug, which must end the run."""


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """``batch`` groups of ``group_size`` episodes per step, none older than ``staleness`` when trained."""

    batch: int
    group_size: int
    staleness: int
    steps: int  # version of the last weights: no group begins for later steps
    version: int = 0  # of the weights that are served
    next: int = 0  # number of the next group
    training: int = 0  # groups taken for this version's step
    groups: dict[int, Group] = field(default_factory=dict)  # begun and not taken
    counts: Counts = field(default_factory=Counts)

    def admit(self) -> list[int]:
        """The groups that may begin now, in order; they count as begun."""
        versions = min(self.staleness + 1, self.steps - self.version)
        room = self.batch * versions - len(self.groups) - self.training
        begun = list(range(self.next, self.next + max(room, 0)))
        for number in begun:
            self.groups[number] = Group(number=number, version=self.version, running=self.group_size)
        self.next += len(begun)
        self.counts.submitted += self.group_size * len(begun)
        self.check()
        return begun

    def end(self, number: int, ends: list[End]) -> None:
        """All episodes of group ``number`` have ended with ``ends``; it is trained if any was accepted."""
        group = self.groups[number]
        if group.ended or len(ends) != group.running:
            raise Imbalance(f"group {number}: {len(ends)} episodes ended, {group.running} were running")
        group.running = 0
        group.ready = End.ACCEPTED in ends
        for end in ends:
            setattr(self.counts, end, getattr(self.counts, end) + 1)
        if not group.ready:
            del self.groups[number]  # another takes its place
        self._check_counts()  # the groups' order is what it was

    def take(self) -> list[int] | None:
        """The groups of this version's step, oldest first; None while it has to wait."""
        if self.training or sum(group.ready for group in self.groups.values()) < self.batch:
            return None  # asked after every group that ends: without sorting thousands
        order = self._by_due()
        chosen = [group for group in order if group.ready][: self.batch]
        taken = {group.number for group in chosen}
        if not self._fits([group for group in order if group.number not in taken]):
            return None
        for group in chosen:
            if self.version - group.version > self.staleness:
                raise Imbalance(f"group {group.number} of version {group.version} at version {self.version}")
            del self.groups[group.number]
        self.training = self.batch
        return sorted(group.number for group in chosen)

    def advance(self) -> None:
        """The taken step is trained: serve the next version."""
        self.version, self.training = self.version + 1, 0

    def cancel(self) -> None:
        """End the run: running episodes are cancelled."""
        for group in self.groups.values():
            self.counts.cancelled += group.running
            group.running = 0
        self.check()

    @property
    def running(self) -> int:
        """Episodes begun and not ended, halted ones included."""
        return sum(group.running for group in self.groups.values())

    def check(self) -> None:
        """Raise Imbalance unless every episode is accounted for, and every group has its place in time."""
        self._check_counts()
        if not self._fits(self._by_due(), first=self.version + bool(self.training)):
            raise Imbalance(f"version {self.version}: {len(self.groups)} groups do not fit before they are due")

    def _check_counts(self) -> None:
        counts = asdict(self.counts)
        submitted = counts.pop("submitted")
        if submitted != sum(counts.values()) + self.running:
            raise Imbalance(f"{submitted} episodes submitted, but {counts} and {self.running} running")

    def to_json(self) -> dict[str, Any]:
        """The whole state, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scheduler:
        """Inverse of :meth:`to_json`."""
        groups = {int(number): Group(**group) for number, group in data["groups"].items()}
        return cls(**{**data, "groups": groups, "counts": Counts(**data["counts"])})

    def _by_due(self) -> list[Group]:
        return sorted(self.groups.values(), key=lambda group: (group.version, group.number))

    def _fits(self, groups: list[Group], first: int | None = None) -> bool:
        """Whether ``groups``, by due version, are trained in time if the next step is of version ``first``."""
        first = self.version + 1 if first is None else first
        return all(group.version + self.staleness >= first + i // self.batch for i, group in enumerate(groups))
