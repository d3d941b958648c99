"""The learner: rows and denominators in, new weights and metrics out. It knows no agents, no rewards, no tasks.

One DeepSpeed engine over the policy. Rows are sorted by length into padded micro-batches; a loss module turns the
log-probs of the trained tokens into a sum that is divided by the caller's global denominator, so the number of rows,
their order and the micro-batch size do not change the gradient.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.decoder import Weights, export_weights
from model.media import MediaBatch, picture
from model.picture_size import picture_tokens
from model.transformer import Transformer, muon_parameters
from model.vision_config import MediaLimits
from parl.advantage import Row
from parl.config import ObjectiveConfig, OptimizerConfig
from parl.objective.k25 import k25_loss
from parl.objective.sft import sft_loss
from parl.optimizer import MuonAdamW, NotFiniteLoss

_SIMILAR = 0.5  # a row joins a micro-batch if it is at least this long beside the longest


@dataclass(slots=True, kw_only=True)
class TextRow:
    """One demonstration trace: tokens int32 [T] and the loss weight float32 [T] of each.

    ``media``: the pictures in it, (position of the first placeholder, PNG file).
    """

    tokens: np.ndarray
    weights: np.ndarray
    media: tuple[tuple[int, bytes], ...] = ()


@dataclass(slots=True)
class _Batch:
    """Padded micro-batch: B rows, T positions; ``token`` fields are gathered under the mask, [M]."""

    rows: list[Row] | list[TextRow]
    tokens_BT: Tensor
    mask_BT: Tensor
    routes_BTLK: Tensor | None
    media: MediaBatch | None = None

    def gather(self, name: str) -> Tensor:
        """Field ``name`` of every row at the masked positions, float32 [M]."""
        out = torch.zeros(self.tokens_BT.shape)
        for i, row in enumerate(self.rows):
            values = getattr(row, name)
            out[i, : len(values)] = torch.from_numpy(np.array(values, np.float32))
        return out[:, 1:][self.mask_BT[:, 1:]]


def micro_batches(rows: Sequence, limit: int) -> list[list]:
    """Rows by falling length in groups of at most ``limit`` padded tokens and of similar lengths (little padding)."""
    groups: list[list] = []
    for row in sorted(rows, key=lambda r: -len(r.tokens)):
        longest = len(groups[-1][0].tokens) if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= limit and len(row.tokens) >= _SIMILAR * longest:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def pad(rows: list, mask: Callable[[Row | TextRow], np.ndarray], limits: MediaLimits | None = None) -> _Batch:
    """Right-padded tensors of ``rows``; an MoE policy's rows must all carry routes, or none.

    ``limits``: how their pictures are cut; ValueError where rows have pictures and there are no limits.
    """
    length = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    masks = torch.zeros(len(rows), length, dtype=torch.bool)
    first = getattr(rows[0], "routes", None)
    routes = None if first is None else torch.full((len(rows), length, *first.shape[1:]), -1, dtype=torch.int16)
    for i, row in enumerate(rows):
        count = len(row.tokens)
        tokens[i, :count] = torch.from_numpy(row.tokens.astype(np.int64))
        masks[i, :count] = torch.from_numpy(np.array(mask(row)))
        if routes is not None:
            routes[i, :count] = torch.from_numpy(np.array(row.routes))
    return _Batch(rows, tokens, masks, routes, _media(rows, tokens, limits))


def _media(rows: list, tokens_BT: Tensor, limits: MediaLimits | None) -> MediaBatch | None:
    """The pictures of ``rows`` and their places. A placeholder that the policy wrote itself is none of them."""
    shown = [(i, start, png) for i, row in enumerate(rows) for start, png in row.media]
    if not shown:
        return None
    if limits is None:
        raise ValueError("a row shows pictures, but the model has no vision section")
    places = torch.zeros(tokens_BT.shape, dtype=torch.bool)
    for i, start, png in shown:
        places[i, start : start + picture_tokens(png, limits)] = True
    return MediaBatch.of([picture(png, limits) for _, _, png in shown], places)


class Learner:
    """Trains one policy. Use it in process, or as a Ray actor (``parl.cluster``)."""

    def __init__(
        self,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        *,
        seed: int,
        threads: int = 1,
        rank: int = 0,
        ranks: int = 1,
        port: int | None = None,
    ) -> None:
        self.ranks = ranks
        _prepare_process(threads, rank, ranks, port or free_port())
        import deepspeed

        torch.manual_seed(seed)
        self.model = Transformer(model)
        self.model.freeze_tower(optimizer.freeze_tower)
        self._limits = model.vision.limits if model.vision else None
        matrices, rest = muon_parameters(self.model)
        self._lr = {True: optimizer.muon_lr, False: optimizer.lr}
        self.optimizer = MuonAdamW(
            matrices,
            rest,
            muon_lr=optimizer.muon_lr,
            lr=optimizer.lr,
            grad_clip=optimizer.grad_clip,
            weight_decay=optimizer.weight_decay,
        )
        self.engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "managed_gradient_accumulation": False,  # the number of micro-batches differs from step to step
                "zero_optimization": {"stage": 0},
            },
        )
        self.model.train()

    # ---------------------------------------------------------------- steps

    def policy_step(
        self,
        rows: list[Row],
        objective: ObjectiveConfig,
        *,
        denominator: float,
        temperature: float,
        micro_tokens: int,
        lr_scale: float = 1.0,
    ) -> dict[str, float]:
        """One optimiser step of the K2.5 objective over ``rows``. Raises NotFiniteLoss, ValueError (missing routes)."""
        if self.model.config.num_moe_layers and any(row.routes is None for row in rows):
            raise ValueError("a row of a mixture-of-experts policy has no routes: replay would silently be off")
        self._set_lr(lr_scale)
        rows = [_without_tail(row) for row in rows]
        names = ("ratio", "masked", "kl", "entropy", "logprob_gap")
        totals: dict[str, float] = dict.fromkeys(names, 0.0)  # all of them, also from a rank without rows

        def loss_of(batch: _Batch) -> Tensor:
            logprobs, entropy = self.engine(batch.tokens_BT, batch.mask_BT, batch.routes_BTLK, temperature, batch.media)
            loss, stats = k25_loss(
                logprobs,
                batch.gather("logprobs"),
                batch.gather("advantages"),
                torch.ones_like(logprobs, dtype=torch.bool),
                denominator=denominator,
                log_ratio_min=objective.log_ratio_min,
                log_ratio_max=objective.log_ratio_max,
                tau=objective.tau,
            )
            share = len(logprobs) / denominator
            for name in ("ratio", "masked", "kl"):
                totals[name] += float(stats[name]) * share
            totals["entropy"] += float(entropy.sum()) / denominator
            drift = (logprobs.detach() - batch.gather("logprobs")).abs()
            totals["logprob_gap"] = max(totals["logprob_gap"], float(drift.max()) if len(drift) else 0.0)
            return loss

        totals.update(self._step(rows, loss_of, micro_tokens, mask=lambda row: row.mask))
        return totals

    def text_step(
        self, rows: list[TextRow], *, denominator: float, micro_tokens: int, lr_scale: float, balance: float = 1e-3
    ) -> dict[str, float]:
        """One optimiser step of weighted cross-entropy; ``lr_scale`` multiplies both learning rates.

        Also counts the tokens written by agents (``acted``) and those of them with a probability above 1/2 (``right``).
        """
        self._set_lr(lr_scale)
        seen = {"right": 0.0, "acted": 0.0}

        def loss_of(batch: _Batch) -> Tensor:
            logprobs, _ = self.engine(batch.tokens_BT, batch.mask_BT, media=batch.media)
            weights = batch.gather("weights")
            acted = weights == 1
            seen["right"] += float((logprobs.detach()[acted] > np.log(0.5)).sum())
            seen["acted"] += float(acted.sum())
            return sft_loss(logprobs, weights, denominator=denominator)

        metrics = self._step(rows, loss_of, micro_tokens, mask=lambda row: _not_first(row.weights > 0))
        for router in self.model.routers():
            if self.ranks > 1:
                torch.distributed.all_reduce(router.load_E)
            router.balance(balance)
        return metrics | seen

    def _step(self, rows: list, loss_of: Callable[[_Batch], Tensor], micro_tokens: int, *, mask) -> dict[str, float]:
        total = 0.0
        if not rows:  # this rank has no share of a small step, but its peers wait for its gradient
            self.engine.backward(sum((p.sum() for p in self.model.parameters()), torch.zeros(())) * 0.0)
        for group in micro_batches(rows, micro_tokens):
            loss = loss_of(pad(group, mask, self._limits))
            if not bool(torch.isfinite(loss)):
                self.engine.zero_grad()
                raise NotFiniteLoss(
                    f"loss is {float(loss.detach())}: lower the learning rate, or look at the last episodes"
                )
            self.engine.backward(loss * self.ranks)  # DeepSpeed averages over the ranks; the denominator is global
            total += float(loss.detach())
        self.engine.step()  # reduces over the ranks, then clips and updates
        return {"loss": total, "grad_norm": self.optimizer.grad_norm}

    def _set_lr(self, scale: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr[group["muon"]] * scale

    # ---------------------------------------------------------------- state

    def weights(self) -> Weights:
        """Float32 copies of all parameters."""
        return export_weights(self.model)

    def load_weights(self, weights: Weights) -> None:
        """Replace all parameters; the optimiser's state is kept."""
        self.model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})

    def save(self, folder: Path, tag: str) -> None:
        """Weights and optimiser under ``folder``/``tag`` in DeepSpeed's layout."""
        self.engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """Inverse of :meth:`save`; FileNotFoundError when there is nothing."""
        if not (folder / tag).is_dir():
            raise FileNotFoundError(f"no checkpoint {tag} under {folder}")
        self.engine.load_checkpoint(str(folder), tag=tag)

    def ready(self) -> int:
        """The process id, once the learner stands."""
        return os.getpid()


def _without_tail(row: Row) -> Row:
    """``row`` up to its last trained token: what was read after it, be it longer than the context, teaches nothing."""
    end = int(np.flatnonzero(row.mask).max(initial=0)) + 1
    cut = {name: getattr(row, name)[:end] for name in ("tokens", "mask", "logprobs", "advantages")}
    shown = tuple(item for item in row.media if item[0] < end)
    return replace(row, **cut, routes=None if row.routes is None else row.routes[:end], media=shown)


def _not_first(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[0] = False
    return mask


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _prepare_process(threads: int, rank: int, ranks: int, port: int) -> None:
    """This process as one gloo rank: no launcher, no native op that would be compiled for nothing."""
    torch.set_num_threads(threads)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "parl" / "torch_extensions"))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    deepspeed.utils.logging.logger.setLevel("ERROR")
    if not deepspeed.comm.is_initialized():
        __compatible_ops__["deepspeed_shm_comm"] = False  # else DeepSpeed compiles it first, for 24 s and more
        deepspeed.init_distributed(dist_backend="gloo")
