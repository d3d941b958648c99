"""Training: schedules and cursors of the loop, dynamic sampling, imitation beside, collecting, state, resuming."""

from mutations.base import mutants_of

STEP, COLLECTOR = "tests/parl/run/test_training_step.py", "tests/parl/collect/test_collector.py"
STATE, RESUME = "tests/parl/run/test_checkpoints.py::test_the_newest_stay_and_the_best", "tests/parl/run/test_resume.py"

TASKS = (
    "test_held_out_tasks_are_distinct_and_none_is_trained_on",
    "test_own_tasks_are_gone_through_again_and_again",
)

trainer = mutants_of("training", "parl/run/loop.py", STEP)
job = mutants_of("training", "parl/run/job.py", STEP)
sampling = mutants_of("training", "parl/collect/sampling.py", "tests/parl/collect/test_sampling.py")
ptx = mutants_of("training", "parl/cold_start/ptx.py", STEP)
collect = mutants_of("training", "parl/collect/collector.py", COLLECTOR)
sync = mutants_of("training", "parl/collect/weight_sync.py", COLLECTOR)
again = mutants_of("training", "parl/collect/rerun.py", COLLECTOR)
stream = mutants_of("training", "parl/collect/stream.py", COLLECTOR)
pools = mutants_of("training", "parl/collect/pools.py", "tests/parl/collect/test_pools.py")
NEWEST = "tests/parl/run/test_checkpoints.py::test_a_runs_state_is_that_of_its_newest_checkpoint"

state = mutants_of("training", "parl/run/checkpoints.py", STATE, NEWEST)
resume = mutants_of("training", "parl/run/resume.py", RESUME)
tasks = mutants_of("training", "parl/collect/tasks.py", *(f"tests/parl/run/test_evaluate.py::{name}" for name in TASKS))

MUTANTS = [
    collect(
        "no-slack",
        "critical_budget(group.task, self._rollouts.budget, slack)",
        "critical_budget(group.task, self._rollouts.budget)",
    ),
    trainer(
        "slack-of-the-next-step",
        "rollouts.budget.curriculum.slack_at(self.state.step,",
        "rollouts.budget.curriculum.slack_at(self.state.step + 1,",
    ),
    trainer("slack-is-not-used", "                slack=slack,\n", ""),
    stream("slack-is-forgotten", "slack.get(str(number), 1.0)", "1.0"),
    stream("steps-of-the-shorter-run", ' | {"steps": self.scheduler.steps}', ""),
    mutants_of("training", "parl/learn/objective/base.py", STEP)(
        "normalises-always", "return self.normalise_std", "return True"
    ),
    trainer(
        "learning-rate-never-falls", "lr_scale = 1.0 - done * (1.0 - self.config.optimizer.final_lr)", "lr_scale = 1.0"
    ),
    trainer("learning-rate-falls-to-nothing", "1.0 - done * (1.0 - self.config.optimizer.final_lr)", "1.0 - done"),
    trainer(
        "learning-rate-a-step-ahead",
        "done = self.state.step / trainer.steps",
        "done = (self.state.step + 1) / trainer.steps",
    ),
    trainer(
        "lambda-a-step-ahead",
        "rewards.weights_after(self.state.schedule, self.state.step, ",
        "rewards.weights_after(self.state.schedule, self.state.step + 1, ",
    ),
    trainer(
        "stored-episodes-of-any-version",
        "if stored is not None and stored[1] == self.state.policy_version:",
        "if stored is not None:",
    ),
    trainer(
        "stored-episodes-of-older-versions",
        "stored[1] == self.state.policy_version:",
        "stored[1] <= self.state.policy_version:",
    ),
    trainer(
        "stored-episodes-are-never-used",
        "if stored is not None and stored[1] == self.state.policy_version:",
        "if False:",
    ),
    mutants_of("training", "rewards/parl_reward.py", STEP)(
        "single-agent-is-paid-for-spawning", '{"lambda_parallel": 0.0, "lambda_finish": 0.0}', '{"lambda_finish": 0.0}'
    ),
    mutants_of("training", "rewards/parl_reward.py", STEP)(
        "single-agent-is-paid-for-finishing",
        '{"lambda_parallel": 0.0, "lambda_finish": 0.0}',
        '{"lambda_parallel": 0.0}',
    ),
    job("single-agent-is-paid", '"rewards": config.rewards.alone()', '"rewards": config.rewards'),
    job("single-agent-may-spawn", 'model_copy(update={"swarm": False})', 'model_copy(update={"swarm": True})'),
    trainer(
        "minibatches-cut-groups",
        "batch = [row for row in rows if row.key[0] in chosen]",
        "batch = rows[part :: trainer.minibatches]",
    ),
    trainer("minibatches-are-everything", "chosen = set(keys[part :: trainer.minibatches])", "chosen = set(keys)"),
    trainer("one-epoch", "for _ in range(trainer.epochs):", "for _ in range(1):"),
    trainer("gap-of-the-last-update", "first = first or mismatch", "first = mismatch or first"),
    trainer(
        "means-over-the-steps-that-were-planned",
        "{name: value / taken for",
        "{name: value / (trainer.epochs * trainer.minibatches) for",
    ),
    trainer(
        "texts-of-the-first-step",
        "self._texts.batches(self.state.step, trainer.epochs * trainer.minibatches)",
        "self._texts.batches(0, trainer.epochs * trainer.minibatches)",
    ),
    trainer("deviation-is-ignored", "normalise_std=objective.normalises,", "normalise_std=False,"),
    trainer(
        "flat-groups-are-learned",
        "episodes if self.config.rollouts.dynamic_sampling is None else informative(episodes)",
        "episodes",
    ),
    trainer(
        "version-is-not-new",
        "self.state.policy_version + 1, in_flight=in_flight)",
        "self.state.policy_version, in_flight=in_flight)",
    ),
    trainer(
        "tasks-come-again", "self.tasks.take(self.state.tasks_drawn + first, count)", "self.tasks.take(first, count)"
    ),
    trainer(
        "cursor-of-episodes",
        "        self.state.tasks_drawn += drawn\n",
        "        self.state.tasks_drawn += drawn + 1\n",
    ),
    trainer(
        "too-old-by-one",
        "if max(ages) > self.config.trainer.staleness or min(ages) < 0:",
        "if max(ages) > self.config.trainer.staleness + 1 or min(ages) < 0:",
    ),
    trainer("tokens-from-the-future", " or min(ages) < 0:", ":"),
    trainer(
        "ages-of-frozen-tokens",
        "[trace for episode in episodes for trace in episode.traces if trace.trainable]",
        "[trace for episode in episodes for trace in episode.traces]",
    ),
    trainer(
        "learns-at-temperature-one",
        "objective, temperature = self.config.objective, self.config.rollouts.temperature",
        "objective, temperature = self.config.objective, 1.0",
    ),
    trainer(
        "weights-of-before",
        "            learned = self._learn(rows)\n            self.weights = self._learner.weights()\n",
        "            self.weights = self._learner.weights()\n            learned = self._learn(rows)\n",
    ),
    sampling("flat-within-rounding", "_SAME = 1e-9", "_SAME = 0.0"),
    sampling(
        "failed-episodes-differ",
        "        if episode.status is not EpisodeStatus.FAILED:\n            groups",
        "        if True:\n            groups",
    ),
    sampling("draws-once-more", "for _ in range(rounds):", "for _ in range(rounds + 1):"),
    sampling("draws-everything-again", "episodes += draw(drawn, missing)", "episodes += draw(drawn, wanted)"),
    sampling("draws-the-same-again", "        drawn += missing\n", ""),
    sampling(
        "flat-groups-count", "missing = wanted - groups(informative(episodes))", "missing = wanted - groups(episodes)"
    ),
    ptx("texts-of-the-cold-start", "_FIRST = 1_000_000", "_FIRST = 0"),
    ptx("texts-come-again", "(step * count + part) * _DEMOS", "part * _DEMOS"),
    ptx("texts-overlap", "(step * count + part) * _DEMOS", "(step * count + part)"),
    ptx("texts-without-the-term", "if weight else None", "if weight >= 0 else None"),
    sync(
        "answered-version-is-unchecked",
        "        if any(answer != update.version for answer in served):",
        "        if any(answer is None for answer in served):",
    ),
    sync(
        "a-newer-version-passes",
        "answer != update.version for answer in served",
        "answer < update.version for answer in served",
    ),
    collect(
        "top-p-is-ignored",
        '"temperature": temperature, "top_p": top_p, "spawning": spawning}',
        '"temperature": temperature, "top_p": 1.0, "spawning": spawning}',
    ),
    collect(
        "servers-are-looked-at-twice",
        "roster, found = self._roster, self._found",
        "roster, found = self._roster, self._roster and self._roster.look()",
    ),
    collect("evaluated-sub-agents-stay", "        self._weights.forget()\n", ""),
    again(
        "machine-faults-stay",
        "self._count < TRIES.get(episode.limit, 0)]",
        "self._count < TRIES.get(episode.limit, 1) - 1]",
    ),
    again(
        "each-later-resume-pauses",
        "            self.pause_s = 0.0  # what was to wait has waited: a group that is halted later goes on at once\n",
        "",
    ),
    again("own-deadlines-are-run-again", "TRIES.get(episode.limit, 0)", "TRIES.get(episode.limit, 1)"),
    again("for-ever", "self._count < TRIES.get(episode.limit, 0)", "self._count < 100"),
    again(
        "a-hurt-step-is-trained",
        "if episode.limit == MACHINE]:\n",
        "if episode.limit == MACHINE and len(episodes) == 1]:\n",
    ),
    again(
        "everything-again",
        "[episode.index for episode in again]",
        "[episode.index for episode in episodes] if again else []",
    ),
    collect(
        "attempts-are-ignored",
        "groups = groups or [Group",
        "groups = [Group",
    ),
    collect(
        "one-budget-for-all",
        "critical_budget(group.task, self._rollouts.budget, slack)",
        "critical_budget(group.task, type(self._rollouts.budget)(), slack)",
    ),
    stream(
        "singles-are-accepted",
        "End.ACCEPTED if failed.count(False) > 1 else End.FILTERED",
        "End.ACCEPTED if failed.count(False) > 0 else End.FILTERED",
    ),
    stream("failed-ones-are-filtered", "[End.FAILED if bad else use for bad in failed]", "[use for bad in failed]"),
    stream(
        "fruitless-for-ever",
        "if self._fruitless >= self.scheduler.batch:",
        "if self._fruitless > self.scheduler.batch:",
    ),
    stream("one-good-group-is-forgotten", "0 if use is End.ACCEPTED else self._fruitless + 1", "self._fruitless + 1"),
    stream(
        "tasks-of-the-next",
        "task=self._tasks.take(number, 1)[0], outcomes=outcomes, slack=slack)",
        "task=self._tasks.take(number + 1, 1)[0], outcomes=outcomes, slack=slack)",
    ),
    pools(
        "refreshed-a-version-late",
        "wanted = version - version % self._every",
        "wanted = version - version % self._every - (version % self._every == 0)",
    ),
    pools("never-refreshed-again", "if wanted == self.version:", "if wanted == self.version or self.version >= 0:"),
    pools(
        "co-trained-agents-have-engines",
        '0 if rollouts.subagent_pool == "co_trained" else rollouts.frozen_engines',
        "rollouts.frozen_engines",
    ),
    pools("tables-are-turned", "(idle, busy) if before and after else None", "(idle, busy) if before else None"),
    pools("the-last-engine-goes", "or sizes[idle] < 2:", "or sizes[idle] < 1:"),
    pools(
        "weights-go-too-early",
        "if int(old.stem) < version - self._every - self._keep:",
        "if int(old.stem) < version - self._every:",
    ),
    state(
        "best-is-the-worst", "return max(scored)[1] if scored else None", "return min(scored)[1] if scored else None"
    ),
    state(
        "oldest-of-equals",
        "return max(scored)[1] if scored else None",
        "return max(scored, key=lambda pair: pair[0])[1] if scored else None",
    ),
    state("best-is-dropped", "kept = [*self.all()[-self._keep :], self.best()]", "kept = self.all()[-self._keep :]"),
    state("one-too-few-is-kept", "self.all()[-self._keep :]", "self.all()[-self._keep + 1 :]"),
    state(
        "oldest-is-the-newest",
        'State(**read[-1]["state"]) if read else State()',
        'State(**read[0]["state"]) if read else State()',
    ),
    resume(
        "anything-is-free",
        "return [text for key, text in said.items() if not _within(key, free)]",
        "return []",
    ),
    resume("rounding-in-silence", "if _within(key, ROUNDING):", "if _within(key, FREE):"),
    resume("runs-become-shorter", "    if new < old:\n", "    if new < 0:\n"),
    resume("not-kept", "    if said:\n        write_text(", "    if not said:\n        write_text("),
    tasks("own-tasks-end", "return Repeated(own) if own", "return own if own"),
    tasks(
        "cursor-is-ignored",
        "[self._stream[i] for i in range(start, start + count)]",
        "[self._stream[i] for i in range(count)]",
    ),
    tasks("too-many-held-out", "own[: asked.tasks] if own", "own if own"),
]
