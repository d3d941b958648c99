"""The learner for the driver: one or more ranks in Ray actors that split each step's rows.

Rows are distributed by cost; the loss of every rank is divided by the same global denominator and DeepSpeed
reduces the gradients, so the number of ranks does not change them. A dead or silent rank ends the run: its
peers wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from model.arrays import Sent
from model.decoder import Weights
from model.family import Shape
from model.policy_read import is_plain
from parl.errors import UserError
from parl.learn.batch import TextRow
from parl.learn.config import NOT_PARALLEL, Device, OptimizerConfig, ParallelConfig, settled
from parl.learn.learner import Learner
from parl.learn.objective.base import Objective
from parl.learn.objective.loss import check_rows
from parl.learn.rows import Row, denominator
from parl.learn.shard.parts import Part
from parl.machine.cluster import actor, stop, wait
from parl.machine.nodes.files import IO, blind, fetch, new_folder, send
from parl.machine.nodes.place import Ranks

_KNOWN_TO_ALL = ("grad_norm", "max_logit", "clipped_heads", "route_overlap", "route_overlap_min")
_START_S = 300.0
_ATTENTION_TOKENS = 1500  # length at which attention costs as much as the rest of a token


class LearnerGroup:
    """``ranks`` learners with ``threads`` CPU threads each, and with a GPU each if ``device`` says so.

    ``deadline_s`` bounds every call.
    """

    def __init__(
        self,
        model: Shape,
        optimizer: OptimizerConfig,
        *,
        seed: int,
        ranks: int,
        threads: int,
        micro_tokens: int,
        deadline_s: float,
        parallel: ParallelConfig = NOT_PARALLEL,
        drawn: bool = True,
        device: Device | Literal["auto"] = "cpu",
    ) -> None:
        self._micro_tokens, self._deadline_s = micro_tokens, deadline_s
        chosen = learner_device(device, ranks)
        parallel = settled(parallel, model, optimizer)
        self._shared = parallel.zero > 0 or parallel.expert_parallel > 1
        self._places = Ranks(ranks, threads=threads, gpu=chosen == "cuda")
        shared = {"seed": seed, "threads": threads, "ranks": ranks, "parallel": parallel, "drawn": drawn}
        shared |= {"device": chosen, **self._places.meeting._asdict()}
        hosted = {"_threads": threads, "_beside": IO, "_gpus": int(chosen == "cuda")}
        self._ranks = [
            actor(
                Learner,
                model,
                optimizer,
                rank=rank,
                _label=f"learner rank {rank}",
                _place=self._places.options(rank),
                **shared,
                **hosted,
            )
            for rank in range(ranks)
        ]
        self.touched = False  # whether the state may be in the middle of a step
        self._all("ready", deadline_s=min(deadline_s, _START_S))

    def policy_step(
        self,
        rows: list[Row],
        objective: Objective,
        *,
        temperature: float,
        lr_scale: float,
        texts: Sequence[TextRow] = (),
    ) -> dict[str, float]:
        """One optimiser step of the policy objective over ``rows``; metrics over all ranks.

        ``texts`` are imitated at the same time, required if ``objective.ptx`` is not 0.
        """
        check_rows(objective, rows)
        self.touched = True
        weight = float(sum(row.weights[1:].sum() for row in texts))
        if objective.ptx and not weight:
            raise ValueError(f"objective.ptx={objective.ptx:g} needs texts to imitate")
        settings = {"denominator": float(denominator(rows)), "temperature": temperature, "lr_scale": lr_scale}
        if objective.ptx:
            settings["text_denominator"] = weight
        shares = zip(
            self._ranks, deal_rows(rows, len(self._ranks)), deal_rows(list(texts), len(self._ranks)), strict=True
        )
        calls = [
            rank.policy_step.remote(share, objective, micro_tokens=self._micro_tokens, texts=read, **settings)
            for rank, share, read in shares
        ]
        return _merged(wait(calls, self._deadline_s, self._ranks, computing=True))

    def score(self, rows: list[Row], objective: Objective, *, temperature: float) -> list[Row]:
        """``rows`` with the learner's log-probs that ``objective`` needs; call it before the first update."""
        for field, needed in (("proximal", objective.corrects), ("reference", objective.kl > 0)):
            if needed:
                found = self._logprobs(rows, temperature, reference=field == "reference")
                rows = [replace(row, **{field: values}) for row, values in zip(rows, found, strict=True)]
        return rows

    def set_reference(self, weights: Weights, folder: Path | None = None) -> None:
        """Set the frozen reference policy of ``objective.kl``; ``folder`` as in :meth:`load_weights`."""
        self._given("set_reference", weights, folder)

    def _logprobs(self, rows: list[Row], temperature: float, *, reference: bool) -> list[np.ndarray]:
        shares = deal_rows(rows, len(self._ranks))
        settings = {"temperature": temperature, "micro_tokens": self._micro_tokens, "reference": reference}
        calls = [rank.logprobs.remote(share, **settings) for rank, share in zip(self._ranks, shares, strict=True)]
        found = wait(calls, self._deadline_s, self._ranks, computing=True)
        pairs = zip(shares, found, strict=True)
        values = {id(row): own for share, part in pairs for row, own in zip(share, part, strict=True)}
        return [values[id(row)] for row in rows]

    def text_step(self, rows: list[TextRow], *, lr_scale: float) -> dict[str, float]:
        """One optimiser step of imitation; ``accuracy`` is the share of agents' tokens with probability above 1/2."""
        total = float(sum(row.weights.sum() for row in rows))
        calls = [
            rank.text_step.remote(share, denominator=total, micro_tokens=self._micro_tokens, lr_scale=lr_scale)
            for rank, share in zip(self._ranks, deal_rows(rows, len(self._ranks)), strict=True)
        ]
        metrics = _merged(wait(calls, self._deadline_s, self._ranks, computing=True))
        right, acted = metrics.pop("right"), metrics.pop("acted")
        return metrics | {"accuracy": right / max(acted, 1.0)}

    def weights(self) -> Weights:
        """The weights for engines, see :meth:`Learner.weights`."""
        if self._shared:
            return self._all("weights")[0]
        return wait(self._ranks[0].weights.remote(), self._deadline_s, self._ranks[:1])

    def load_weights(self, weights: Weights, folder: Path | None = None) -> None:
        """Replace all parameters on every rank.

        Ranks that see ``folder``, a run's policy folder with the same weights, read it themselves, each its part;
        the others are sent ``weights`` whole.
        """
        self._given("load_weights", weights, folder)

    def _given(self, method: str, weights: Weights, folder: Path | None) -> None:
        plain = folder is not None and is_plain(folder)
        apart = blind(self._ranks, folder) if folder and plain else [True] * len(self._ranks)
        sent = ray.put(Sent(weights)) if any(apart) else None
        calls = [
            getattr(rank, method).remote(sent if far or folder is None else folder.resolve())
            for rank, far in zip(self._ranks, apart, strict=True)
        ]
        wait(calls, self._deadline_s, self._ranks)

    def snapshot(self) -> int:
        """Copy the state of all ranks to host memory; its bytes."""
        return sum(self._all("snapshot"))

    def write_snapshot(self, folder: Path) -> list[Part]:
        """Write the last :meth:`snapshot` into ``folder``, also while the ranks step. OSError: a full disk.

        Ranks that do not see the folder write on their own nodes, from where the parts are fetched.
        """
        folder = folder.resolve()
        apart = blind(self._ranks, folder)
        targets = [new_folder(rank) if far else folder for rank, far in zip(self._ranks, apart, strict=True)]
        calls = [
            rank.write_snapshot.options(concurrency_group=IO).remote(target)
            for rank, target in zip(self._ranks, targets, strict=True)
        ]
        parts = wait(calls, self._deadline_s, self._ranks)
        for rank, far, target, part in zip(self._ranks, apart, targets, parts, strict=True):
            if far:
                fetch(rank, target / part.file, folder / part.file)
                rank.drop.options(concurrency_group=IO).remote(target)
        return parts

    def save(self, folder: Path, tag: str) -> None:
        """Weights and optimiser under ``folder``/``tag``, at once."""
        (folder / tag).mkdir(parents=True, exist_ok=True)
        self.snapshot()
        self.write_snapshot(folder / tag)

    def load(self, folder: Path, tag: str) -> None:
        """Weights and optimiser, written by any number of ranks; FileNotFoundError if there is nothing.

        Ranks that do not see the folder are sent its parts.
        """
        source = folder.resolve() / tag
        apart = blind(self._ranks, source) if source.is_dir() else [False] * len(self._ranks)
        files = sorted(source.glob("part-*"))
        places = [send(rank, files) if far else source for rank, far in zip(self._ranks, apart, strict=True)]
        calls = [rank.load.remote(place.parent, place.name) for rank, place in zip(self._ranks, places, strict=True)]
        wait(calls, self._deadline_s, self._ranks)
        for rank, place, far in zip(self._ranks, places, apart, strict=True):
            if far:
                rank.drop.options(concurrency_group=IO).remote(place)

    def close(self) -> None:
        """Stop all ranks."""
        stop(self._ranks)
        self._places.close()

    def _all(self, method: str, *args: Any, deadline_s: float | None = None) -> list[Any]:
        calls = [getattr(rank, method).remote(*args) for rank in self._ranks]
        return wait(calls, deadline_s or self._deadline_s, self._ranks)


def learner_device(wanted: Device | Literal["auto"], ranks: int) -> Device:
    """``wanted``, or with ``auto`` a GPU for each rank where the cluster has any.

    UserError if it has too few.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return "cpu"
    if gpus < ranks:
        fix = f"set trainer.ranks={gpus}, or " if gpus else "install a CUDA build of torch and a driver, or "
        raise UserError(
            f"trainer.device={wanted}, trainer.ranks={ranks}: every rank needs a GPU, and Ray finds {gpus}: {fix}set"
            " trainer.device=cpu"
        )
    return "cuda"


def deal_rows(rows: list, ranks: int) -> list[list]:
    """Rows by falling cost, each to the rank with the least so far; a rank may get none."""
    shares: list[list] = [[] for _ in range(ranks)]
    costs = np.zeros(ranks)
    for row in sorted(rows, key=lambda r: -len(r.tokens)):
        rank = int(costs.argmin())
        shares[rank].append(row)
        costs[rank] += len(row.tokens) * (1 + len(row.tokens) / _ATTENTION_TOKENS)
    return shares


def _merged(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Sums over ranks; values equal on all ranks are taken once, of gaps the largest."""
    out = {name: sum(m[name] for m in metrics) for name in metrics[0]}
    out |= {name: metrics[0][name] for name in _KNOWN_TO_ALL if name in out}
    if "logprob_gap" in out:
        out["logprob_gap"] = max(m["logprob_gap"] for m in metrics)
    return out
