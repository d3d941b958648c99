"""Rollouts: agents and their limits, contexts, peers, halted episodes, critical steps, pacing."""

from mutations.base import mutants_of

SWARM, LIMITS = "tests/rollouts/swarm/test_swarm.py", "tests/rollouts/swarm/test_limits.py"
CONTINUED, SAMPLING = "tests/rollouts/swarm/test_continued.py", "tests/rollouts/swarm/test_agents_sampling.py"
PATH, CONTEXT = "tests/rollouts/test_critical_path.py", "tests/rollouts/swarm/test_context.py"

path = mutants_of("rollouts", "rollouts/critical_path.py", PATH)
scheduler = mutants_of("rollouts", "rollouts/scheduler.py", "tests/rollouts/test_scheduler.py")
swarm = mutants_of("rollouts", "rollouts/swarm/swarm.py", SWARM)
continued = mutants_of("rollouts", "rollouts/swarm/swarm.py", CONTINUED)
sampled = mutants_of("rollouts", "rollouts/swarm/swarm.py", SAMPLING)
bounded = mutants_of("rollouts", "rollouts/swarm/swarm.py", LIMITS)
agent = mutants_of("rollouts", "rollouts/swarm/agent.py", SWARM)
agent_continued = mutants_of("rollouts", "rollouts/swarm/agent.py", CONTINUED)
agent_sampling = mutants_of("rollouts", "rollouts/swarm/agent.py", SAMPLING)
agent_context = mutants_of("rollouts", "rollouts/swarm/agent.py", CONTEXT)
agent_limits = mutants_of("rollouts", "rollouts/swarm/agent.py", LIMITS)
context = mutants_of("rollouts", "rollouts/swarm/context.py", CONTEXT)
limits = mutants_of("rollouts", "rollouts/swarm/limits.py", LIMITS)
partial = mutants_of("rollouts", "rollouts/swarm/partial.py", CONTINUED)
jobs = mutants_of("rollouts", "rollouts/swarm/remote_subagents.py", "tests/rollouts/swarm/test_peers.py")
placement = mutants_of("rollouts", "rollouts/swarm/placement.py", SAMPLING, "tests/rollouts/swarm/test_peers.py")
worker = mutants_of("rollouts", "rollouts/worker.py", SAMPLING, "tests/rollouts/test_worker.py")
noise = mutants_of("rollouts", "rollouts/noise.py", SWARM)
episode = mutants_of("rollouts", "rollouts/episode.py", CONTEXT, "tests/rewards/test_parl_reward.py")

curriculum = mutants_of("rollouts", "rollouts/config.py", "tests/rollouts/test_curriculum.py")

MUTANTS = [
    curriculum("slack-to-the-last-step", "min(self.until * steps, steps - 1)", "self.until * steps"),
    curriculum("slack-never-ends", "return 1 + (self.slack - 1) * (1 - share)", "return self.slack"),
    curriculum("stairs-are-a-slope", "int(self.stairs * step / end + 1e-9)", "(self.stairs * step / end)"),
    agent_sampling(
        "noise-of-the-seed-alone",
        "place = (episode.seed, episode.task.key, episode.index, self.trace.agent_id,",
        "place = (episode.seed, episode.task.key, episode.index,",
    ),
    mutants_of("rollouts", "rollouts/episode.py", "tests/rewards/test_parl_reward.py")(
        "cancelled-episodes-count",
        "self.status in (EpisodeStatus.FAILED, EpisodeStatus.CANCELLED)",
        "self.status is EpisodeStatus.FAILED",
    ),
    path(
        "main-step-is-free",
        "return self.steps + 1 + max(subagent_costs, default=0)",
        "return self.steps + max(subagent_costs, default=0)",
    ),
    path(
        "sub-agents-add-up", "self.steps + 1 + max(subagent_costs, default=0)", "self.steps + 1 + sum(subagent_costs)"
    ),
    path("shortest-sub-agent", "1 + max(subagent_costs, default=0)", "1 + min(subagent_costs, default=0)"),
    path(
        "nested-agents-by-turns",
        "meter.stage(trace_cost(by_id[agent_id], by_id) for agent_id",
        "meter.stage(by_id[agent_id].steps for agent_id",
    ),
    path("no-turn-left-to-answer", "max(budget - self.steps - 2, 0)", "max(budget - self.steps - 1, 0)"),
    path(
        "allowance-without-a-budget",
        "max(budget - self.steps - 2, 0) if budget else None",
        "max(budget - self.steps - 2, 0)",
    ),
    path(
        "total-steps-of-the-orchestrator",
        "return sum(trace.steps for trace in episode.traces)",
        "return episode.orchestrator.steps",
    ),
    path(
        "last-of-equals",
        "return max(traces, key=lambda trace: trace.steps, default=None)",
        "return max(reversed(list(traces)), key=lambda trace: trace.steps, default=None)",
    ),
    path("path-through-the-last", "if costs[agent_id] > longest:", "if costs[agent_id] >= longest:"),
    path("path-by-calls-too", 'if c.name != "assign_task"]', "]"),
    path(
        "slots-are-held-while-waiting",
        "        if agent != self.root:\n            self.free += 1\n        self.waiting",
        "        self.waiting",
    ),
    path(
        "orchestrators-take-a-slot",
        "        if agent == self.root:\n            self._begin(agent)\n        else:",
        "        if False:\n            self._begin(agent)\n        else:",
    ),
    path("newest-waiting-first", "self._begin(self.waiting.popleft())", "self._begin(self.waiting.pop())"),
    path(
        "spawning-turns-last-to-their-join",
        "return turn.t_model - turn.t_start, max(direct, default=0.0)",
        "return turn.t_end - turn.t_start, max(direct, default=0.0)",
    ),
    scheduler(
        "a-version-too-many",
        "versions = min(self.staleness + 1, self.steps - self.version)",
        "versions = min(self.staleness + 2, self.steps - self.version)",
    ),
    scheduler(
        "begins-what-no-step-trains",
        "versions = min(self.staleness + 1, self.steps - self.version)",
        "versions = self.staleness + 1",
    ),
    scheduler("training-frees-its-places", "- len(self.groups) - self.training", "- len(self.groups)"),
    scheduler(
        "newest-first",
        "key=lambda group: (group.version, group.number)",
        "key=lambda group: (-group.version, -group.number)",
    ),
    scheduler(
        "does-not-wait-for-the-due",
        "if not self._fits([group for group in order if group.number not in taken]):",
        "if not self._fits([]):",
    ),
    scheduler(
        "all-must-be-accepted",
        "group.ready = End.ACCEPTED in ends",
        "group.ready = all(end is End.ACCEPTED for end in ends)",
    ),
    scheduler(
        "fruitless-groups-keep-their-place",
        "            del self.groups[number]  # another",
        "            pass  # another",
    ),
    scheduler(
        "ends-are-not-counted",
        "setattr(self.counts, end, getattr(self.counts, end) + 1)",
        "setattr(self.counts, end, getattr(self.counts, end) + len(ends) // 2)",
    ),
    scheduler("cancelled-are-not-counted", "self.counts.cancelled += group.running", "self.counts.cancelled += 0"),
    scheduler(
        "old-versions-pass",
        "group.version + self.staleness >= first + i // self.batch",
        "group.version + self.staleness + 1 >= first + i // self.batch",
    ),
    scheduler(
        "order-of-ends",
        "return sorted(group.number for group in chosen)",
        "return [group.number for group in chosen][::-1]",
    ),
    scheduler(
        "a-checkpoint-forgets-what-was-begun",
        'groups = {int(number): Group(**group) for number, group in data["groups"].items()}',
        "groups = {}",
    ),
    continued(
        "forgets-its-tokens", "self.sampled = sum(sum(trace.mask) for trace in self.episode.traces)", "self.sampled = 0"
    ),
    continued(
        "forgets-its-sub-agents-tokens",
        "self.sampled = sum(sum(trace.mask) for trace in self.episode.traces)",
        "self.sampled = sum(self.episode.orchestrator.mask)",
    ),
    continued(
        "counts-what-it-read",
        "self.sampled = sum(sum(trace.mask) for trace in self.episode.traces)",
        "self.sampled = sum(len(trace.mask) for trace in self.episode.traces)",
    ),
    continued(
        "gets-its-whole-deadline", "settings.budget.episode_s - swarm.episode.wall_s)", "settings.budget.episode_s)"
    ),
    continued(
        "forgets-its-age",
        "self._began = self._started - (age_s or self.episode.wall_s)",
        "self._began = self._started - age_s",
    ),
    continued(
        "charges-unanswered-stages-twice",
        "            if turn is not unanswered(root):\n                self.stage_done(turn)",
        "            self.stage_done(turn)",
    ),
    continued(
        "forgets-its-stages",
        "        for turn in root.turns:\n            if turn is not unanswered",
        "        for turn in ():\n            if turn is not unanswered",
    ),
    sampled(
        "tokens-at-peers-are-free",
        "self.sampled += sum(turn.end - turn.start for turn in trace.turns)",
        "self.sampled += 0",
    ),
    sampled(
        "peers-sample-as-the-orchestrator",
        "temperature=self.settings.subagent_temperature,\n            top_p=self.settings.subagent_top_p,",
        "temperature=self.settings.temperature,\n            top_p=self.settings.top_p,",
    ),
    sampled("peers-top-p", "            top_p=self.settings.subagent_top_p,", "            top_p=self.settings.top_p,"),
    sampled(
        "sub-agents-at-the-orchestrators-temperature",
        "tools, self.settings.subagent_temperature)",
        "tools, self.settings.temperature)",
    ),
    swarm("a-step-too-many", "if trace.steps >= max_steps:", "if trace.steps > max_steps:"),
    swarm(
        "critical-budget-off-by-one",
        "self._meter.steps + 1 > self.episode.critical_budget",
        "self._meter.steps > self.episode.critical_budget",
    ),
    sampled(
        "sub-agents-see-shared-budgets",
        "        if trace.parent is None:\n            if self.episode",
        "        if True:\n            if self.episode",
    ),
    swarm(
        "a-token-too-many",
        "if self.sampled >= self.settings.budget.total_tokens:",
        "if self.sampled > self.settings.budget.total_tokens:",
    ),
    swarm(
        "a-sub-agent-too-many",
        "if launched >= self.settings.budget.subagents:",
        "if launched > self.settings.budget.subagents:",
    ),
    swarm(
        "allowance-is-ignored",
        "budget.subagent_steps if allowance is None else min(budget.subagent_steps, allowance)",
        "budget.subagent_steps",
    ),
    swarm("allowance-alone", "min(budget.subagent_steps, allowance)", "allowance"),
    swarm("sub-agents-are-trained", "trainable=self.settings.train_subagents,", "trainable=True,"),
    swarm(
        "spawning-cannot-be-switched-off",
        "(list(prompts.spawning) if self.settings.spawning else [])",
        "list(prompts.spawning)",
    ),
    swarm(
        "over-budget-is-answered",
        "TraceStatus.OVER_BUDGET: EpisodeStatus.OVER_BUDGET}",
        "TraceStatus.OVER_BUDGET: EpisodeStatus.ANSWERED}",
    ),
    swarm("numbers-within-a-turn", "launched = len(self._by_id) - 1\n", "launched = len(turn.spawned)\n"),
    swarm("first-configuration-stays", "self.agents[name] = prompt\n", "self.agents.setdefault(name, prompt)\n"),
    swarm(
        "orchestrators-turn-costs-nothing-of-its-agents",
        "self._meter.stage(self._by_id[agent_id].steps for agent_id in turn.spawned)",
        "self._meter.stage()",
    ),
    bounded("deadlines-fail-as-stops", "stopped = limit == STOPPED", "stopped = bool(limit)"),
    bounded("no-deadline-of-agents", '                deadline.tighten("agent_s", self.settings.limits.agent_s)\n', ""),
    bounded(
        "agents-are-not-told-apart",
        "trace.status, trace.limit = TraceStatus.CANCELLED, limit",
        "trace.status = TraceStatus.CANCELLED",
    ),
    bounded(
        "timeouts-are-budgets",
        "ErrorKind.TIMEOUT if trace.status is TraceStatus.CANCELLED else",
        "ErrorKind.TIMEOUT if trace.status is TraceStatus.RUNNING else",
    ),
    agent_sampling(
        "noise-without-the-attempt",
        "place = (episode.seed, episode.task.key, episode.index, ",
        "place = (episode.seed, episode.task.key, ",
    ),
    agent_sampling(
        "sub-agents-with-the-orchestrators-top-p",
        "self.settings.top_p if self.trace.parent is None else self.settings.subagent_top_p",
        "self.settings.top_p",
    ),
    agent_sampling(
        "orchestrators-with-the-sub-agents-top-p",
        "self.settings.top_p if self.trace.parent is None else",
        "self.settings.top_p if self.trace.parent is not None else",
    ),
    agent_continued(
        "a-cut-turn-gets-all-its-tokens",
        "max_new_tokens=sampling.max_new_tokens - written)",
        "max_new_tokens=sampling.max_new_tokens)",
    ),
    agent_continued("a-cut-turn-is-limited-again", 'limit = "" if begun else self.swarm', "limit = self.swarm"),
    agent_continued("a-turn-of-its-last-part", "start=start, end=end, content", "start=before, end=end, content"),
    agent("sampled-tokens-are-free", "self.swarm.sampled += end - before", "self.swarm.sampled += 0"),
    agent(
        "malformed-turns-answer",
        "self.trace.status = TraceStatus.MALFORMED\n",
        "self.trace.status = TraceStatus.FINISHED\n",
    ),
    agent("unended-turns-are-parsed", "if finish is Finish.LENGTH:", "if finish is Finish.INTERRUPTED:"),
    agent(
        "results-in-the-order-of-arrival",
        "[answers.results[number] for number in range(len(turn.calls))]",
        "list(answers.results.values())",
    ),
    agent(
        "a-direct-call-too-many",
        "elif direct >= self.settings.budget.direct_calls:",
        "elif direct > self.settings.budget.direct_calls:",
    ),
    agent_limits(
        "tools-without-slots", "async with self.settings.slots.tool_calls:", "async with self.settings.slots.subagents:"
    ),
    agent_limits(
        "no-deadline-of-stages", "stage = None if stage_s is None else asyncio", "stage = None if True else asyncio"
    ),
    agent_limits("timeouts-are-not-noted", 'turn.deadline = "call_s"', 'turn.deadline = ""'),
    agent_context(
        "context-off-by-one",
        "len(self.transcript.context) <= self._context_limit:",
        "len(self.transcript.context) < self._context_limit:",
    ),
    agent_context("contexts-share-their-noise", "*([number] if number else []))", ")"),
    agent_context(
        "new-contexts-may-be-too-long", '        if len(ids) > self._context_limit:\n            return "context"\n', ""
    ),
    context(
        "sub-agents-have-the-orchestrators-limit",
        "config.orchestrator_tokens if trace.parent is None else config.subagent_tokens",
        "config.orchestrator_tokens",
    ),
    context("all-results-are-hidden", "content_of(result) if turn is newest else HIDDEN", "HIDDEN"),
    context("no-result-is-hidden", "content_of(result) if turn is newest else HIDDEN", "content_of(result)"),
    context("oldest-results-stay", "newest = trace.turns[-1] if", "newest = trace.turns[0] if"),
    context("discard-keeps-the-words", 'if config.policy == "discard_all":', 'if config.policy == "discard":'),
    limits("later-deadlines-win", "if when is None or now < when:", "if when is None or now > when:"),
    limits("slots-swapped", "self.tool_calls = _gate(tool_calls)", "self.tool_calls = _gate(subagents)"),
    limits("a-slot-too-many", "asyncio.Semaphore(places)", "asyncio.Semaphore(places + 1)"),
    limits(
        "a-thrown-switch-lets-others-begin",
        "        if self.stopped:\n            deadline.tighten(STOPPED, 0.0)\n",
        "",
    ),
    partial("answered-turns-are-unanswered", "turn.calls and not turn.results and trace", "turn.calls and trace"),
    partial(
        "turns-begin-with-what-was-read",
        "while start and trace.mask[start - 1]:",
        "while start and not trace.mask[start - 1]:",
    ),
    partial("replays-in-the-order-of-agents", "sorted(made, key=lambda item: item[0])", "made"),
    partial("replays-refused-calls", "and result and result.error is not ErrorKind.BUDGET:", "and result:"),
    partial(
        "replays-unanswered-calls",
        "and result and result.error is not ErrorKind.BUDGET:",
        "and (result is None or result.error is not ErrorKind.BUDGET):",
    ),
    partial("replays-spawning", "if call.name not in SPAWNING_NAMES and result", "if result"),
    jobs("peers-begin-at-zero", "age_s=job.elapsed_s)", "age_s=0.0)"),
    jobs(
        "peers-without-their-stage",
        "stage = None if job.stage_s is None else asyncio",
        "stage = None if True else asyncio",
    ),
    jobs("peers-stage-from-the-beginning", "asyncio.get_running_loop().time() + job.stage_s", "job.stage_s"),
    placement(
        "the-busiest-peer",
        "chosen = min(order, key=self._placed.__getitem__)",
        "chosen = max(order, key=self._placed.__getitem__)",
    ),
    placement(
        "places-are-never-free", "            self._placed[chosen] -= 1\n", "            self._placed[chosen] -= 0\n"
    ),
    worker(
        "session-is-taken-before-the-halt",
        "            flight = Flight(saved=group[index])\n",
        "            flight = Flight(saved=group[index])\n            self._sessions.pop(key, None)\n",
    ),
    worker(
        "frozen-sub-agents-at-the-policys-temperature",
        "frozen = (self._config.subagent_temperature, 1.0)",
        "frozen = (temperature, 1.0)",
    ),
    worker(
        "frozen-sub-agents-with-the-policys-top-p",
        "frozen = (self._config.subagent_temperature, 1.0)",
        "frozen = (self._config.subagent_temperature, top_p)",
    ),
    worker("co-trained-sub-agents-as-frozen-ones", "(temperature, top_p) if self._co_trained else frozen", "frozen"),
    worker("frozen-sub-agents-are-trained", "train_subagents=self._co_trained,", "train_subagents=True,"),
    worker(
        "pools-swapped",
        "return self._policy if trace.role is Role.ORCHESTRATOR else self._frozen",
        "return self._frozen if trace.role is Role.ORCHESTRATOR else self._policy",
    ),
    worker(
        "limits-swapped",
        "Slots(config.limits.subagents, config.limits.tool_calls)",
        "Slots(config.limits.tool_calls, config.limits.subagents)",
    ),
    worker(
        "spawning-is-the-configurations",
        "spawns = self._config.swarm if spawning is None else spawning",
        "spawns = self._config.swarm",
    ),
    noise("noise-of-half-its-parts", '"/".join(map(str, parts))', '"/".join(map(str, parts[:2]))'),
    noise("noise-of-parts-run-together", '"/".join(map(str, parts))', '"".join(map(str, parts))'),
    episode(
        "contexts-begin-after-their-cut",
        "zip([0, *self.cuts], ends, strict=True)",
        "zip([0, *(cut + 1 for cut in self.cuts)], ends, strict=True)",
    ),
]
