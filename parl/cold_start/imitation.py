"""The cold start: imitation of demonstrations, until the policy speaks the format and can do every plan.

From scratch, or over the weights that ``model.init`` names. The result is cached by a hash of all that it depends on;
a shipped starter with the same hash saves the time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from model.decoder import Weights
from model.family import Shape, family_of
from model.files import replacing
from model.lora import merged
from model.policy_files import SINGLE, load_policy, save_policy
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.drills import drill_batches
from parl.cold_start.given import check_placeholder, owning_cold_start, taken_over
from parl.cold_start.kept import Kept, State
from parl.cold_start.rows import CHUNK, row_maker
from parl.cold_start.shipped import Recipe, cold_start_hash, cold_start_settings, shipped, starter_note
from parl.cold_start.vocabulary import build_tokenizer
from parl.config.schema import Config, SftConfig, TrainerConfig
from parl.errors import UserError
from parl.learn.batch import TextRow
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.group import LearnerGroup
from parl.machine.cluster import actor, local_ray, stop, use, wait
from parl.machine.nodes.check import data_paths
from parl.shown.terminal import echo

Report = Callable[[int, int, dict[str, float]], None]  # tokens done, tokens in all, metrics
Check = Callable[
    [Weights, Path, int], dict[str, float]
]  # weights, a policy's folder with their tokenizer, tokens so far -> "score", ...

_AHEAD = 3  # calls under way
_POOL = 49_152  # tokens that are shuffled together
_ENOUGH = 480  # demonstrations of which one has to fit
_DEADLINE_S = 300.0
_KEEP_S = 240.0  # between two states on disk: what a kill costs at most


def run_sft(
    config: Config,
    *,
    from_scratch: bool = False,
    out: Path | None = None,
    report: Report | None = None,
    check: Check | None = None,
) -> Path:
    """The folder of the cold start (weights and tokenizer): cached, shipped, or trained now.

    ``out``: also write it to ``out``/HASH in bfloat16, to be shipped as a starter. ``check`` lets a policy run freely
    on val, for ``sft.enough``.
    """
    if config.model.init is not None and config.sft.data is None:
        raise UserError(
            f"model.init = {config.model.init}: there is no cold start to train; set sft.data to what is to be imitated"
            " (teacher, or a file), or leave model.init out"
        )
    use(config.cluster, data_paths(config.envs.config))
    recipe = Recipe.of(config)
    key = cold_start_hash(recipe)
    folder = config.root / "cold_start" / key
    starter = shipped(recipe)
    if from_scratch or not (folder / SINGLE).exists():
        with owning_cold_start(folder):
            if not from_scratch and starter:
                with replacing(folder) as partial:
                    shutil.copytree(starter, partial)
            elif from_scratch or not (folder / SINGLE).exists():
                if not from_scratch and (note := starter_note(recipe)):
                    echo(f"note: {note}", err=True)
                kept = Kept(folder.with_name(f"{key}.kept"))
                if from_scratch:
                    kept.drop()
                weights, tokenizer, metrics = _train(recipe, config.trainer, kept, report or print_report(), check)
                meta = {"hash": key, **metrics, "settings": cold_start_settings(recipe)}
                save_policy(folder, config.model.shape, weights, tokenizer, meta)
                kept.drop()
    if out is not None:
        weights, _, tokenizer, meta = load_policy(folder, family_of(config.model))
        save_policy(out / key, config.model.shape, weights, tokenizer, meta, dtype="bfloat16")
        return out / key
    return folder


def learning_rate(done: float) -> float:
    """From scratch, the multiplier at ``done`` of the training: 2 % warm-up, then 1; over the last 40 % linear to 0."""
    return min(done / 0.02, 1.0) * min(max(1.0 - done, 0.02) / 0.4, 1.0)


def fine_tuning_rate(done: float) -> float:
    """Over given weights: 5 % warm-up, then linear to a twentieth."""
    return min((done + 0.005) / 0.05, 1.0) * max(1.0 - 0.95 * done, 0.05)


@dataclass(slots=True)
class Fit:
    """How many demonstrations fit the policy's context of ``limit`` tokens, of those that were made."""

    limit: int
    made: int = 0
    fit: int = 0
    shortest: int = 0

    def count(self, lengths: list[int]) -> None:
        """Demonstrations of these lengths came; UserError where none of the first few hundred fits."""
        self.made += len(lengths)
        self.fit += sum(length <= self.limit for length in lengths)
        self.shortest = min([*lengths, *([self.shortest] if self.shortest else [])])
        if not self.fit and self.made >= _ENOUGH:
            raise UserError(
                f"none of {self.made} demonstrations fits model.max_position_embeddings = {self.limit} (the shortest"
                f" has {self.shortest} tokens): raise it, lower envs.config.widths, or shorten the table's cells"
            )

    def note(self) -> str | None:
        """What was left out, None where nothing was."""
        left = self.made - self.fit
        return (
            f"{left} of {self.made} demonstrations were longer than model.max_position_embeddings = {self.limit} and"
            " were left out of the cold start"
            if left
            else None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What imitation begins with. ``vocabulary``: where actors read it; ``weights`` None: from scratch."""

    tokenizer: Tokenizer
    vocabulary: Path
    weights: Weights | None

    @classmethod
    def of(cls, recipe: Recipe) -> _Start:
        work = recipe.root / "cold_start"
        if recipe.model.init is not None:
            folder = taken_over(recipe.model, work)
            weights, _, tokenizer, _ = load_policy(folder, family_of(recipe.model))
            return cls(tokenizer=tokenizer, vocabulary=folder, weights=weights)
        tokenizer = build_tokenizer(recipe)
        check_placeholder(recipe.model, tokenizer)
        work.mkdir(parents=True, exist_ok=True)
        path = tokenizer.save(work / f"tokenizer-{cold_start_hash(recipe)}.json")
        return cls(tokenizer=tokenizer, vocabulary=path, weights=None)


def _train(
    recipe: Recipe, trainer: TrainerConfig, kept: Kept, report: Report, check: Check | None
) -> tuple[Weights, Tokenizer, dict]:
    sft, start = recipe.sft, _Start.of(recipe)
    given = start.weights is not None
    rate = fine_tuning_rate if given else learning_rate
    fit = Fit(recipe.model.max_position_embeddings)
    metrics: dict[str, float] = {}
    with local_ray():
        learner = _learner(recipe.model, sft, trainer, drawn=not given)
        if start.weights is not None:
            learner.load_weights(start.weights, start.vocabulary)
        worker = actor(*row_maker(recipe, start.vocabulary), _label="the maker of demonstrations")
        state = kept.resume(learner) if given else State()
        batches = islice(_batches(recipe, start.tokenizer, worker, fit), state.batches, None)
        enough = False
        while state.tokens < sft.tokens and not enough:
            batch, before = next(batches), state.tokens
            metrics |= learner.text_step(batch, lr_scale=rate(state.tokens / sft.tokens))
            state.batches, state.tokens = state.batches + 1, before + sum(len(row.tokens) for row in batch)
            report(min(state.tokens, sft.tokens), sft.tokens, metrics)
            due = state.tokens >= sft.tokens or state.tokens // sft.check_tokens > before // sft.check_tokens
            if given and (due or kept.age_s > _KEEP_S):
                kept.save(learner, state)
            if given and due and sft.enough is not None:
                metrics |= _checked(sft, start, learner, state, check)
                kept.note(state)
                enough = metrics["score"] >= sft.enough
        weights = learner.weights()
        learner.close()
        stop([worker])
    if note := fit.note():
        echo(f"note: {note}", err=True)
    if not np.isfinite(metrics.get("loss", 0.0)):
        raise UserError("the cold start diverged: lower sft.lr and sft.muon_lr")
    meta: dict[str, Any] = {**metrics, "tokens": state.tokens} if given else metrics
    if state.scores:
        meta["scores"] = state.scores
    return merged(start.weights or {}, weights), start.tokenizer, meta


def _learner(model: Shape, sft: SftConfig, trainer: TrainerConfig, *, drawn: bool) -> LearnerGroup:
    parallel = trainer.parallel
    if sft.lora is not None:  # every rank holds the adapters whole, and they have few states to share
        parallel = ParallelConfig(recompute=parallel.recompute)
    return LearnerGroup(
        model,
        OptimizerConfig(lr=sft.lr, muon_lr=sft.muon_lr, lora=sft.lora),
        seed=sft.seed,
        ranks=trainer.ranks,
        threads=trainer.threads,
        micro_tokens=trainer.micro_tokens,
        deadline_s=max(_DEADLINE_S, trainer.step_s),
        parallel=parallel,
        drawn=drawn,
        device=trainer.device,
    )


def _checked(
    sft: SftConfig, start: _Start, learner: LearnerGroup, state: State, check: Check | None
) -> dict[str, float]:
    """Let the policy run freely on val, and say how it did."""
    if check is None:
        raise ValueError("sft.enough needs a check")
    echo(f"cold start after {state.tokens / 1e3:.0f} k tokens: it runs freely on {sft.check_tasks} tasks of val")
    found = check(merged(start.weights or {}, learner.weights()), start.vocabulary, state.tokens)
    state.scores.append((state.tokens, found["score"]))
    said = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    left = "" if found["score"] >= (sft.enough or 0) else f", {sft.enough} is enough"
    if left and state.tokens >= sft.tokens:
        left += ": sft.tokens are used up; raise them where reinforcement does not find enough to reward"
    echo(f"free-running on val: {said}{left}")
    return found


def _batches(recipe: Recipe, tokenizer: Tokenizer, worker, fit: Fit) -> Iterator[list[TextRow]]:
    """Batches of at least ``batch_tokens`` tokens: from scratch drills, then mixed traces in a seeded order."""
    if recipe.model.init is None:
        yield from drill_batches(recipe, tokenizer)
    rng = Random(recipe.sft.seed)
    size, start = recipe.sft.batch_tokens, 0
    pending: list = []
    pool: list[TextRow] = []
    while True:
        while len(pending) < _AHEAD:
            pending.append(worker.chunk.remote(start))
            start += CHUNK
        rows, lengths = wait(pending.pop(0), _DEADLINE_S, [worker])
        fit.count(lengths)
        pool += rows
        total = sum(len(row.tokens) for row in pool)
        if total < max(6 * size, _POOL):
            continue
        rng.shuffle(pool)  # a batch of like rows only would make the gradient swing from one kind to the next
        batches: list[list[TextRow]] = [[]]
        for row in pool:
            batches[-1].append(row)
            if sum(len(r.tokens) for r in batches[-1]) >= size:
                batches.append([])
        batches = [batch for batch in batches if batch]
        pool = []
        yield from batches


def print_report() -> Report:
    """Prints a line every 2.5 %."""
    shown = -1

    def report(done: int, total: int, metrics: dict[str, float]) -> None:
        nonlocal shown
        if done * 40 // total != shown:
            shown = done * 40 // total
            echo(f"cold start {done / 1e6:.2f}/{total / 1e6:.2f} M tokens  loss {metrics['loss']:.3f}  "
                  f"accuracy {metrics['accuracy']:.3f}")  # fmt: skip

    return report
