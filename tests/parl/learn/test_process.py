"""A learner rank's process."""

from __future__ import annotations

import pytest

from parl.learn import process
from parl.learn.process import FreedMemory


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the C library was told."""
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(process, "_TRIM", lambda *given: told.append(("trim", *given)))
    monkeypatch.setattr(process, "_MALLOPT", lambda *given: told.append(("mallopt", *given)))
    return told


def test_a_large_policy_gives_freed_memory_back_and_a_small_one_keeps_it(calls: list[tuple[str, ...]]):
    FreedMemory(2**24 + 1).give_back()
    assert [name for name, *_ in calls] == ["trim"]
    calls.clear()
    FreedMemory(2**24).give_back()
    assert {name for name, *_ in calls} == {"mallopt"}


def test_without_glibc_nothing_is_called(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "_TRIM", None)
    monkeypatch.setattr(process, "_MALLOPT", None)
    for weights in (1, 2**30):
        assert FreedMemory(weights).give_back() is None
