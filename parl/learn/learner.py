"""The learner: rows and denominators in, new weights and metrics out. It knows no agents, rewards or tasks.

One DeepSpeed engine over the policy. Rows are packed into micro-batches; a loss turns the log-probs of the
trained tokens into a sum divided by the caller's global denominator, so the number of rows, their order and
the micro-batch size do not change the gradient.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.arrays import Sent, fill, to_numpy
from model.decoder import Weights
from model.family import Shape, family_of
from model.lora import PREFIX, attach
from model.policy import Policy
from model.policy_read import load_weights
from parl.learn.batch import HOST, Batch, TextRow, lay, micro_batches
from parl.learn.config import NOT_PARALLEL, Device, OptimizerConfig, ParallelConfig, settled
from parl.learn.objective.base import Objective
from parl.learn.objective.loss import check_rows
from parl.learn.process import FreedMemory, free_port, prepare_process
from parl.learn.qk_clip import QKClip
from parl.learn.route_replay import RouteWatch, check_routes
from parl.learn.rows import Row
from parl.learn.shard.learner_state import Snapshot, restore, share_of, whole_pieces
from parl.learn.shard.optimizer import NotFiniteLoss
from parl.learn.shard.parts import Part, PartsReader
from parl.learn.shard.shards import Shards
from parl.learn.terms import Sums, add, metric_names, policy_terms, read, text_terms
from parl.machine.nodes.files import Apart
from parl.machine.nodes.place import LOOPBACK
from rollouts.beat import Beating

_OPTIONAL = ("routes", "proximal", "reference")  # optional fields of a row


class Learner(Apart, Beating):
    """Trains one policy, in process or as a Ray actor (``parl.machine.cluster``).

    ``drawn``: whether it begins with weights drawn by ``seed``; without, :meth:`load_weights` must come first.
    ``address`` and ``port``: where the ranks meet. ``device``: where the policy computes; weights are drawn on
    the host, so they do not depend on it.
    """

    def __init__(
        self,
        model: Shape,
        optimizer: OptimizerConfig,
        *,
        seed: int,
        threads: int = 1,
        rank: int = 0,
        ranks: int = 1,
        port: int | None = None,
        address: str = LOOPBACK,
        parallel: ParallelConfig = NOT_PARALLEL,
        drawn: bool = True,
        device: Device = "cpu",
    ) -> None:
        self.rank, self.ranks = rank, ranks
        self._snapshot: Snapshot | None = None
        meeting = {"port": port or free_port(), "address": address}
        self.device = prepare_process(device, threads=threads, rank=rank, ranks=ranks, **meeting)
        torch.manual_seed(seed)
        family = family_of(model)
        parallel = settled(parallel, model, optimizer)
        if parallel.zero == 3 and not drawn:
            self.model = family.outline(model)
        else:
            self.model = (family.policy(model) if drawn else family.blank(model)).to(self.device)
        self.model.freeze_tower(optimizer.freeze_tower)
        self._limits = model.pictures
        self._reference: Policy | None = None
        lora = optimizer.lora
        self._lora = attach(self.model, **lora.model_dump()) if lora else None
        # the frozen weights under adapters are in no checkpoint
        self._beneath = {n for n, p in self.model.named_parameters() if lora and not p.requires_grad}
        self.model.recompute = parallel.recompute
        self._lr = {True: optimizer.muon_lr, False: optimizer.lr}
        self._freed = FreedMemory(sum(p.nbytes for p in self.model.parameters()))
        self._shards = Shards(self.model, optimizer, parallel, ranks=ranks, device=self.device)
        self._freed.give_back()  # DeepSpeed's copies
        self.engine, self.optimizer = self._shards.engine, self._shards.optimizer
        self._lockstep = ranks > 1 and self._shards.shared  # ranks communicate in every pass, not only at its end
        self.model.train()
        self._watch = RouteWatch(self.model.routers())
        self._qk_clip = QKClip(self.model, optimizer.qk_clip, self._shards.whole) if optimizer.qk_clip else None

    # ---------------------------------------------------------------- steps

    def policy_step(
        self,
        rows: list[Row],
        objective: Objective,
        *,
        denominator: float,
        temperature: float,
        micro_tokens: int,
        lr_scale: float = 1.0,
        texts: Sequence[TextRow] = (),
        text_denominator: float = 1.0,
    ) -> dict[str, float]:
        """One optimiser step of ``objective`` over ``rows``, and of ``objective.ptx`` times imitation of
        ``texts``.

        Raises NotFiniteLoss, and ValueError: missing routes or log-probs, or parts of traces instead of whole
        ones.
        """
        check_routes(rows, self.model.config)
        check_rows(objective, rows)
        self._set_lr(lr_scale)
        rows = [_without_tail(row) for row in rows]
        totals: Sums = dict.fromkeys(metric_names(objective), 0.0)  # all of them, also on a rank without rows

        def loss_of(batch: Batch) -> Tensor:
            settings = {"denominator": denominator, "temperature": temperature}
            loss, sums = policy_terms(self.engine, batch, objective, **settings)
            add(totals, sums)
            return loss

        def imitation(batch: Batch) -> Tensor:
            return objective.ptx * text_terms(self.engine, batch, denominator=text_denominator)[0]

        with self._watch:
            loss = self._accumulate(rows, loss_of, micro_tokens, mask=_trained)
        metrics = read(totals) | self._watch.overlap()
        if objective.ptx:
            metrics["ptx_loss"] = self._accumulate(list(texts), imitation, micro_tokens, mask=_imitated) / objective.ptx
        return metrics | {"loss": loss} | self._update()

    @torch.no_grad()
    def logprobs(
        self, rows: list[Row], *, temperature: float, micro_tokens: int, reference: bool = False
    ) -> list[np.ndarray]:
        """Log-probs float32 [T] of each row's trained tokens, 0 elsewhere, by the policy or the reference."""
        check_routes(rows, self.model.config)
        model = self.model if not reference else self._reference
        if model is None:
            raise ValueError("there is no reference policy: call set_reference first")
        training = model.training
        model.eval()  # do not count load and logits
        cut = [_without_tail(row) for row in rows]
        places = {id(row): place for place, row in enumerate(cut)}
        out = [np.zeros(len(row.tokens), np.float32) for row in rows]
        groups = micro_batches(cut, micro_tokens, share=model.shares)
        for _ in range(self._rounds(len(groups)) - len(groups)):
            model(*self._nothing())  # peers need this rank's weights and experts
        for group in groups:
            batch = lay(group, _trained, self._limits, share=model.shares, device=self.device)
            found, _ = model(**batch.inputs, temperature=temperature)
            for row, values_M in zip(group, batch.by_row(found.cpu()), strict=True):
                out[places[id(row)]][: len(row.tokens)][_trained(row)] = values_M.numpy()
        model.train(training)
        return out

    def set_reference(self, weights: Weights | Path) -> None:
        """Set the frozen reference policy of ``objective.kl``; ``weights`` as in :meth:`load_weights`."""
        self._reference = self._shards.frozen(weights)

    def text_step(
        self, rows: list[TextRow], *, denominator: float, micro_tokens: int, lr_scale: float, balance: float = 1e-3
    ) -> dict[str, float]:
        """One optimiser step of weighted cross-entropy; ``lr_scale`` multiplies both learning rates.

        Also counts the tokens written by agents (``acted``) and those with a probability above 1/2
        (``right``).
        """
        self._set_lr(lr_scale)
        seen: Sums = {"right": 0.0, "acted": 0.0}

        def loss_of(batch: Batch) -> Tensor:
            loss, sums = text_terms(self.engine, batch, denominator=denominator)
            add(seen, sums)
            return loss

        metrics = {"loss": self._accumulate(rows, loss_of, micro_tokens, mask=_imitated)} | self._update()
        for router in self.model.routers():
            if self.ranks > 1:
                torch.distributed.all_reduce(router.load_E)
            router.balance(balance)
        return metrics | read(seen)

    def _accumulate(self, rows: list, loss_of: Callable[[Batch], Tensor], micro_tokens: int, *, mask) -> float:
        """Add the gradient of all micro-batches of ``rows``; returns the sum of their losses.

        On a GPU the loss is looked at once, in the end: asking for it would stop the queue of work.
        """
        total, share = torch.zeros((), dtype=torch.float64, device=self.device), self.model.shares
        groups = micro_batches(rows, micro_tokens, share=share)
        rounds = self._rounds(len(groups))
        if not rounds:  # this rank has no rows in a small step, but its peers wait for its gradient
            nothing = torch.zeros((), device=self.device)
            self.engine.backward(sum((p.sum() for p in self.model.parameters()), nothing) * 0.0)
        for group in groups:
            loss = loss_of(lay(group, mask, self._limits, share=share, device=self.device))
            total += loss.detach()
            if self._lockstep:  # peers wait within this pass; the gradient's norm tells them
                loss = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
            elif self.device == HOST:
                self._check_loss(total)
            self.engine.backward(loss * self.ranks)  # DeepSpeed averages over the ranks; the denominator is global
        for _ in range(rounds - len(groups)):
            self._idle()
        if not self._lockstep:
            self._check_loss(total)
        return float(total)

    def _check_loss(self, total: Tensor) -> None:
        """NotFiniteLoss, without a trace of the step, unless ``total`` is finite."""
        if bool(total.isfinite()):
            return
        self.engine.zero_grad()
        if self._qk_clip:
            self._qk_clip.forget()
        raise NotFiniteLoss(f"loss is {float(total)}: lower the learning rate, or look at the last episodes")

    def _rounds(self, count: int) -> int:
        """Number of passes of this rank for ``count`` micro-batches: in lockstep the maximum over ranks."""
        if not self._lockstep:
            return count
        rounds = torch.tensor(max(count, 1))
        torch.distributed.all_reduce(rounds, torch.distributed.ReduceOp.MAX)
        return int(rounds)

    def _idle(self) -> None:
        """An empty pass: this rank has no more rows, but its peers wait for its gradient and its experts."""
        loads = [router.load_E.clone() for router in self.model.routers()]
        logprobs, _ = self.engine(*self._nothing())
        self.engine.backward(logprobs.sum() * 0.0)
        for router, load in zip(self.model.routers(), loads, strict=True):
            router.load_E.copy_(load)

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """Tokens and mask of an empty batch."""
        tokens_BT = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        return tokens_BT, torch.zeros_like(tokens_BT, dtype=torch.bool)

    def _update(self) -> dict[str, float]:
        self._freed.give_back()  # of the passes, before the update needs its own
        norm = self._shards.step()
        self.model.weights_changed()
        self._freed.give_back()
        if not np.isfinite(norm):
            if self._qk_clip:
                self._qk_clip.forget()
            raise NotFiniteLoss(f"the gradient's norm is {norm}; the weights were not touched")
        return {"grad_norm": norm} | (self._qk_clip.clip() if self._qk_clip else {})

    def _set_lr(self, scale: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr[group["muon"]] * scale

    # ---------------------------------------------------------------- state

    def weights(self) -> Weights:
        """The weights for engines: all parameters in the policy's dtype, with LoRA float32 adapters (copies).

        If ranks share the policy all must call, and the first gets them.
        """
        return Sent(self._lora.export() if self._lora else self._shards.export())

    def load_weights(self, weights: Weights | Path) -> None:
        """Replace all parameters but the optimiser's state; with LoRA the frozen ones, resetting adapters.

        ``weights``: arrays, or a run's policy folder, read tensor by tensor; where ranks share the policy, each reads
        its part of every tensor.
        """
        if self._shards.shared:
            self._shards.load_weights(weights)
            self.model.weights_changed()
            return
        adapters: Weights = {}
        if self._lora:
            self._lora.reset()
            adapters = {PREFIX + name: to_numpy(t) for name, t in self._lora.state_dict().items()}
        if isinstance(weights, Path):
            load_weights(self.model, weights, adapters)
        else:
            fill(self.model, weights | adapters)

    def snapshot(self) -> int:
        """Copy this rank's part of the state to host memory; its bytes."""
        if self._shards.shared:
            pieces = self._shards.pieces()
        else:
            pieces = share_of(whole_pieces(self.model, self.optimizer, self._beneath), self.rank, self.ranks)
        self._snapshot = Snapshot(pieces, self.rank, self.ranks)
        return self._snapshot.bytes

    def write_snapshot(self, folder: Path) -> Part:
        """Write the snapshot into ``folder`` and free it, also during a step. OSError: a full disk."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            raise ValueError("there is no snapshot: call snapshot first")
        return snapshot.write(folder)

    def save(self, folder: Path, tag: str) -> None:
        """This rank's part of the state under ``folder``/``tag``, at once."""
        (folder / tag).mkdir(parents=True, exist_ok=True)
        self.snapshot()
        self.write_snapshot(folder / tag)

    def load(self, folder: Path, tag: str) -> None:
        """Weights and optimiser from ``folder``/``tag``, written by any number of ranks under any layout.

        FileNotFoundError if there is nothing; ValueError if it is another model's.
        """
        reader = PartsReader(folder / tag)
        if self._shards.shared:
            self._shards.restore(reader)
        else:
            restore(self.model, self.optimizer, reader, self._beneath)
        self.model.weights_changed()

    def ready(self) -> int:
        """The process id, once the learner is up."""
        return os.getpid()


def _without_tail(row: Row) -> Row:
    """``row`` up to its last trained token: later tokens have no effect."""
    end = int(np.flatnonzero(row.mask).max(initial=0)) + 1
    fields = {name: getattr(row, name) for name in ("tokens", "mask", "logprobs", "advantages", *_OPTIONAL)}
    cut = {name: values[:end] for name, values in fields.items() if values is not None}
    return replace(row, **cut, media=tuple(shown for shown in row.media if shown[0] < end))


def _trained(row: Any) -> np.ndarray:
    return row.mask


def _imitated(row: TextRow) -> np.ndarray:
    mask = row.weights > 0
    mask[0] = False
    return mask
