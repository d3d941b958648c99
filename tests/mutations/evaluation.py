"""Evaluation: statistics, identity, settings, attempts, numbers and scores of what is stored."""

from mutations.base import mutants_of

STATISTICS, COMPARE = "tests/parl/evaluate/test_statistics.py", "tests/parl/evaluate/test_compare.py"
SETTINGS, IDENTITY = "tests/parl/evaluate/test_evaluation_settings.py", "tests/parl/evaluate/test_identity.py"

statistics = mutants_of("evaluation", "parl/evaluate/statistics.py", STATISTICS)
measures = mutants_of("evaluation", "parl/evaluate/measures.py", SETTINGS, COMPARE)
compare = mutants_of("evaluation", "parl/evaluate/compare.py", COMPARE)
table = mutants_of("evaluation", "parl/evaluate/compare_table.py", COMPARE)
attempts = mutants_of("evaluation", "parl/evaluate/evaluation.py", SETTINGS)
stores = mutants_of("evaluation", "parl/evaluate/policies.py", IDENTITY)
account = mutants_of("evaluation", "parl/evaluate/measures.py", SETTINGS)
chat = mutants_of("evaluation", "parl/evaluate/chat_model.py", SETTINGS)
swarm = mutants_of("evaluation", "rollouts/swarm/settings.py", SETTINGS)
scoring = mutants_of("evaluation", "parl/evaluate/scoring.py", SETTINGS)
identity = mutants_of("evaluation", "parl/evaluate/identity.py", IDENTITY)

MUTANTS = [
    statistics("no-widening", "math.sqrt(n / (n - 1)) * float", "float"),
    statistics("widening-upside-down", "math.sqrt(n / (n - 1))", "math.sqrt((n - 1) / n)"),
    statistics("z-for-t", "stdtrit(n - 1, 1 - self.alpha / 2)", "_NORMAL.inv_cdf(1 - self.alpha / 2)"),
    statistics("one-sided", "stdtrit(n - 1, 1 - self.alpha / 2)", "stdtrit(n - 1, 1 - self.alpha)"),
    statistics("a-degree-of-freedom-too-many", "stdtrit(n - 1, 1 - self.alpha / 2)", "stdtrit(n, 1 - self.alpha / 2)"),
    statistics("equal-values-are-certain", "if bounds is not None and np.all(x_T == x_T[0]):", "if False:"),
    statistics(
        "clopper-pearson-of-one-side", "1 - (self.alpha / 2) ** (1 / self.tasks)", "1 - self.alpha ** (1 / self.tasks)"
    ),
    statistics(
        "clopper-pearson-off-by-one",
        "(self.alpha / 2) ** (1 / self.tasks)",
        "(self.alpha / 2) ** (1 / (self.tasks + 1))",
    ),
    statistics(
        "difference-sign",
        "self.mean(self._checked(b_T) - self._checked(a_T), bounds=span)",
        "self.mean(self._checked(a_T) - self._checked(b_T), bounds=span)",
    ),
    statistics("difference-in-the-values-bounds", "(bounds[0] - bounds[1], bounds[1] - bounds[0])", "bounds"),
    statistics(
        "mean-of-ratios", "float(np.mean(a_T) / np.mean(b_T))", "float(np.mean(np.asarray(a_T) / np.asarray(b_T)))"
    ),
    statistics(
        "a-resample-misses-a-task",
        "integers(0, tasks, (resamples, tasks))",
        "integers(0, max(tasks - 1, 1), (resamples, tasks))",
    ),
    statistics(
        "smoothed-resamples", "self._weights_BT = counts_BT / tasks", "self._weights_BT = (counts_BT + 1) / (2 * tasks)"
    ),
    statistics(
        "best-with-replacement",
        "value * math.comb(i, k - 1) for i, value in enumerate(ordered)) / math.comb(n, k)",
        "value * ((i + 1) ** k - i**k) for i, value in enumerate(ordered)) / n**k",
    ),
    statistics("worst-of-k", "ordered = sorted(values_A)", "ordered = sorted(values_A, reverse=True)"),
    statistics("seed-is-ignored", "np.random.default_rng(seed)", "np.random.default_rng(0)"),
    statistics(
        "one-task-is-certain", "return -math.inf, math.inf", "return float(statistic_B.min()), float(statistic_B.max())"
    ),
    measures("context-is-the-whole-trace", "t.start - trace.context_of(t.start) for", "t.start for"),
    measures(
        "new-tokens-include-sampled",
        "new_prompt_tokens=sum(outline.lengths) - sampled",
        "new_prompt_tokens=sum(outline.lengths)",
    ),
    measures(
        "tokens-of-the-orchestrator",
        "turns = [turn for trace in episode.traces for turn in trace.turns]",
        "turns = list(episode.orchestrator.turns)",
    ),
    measures("score-with-penalty", 'score=metrics.get("score")', 'score=episode.rewards.get("total")'),
    measures("attempts-are-the-most", "return min((len(tries) for tries", "return max((len(tries) for tries"),
    measures("failed-tries-count-last", "if key not in found or not outline.episode.void:", "if True:"),
    measures("first-tries-count", "if key not in found or not outline.episode.void:", "if key not in found:"),
    measures("groups-of-widths-begin-late", "low = 1 << (width.bit_length() - 1)", "low = 1 << width.bit_length()"),
    measures(
        "pass-is-avg",
        'boot.mean(sample.best("success", k), bounds=SCORE)',
        'boot.mean(sample.means("success"), bounds=SCORE)',
    ),
    measures(
        "max-is-of-one",
        'boot.mean(sample.best("score", k), bounds=sample.range)',
        'boot.mean(sample.best("score", 1), bounds=sample.range)',
    ),
    measures(
        "attempts-in-any-order",
        "            tries.sort(key=lambda one: one.index)\n",
        "            tries.sort(key=lambda one: -one.index)\n",
    ),
    compare("regressions-are-improvements", 'row["difference"] < 0]', 'row["difference"] > 0]'),
    compare("all-are-on-the-front", 'row["front"] = not beaten', 'row["front"] = True'),
    compare("twins-beat-each-other", "any(other != point and all(x <= y", "any(all(x <= y"),
    compare(
        "dear-is-good",
        'points = [(-row["score"].value, *(row[name].value for name in PARETO)) for row in rows]',
        'points = [(-row["score"].value, *(-row[name].value for name in PARETO)) for row in rows]',
    ),
    table("verdict-without-interval", '    if difference.low <= 0 <= difference.high:\n        return "-"\n', ""),
    table(
        "verdict-upside-down",
        'return "better" if (difference.value > 0) == (better > 0) else "worse"',
        'return "better" if (difference.value > 0) != (better > 0) else "worse"',
    ),
    attempts("top-p-is-ignored", '"top_p": evaluation.top_p}', '"top_p": 1.0}'),
    attempts(
        "at-the-rollouts-temperature",
        '"temperature": evaluation.temperature,',
        '"temperature": side.rollouts.temperature,',
    ),
    attempts("with-the-runs-seed", 'sampling = {"seed": evaluation.seed,', 'sampling = {"seed": side.seed,'),
    attempts(
        "single-agents-may-spawn",
        "group_size=1, spawning=policy.spawning,",
        "group_size=1, spawning=side.rollouts.swarm,",
    ),
    attempts("unscored", "self._scoring.score_held_out(episode)", "pass"),
    attempts(
        "failed-attempts-stay",
        "done = {key for key, outline in found.items() if not outline.episode.void}",
        "done = set(found)",
    ),
    attempts("everything-is-run-again", "[k for k in range(n) if (task.key, k) not in done]", "list(range(n))"),
    attempts(
        "first-attempts-again",
        "attempts=list(part.values())",
        "attempts=[list(range(len(own))) for own in part.values()]",
    ),
    attempts("slices-overflow", "+ len(attempts) > episodes:", "> episodes:"),
    account("solved-by-attempts", "solved = sum(one.success or 0.0 for one in tries)", "solved = len(tries)"),
    account("prices-swapped", "zip(prices, tokens, strict=True)", "zip(prices[::-1], tokens, strict=True)"),
    account("our-tokens-before-the-servers", 'usage = sums.get("usage")', "usage = None"),
    account(
        "per-solved-of-everything",
        'total / sums["solved"] if sums["solved"]',
        'total / max(sums["solved"], 5) if sums["solved"]',
    ),
    stores("sub-agents-are-left-out", '"subagents": policy_digest(subagents)}', '"subagents": ""}'),
    stores("the-same-store-for-all", 'f"{label}-{identity(parts)}"', 'f"{label}-{identity({})}"'),
    stores(
        "vocabularies-are-not-compared",
        "if folder and policy_vocabulary(folder) != policy_vocabulary(cold):",
        "if False:",
    ),
    stores("shapes-are-not-compared", "if found != given and EFFECTS", "if False and EFFECTS"),
    chat(
        "chat-at-the-rollouts-temperature",
        "temperature=self._evaluation.temperature,",
        "temperature=self._rollouts.temperature,",
    ),
    chat("chat-without-top-p", "            top_p=self._evaluation.top_p,\n", ""),
    swarm("sub-agents-at-a-temperature-of-their-own", '"prompts", "subagent_temperature", ', '"prompts", '),
    swarm("chat-without-limits", '"limits", "context"', '"context"'),
    chat("chat-always-a-swarm", "spawning=self._spawning,", "spawning=True,"),
    scoring(
        "a-step-ahead",
        "step, steps = outline.step - 1, self",
        "step, steps = outline.step, self",
    ),
    scoring(
        "evaluations-by-their-step",
        "if outline.kind != TRAIN:",
        "if not outline.kind:",
    ),
    scoring(
        "single-agents-are-paid",
        "return self.reward.alone() if single_agent else self.reward",
        "return self.reward",
    ),
    identity(
        "limits-do-not-count",
        '"rollouts.limits": "agent_s stage_s subagents tool_calls",',
        '"rollouts.nothing": "agent_s stage_s subagents tool_calls",',
    ),
    identity("top-p-does-not-count", '"eval": "split temperature top_p seed",', '"eval": "split temperature seed",'),
    identity("unknown-keys-do-not-count", "if key.startswith(_WITHOUT) else Effect.ALL", "if True else Effect.ALL"),
    identity(
        "chat-keys-for-all",
        "wanted = {Effect.ALL, Effect.CHAT if chat else Effect.OWN}",
        "wanted = {Effect.ALL, Effect.CHAT, Effect.OWN}",
    ),
    identity("spawning-does-not-count", 'settings | own | {"rollouts.swarm": spawning}', "settings | own"),
    identity(
        "weights-do-not-count",
        'f"{file_digest(folder / _WEIGHTS)} {policy_vocabulary(folder)}"',
        "policy_vocabulary(folder)",
    ),
    identity(
        "vocabulary-does-not-count",
        'f"{file_digest(folder / _WEIGHTS)} {policy_vocabulary(folder)}"',
        "file_digest(folder / _WEIGHTS)",
    ),
    identity(
        "tables-count-by-name",
        'found = {f"envs.{envs.name}.{key}": digest for key, digest in environment.digest().items()}',
        'found = {f"envs.{envs.name}.{key}": str(envs.config) for key in environment.digest()}',
    ),
    identity("tasks-without-their-gold", "[task.to_row() for task in tasks]", "[task.prompt for task in tasks]"),
    identity("code-does-not-count", '"code": {"version": VERSION,', '"code": {"version": 1,'),
    identity(
        "prompts-do-not-count", "for offered in ((*tools, *prompts.spawning), tools)]", "for offered in (tools, tools)]"
    ),
    identity("addresses-count", '"rollouts.http.frozen_urls": bool,', '"rollouts.http.frozen_urls": list,'),
]
