"""From episodes to rows, micro-batches, ranks and optimiser steps."""

from mutations.base import mutants_of

ADVANTAGE, PACKING = "tests/parl/learn/test_advantage.py", "tests/parl/learn/test_packing.py"
LEARNER, STEPS = "tests/parl/learn/test_learner.py", "tests/parl/learn/test_learner_objectives.py"
GROUP = "tests/parl/learn/test_learner_group.py"

advantage = mutants_of("rows", "parl/learn/advantage.py", ADVANTAGE)
rows = mutants_of("rows", "parl/learn/rows.py", ADVANTAGE)
contexts = mutants_of("rows", "parl/learn/rows.py", "tests/rollouts/swarm/test_context.py")
pictures = mutants_of("rows", "parl/learn/rows.py", "tests/parl/learn/test_advantage.py")
batch = mutants_of("rows", "parl/learn/batch.py", PACKING)
learner = mutants_of("learner", "parl/learn/learner.py", LEARNER)
terms = mutants_of("learner", "parl/learn/terms.py", LEARNER)
objective = mutants_of("learner", "parl/learn/learner.py", STEPS)
ranks = mutants_of("learner", "parl/learn/group.py", "tests/parl/learn/test_ranks.py", PACKING)
optimizer = mutants_of("learner", "parl/learn/shard/optimizer.py", LEARNER)
cold = mutants_of("learner", "parl/cold_start/imitation.py", "tests/parl/cold_start/test_sft.py")
recipe = mutants_of("learner", "parl/cold_start/shipped.py", "tests/parl/cold_start/test_sft.py")
clip = mutants_of("learner", "parl/learn/qk_clip.py", "tests/parl/learn/test_qk_clip.py")
routes = mutants_of("learner", "parl/learn/route_replay.py", "tests/parl/learn/test_route_replay.py")
loading = "tests/parl/learn/test_loading.py"
sources = mutants_of("learner", "parl/learn/shard/sources.py", loading)
cut = mutants_of("learner", "parl/learn/shard/ds_engine.py", loading)
router = mutants_of("learner", "model/kimi/moe.py", "tests/model/kimi/test_transformer.py", LEARNER)

MUTANTS = [
    terms("means-of-micro-batches-add-up", "stats[name].detach().double() * share", "stats[name].detach().double()"),
    terms(
        "entropy-of-micro-batches",
        "sums[name] = value.double() / denominator",
        "sums[name] = value.double() / len(logprobs)",
    ),
    learner("scoring-trains", "        model.eval()  # do not count", "        model.train()  # nothing is counted"),
    advantage("no-baseline", "advantages = [reward - mean for reward in rewards]", "advantages = list(rewards)"),
    advantage(
        "leave-one-out-baseline", "mean = sum(rewards) / len(rewards)", "mean = sum(rewards) / max(len(rewards) - 1, 1)"
    ),
    advantage("always-normalised", "if not normalise_std or len(rewards) == 1:", "if len(rewards) == 1:"),
    mutants_of("rows", "parl/learn/advantage.py", "tests/parl/learn/test_objectives.py")(
        "deviation-over-all", "/ (len(rewards) - 1)) ** 0.5", "/ len(rewards)) ** 0.5"
    ),
    mutants_of("rows", "parl/learn/advantage.py", "tests/parl/learn/test_objectives.py")(
        "variance-for-deviation", "/ (len(rewards) - 1)) ** 0.5", "/ (len(rewards) - 1))"
    ),
    rows(
        "failed-episodes-in-the-baseline",
        "valid = [episode for episode in episodes if not episode.void]",
        "valid = list(episodes)",
    ),
    rows("one-baseline-for-all-tasks", "groups[episode.task.key].append(position)", 'groups[""].append(position)'),
    advantage(
        "unfinished-subagents-earn",
        "total if trace.status is TraceStatus.FINISHED else min(total, 0.0)",
        "total",
    ),
    advantage(
        "subagents-earn-the-answer-alone",
        "total if trace.status is TraceStatus.FINISHED",
        "1.0 if trace.status is TraceStatus.FINISHED",
    ),
    advantage(
        "agents-weigh-in-their-baseline",
        "baseline = sum(sum(own) / len(own) for own in some) / len(some)",
        "baseline = sum(sum(own) for own in some) / sum(len(own) for own in some)",
    ),
    advantage("agent-credit-is-not-normalised", "        scale = 1 / (spread**0.5 + _STD_EPS)\n", ""),
    advantage("counterfactual-of-its-own-kind", "(outcome - means[not did])", "(outcome - means[did])"),
    advantage("counterfactual-of-full-weight", "len(kinds[not did]) / len(outcomes)", "1"),
    advantage("counterfactual-of-all", "    if not all(kinds):\n        return [0.0] * len(outcomes)\n", ""),
    rows("counterfactual-without-weight", "+= counterfactual * one", "+= one"),
    mutants_of("rows", "parl/run/loop.py", "tests/parl/run/test_training_step.py")(
        "counterfactual-of-the-training-reward",
        "outcome=rewards.outcome",
        'outcome=lambda episode: episode.rewards["total"]',
    ),
    rows("agent-credit-is-ignored", 'if credit == "agent":', 'if credit == "agents":'),
    rows(
        "frozen-traces-are-trained",
        "[trace for trace in episode.traces if trace.trainable and any(trace.mask)]\n    rows",
        "[trace for trace in episode.traces if any(trace.mask)]\n    rows",
    ),
    advantage(
        "frozen-agents-in-the-baseline",
        "[trace for trace in episode.subagents if trace.trainable and any(trace.mask)]",
        "[trace for trace in episode.subagents if any(trace.mask)]",
    ),
    rows("failed-episodes-have-rows", "    if episode.void:\n        return []\n", ""),
    rows(
        "advantage-on-read-tokens",
        "advantages=np.where(mask, np.float32(advantage), np.float32(0)),",
        "advantages=np.full(len(mask), advantage, np.float32),",
    ),
    rows(
        "missing-routes-pass",
        "if routed and trace.routes is None:",
        "if routed and trace.routes is None and not trace.tokens:",
    ),
    rows(
        "denominator-counts-all-tokens",
        "return sum(row.trained for row in rows)",
        "return sum(len(row.tokens) for row in rows)",
    ),
    rows("denominator-counts-rows", "return sum(row.trained for row in rows)", "return len(list(rows))"),
    contexts("contexts-are-one-row", "for span in trace.contexts", "for span in [(0, len(trace.tokens))]"),
    contexts(
        "rows-of-a-context-begin-at-0",
        "tokens=np.asarray(trace.tokens[start:end]",
        "tokens=np.asarray(trace.tokens[: end - start]",
    ),
    batch("micro-batches-overflow", "if length <= left), None)", "if length <= left + 1), None)"),
    batch(
        "micro-batches-one-by-one",
        "place = next((i for i, left in enumerate(room) if length <= left), None)",
        "place = None",
    ),
    batch("room-is-never-taken", "        room[place] -= length\n", "        room[place] -= 0\n"),
    batch(
        "routes-of-the-row-before",
        "np.concatenate([row.routes for row in rows])",
        "np.concatenate([row.routes for row in rows[::-1]])",
    ),
    terms("temperature-is-ignored", "forward(**batch.inputs, temperature=temperature)", "forward(**batch.inputs)"),
    learner("gradient-of-one-rank", "self.engine.backward(loss * self.ranks)", "self.engine.backward(loss * 0.5)"),
    learner("tail-is-kept", "rows = [_without_tail(row) for row in rows]\n        totals", "totals"),
    learner("tail-cuts-the-last-token", ".max(initial=0)) + 1\n", ".max(initial=0))\n"),
    terms(
        "gap-is-the-last",
        "torch.maximum(totals[name], value) if largest",
        "value if largest",
    ),
    learner("one-rate-for-both", 'self._lr[group["muon"]] * scale', "self._lr[True] * scale"),
    learner(
        "scale-is-ignored", 'group["lr"] = self._lr[group["muon"]] * scale', 'group["lr"] = self._lr[group["muon"]]'
    ),
    learner("not-finite-passes", "if bool(total.isfinite()):", "if True:"),
    learner("experts-are-not-balanced", "            router.balance(balance)\n", "            router.load_E.zero_()\n"),
    terms("accuracy-of-read-tokens", "acted = weights == 1", "acted = weights > 0"),
    learner("first-token-is-imitated", "    mask[0] = False\n", ""),
    objective(
        "reference-is-the-policy", "model = self.model if not reference else self._reference", "model = self.model"
    ),
    objective(
        "log-probs-in-another-order",
        "out[places[id(row)]][: len(row.tokens)]",
        "out[group.index(row)][: len(row.tokens)]",
    ),
    objective("ptx-weight-is-ignored", "return objective.ptx * text_terms(", "return text_terms("),
    objective("ptx-by-the-rows-denominator", "denominator=text_denominator)", "denominator=denominator)"),
    ranks(
        "each-rank-its-own-denominator",
        '{"denominator": float(denominator(rows)),',
        '{"denominator": float(denominator(rows)) / len(self._ranks),',
    ),
    ranks(
        "loss-of-the-first-rank",
        "out = {name: sum(m[name] for m in metrics) for name in metrics[0]}",
        "out = dict(metrics[0])",
    ),
    ranks("norms-add-up", "    out |= {name: metrics[0][name] for name in _KNOWN_TO_ALL if name in out}\n", ""),
    ranks(
        "gap-adds-up",
        'out["logprob_gap"] = max(m["logprob_gap"] for m in metrics)',
        'out["logprob_gap"] = sum(m["logprob_gap"] for m in metrics)',
    ),
    ranks(
        "texts-weigh-their-first-token",
        "sum(row.weights[1:].sum() for row in texts)",
        "sum(row.weights.sum() for row in texts)",
    ),
    ranks("accuracy-of-all-tokens", "right / max(acted, 1.0)", 'right / max(acted + metrics["loss"], 1.0)'),
    ranks("scores-in-the-ranks-order", "return [values[id(row)] for row in rows]", "return list(values.values())"),
    ranks(
        "rows-by-number",
        "costs[rank] += len(row.tokens) * (1 + len(row.tokens) / _ATTENTION_TOKENS)",
        "costs[rank] += 1",
    ),
    ranks("reference-of-the-proximal", 'reference=field == "reference")', 'reference=field == "proximal")'),
    optimizer(
        "muon-without-nesterov",
        "torch.add(momentum * moved, part, out=part)",
        "part.copy_(moved)",
    ),
    optimizer(
        "muon-momentum-leaks",
        'state["momentum"].mul_(momentum).add_(grad)',
        'state["momentum"].mul_(momentum).add_(grad, alpha=1 - momentum)',
    ),
    sources(
        "a-share-from-the-rows-beginning",
        "rows.reshape(-1)[start - first * row : stop - first * row]",
        "rows.reshape(-1)[: stop - start]",
    ),
    sources(
        "buffers-are-rounded", "values if name in self._exact else values.to(self._dtype)", "values.to(self._dtype)"
    ),
    cut("outlined-parameters-lose-marks", "vars(whole).update(vars(parameter))  # marks of experts", "pass"),
    optimizer("muon-of-the-smaller-side", "0.2 * max(n, m) ** 0.5", "0.2 * min(n, m) ** 0.5"),
    optimizer("muon-without-scale", 'alpha=-group["lr"] * muon_scale(*parameter.shape[-2:])', 'alpha=-group["lr"]'),
    optimizer(
        "decay-without-rate",
        'parameter.mul_(1 - group["lr"] * group["weight_decay"])',
        'parameter.mul_(1 - group["weight_decay"])',
    ),
    optimizer(
        "adam-without-correction",
        'scale = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])',
        "scale = 1.0",
    ),
    optimizer(
        "adam-betas-swapped",
        'grad, (beta1, beta2) = parameter.grad, group["betas"]',
        'grad, (beta2, beta1) = parameter.grad, group["betas"]',
    ),
    optimizer("clip-by-twice", "grad.mul_(limit / self.grad_norm)", "grad.mul_(limit / self.grad_norm**2)"),
    optimizer("clip-at-one", "if self.grad_norm > limit:", "if self.grad_norm > 1.0:"),
    optimizer("matrices-are-one", "x.norm(dim=(-2, -1), keepdim=True)", "x.norm()"),
    cold("cold-start-without-warm-up", "return min(done / 0.02, 1.0) * min(", "return min("),
    cold("cold-start-never-falls", " * min(max(1.0 - done, 0.02) / 0.4, 1.0)", ""),
    mutants_of("learner", "parl/cold_start/rows.py", "tests/parl/cold_start/test_sft.py")(
        "read-tokens-weigh-as-written-ones",
        "np.where(np.array(trace.mask), np.float32(1), np.float32(observation_weight))",
        "np.full(len(trace.mask), 1, np.float32)",
    ),
    recipe(
        "hash-forgets-the-recipe",
        "config_hash(model, recipe.tokenizer, own, sft, VERSION,",
        "config_hash(model, recipe.tokenizer, own, VERSION,",
    ),
    recipe(
        "hash-forgets-the-table",
        "VERSION, *digest.values(), *parts)",
        "VERSION, *parts)",
    ),
    recipe(
        "hash-of-the-tables-name", "recipe.envs.config.model_copy(update=dict.fromkeys(digest))", "recipe.envs.config"
    ),
    clip("factor-upside-down", "self._tau / logits_LH[i], 1.0)", "logits_LH[i] / self._tau, 1.0)"),
    clip("all-heads-are-scaled", "torch.where(above_LH[i], self._tau / logits_LH[i], 1.0)", "self._tau / logits_LH[i]"),
    clip("logits-are-kept", "        self.forget()\n        logits_LH", "        logits_LH"),
    clip("every-head-is-above", "above_LH = logits_LH > self._tau", "above_LH = logits_LH > 0"),
    routes("overlap-of-all-routes", "(routes_TK >= 0).sum()))", "(routes_TK >= -1).sum()))"),
    routes(
        "watching-counts-load",
        "            router.training = False  # the live choice must not count in the load\n",
        "",
    ),
    routes(
        "worst-layer-is-the-best",
        '"route_overlap_min": float(shares.min())',
        '"route_overlap_min": float(shares.max())',
    ),
    routes("an-expert-too-many-passes", "high >= routes.experts", "high > routes.experts"),
    routes(
        "doubled-experts-pass", "((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()", "False"
    ),
    router(
        "balance-sign",
        "rate * torch.sign(self.load_E.mean() - self.load_E)",
        "rate * torch.sign(self.load_E - self.load_E.mean())",
    ),
    router("load-is-never-forgotten", "        self.load_E.zero_()\n", ""),
    router("evaluation-counts-load", "if self.training and not recomputing():", "if not recomputing():"),
]
