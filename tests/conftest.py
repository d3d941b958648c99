"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share the machine

import hypothesis
import pytest
import torch
from tiny import tiny_config

from model.tokenizer import Tokenizer
from parl.demos import build_tokenizer

torch.set_num_threads(1)

# The same examples in every run, so that a failure is a change's; HYPOTHESIS_PROFILE=default looks for others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small tokenizer of the embedded world."""
    return build_tokenizer(tiny_config(tmp_path_factory.mktemp("tokenizer")))
