"""Ranks that share everything, as in the loop: steps, weights and saves through Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parallel_ranks import CONFIG, FREE, MICRO_TOKENS, WEIGHTS, shares

from parl.learn.config import ParallelConfig
from parl.learn.group import LearnerGroup
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import denominator

pytestmark = pytest.mark.slow
OBJECTIVE = K25(log_ratio_min=-9.0, log_ratio_max=9.0)


def test_a_group_that_shares_all_saves_while_it_steps_and_a_single_process_goes_on_from_there(
    one_ray: None, tmp_path: Path
):
    parallel = ParallelConfig(zero=3, expert_parallel=2, recompute=True)
    settings = {"seed": 0, "ranks": 2, "threads": 1, "micro_tokens": MICRO_TOKENS, "deadline_s": 120.0}
    group = LearnerGroup(CONFIG, FREE, parallel=parallel, **settings)
    group.load_weights(WEIGHTS)
    first, second = ([row for own in shares(step) for row in own] for step in (0, 1))  # the second: one row, two ranks
    group.policy_step(first, OBJECTIVE, temperature=0.9, lr_scale=1.0)
    saved = group.weights()
    group.snapshot()
    theirs = group.policy_step(second, OBJECTIVE, temperature=0.9, lr_scale=1.0)
    assert len(group.write_snapshot(tmp_path)) == 2
    group.close()

    single = Learner(CONFIG, FREE, seed=0)
    single.load(tmp_path.parent, tmp_path.name)
    own = single.weights()
    assert own.keys() == saved.keys()
    assert all(np.array_equal(array, saved[name]) for name, array in own.items())
    step = {"denominator": float(denominator(second)), "temperature": 0.9, "micro_tokens": MICRO_TOKENS}
    ours = single.policy_step(second, OBJECTIVE, **step)
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_weights_and_checkpoints_of_another_model_are_refused_by_name(tmp_path: Path):
    learner = Learner(CONFIG, FREE, seed=0, parallel=ParallelConfig(zero=1))
    other = WEIGHTS | {"norm.weight": np.ones(7, np.float32)}
    with pytest.raises(ValueError, match=r"another model's: norm\.weight is \(7,\) there"):
        learner.load_weights(other)
    learner.load_weights(WEIGHTS)
    learner.save(tmp_path, "a")
    deeper = CONFIG.model_copy(update={"num_hidden_layers": CONFIG.num_hidden_layers + 1})
    wrong = Learner(deeper, FREE, seed=0, parallel=ParallelConfig(zero=1))
    with pytest.raises(ValueError, match=r"a is another model's: layers\.\d\..* is None there"):
        wrong.load(tmp_path, "a")
