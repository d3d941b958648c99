"""The scheduler under random delays, failures and cancellations: nothing is lost, too old or forgotten."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollouts.scheduler import End, Imbalance, Scheduler

SIZE, STEPS = 3, 12


class Simulation:
    """Groups and a learner that take random times, with a simulated clock."""

    def __init__(self, batch: int, staleness: int, seed: int, *, bad: float = 0.0) -> None:
        self.scheduler = Scheduler(batch=batch, group_size=SIZE, staleness=staleness, steps=STEPS)
        self.rng, self.bad, self.now = Random(seed), bad, 0.0
        self.until: dict[int, float] = {}  # when a group ends
        self.begun: dict[int, int] = {}  # version at which it began
        self.trained: list[list[int]] = []
        self.most = 0

    def admit(self) -> None:
        for number in self.scheduler.admit():
            self.until[number] = self.now + self.rng.lognormvariate(0.0, 1.5)
            self.begun[number] = self.scheduler.version
        self.most = max(self.most, len(self.scheduler.groups))

    def pass_to(self, moment: float) -> None:
        for number in sorted(self.until, key=lambda number: self.until[number]):
            if self.until[number] <= moment:
                self.now = max(self.now, self.until.pop(number))
                kind = self.rng.choice([End.FAILED, End.FILTERED]) if self.rng.random() < self.bad else End.ACCEPTED
                self.scheduler.end(number, [kind] * SIZE)
        self.now = max(self.now, moment)

    def step(self) -> list[int]:
        self.admit()
        while (taken := self.scheduler.take()) is None:
            assert self.until, "it waits for nothing"
            self.pass_to(min(self.until.values()))
            self.admit()
        self.trained.append(taken)
        self.pass_to(self.now + self.rng.lognormvariate(0.0, 1.0))  # learning, while the others go on
        self.admit()
        self.scheduler.advance()
        return taken


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 5),
    staleness=st.integers(0, 4),
    bad=st.sampled_from([0.0, 0.0, 0.2]),
    seed=st.integers(0, 2**32),
)
def test_no_delay_makes_a_token_older_than_the_bound(batch: int, staleness: int, bad: float, seed: int):
    run = Simulation(batch, staleness, seed, bad=bad)
    for version in range(STEPS):
        taken = run.step()
        assert len(taken) == batch
        assert all(0 <= version - run.begun[number] <= staleness for number in taken)
    everything = [number for step in run.trained for number in step]
    assert len(set(everything)) == len(everything) == STEPS * batch  # none twice
    assert run.most <= batch * (staleness + 1)
    counts = run.scheduler.counts
    assert counts.submitted == SIZE * run.scheduler.next
    assert counts.accepted == SIZE * STEPS * batch and run.scheduler.running == 0  # nothing was begun in vain


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(1, 4), staleness=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_a_run_that_stops_early_cancels_what_runs(batch: int, staleness: int, seed: int):
    run = Simulation(batch, staleness, seed, bad=0.1)
    for _ in range(seed % STEPS):
        run.step()
    run.admit()
    before = run.scheduler.running
    run.scheduler.cancel()
    counts = run.scheduler.counts
    assert run.scheduler.running == 0 and counts.cancelled == before
    assert counts.submitted == counts.accepted + counts.filtered + counts.failed + counts.cancelled


def test_synchronous_is_staleness_zero_the_same_groups_in_the_same_order():
    run = Simulation(4, 0, seed=1)
    assert [run.step() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_slow_groups_are_overtaken_but_no_later_than_their_due_version():
    scheduler = Scheduler(batch=2, group_size=1, staleness=1, steps=9)
    assert scheduler.admit() == [0, 1, 2, 3]
    for number in (1, 2, 3):
        scheduler.end(number, [End.ACCEPTED])
    assert scheduler.take() == [1, 2]  # group 0 is slow: another goes first
    scheduler.advance()
    assert scheduler.admit() == [4, 5]
    for number in (4, 5):
        scheduler.end(number, [End.ACCEPTED])
    assert scheduler.take() is None  # three are finished, but group 0 is due and has a place in this step
    scheduler.end(0, [End.ACCEPTED])
    assert scheduler.take() == [0, 3]


def test_nothing_more_begins_while_the_places_before_the_due_version_are_taken():
    scheduler = Scheduler(batch=2, group_size=1, staleness=1, steps=9)
    assert len(scheduler.admit()) == 4 and scheduler.admit() == []
    for number in range(4):
        scheduler.end(number, [End.ACCEPTED])
    assert scheduler.take() == [0, 1] and scheduler.admit() == []  # learning has not made a new version yet
    scheduler.advance()
    assert scheduler.admit() == [4, 5]


def test_a_group_with_nothing_to_train_makes_room_for_another():
    scheduler = Scheduler(batch=1, group_size=2, staleness=0, steps=9)
    assert scheduler.admit() == [0] and scheduler.take() is None
    scheduler.end(0, [End.FAILED, End.FILTERED])
    assert scheduler.take() is None and scheduler.admit() == [1]
    scheduler.end(1, [End.FAILED, End.ACCEPTED])
    assert scheduler.take() == [1]
    assert (scheduler.counts.failed, scheduler.counts.filtered, scheduler.counts.accepted) == (2, 1, 1)


def test_what_does_not_add_up_is_an_error():
    scheduler = Scheduler(batch=1, group_size=2, staleness=1, steps=9)
    scheduler.admit()
    with pytest.raises(Imbalance, match="1 episodes ended, 2 were running"):
        scheduler.end(0, [End.ACCEPTED])
    scheduler.end(0, [End.ACCEPTED] * 2)
    with pytest.raises(Imbalance, match="2 episodes ended, 0 were running"):
        scheduler.end(0, [End.ACCEPTED] * 2)
    scheduler.counts.submitted += 1
    with pytest.raises(Imbalance, match="5 episodes submitted"):
        scheduler.check()
    scheduler.counts.submitted -= 1
    scheduler.groups[1].version = -2  # due before there is a step for it
    with pytest.raises(Imbalance, match="do not fit"):
        scheduler.check()


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_happened():
    run = Simulation(3, 2, seed=4)
    for _ in range(5):
        run.step()
    restored = Scheduler.from_json(json.loads(json.dumps(run.scheduler.to_json())))
    assert restored == run.scheduler
    restored.check()
