"""Rewards: parts, their weights over time, scores of answers, metrics of a step."""

from mutations.base import mutants_of

REWARD = "tests/rewards/test_parl_reward.py"
OUTCOME = "tests/rewards/test_outcome.py"

parl = mutants_of("rewards", "rewards/parl_reward.py", REWARD)
base = mutants_of("rewards", "rewards/base.py", REWARD)
score = mutants_of("rewards", "rewards/score.py", REWARD)
aggregate = mutants_of("rewards", "rewards/aggregate.py", REWARD)
group = mutants_of("rewards", "envs/base.py", REWARD)
valid = mutants_of("rewards", "rewards/valid.py", "tests/rewards/test_valid.py", REWARD)
SCHEDULE = "tests/rewards/test_schedules.py"
schedule = mutants_of("rewards", "rewards/schedule/__init__.py", REWARD, SCHEDULE)
linear = mutants_of("rewards", "rewards/schedule/linear.py", REWARD)
SATURATION = "tests/rewards/test_saturation.py"
saturation = mutants_of("rewards", "rewards/schedule/saturation.py", SATURATION)
saturating = mutants_of("rewards", "rewards/parl_reward.py", SATURATION)
toggle = mutants_of("rewards", "rewards/toggle.py", SCHEDULE)
costs = mutants_of("rewards", "rollouts/costs.py", "tests/rollouts/test_costs.py")
budget = mutants_of("rewards", "rollouts/swarm/budget.py", REWARD)
outcome = mutants_of("rewards", "rewards/outcome/__init__.py", REWARD)
exact = mutants_of("rewards", "rewards/outcome/exact.py", OUTCOME)
table = mutants_of("rewards", "rewards/outcome/item_f1.py", OUTCOME)

MUTANTS = [
    valid("useless-ones-are-needed", 'if rule == "needed" and oracle is not None and oracle.width == 0:', "if False:"),
    saturation("any-family-is-enough", "rates = [*spawn, ", "rates = [max(spawn, default=0.0), "),
    saturation("variance-does-not-matter", " and seen[_VARIANCE] <= self.variance", ""),
    saturation("no-variance-is-enough", "min(rates) >= self.enough and ", ""),
    saturation("at-once", " and seen[_STEPS] >= self.window", ""),
    saturation("no-average", "before + (value - before) / self.window", "value"),
    saturation("no-bound", "(end - step) / self._fall(anneal, steps)", "1.0"),
    saturation("share-rises-again", "share = min(seen.get(SHARE, 1.0), ", "share = min(1.0, "),
    saturation("useless-tasks-count", "and pays(task) and", "and"),
    saturation("unnamed-families-count", "not self.families or task.family in self.families", "True"),
    saturation("void-episodes-count", "not episode.void and ", ""),
    saturation("finish-of-all", "for one in group if one.subagents]", "for one in group]"),
    saturating("share-is-not-used", "share = min(seen.get(SHARE, 1.0), ", "share = min(1.0, "),
    mutants_of("rewards", "parl/run/loop.py", "tests/parl/run/test_training_step.py")(
        "share-is-not-stored", "            episode.metrics |= told\n", ""
    ),
    mutants_of("rewards", "parl/evaluate/scoring.py", "tests/parl/run/test_training_step.py")(
        "share-is-not-read", "reward.weights_after(outline.episode.metrics, step, steps)", "reward.weights(step, steps)"
    ),
    toggle("budget-of-all", "self._cost(episode) for episode in solved", "self._cost(episode) for episode in group"),
    toggle("phases-swapped", "% 2 == 0", "% 2 == 1"),
    toggle("budget-whoever-solved", "len(solved) / len(group) < self.enough", "False"),
    costs("path-of-all-subagents", "own + max([beside, *(", "own + sum([beside, *("),
    costs("whole-context-is-new", "read = trace.turns[index - 1].end if index else 0", "read = 0"),
    costs("new-context-is-known", "max(read, trace.context_of(turn.start))", "read"),
    costs("every-turn-calls-tools", "if any(call.name not in SPAWNING_NAMES for call in turn.calls) else 0.0", ""),
    costs(
        "direct-tools-after-subagents",
        "(model, tools) if turn.spawned else",
        "(model + tools, 0.0) if turn.spawned else",
    ),
    costs("no-cap", "if capped and len(episode.subagents) > latency.concurrency:", "if False:"),
    costs(
        "tokens-of-solved-alone",
        'sum(metrics["total_tokens"] for metrics in scored)',
        'sum(m["total_tokens"] for m in scored if m["success"])',
    ),
    parl("cheapest-is-dearest", "= min(cost_of(one, self.critical", "= max(cost_of(one, self.critical"),
    parl("tokens-for-seconds", 'if unit == "seconds":', 'if unit == "tokens":'),
    parl("no-cheapest", "reference = solved or self.critical_budget", "reference = self.critical_budget"),
    parl(
        "unanswered-pays-its-steps",
        "episode.status is not EpisodeStatus.ANSWERED or (junk",
        "(junk",
    ),
    parl(
        "unanswered-pays-nothing",
        "            return CRITICAL_MAX\n",
        "            return 0.0\n",
    ),
    parl(
        "an-evaluation-in-seconds-forgives-no-answer",
        'if wasted and (reference > 0 or self.critical != "steps"):',
        "if wasted and reference > 0:",
    ),
    parl(
        "critical-is-not-cut",
        "min(cost_of(episode, self.critical, self.latency) / reference, CRITICAL_MAX)",
        "cost_of(episode, self.critical, self.latency) / reference",
    ),
    parl("critical-sign", 'parts.get("perf", 0.0) + bonus - weights', 'parts.get("perf", 0.0) + bonus + weights'),
    parl(
        "lambdas-swapped",
        'weights["parallel"] * parts["parallel"] + weights["finish"] * parts["finish"]',
        'weights["parallel"] * parts["finish"] + weights["finish"] * parts["parallel"]',
    ),
    parl("finish-term-dropped", ' + weights["finish"] * parts["finish"]', ""),
    parl(
        "vacuous-finish",
        "return finished / len(launched) if launched else None",
        "return finished / len(launched) if launched else 1.0",
    ),
    parl(
        "finish-counts-those-that-ended",
        "sum(trace.status is TraceStatus.FINISHED for",
        "sum(trace.status is not TraceStatus.RUNNING for",
    ),
    parl(
        "parallel-beyond-the-cap",
        "min(valid, cap) / self.parallel_cap",
        "valid / self.parallel_cap",
    ),
    valid("parallel-counts-the-orchestrator", "return len(episode.subagents), sum", "return len(episode.traces), sum"),
    valid("empty-prompts-count", " and words(one.prompt)]", "]"),
    valid("unfinished-ones-count", "if one.status is TraceStatus.FINISHED and", "if"),
    valid("duplicates-count", "tuple(prompt) in asked or known", "known"),
    valid("what-was-read-counts", "or known or again", "or again"),
    valid("other-words-count", "or known or again", "or known"),
    valid("wordy-prompts-hide-what-was-read", "frozenset() if about else frozenset(prompt)", "frozenset(prompt)"),
    valid("read-afterwards-is-read", "any(place <= turn and ", "any("),
    valid("echoes-count", "news.isdisjoint(later[turn])", "False"),
    valid("nonsense-counts", " and not message.isdisjoint(prompt)", ""),
    valid("repeated-messages-count", "not about or any(news <= other for other in said)", "not about"),
    valid("every-error-is-read", " and result.error is None", ""),
    valid("openparl-without-tools", 'rule == "any" or bool(trace.tool_calls)', "True"),
    parl("junk-dodges-the-price", 'or (junk and self.critical_failed == "full")', ""),
    parl("paid-for-the-question", 'self.cells == "found" and FOUND in', "FOUND in"),
    parl("more-sub-agents-than-parts", "min(self.parallel_cap, parts_of(episode.task))", "self.parallel_cap"),
    table("keys-are-values", "if i not in keys]", "]"),
    table("a-word-within-a-word-stands", 'f" {own} " in asked', "own in asked"),
    table("one-cell-for-a-column", "if not all(stands(row[i])", "if not any(stands(row[i])"),
    table("padding-costs-the-least", "* max(counts)", "* min(counts)"),
    parl(
        "reference-of-the-parallel-plan",
        "oracle.serial_steps if oracle else",
        "oracle.parallel_steps if oracle else",
    ),
    parl(
        "budget-is-no-reference",
        "oracle.serial_steps if oracle else shortest or episode.critical_budget",
        "oracle.serial_steps if oracle else shortest",
    ),
    schedule(
        "horizon-of-all-steps", "min(fraction * steps, steps - 1)\n    if", "min(fraction * steps, steps)\n    if"
    ),
    schedule("horizon-is-the-later", "end = min(fraction * steps,", "end = max(fraction * steps,"),
    linear("one-step-ahead", "1 - step / end\n", "1 - (step + 1) / end\n"),
    schedule("never-zero", " if step < end else 0.0", ""),
    linear("falls-as-a-square", "1 - step / end\n", "(1 - step / end) ** 2\n"),
    parl(
        "finish-has-the-parallel-weight",
        "(self.lambda_parallel, self.lambda_finish)",
        "(self.lambda_parallel, self.lambda_parallel)",
    ),
    parl("penalty-falls-too", '"critical": self.critical_penalty}', '"critical": falling(self.critical_penalty)}'),
    base("held-out-pays-for-spawning", "return self.weights(1, 1)", "return self.weights(0, 2)"),
    base("unweighted-parts-are-lost", "weights.get(name, 1.0)", "weights.get(name, 0.0)"),
    score(
        "scores-unanswered",
        "if episode.status is EpisodeStatus.ANSWERED:",
        "if True:",
    ),
    score(
        "roles-swapped",
        '"tokens_orchestrator": _sampled(episode, Role.ORCHESTRATOR)',
        '"tokens_orchestrator": _sampled(episode, Role.SUBAGENT)',
    ),
    score("tokens-of-whole-traces", "sum(turn.end - turn.start for", "sum(turn.end for"),
    score(
        "every-spawn-is-useless",
        "spawned and oracle is not None and oracle.width == 0",
        "spawned and oracle is not None and oracle.width >= 0",
    ),
    score("forgets-other-metrics", "        **episode.metrics,\n", ""),
    score("parts-without-a-prefix", "return part if part in ANSWERS else PARTS + part", "return part"),
    score("unweighted-total", "reward.total(parts, weights)", "reward.total(parts, reward.held_out())"),
    score("parts-that-are-no-numbers", "or not math.isfinite(", "or math.isinf("),
    parl("weighted-critical-sign", '-weight if name in ("critical", "over") else weight', "weight"),
    aggregate("no-duplicates", "return 1.0 - len(set(asked)) / len(asked) if asked else 0.0", "return 0.0"),
    aggregate("duplicates-by-letter", '" ".join(trace.prompt.lower().split())', "trace.prompt"),
    aggregate(
        "duplicate-rate-of-all", "_mean(duplicate_rate(e) for e in spawned)", "_mean(duplicate_rate(e) for e in valid)"
    ),
    aggregate("failed-episodes-count", "valid = [e for e in episodes if not e.void]", "valid = list(episodes)"),
    aggregate(
        "finish-rate-of-all",
        'out |= _metrics(spawned, {"swarm/finish_rate": "finish_rate"})',
        'out["swarm/finish_rate"] = _mean(e.metrics["finish_rate"] or 0.0 for e in valid)',
    ),
    aggregate(
        "hopeless-are-all", "e.task.oracle is not None and e.task.oracle.width == 0", "e.task.oracle is not None"
    ),
    aggregate("median-for-p95", "float(np.percentile(critical, 95))", "float(np.percentile(critical, 50))"),
    aggregate(
        "parallelism-upside-down",
        'e.metrics["total_steps"] / max(e.metrics["critical_steps"], 1)',
        'e.metrics["critical_steps"] / max(e.metrics["total_steps"], 1)',
    ),
    aggregate(
        "model-latency-with-tools",
        "[turn.t_model - turn.t_start for turn in turns]",
        "[turn.t_end - turn.t_start for turn in turns]",
    ),
    aggregate("launches-are-tool-calls", "        if id(call) not in launching\n", ""),
    aggregate("latency-percentiles-swapped", '(("p50", 50), ("p95", 95))', '(("p50", 95), ("p95", 50))'),
    aggregate("tool-errors-upside-down", "_mean(result.error is not None for", "_mean(result.error is None for"),
    group("one-row-wider", "width >= self.least_width", "width > self.least_width"),
    aggregate("tasks-by-episode", "len({e.task.key for e in episodes})", "len(episodes)"),
    aggregate(
        "table-drops-failures",
        "[e for e in episodes if group.holds(e.task.family, e.task.width)]",
        "[e for e in episodes if group.holds(e.task.family, e.task.width) and not e.void]",
    ),
    budget("no-slack", "- 1e-9) + _SLACK", "- 1e-9)"),
    budget(
        "rounds-down",
        "math.ceil(factor * task.oracle.serial_steps - 1e-9)",
        "math.floor(factor * task.oracle.serial_steps - 1e-9)",
    ),
    budget("of-the-parallel-plan", "task.oracle.serial_steps", "task.oracle.parallel_steps"),
    budget("float-dust", "task.oracle.serial_steps - 1e-9", "task.oracle.serial_steps"),
    outcome("table-without-its-row-score", '"row_f1": table.row_f1', '"row_f1": table.f1'),
    outcome("success-of-any-table", "success=table.success, parts", "success=table.f1 > 0, parts"),
    exact("empty-answers-match", "return bool(given) and given in", "return given in"),
    exact(
        "first-marker-counts", "_MARKER.split(text)[-1]", "_MARKER.split(text)[min(1, len(_MARKER.split(text)) - 1)]"
    ),
    exact("aliases-of-other-answers", " if normalise_answer(text) in accepted}", "}"),
    exact(
        "articles-stay",
        '_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))',
        "text.lower().translate(_PUNCTUATION)",
    ),
    table("extra-columns-pass", "sorted(table.columns) != sorted(columns)", "not set(columns) <= set(table.columns)"),
    table(
        "columns-in-answer-order",
        "order = [table.columns.index(name) for name in columns]",
        "order = list(range(len(columns)))",
    ),
    table("a-row-counts-twice", "if target is None or key in used:", "if target is None:"),
    table(
        "precision-is-recall",
        "items / (answered * width), items / (wanted * width)",
        "items / (wanted * width), items / (wanted * width)",
    ),
    table("success-with-extra-rows", "success=full == answered == wanted", "success=full == wanted"),
    table("row-f1-is-row-precision", "row_f1=_f1(full / answered, full / wanted)", "row_f1=full / answered"),
    table(
        "mean-for-f1", "return 2 * precision * recall / (precision + recall) if", "return (precision + recall) / 2 if"
    ),
    table("repeated-rows-count", "            if key in seen:\n                continue\n", ""),
    table(
        "keys-as-written",
        "        cells = _cells(row, aliases)\n        wanted",
        "        cells = list(row)\n        wanted",
    ),
    table("long-rows-are-cut", "    if len(cells) > width:\n        return None\n", ""),
    table(
        "last-fence-wins",
        "fence = _FENCE.search(answer)",
        "fence = next(iter(list(_FENCE.finditer(answer))[::-1]), None)",
    ),
    table("aliases-are-ignored", "[aliases.get(cell, cell) for cell in cells] if aliases else cells", "cells"),
    table(
        "a-right-row-needs-its-key-alone", "full = sum(cells == target for cells, target in pairs)", "full = len(pairs)"
    ),
]
