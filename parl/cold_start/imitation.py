"""The cold start: imitation of scripted demonstrations, until the policy speaks the format and can do every plan.

The result is cached by a hash of all that it depends on; a shipped starter with the same hash saves the time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from model.decoder import Weights
from model.family import Shape, family_of
from model.files import remove_leftovers, replacing
from model.policy_files import SINGLE, load_policy, save_policy
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.demos import Demonstrator
from parl.cold_start.drills import drill_batches
from parl.cold_start.shipped import cold_start_hash, cold_start_settings, shipped, starter_note
from parl.cold_start.vocabulary import build_tokenizer
from parl.config.schema import Config
from parl.errors import UserError
from parl.learn.batch import TextRow
from parl.learn.config import OptimizerConfig
from parl.learn.group import LearnerGroup
from parl.machine.cluster import actor, local_ray, stop, wait
from parl.machine.ownership import owning
from parl.shown.terminal import echo
from rollouts.beat import AsyncBeating
from rollouts.episode import EpisodeStatus, Trace

Report = Callable[[int, int, dict[str, float]], None]  # tokens done, tokens in all, metrics

_CHUNK = 48  # demonstrations that one call makes
_AHEAD = 3  # calls under way
_SUBAGENTS = 2  # sub-agent traces kept of one demonstration: they are all alike
_POOL = 49_152  # tokens that are shuffled together
_ENOUGH = 480  # demonstrations of which one has to fit
_DEADLINE_S = 300.0


def run_sft(
    config: Config, *, from_scratch: bool = False, out: Path | None = None, report: Report | None = None
) -> Path:
    """The folder of the cold start (weights and tokenizer): cached, shipped, or trained now.

    ``out``: also write it to ``out``/HASH in bfloat16, to be shipped as a starter.
    """
    if config.model.init is not None:
        raise UserError(f"model.init = {config.model.init}: there is no cold start to train; leave the key out")
    key = cold_start_hash(config)
    folder = config.root / "cold_start" / key
    starter = shipped(config)
    if from_scratch or not (folder / SINGLE).exists():
        with owning_cold_start(folder):
            if not from_scratch and starter:
                with replacing(folder) as partial:
                    shutil.copytree(starter, partial)
            elif from_scratch or not (folder / SINGLE).exists():
                if not from_scratch and (note := starter_note(config)):
                    echo(f"note: {note}", err=True)
                weights, tokenizer, metrics = _train(config, report or print_report())
                meta = {"hash": key, **metrics, "settings": cold_start_settings(config)}
                save_policy(folder, config.model.shape, weights, tokenizer, meta)
    if out is not None:
        weights, _, tokenizer, meta = load_policy(folder, family_of(config.model))
        save_policy(out / key, config.model.shape, weights, tokenizer, meta, dtype="bfloat16")
        return out / key
    return folder


@contextmanager
def owning_cold_start(folder: Path) -> Iterator[None]:
    """To make the cold start in ``folder``; UserError where another process is making it."""
    cure = "start again when it is there: runs of the same configuration share it"
    with owning(folder.parent, f"the cold start {folder.name}", cure, name=f".{folder.name}.lock"):
        remove_leftovers(folder.parent, f"{folder.name}.*")
        yield


def learning_rate(done: float) -> float:
    """Multiplier at ``done`` of the training: 2 % warm-up, then 1; over the last 40 % linear to 0."""
    return min(done / 0.02, 1.0) * min(max(1.0 - done, 0.02) / 0.4, 1.0)


def text_rows(demonstration, observation_weight: float, rng: Random) -> list[TextRow]:
    """The traces of a demonstration as rows; of its sub-agents a few at random."""
    subagents = demonstration.subagents
    chosen = rng.sample(subagents, min(_SUBAGENTS, len(subagents)))
    return [_row(trace, observation_weight) for trace in (demonstration.orchestrator, *chosen)]


def _row(trace: Trace, observation_weight: float) -> TextRow:
    weights = np.where(np.array(trace.mask), np.float32(1), np.float32(observation_weight))
    if trace.media:  # that a placeholder follows the last one teaches nothing
        weights[np.array(trace.tokens) == trace.tokens[trace.media_at[0]]] = 0
    return TextRow(tokens=np.array(trace.tokens, np.int32), weights=weights, media=tuple(trace.media))


class DemoWorker(AsyncBeating):
    """Ray actor: demonstrations as rows."""

    def __init__(self, config: Config, tokenizer_path: str) -> None:
        self._config = config
        self._demos = Demonstrator(config, Tokenizer.load(tokenizer_path))

    async def rows(self, start: int, count: int = _CHUNK) -> list[TextRow]:
        """Rows of ``count`` demonstrations from ``start`` on: a function of its arguments alone."""
        return (await self.chunk(start, count))[0]

    async def chunk(self, start: int, count: int = _CHUNK) -> tuple[list[TextRow], list[int]]:
        """The same, and the lengths of the orchestrators' traces, those that do not fit among them."""
        rng = Random(f"rows:{self._config.sft.seed}:{start}")
        rows: list[TextRow] = []
        lengths = []
        for index in range(start, start + count):
            episode = await self._demos.episode(index)
            if episode.status is not EpisodeStatus.ANSWERED:
                raise RuntimeError(f"demonstration {index} ended {episode.status}: {episode.error or episode.limit}")
            limit = self._config.model.max_position_embeddings
            fitting = text_rows(episode, self._config.sft.observation_weight, rng)
            rows += [row for row in fitting if len(row.tokens) <= limit]
            lengths.append(len(episode.orchestrator.tokens))
        return rows, lengths


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


def _train(config: Config, report: Report) -> tuple[Weights, Tokenizer, dict]:
    sft = config.sft
    tokenizer = build_tokenizer(config)
    check_placeholder(config.model, tokenizer)
    work = config.root / "cold_start"
    work.mkdir(parents=True, exist_ok=True)
    path = tokenizer.save(work / f"tokenizer-{cold_start_hash(config)}.json")
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
            parallel=config.trainer.parallel,
        )
        worker = actor(DemoWorker, config, str(path.resolve()), _label="the maker of demonstrations")
        done, metrics = 0, {}
        fit = Fit(config.model.max_position_embeddings)
        for batch in _batches(config, tokenizer, worker, fit):
            scale = learning_rate(done / sft.tokens)
            metrics = learner.text_step(batch, lr_scale=scale)
            done += sum(len(row.tokens) for row in batch)
            report(min(done, sft.tokens), sft.tokens, metrics)
            if done >= sft.tokens:
                break
        weights = learner.weights()
        learner.close()
        stop([worker])
    if note := fit.note():
        echo(f"note: {note}", err=True)
    if not np.isfinite(metrics["loss"]):
        raise UserError("the cold start diverged: lower sft.lr and sft.muon_lr")
    return weights, tokenizer, metrics


def check_placeholder(model: Shape, tokenizer: Tokenizer) -> None:
    """UserError where ``model`` takes another token for a picture's placeholder than the template writes."""
    if model.pictures is None:
        return
    chat, given = family_of(model).chat(model, tokenizer), model.picture_id
    if given != chat.picture_id:
        raise UserError(
            f"model.media_placeholder_token_id={given} is not the tokenizer's id of {chat.picture}: set it to"
            f" {chat.picture_id}"
        )


def _batches(config: Config, tokenizer: Tokenizer, worker, fit: Fit) -> Iterator[list[TextRow]]:
    """Batches of at least ``batch_tokens`` tokens: drills, then mixed traces in a seeded order."""
    yield from drill_batches(config, tokenizer)
    rng = Random(config.sft.seed)
    size, start = config.sft.batch_tokens, 0
    pending: list = []
    pool: list[TextRow] = []
    while True:
        while len(pending) < _AHEAD:
            pending.append(worker.chunk.remote(start))
            start += _CHUNK
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
            echo(f"cold start {done / 1e6:.1f}/{total / 1e6:.1f} M tokens  loss {metrics['loss']:.3f}  "
                  f"accuracy {metrics['accuracy']:.3f}")  # fmt: skip

    return report
