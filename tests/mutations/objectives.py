"""Objectives, corrections, the reference, statistics of a batch."""

from mutations.base import mutants_of

K25, OTHERS = "tests/parl/learn/test_objective.py", "tests/parl/learn/test_objectives.py"

k25 = mutants_of("objectives", "parl/learn/objective/k25.py", K25)
common = mutants_of("objectives", "parl/learn/objective/common.py", OTHERS, K25)
grpo = mutants_of("objectives", "parl/learn/objective/grpo.py", OTHERS)
gspo = mutants_of("objectives", "parl/learn/objective/gspo.py", OTHERS)
cispo = mutants_of("objectives", "parl/learn/objective/cispo.py", OTHERS)
correction = mutants_of("objectives", "parl/learn/objective/correction.py", OTHERS)
reference = mutants_of("objectives", "parl/learn/objective/reference.py", OTHERS)
entropy = mutants_of("objectives", "parl/learn/objective/entropy.py", OTHERS)
registry = mutants_of("objectives", "parl/learn/objective/loss.py", OTHERS)
sft = mutants_of("objectives", "parl/learn/objective/sft.py", K25)

MUTANTS = [
    k25("k25-tau-sign", "advantages - self.tau * log_ratio.square()", "advantages + self.tau * log_ratio.square()"),
    k25("k25-tau-inside-the-clip", "self.tau * log_ratio.square()", "self.tau * clipped.log().square()"),
    k25("k25-ascends", "loss = -(clipped", "loss = (clipped"),
    k25("k25-no-clip", "log_ratio.clamp(self.log_ratio_min, self.log_ratio_max).exp()", "log_ratio.exp()"),
    k25(
        "k25-upper-clip-alone",
        "log_ratio.clamp(self.log_ratio_min, self.log_ratio_max)",
        "log_ratio.clamp(max=self.log_ratio_max)",
    ),
    k25(
        "k25-clips-the-ratio",
        "log_ratio.clamp(self.log_ratio_min, self.log_ratio_max).exp()",
        "log_ratio.exp().clamp(1 + self.log_ratio_min, 1 + self.log_ratio_max)",
    ),
    k25("k25-own-denominator", ".sum() / denominator\n        # not", ".sum() / mask.sum()\n        # not"),
    k25(
        "k25-masked-counts-one-side",
        "(log_ratio < self.log_ratio_min) | (log_ratio > self.log_ratio_max)",
        "(log_ratio < self.log_ratio_min)",
    ),
    k25("k25-penalises-the-log-ratio", "self.tau * log_ratio.square()", "self.tau * log_ratio.abs()"),
    common(
        "untrained-tokens-have-advantages",
        "torch.where(mask, advantages.to(logprobs_new.dtype), zero)",
        "advantages.to(logprobs_new.dtype)",
    ),
    common(
        "untrained-tokens-have-ratios",
        "torch.where(mask, logprobs_new - logprobs_old, zero)",
        "logprobs_new - logprobs_old",
    ),
    common("ratio-upside-down", "logprobs_new - logprobs_old, zero", "logprobs_old - logprobs_new, zero"),
    common(
        "clip-ignores-the-sign",
        "((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))",
        "(ratio > 1 + high) | (ratio < 1 - low)",
    ),
    common(
        "clips-swapped",
        "(ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))",
        "(ratio > 1 + low)) | ((advantages < 0) & (ratio < 1 - high))",
    ),
    common("clip-of-good-tokens-alone", " | ((advantages < 0) & (ratio < 1 - low))", ""),
    common(
        "mean-ratio-counts-untrained",
        '.exp() * mask).sum() / n,\n        "masked"',
        '.exp()).sum() / n,\n        "masked"',
    ),
    common("kl-is-k1", '"kl": k3(log_ratio.detach()).sum() / n', '"kl": -log_ratio.detach().sum() / n'),
    common("masked-is-a-count", '"masked": masked.sum() / n', '"masked": masked.sum()'),
    grpo("grpo-ascends", "return -surrogate.sum() / denominator", "return surrogate.sum() / denominator"),
    grpo("grpo-mean-over-the-batch", "-surrogate.sum() / denominator", "-surrogate.mean()"),
    grpo(
        "grpo-clips-swapped",
        "clipped_surrogate(log_ratio, advantages, self.clip_low, self.clip_high)",
        "clipped_surrogate(log_ratio, advantages, self.clip_high, self.clip_low)",
    ),
    gspo("gspo-sum-for-mean", "log_ratio_BT.sum(-1, keepdim=True) / tokens_B1)", "log_ratio_BT.sum(-1, keepdim=True))"),
    gspo(
        "gspo-mean-over-the-padding",
        "log_ratio_BT.sum(-1, keepdim=True) / tokens_B1)",
        "log_ratio_BT.mean(-1, keepdim=True))",
    ),
    gspo("gspo-by-token", "clipped_surrogate(mean_BT, advantages_BT", "clipped_surrogate(log_ratio_BT, advantages_BT"),
    gspo(
        "gspo-mean-over-traces",
        "return -surrogate_BT.sum() / denominator",
        "return -surrogate_BT.mean(-1).sum() / len(surrogate_BT)",
    ),
    cispo(
        "cispo-weight-has-a-gradient",
        "log_ratio.detach().clamp(-LOG_MAX, LOG_MAX).exp()",
        "log_ratio.clamp(-LOG_MAX, LOG_MAX).exp()",
    ),
    cispo("cispo-without-weight", "-(weight * advantages * score)", "-(advantages * score)"),
    cispo(
        "cispo-drops-limited-tokens",
        "weight = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)",
        "weight = ratio * ((ratio >= 1 - self.clip_low) & (ratio <= 1 + self.clip_high))",
    ),
    cispo(
        "cispo-lower-limit-is-lost",
        "ratio.clamp(1 - self.clip_low, 1 + self.clip_high)",
        "ratio.clamp(max=1 + self.clip_high)",
    ),
    correction(
        "correction-upside-down", "torch.where(mask, proximal - sampler,", "torch.where(mask, sampler - proximal,"
    ),
    correction("correction-has-a-gradient", "proximal.new_zeros(())).detach()", "proximal.new_zeros(()))"),
    correction("mis-by-token", 'if kind == "mis":', 'if kind == "icepop":'),
    correction("mis-mean-for-product", "log_weight.sum(-1, keepdim=True)", "log_weight.mean(-1, keepdim=True)"),
    correction(
        "tis-masks", "limited = weight.clamp(low, high)", "limited = torch.where(inside, weight, weight.new_zeros(()))"
    ),
    correction("masked-weights-stay", "torch.where(inside, weight, weight.new_zeros(()))", "weight.clamp(low, high)"),
    correction("lower-limit-is-ignored", "(weight >= low) & (weight <= high)", "weight <= high"),
    correction(
        "share-of-all-positions", "(~inside & mask).sum() / mask.sum().clamp(min=1)", "(~inside & mask).float().mean()"
    ),
    reference("reference-k1", "(torch.expm1(gap) - gap).sum()", "(-gap).sum()"),
    reference(
        "reference-upside-down",
        "logprobs_reference - logprobs_new, logprobs",
        "logprobs_new - logprobs_reference, logprobs",
    ),
    reference(
        "reference-over-all-tokens",
        "torch.where(mask.bool(), logprobs_reference - logprobs_new, logprobs_new.new_zeros(()))",
        "logprobs_reference - logprobs_new",
    ),
    entropy("drift-sign", "drift = -(advantages", "drift = (advantages"),
    entropy("drift-without-entropy", "(logprobs.detach() + entropy)", "logprobs.detach()"),
    registry("corrected-against-the-engine", 'old = _needed(proximal, "proximal"', '_needed(proximal, "proximal"'),
    registry(
        "correction-is-not-applied",
        "advantages = advantages * weights  #",
        "advantages = advantages * weights.clamp(1, 1)  #",
    ),
    registry("reference-weight-is-ignored", "loss = loss + objective.kl * drift", "loss = loss + drift"),
    registry("reference-sign", "loss = loss + objective.kl * drift", "loss = loss - objective.kl * drift"),
    registry(
        "reference-own-denominator",
        "reference_kl(logprobs, goal, mask, denominator=denominator)",
        'reference_kl(logprobs, goal, mask, denominator=float(stats["tokens"]))',
    ),
    registry("parts-of-traces-pass", "if row.key in seen:", "if False:"),
    sft("sft-unweighted", "-(weights * torch.where", "-((weights != 0) * torch.where"),
    sft("sft-mean", ".sum() / denominator", ".mean()"),
    sft("sft-ascends", "return -(weights", "return (weights"),
    correction("icepops-published-limits", '"icepop": (0.5, 5.0)', '"icepop": (0.0, 5.0)'),
    correction("mis-takes-parts", 'return self.correction == "mis"', "return False"),
    gspo("gspo-takes-parts", "return True", "return False"),
    correction(
        "given-limits-are-ignored",
        "return self.correction_limits or _PUBLISHED[self.correction]",
        "return _PUBLISHED[self.correction]",
    ),
]
