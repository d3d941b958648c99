"""The cold start: imitation of scripted demonstrations, until the policy speaks the format and can do every plan.

The result is cached by a hash of all that it depends on; a shipped starter with the same hash saves the time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import ray

from model.checkpoint import load_policy, save_policy
from model.decoder import Weights
from model.tokenizer import Tokenizer
from parl.cluster import actor, local_ray, wait
from parl.config import Config, OptimizerConfig
from parl.demos import Demonstrator, build_tokenizer
from parl.errors import UserError
from parl.learner import TextRow
from parl.learner_group import LearnerGroup
from parl.loading import config_hash
from rollouts.episode import EpisodeStatus, Trace

Report = Callable[[int, int, dict[str, float]], None]  # tokens done, tokens in all, metrics

_CHUNK = 48  # demonstrations that one call makes
_AHEAD = 3  # calls under way
_SUBAGENTS = 3  # sub-agent traces kept of one demonstration: they are all alike
_POOL = 49_152  # tokens that are shuffled together
_DRILL = 48  # random tokens that a drill repeats
_DEADLINE_S = 300.0
VERSION = 2  # part of the hash: raised when the demonstrations or the recipe change in code


def cold_start_hash(config: Config) -> str:
    """12 hex digits of everything that the cold start depends on."""
    return config_hash(config.model, config.tokenizer, config.envs.world, config.sft, VERSION)


def run_sft(
    config: Config, *, from_scratch: bool = False, out: Path | None = None, report: Report | None = None
) -> Path:
    """The folder of the cold start (weights and tokenizer): cached, shipped, or trained now.

    ``out``: also write it to ``out``/HASH in bfloat16, to be shipped as a starter.
    """
    key = cold_start_hash(config)
    folder = config.root / "cold_start" / key
    shipped = config.starter / key if config.starter else None
    if from_scratch or not (folder / "model.safetensors").exists():
        if not from_scratch and shipped and (shipped / "model.safetensors").exists():
            shutil.copytree(shipped, folder, dirs_exist_ok=True)
        else:
            weights, tokenizer, metrics = _train(config, report or _print_report)
            save_policy(folder, config.model, weights, tokenizer, {"hash": key, **metrics})
    if out is not None:
        weights, _, tokenizer, meta = load_policy(folder)
        save_policy(out / key, config.model, weights, tokenizer, meta, dtype="bfloat16")
        return out / key
    return folder


def learning_rate(done: float) -> float:
    """Multiplier at ``done`` of the training: 2 % warm-up, then linear to 0."""
    return min(done / 0.02, 1.0) * max(1.0 - done, 0.02)


def width_limit(done: float, widest: int) -> int:
    """Curriculum: rows of the widest table: 3 for the first tenth (copying is learned there), all from 0.6 on."""
    return int(min(widest, 3 + max(widest - 3, 0) * max(done - 0.1, 0.0) / 0.5))


def text_rows(demonstration, observation_weight: float, rng: Random) -> list[TextRow]:
    """The traces of a demonstration as rows; of its sub-agents a few at random."""
    subagents = demonstration.subagents
    chosen = rng.sample(subagents, min(_SUBAGENTS, len(subagents)))
    return [_row(trace, observation_weight) for trace in (demonstration.orchestrator, *chosen)]


def _row(trace: Trace, observation_weight: float) -> TextRow:
    weights = np.where(np.array(trace.mask), np.float32(1), np.float32(observation_weight))
    return TextRow(tokens=np.array(trace.tokens, np.int32), weights=weights)


def drill(vocab: int, rng: np.random.Generator) -> TextRow:
    """A copying drill: random tokens, then the same again. What can be copied is trained, the first half is not.

    A small policy needs this: in demonstrations few tokens can be copied from far back, and it takes a long time to
    find out how; here nearly every token can, and a few hundred steps suffice.
    """
    segment = rng.integers(0, vocab, _DRILL).astype(np.int32)
    tokens = np.concatenate([segment, segment, segment[: _DRILL // 2]])
    weights = np.where(np.arange(len(tokens)) > _DRILL, np.float32(1), np.float32(0))
    return TextRow(tokens=tokens, weights=weights)


class DemoWorker:
    """Ray actor: demonstrations as rows."""

    def __init__(self, config: Config, tokenizer_path: str) -> None:
        self._config = config
        self._demos = Demonstrator(config, Tokenizer.load(tokenizer_path))

    async def rows(self, start: int, max_width: int) -> list[TextRow]:
        """Rows of demonstrations ``start`` to ``start + 48``: a function of its arguments alone."""
        rng = Random(f"rows:{self._config.sft.seed}:{start}")
        rows: list[TextRow] = []
        for index in range(start, start + _CHUNK):
            episode = await self._demos.episode(index, max_width=max_width)
            if episode.status is not EpisodeStatus.ANSWERED:
                raise RuntimeError(f"demonstration {index} ended {episode.status}: {episode.error or episode.limit}")
            limit = self._config.model.max_position_embeddings
            fitting = text_rows(episode, self._config.sft.observation_weight, rng)
            rows += [row for row in fitting if len(row.tokens) <= limit]
        return rows


def _train(config: Config, report: Report) -> tuple[Weights, Tokenizer, dict]:
    sft = config.sft
    tokenizer = build_tokenizer(config)
    work = config.root / "cold_start"
    work.mkdir(parents=True, exist_ok=True)
    path = tokenizer.save(work / "tokenizer.json")
    with local_ray():
        optimizer = OptimizerConfig(lr=sft.lr, muon_lr=sft.muon_lr)
        learner = LearnerGroup(
            config.model,
            optimizer,
            seed=sft.seed,
            ranks=config.trainer.ranks,
            threads=config.trainer.threads,
            micro_tokens=config.trainer.micro_tokens,
            deadline_s=_DEADLINE_S,
        )
        worker = actor(DemoWorker, config, str(path.resolve()))
        done, metrics = 0, {}
        for batch in _batches(config, worker):
            scale = learning_rate(done / sft.tokens)
            metrics = learner.text_step(batch, lr_scale=scale)
            done += sum(len(row.tokens) for row in batch)
            report(min(done, sft.tokens), sft.tokens, metrics)
            if done >= sft.tokens:
                break
        weights = learner.weights()
        learner.close()
        ray.kill(worker)
    if not np.isfinite(metrics["loss"]):
        raise UserError("the cold start diverged: lower sft.lr and sft.muon_lr")
    return weights, tokenizer, metrics


def _batches(config: Config, worker) -> Iterator[list[TextRow]]:
    """Batches of at least ``batch_tokens`` tokens: copying drills, then mixed traces in a seeded order."""
    numbers = np.random.default_rng(config.sft.seed)
    drilled = 0
    while drilled < config.sft.drill_tokens:
        rows = [
            drill(config.tokenizer.vocab_size, numbers) for _ in range(-(-config.sft.batch_tokens // (_DRILL * 5 // 2)))
        ]
        drilled += sum(len(row.tokens) for row in rows)
        yield rows
    rng = Random(config.sft.seed)
    size, drawn, start = config.sft.batch_tokens, drilled, 0
    pending: list = []
    pool: list[TextRow] = []
    while True:
        while len(pending) < _AHEAD:
            width = width_limit(drawn / config.sft.tokens, config.envs.world.widths[1])
            pending.append(worker.rows.remote(start, width))
            start += _CHUNK
        pool += wait(pending.pop(0), _DEADLINE_S)
        total = sum(len(row.tokens) for row in pool)
        if total < max(6 * size, _POOL):
            continue
        drawn += total
        rng.shuffle(pool)  # a batch of like rows only would make the gradient swing from one kind to the next
        batches: list[list[TextRow]] = [[]]
        for row in pool:
            batches[-1].append(row)
            if sum(len(r.tokens) for r in batches[-1]) >= size:
                batches.append([])
        batches = [batch for batch in batches if batch]
        pool = []
        yield from batches


def _print_report(done: int, total: int, metrics: dict[str, float]) -> None:
    if done // 200_000 != (done - 8192) // 200_000 or done >= total:
        print(f"cold start {done / 1e6:.1f}/{total / 1e6:.1f} M tokens  loss {metrics['loss']:.3f}  "
              f"accuracy {metrics['accuracy']:.3f}", flush=True)  # fmt: skip
