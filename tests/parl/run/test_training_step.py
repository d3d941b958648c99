"""One step of the loop with a learner and rollouts that record calls: schedules, cursors, batches."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import make_episode, wide_task
from tiny import tiny_config

from envs.base import Role
from parl.cold_start import ptx
from parl.cold_start.ptx import PtxTexts
from parl.cold_start.rows import CHUNK, DemoWorker
from parl.cold_start.shipped import Recipe
from parl.config.load import to_yaml
from parl.config.schema import Config
from parl.evaluate.rescore import rescore
from parl.learn.rows import Row
from parl.run.checkpoints import Checkpoints
from parl.run.job import single_agent
from parl.run.loop import Training
from rewards.parl_reward import Parl
from rewards.score import score_episode
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus

STEPS, GROUP, TASKS = 20, 2, 3
REWARDS = {"lambda_parallel": 0.4, "lambda_finish": 0.2, "anneal": 0.5, "critical_penalty": 0.25, "parallel_cap": 4}


class Learner:
    """Records every call; its metrics are the number of the call."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.scored: list[dict[str, Any]] = []

    def score(self, rows: list[Row], objective, *, temperature: float) -> list[Row]:
        self.scored.append({"rows": rows, "temperature": temperature})
        return rows

    def policy_step(self, rows: list[Row], objective, **settings) -> dict[str, float]:
        self.steps.append({"rows": rows, **settings})
        number = float(len(self.steps))
        return {"loss": number, "logprob_gap": number, "mismatch_kl": 10 * number}

    def weights(self) -> dict[str, np.ndarray]:
        return {"w": np.full(1, len(self.steps), np.float32)}


class Collector:
    """Returns made-up episodes of the requested tasks."""

    restarts = servers = 0

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.synced: list[tuple[Any, int]] = []
        self.version = 0

    def collect(self, tasks, *, group_size: int, **settings) -> list[Episode]:
        self.asked.append({"tasks": [task.key for task in tasks], "group_size": group_size, **settings})
        return [attempt(number, i, self.version) for number, _ in enumerate(tasks) for i in range(group_size)]

    def sync(self, weights, version: int, *, in_flight: bool = False) -> float:
        self.synced.append((weights, version))
        return 0.0

    def statistics(self) -> dict[str, float]:
        return {}


class Texts:
    """Texts that encode the step and the number of their batch."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def batches(self, step: int, count: int):
        self.asked.append((step, count))
        return iter([[(step, part)] for part in range(count)])


class Quiet:
    """Saver, timeline and progress that do nothing."""

    def check(self) -> None:
        pass

    def phase(self, *args) -> None:
        pass

    def span(self, step: int, what: str):
        return nullcontext()

    def utilisation(self) -> dict[str, float]:
        return {}


def attempt(number: int, index: int, version: int = 0) -> Episode:
    """A first attempt that spawned, and a second that did not; the orchestrator's tokens are of ``version``."""
    episode = make_episode(wide_task(number), index, spawning=index % 2 == 0, right=1.0)
    episode.status = EpisodeStatus.ANSWERED
    root = episode.orchestrator
    root.versions = [version if sampled else -1 for sampled in root.mask]
    return episode


def config_of(root: Path, **sections) -> Config:
    given: dict[str, Any] = {
        "model": {"first_k_dense_replace": 3},  # dense: made-up episodes have no routes
        "rollouts": {"group_size": GROUP, "tasks_per_step": TASKS, "temperature": 0.8},
        "trainer": {"steps": STEPS, "ranks": 1, "minibatches": 2, "epochs": 1},
        "rewards": REWARDS,
        "optimizer": {"final_lr": 0.1},
        "seed": 5,
    }
    for name, section in sections.items():
        given[name] = {**given[name], **section} if isinstance(given.get(name), dict) else section
    return tiny_config(root, **given)


def training(config: Config) -> Training:
    out = Training(config, config.root / "run", config.root / "cold")
    out._learner, out._collector, out._texts = Learner(), Collector(), Texts()
    out._saver = out._timeline = Quiet()
    return out


@pytest.fixture
def run(tmp_path: Path) -> Training:
    return training(config_of(tmp_path))


def at(run: Training, step: int) -> Training:
    """The run after ``step`` finished steps."""
    run.state.step = run.state.policy_version = run._collector.version = step
    run.state.tasks_drawn = TASKS * step
    return run


@pytest.mark.parametrize(("step", "scale"), [(0, 1.0), (5, 1 - 0.25 * 0.9), (10, 0.55), (19, 1 - 0.95 * 0.9)])
def test_the_learning_rate_falls_linearly_to_its_last_share(run: Training, step: int, scale: float):
    at(run, step)._step(Quiet())
    assert [s["lr_scale"] for s in run._learner.steps] == [pytest.approx(scale)] * 2


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (1, 0.9), (5, 0.5), (9, 0.1), (10, 0.0), (19, 0.0)])
def test_the_weights_of_the_reward_are_those_of_the_step_that_is_trained(run: Training, step: int, share: float):
    metrics = at(run, step)._step(Quiet())
    shown = [metrics[f"lambda/{name}"] for name in ("parallel", "finish", "critical")]
    assert shown == [pytest.approx(0.4 * share), pytest.approx(0.2 * share), 0.25]
    stored, version = run.store.read(step + 1)
    assert version == step
    for episode in stored:
        again = attempt(int(episode.task.key.split("-")[1]), episode.index)
        weights = {"parallel": 0.4 * share, "finish": 0.2 * share, "critical": 0.25}
        score_episode(again, Parl(parallel_cap=4), weights)
        assert episode.rewards == pytest.approx(again.rewards)


@pytest.mark.parametrize(("step", "slack"), [(0, 2.0), (4, 1.5), (8, 1.0), (19, 1.0)])
def test_a_step_is_collected_with_the_slack_of_the_curriculum(tmp_path: Path, step: int, slack: float):
    curriculum = {"curriculum": {"slack": 2.0, "until": 0.4}}
    run = at(training(config_of(tmp_path, rollouts={"budget": curriculum})), step)
    metrics = run._step(Quiet())
    assert run._collector.asked[0]["slack"] == metrics["rollouts/budget_slack"] == pytest.approx(slack)


def test_without_a_curriculum_there_is_no_slack(run: Training):
    metrics = run._step(Quiet())
    assert run._collector.asked[0]["slack"] == 1.0 and "rollouts/budget_slack" not in metrics


def always(number: int, index: int, version: int = 0) -> Episode:
    """An attempt whose sub-agents all returned."""
    episode = make_episode(wide_task(number), index, spawning=True)
    episode.status = EpisodeStatus.ANSWERED
    for trace in episode.subagents:
        trace.status = TraceStatus.FINISHED
    root = episode.orchestrator
    root.versions = [version if sampled else -1 for sampled in root.mask]
    return episode


SATURATING = {"schedule": "saturation", "saturation": {"window": 2, "fall": 0.2}, "validity": "any"}


def test_a_killed_run_continues_the_fall_of_lambda_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "attempt", always)

    def stepped(run: Training, count: int) -> list[dict[str, float]]:
        rows = []
        for _ in range(count):
            run._collector.version = run.state.policy_version
            rows.append(run._step(Quiet()))
        return [{k: v for k, v in row.items() if not k.startswith(("time/", "speed/"))} for row in rows]

    whole = training(config_of(tmp_path, rewards=SATURATING))
    rows = stepped(whole, 9)
    lambdas = [row["lambda/parallel"] for row in rows]
    assert lambdas == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0])  # four of twenty steps, after two
    assert [row["saturation/share"] for row in rows[:5]] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert rows[0]["saturation/spawn_rate"] == 1.0 and rows[0]["saturation/variance"] == 0.0
    for killed_in in (1, 3, 4):  # with its episodes stored, and not trained
        config = config_of(tmp_path / str(killed_in), rewards=SATURATING)
        first = training(config)
        stepped(first, killed_in)
        kept = Checkpoints(first.folder / "checkpoints", 2)
        kept.commit(first.state, kept.begin(first.state, 0))
        first._collector.version = killed_in
        first._collect(killed_in + 1, config.rewards.weights_after(first.state.schedule, killed_in, STEPS), Quiet())
        again = training(config)
        again.state, _ = kept.latest() or pytest.fail("no checkpoint")
        again._learner.steps = list(first._learner.steps)
        later = stepped(again, 9 - killed_in)
        assert later == rows[killed_in:] and again.state.schedule == whole.state.schedule
        assert len(again._collector.asked) == 9 - killed_in - 1


def test_episodes_of_a_saturating_run_are_scored_again_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "attempt", always)
    run = training(config_of(tmp_path, rewards=SATURATING))
    for step in range(6):
        run._collector.version = step
        run._step(Quiet())
    (run.folder / "config.yaml").write_text(to_yaml(run.config))
    found = list(rescore(run.folder))
    assert len(found) == 6 * TASKS * GROUP and all(one.same for one in found)
    assert len({one.weights["parallel"] for one in found}) == 5


def test_the_single_agent_is_not_paid_for_spawning_and_cannot_spawn(tmp_path: Path):
    config = config_of(tmp_path)
    alone = single_agent(config)
    assert (alone.rewards.lambda_parallel, alone.rewards.lambda_finish, alone.rollouts.swarm) == (0.0, 0.0, False)
    assert alone.name != config.name
    kept = config.model_dump()
    kept["name"], kept["rollouts"]["swarm"] = alone.name, False
    kept["rewards"] |= {"lambda_parallel": 0.0, "lambda_finish": 0.0}
    assert alone.model_dump() == kept  # and nothing else differs
    metrics = training(alone)._step(Quiet())
    assert metrics["lambda/parallel"] == metrics["lambda/finish"] == 0.0 and metrics["lambda/critical"] == 0.25


def test_a_step_asks_for_the_next_tasks_at_the_rollouts_temperature(run: Training):
    stream = [task.key for task in run.tasks.take(0, 3 * TASKS)]
    for step in range(3):
        run._step(Quiet())
        run._collector.version = run.state.policy_version
        asked = run._collector.asked[step]
        assert asked["tasks"] == stream[step * TASKS : (step + 1) * TASKS]
        assert (asked["group_size"], asked["seed"], asked["temperature"]) == (GROUP, 5, 0.8)
        assert asked.get("top_p", 1.0) == 1.0 and asked.get("spawning") is None
    state = run.state
    assert (state.step, state.policy_version, state.tasks_drawn) == (3, 3, 3 * TASKS)
    assert state.episodes == 3 * TASKS * GROUP
    assert [version for _, version in run._collector.synced] == [1, 2, 3]
    assert [float(weights["w"][0]) for weights, _ in run._collector.synced] == [2, 4, 6]  # after each step's updates


def test_stored_episodes_of_this_version_are_trained_and_of_no_other(run: Training):
    def kept() -> list[Episode]:
        episodes = [attempt(number, i, 4) for number in range(TASKS) for i in range(GROUP)]
        for episode in episodes:
            score_episode(episode, Parl(parallel_cap=4), Parl(critical_penalty=0).held_out())
            episode.metrics["mark"] = 1
        return episodes

    at(run, 4)
    run.store.write(5, kept(), policy_version=4)
    assert [e.metrics.get("mark") for e in run._collect(5, Parl().held_out(), Quiet())] == [1] * TASKS * GROUP
    assert not run._collector.asked
    for version in (3, 5):
        run.store.write(5, kept(), policy_version=version)
        found = run._collect(5, Parl().held_out(), Quiet())
        assert not any("mark" in episode.metrics for episode in found)
        assert run.store.read(5)[1] == 4  # what was collected takes its place
    assert len(run._collector.asked) == 2


def test_tokens_of_another_age_than_the_setting_allows_end_the_run(run: Training):
    at(run, 3)
    assert run._staleness([attempt(0, 0, 3)]) == {"policy/staleness": 0.0, "policy/staleness_max": 0}
    for version in (2, 4):  # older, and from the future
        with pytest.raises(RuntimeError, match=f"version {min(version, 3)} to {max(version, 3)} reached the learner"):
            run._staleness([attempt(0, 0, 3), attempt(1, 0, version)])


def test_the_age_of_tokens_is_the_mean_over_trained_ones(tmp_path: Path):
    run = at(training(config_of(tmp_path, trainer={"staleness": 2})), 3)
    old, new = attempt(0, 1, 1), attempt(1, 1, 3)
    frozen = Trace(agent_id="0/9", role=Role.SUBAGENT, versions=[0] * 50, mask=[True] * 50)
    new.traces.append(frozen)
    counts = [sum(episode.orchestrator.mask) for episode in (old, new)]
    found = run._staleness([old, new])
    assert found == {"policy/staleness": pytest.approx(2 * counts[0] / sum(counts)), "policy/staleness_max": 2}


@pytest.mark.parametrize("epochs", [1, 2])
def test_minibatches_keep_groups_whole_and_every_group_is_learned_once_an_epoch(tmp_path: Path, epochs: int):
    run = training(config_of(tmp_path, trainer={"minibatches": 2, "epochs": epochs}))
    metrics = run._step(Quiet())
    steps = run._learner.steps
    seen = [[row.key[0] for row in step["rows"]] for step in steps]
    assert [sorted(set(keys)) for keys in seen] == [["wide-0", "wide-2"], ["wide-1"]] * epochs
    assert [len(keys) for keys in seen] == [2 * GROUP, GROUP] * epochs
    assert {step["temperature"] for step in steps} == {0.8} == {s["temperature"] for s in run._learner.scored}
    assert len(run._learner.scored) == 1  # before the first update
    count = 2 * epochs
    assert metrics["policy/loss"] == pytest.approx(sum(range(1, count + 1)) / count)
    assert (metrics["policy/engine_gap"], metrics["policy/mismatch_kl"]) == (1.0, 10.0)  # of the first update alone


def test_where_groups_are_fewer_than_minibatches_means_are_over_the_steps_that_were_taken(tmp_path: Path):
    run = training(config_of(tmp_path, trainer={"minibatches": 8}))
    metrics = run._step(Quiet())
    assert len(run._learner.steps) == TASKS
    assert metrics["policy/loss"] == pytest.approx((1 + 2 + 3) / 3)


def test_every_optimiser_step_has_texts_of_its_own(tmp_path: Path):
    run = at(training(config_of(tmp_path, trainer={"minibatches": 2, "epochs": 2})), 7)
    run._step(Quiet())
    assert run._texts.asked == [(7, 4)]
    assert [step["texts"] for step in run._learner.steps] == [[(7, part)] for part in range(4)]


@pytest.mark.parametrize("objective", [{"name": "grpo"}, {"name": "grpo", "normalise_std": False}, {"name": "k25"}])
def test_advantages_are_divided_by_their_deviation_where_the_objective_says_so(tmp_path: Path, objective: dict):
    run = training(config_of(tmp_path, objective=objective))
    run._step(Quiet())
    rows = {row.key[:2]: float(row.advantages.max(initial=0) + row.advantages.min(initial=0))
            for step in run._learner.steps for row in step["rows"]}  # fmt: skip
    stored, _ = run.store.read(1)
    first, second = (e.rewards["total"] for e in stored[:2])
    gap = (first - second) / 2
    scale = 1 / (abs(gap) * 2**0.5 + 1e-6) if objective == {"name": "grpo"} else 1.0
    assert rows["wide-0", 0] == pytest.approx(gap * scale, rel=1e-5) == -rows["wide-0", 1]


def test_the_counterfactual_is_by_what_an_evaluation_would_pay(tmp_path: Path):
    plain, credited = (training(config_of(tmp_path, objective={"counterfactual": w})) for w in (0.0, 1.0))
    shown = [run._step(Quiet()) for run in (plain, credited)]
    assert "rollouts/mixed_groups" not in shown[0] and shown[1]["rollouts/mixed_groups"] == TASKS
    first, second = ({row.key[:2]: row.advantages.sum() / row.trained for step in run._learner.steps
                      for row in step["rows"]} for run in (plain, credited))  # fmt: skip
    spawned, alone = credited.store.read(1)[0][:2]
    gap = sum(
        sign * (e.rewards["perf"] - 0.25 * e.rewards["critical"]) for sign, e in ((1, spawned), (-1, alone))
    )  # without λ1 and λ2, which are not 0 in this step
    assert second["wide-0", 0] - first["wide-0", 0] == pytest.approx(gap / 2, abs=1e-6)
    assert second["wide-0", 1] - first["wide-0", 1] == pytest.approx(-gap / 2, abs=1e-6)


def test_with_dynamic_sampling_groups_without_a_difference_are_stored_and_counted_but_not_learned(tmp_path: Path):
    run = training(config_of(tmp_path, rollouts={"dynamic_sampling": 0}))
    collect = run._collector.collect

    def flat(tasks, **settings):
        episodes = collect(tasks, **settings)
        return [attempt(0, 1) if e.task.key == "wide-0" else e for e in episodes]

    run._collector.collect = flat
    metrics = run._step(Quiet())
    assert {row.key[0] for step in run._learner.steps for row in step["rows"]} == {"wide-1", "wide-2"}
    assert (metrics["rollouts/groups"], metrics["rollouts/flat_groups"]) == (3, 1)
    assert len(run.store.read(1)[0]) == TASKS * GROUP and run.state.tasks_drawn == TASKS


class Worker:
    """A stand-in for the demonstrations' actor that records requests."""

    def __init__(self) -> None:
        self.rows = self
        self.asked: list[tuple[int, int]] = []

    def remote(self, start: int, count: int) -> list[range]:
        self.asked.append((start, count))
        return [range(start, start + count)]


def ptx_texts(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PtxTexts, Worker]:
    worker = Worker()
    monkeypatch.setattr(
        ptx, "actor", lambda cls, *args, **options: worker if cls is DemoWorker else pytest.fail(str(cls))
    )
    monkeypatch.setattr(ptx, "wait", lambda call, *bounds, **options: call)
    recipe = Recipe.of(config_of(root))
    return PtxTexts(recipe, root / "tokenizer.json", weight=0.1, deadline_s=9.0), worker


def test_texts_are_demonstrations_that_the_cold_start_never_sees_and_none_comes_twice(tmp_path: Path, monkeypatch):
    texts, _ = ptx_texts(tmp_path, monkeypatch)
    seen = [numbers for step in range(3) for [numbers] in texts.batches(step, 4)]
    every = [number for numbers in seen for number in numbers]
    assert len(set(every)) == len(every) == 3 * 4 * len(seen[0])
    tokens_of_one = 50  # fewer than any demonstration has
    assert min(every) > 6_000_000 / tokens_of_one + 4 * CHUNK  # the cold start counts from 0
    again, _ = ptx_texts(tmp_path, monkeypatch)
    assert [numbers for [numbers] in again.batches(1, 4)] == seen[4:8]  # a function of the step


def test_without_the_term_no_texts_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ptx, "actor", lambda *args, **options: pytest.fail("an actor was made"))
    texts = PtxTexts(Recipe.of(config_of(tmp_path)), tmp_path / "tokenizer.json", weight=0.0, deadline_s=9.0)
    assert list(texts.batches(3, 2)) == [[], []]
