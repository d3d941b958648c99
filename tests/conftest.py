"""Fixtures shared by several packages' tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share the machine

import hypothesis
import pytest
import torch
from tiny import tiny_config

from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.shipped import Recipe
from parl.cold_start.vocabulary import build_tokenizer

torch.set_num_threads(1)
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):  # tests must not depend on the terminal
    os.environ.pop(name, None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests in the background: child processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that failures are reproducible; HYPOTHESIS_PROFILE=default explores
# others.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes, one gets all tests with Ray and runs; the others share the rest."""
    for item in items:
        if "one_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Two test processes with a Ray each get in each other's way, so an xdist that ignores groups is an error."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and not all(
        "@" in item.nodeid.rpartition("]")[2] for item in grouped
    ):
        raise pytest.UsageError("pytest-xdist ignores groups of tests under this pytest: install pytest<9.2")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small tokenizer of the embedded world, reused from ``tests/mutants.py`` if it made one."""
    if kept := os.environ.get("PARL_TEST_TOKENIZER"):
        return Tokenizer.load(Path(kept))
    return build_tokenizer(Recipe.of(tiny_config(tmp_path_factory.mktemp("tokenizer"))))
