"""A rank's share of the policy and of the optimiser's state: ZeRO 0 to 3, with or without expert parallelism.

At any stage, the optimiser's tensors are ranges of parameters (:class:`~parl.learn.shard.split_muon.Span`):
one whole parameter at stage 0, a flat piece of many at 1 and 2, a slice of each at 3. Muon on whole matrices,
weights out and in, and a state readable by any number of ranks at any stage are built on these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.arrays import fill, to_numpy
from model.decoder import Weights, export_weights
from model.family import family_of
from model.policy import Policy
from model.policy_read import load_weights
from parl.learn.batch import HOST
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.shard.ds_engine import (
    engine_config,
    expert_ranks,
    frozen_config,
    make_engine,
    make_frozen_engine,
    make_optimizer,
    mark_expert,
    partition,
)
from parl.learn.shard.learner_state import check_shapes, weight_shapes
from parl.learn.shard.parts import PartsReader, Piece
from parl.learn.shard.sources import Arrays, Pieces, Stored
from parl.learn.shard.split_muon import Span, SplitMuon

_GATHERED = 64 * 2**20  # elements that ZeRO 3 gathers at a time when weights are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """One of the optimiser's tensors and the parameters in it."""

    tensor: Tensor
    spans: list[Span]
    group: dist.ProcessGroup | None  # ranks that share the spans; None: each holds them whole

    def range(self, span: Span) -> tuple[int, int]:
        """The elements of ``span`` on this rank."""
        return span.cuts[0 if self.group is None else dist.get_rank(self.group)]

    def view(self, span: Span, tensor: Tensor) -> Tensor:
        """Those elements in ``tensor``, which has the same flat layout."""
        start, stop = self.range(span)
        return tensor.detach().view(-1)[span.offset : span.offset + stop - start]


class Shards:
    """Creates optimiser and engine over ``model`` on every rank. If ranks share, all must call each method.

    At stage 3 ``model`` may be an outline: a parameter gets no more memory than this rank's share of it. ``device``:
    where that is.
    """

    def __init__(
        self,
        model: Policy,
        optimizer: OptimizerConfig,
        parallel: ParallelConfig,
        *,
        ranks: int,
        device: torch.device = HOST,
    ) -> None:
        self.model, self.zero, self._device = model, parallel.zero, device
        self.shared = parallel.zero > 0 or parallel.expert_parallel > 1
        self.experts = expert_ranks(parallel.expert_parallel)
        self._cut = set() if self.experts is None else set(model.split_experts(self.experts.split))
        if self.experts is not None:
            for name in self._cut:
                mark_expert(model.get_parameter(name), self.experts)
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._names = {id(p): name for name, p in model.named_parameters()}
        self.optimizer = make_optimizer(model, optimizer, zero=parallel.zero, experts=self.experts, shared=ranks > 1)
        config = engine_config(model, parallel, optimizer.grad_clip)
        if next(model.parameters()).is_meta:
            partition(model, config, device)
        self.engine = make_engine(model, self.optimizer, parallel, config)
        self._flats = self._laid_out()

    # ---------------------------------------------------------------- layout

    def _laid_out(self) -> list[Flat]:
        if self.zero == 0:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            return [Flat(tensor=p, spans=[self._whole_span(p)], group=None) for p in parameters]
        device, kind = self._device, getattr(torch, self.model.config.weights_dtype)
        flats = []
        for flat, muon in self._flat_ranges() if self.zero < 3 else self._slices():
            flats.append(flat)
            if muon and flat.group is not None:
                self.optimizer.splits[id(flat.tensor)] = SplitMuon(flat.spans, flat.group, device, kind)
        return flats

    def _whole_span(self, parameter: nn.Parameter) -> Span:
        name = self._names[id(parameter)]
        return Span(name=name, shape=self._shapes[name], offset=0, cuts=((0, parameter.numel()),))

    def _flat_ranges(self) -> Iterator[tuple[Flat, bool]]:
        """ZeRO 1 and 2: each group of parameters concatenated, split in equal ranges."""
        zero = self.engine.optimizer
        for i, parameters in enumerate(zero.round_robin_bit16_groups):
            size, group = zero.partition_size[i], zero.real_dp_process_group[i]
            starts = [size * rank for rank in range(dist.get_world_size(group))]
            own, spans = starts[dist.get_rank(group)], []
            for parameter, first in zip(parameters, zero.round_robin_bit16_offsets[i], strict=True):
                count, name = parameter.numel(), self._names[id(parameter)]
                ends = [(min(max(s - first, 0), count), min(max(s + size - first, 0), count)) for s in starts]
                offset = min(max(first - own, 0), size)
                spans.append(Span(name=name, shape=self._shapes[name], offset=offset, cuts=tuple(ends)))
            flat = Flat(tensor=zero.single_partition_of_fp32_groups[i], spans=spans, group=group)
            yield flat, self.optimizer.param_groups[i]["muon"]

    def _slices(self) -> Iterator[tuple[Flat, bool]]:
        """ZeRO 3: the same share of each parameter, padded at the end."""
        zero = self.engine.optimizer
        for i, parameters in enumerate(zero.fp16_groups):
            group, offset, spans = zero.sub_group_process_groups[i], 0, []
            for parameter in parameters:
                part, count, name = parameter.partition_numel(), parameter.ds_numel, self._names[id(parameter)]
                ranks = range(dist.get_world_size(group))
                cuts = tuple((min(part * rank, count), min(part * (rank + 1), count)) for rank in ranks)
                spans.append(Span(name=name, shape=self._shapes[name], offset=offset, cuts=cuts))
                offset += part
            flat = Flat(tensor=zero.fp32_partitioned_groups_flat[i], spans=spans, group=group)
            yield flat, self.optimizer.param_groups[zero.sub_group_to_group_id[i]]["muon"]

    # ---------------------------------------------------------------- steps

    def step(self) -> float:
        """Reduce gradients over the ranks, clip, update if finite; returns the norm before clipping."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.zero else self.optimizer.grad_norm

    # ---------------------------------------------------------------- weights

    @contextmanager
    def whole(self, parameters: list[nn.Parameter], *, change: bool = True) -> Iterator[None]:
        """``parameters`` whole on this rank inside the block; every rank makes the same change, or none."""
        import deepspeed

        gather, rank = deepspeed.zero.GatheredParameters, 0 if change else None
        with gather(parameters, modifier_rank=rank) if self.zero == 3 else nullcontext():
            yield
        if change and self.zero:
            self.engine.optimizer.refresh_fp32_params()

    def export(self) -> Weights:
        """:func:`model.decoder.export_weights` of the whole policy, on rank 0; nothing elsewhere."""
        if not self.shared:
            return export_weights(self.model)
        found: Weights = {}
        named, kind = dict(self.model.named_parameters()), getattr(torch, self.model.config.weights_dtype)
        for names in self._portions():
            with self.whole([named[name] for name in names], change=False):
                for name in names:
                    value = self._all_experts(name, named[name].detach())
                    if dist.get_rank() == 0:
                        found[name] = to_numpy(value.to("cpu", kind, copy=True))
        if dist.get_rank() == 0:
            for name, buffer in self._buffers().items():
                found[name] = to_numpy(buffer.to("cpu", torch.float32, copy=True))
        return found

    def _portions(self) -> Iterator[list[str]]:
        """Names of parameters in portions that fit in memory."""
        portion, held = [], 0
        for name, shape in self._shapes.items():
            count = int(np.prod(shape))
            if portion and held + count > _GATHERED:
                yield portion
                portion, held = [], 0
            portion.append(name)
            held += count
        yield portion

    def _all_experts(self, name: str, value: Tensor) -> Tensor:
        """The whole stack of a parameter whose experts are split over ranks."""
        if self.experts is None or name not in self._cut:
            return value
        parts = [torch.empty_like(value) for _ in range(self.experts.ranks)]
        dist.all_gather(parts, value.contiguous(), group=self.experts.split)
        return torch.cat(parts)

    def _buffers(self) -> dict[str, Tensor]:
        """Parts of the policy that are not parameters: the routers' correction biases."""
        return {name: b for name, b in self.model.state_dict().items() if name not in self._shapes}

    def load_weights(self, weights: Weights | Path) -> None:
        """Replace the whole state dict, by arrays or from a run's policy folder, of which this rank reads its share;
        the optimiser's state stays. ValueError: another model's."""
        self._take(self._source(weights))

    def _source(self, weights: Weights | Path) -> Pieces:
        kind = getattr(torch, self.model.config.weights_dtype)
        found = Stored(weights, kind, self._buffers()) if isinstance(weights, Path) else Arrays(weights)
        check_shapes(str(weights) if isinstance(weights, Path) else "these weights", found.shapes, self._whole_shapes())
        return found

    def frozen(self, weights: Weights | Path) -> Policy:
        """Another policy with ``weights``, never trained, shared by the ranks in the same way."""
        family, shape = family_of(self.model.config), self.model.config
        model = family.outline(shape) if self.zero == 3 else family.blank(shape).to(self._device)
        if self.zero < 3:
            load_weights(model, weights) if isinstance(weights, Path) else fill(model, weights)
        if self.experts is not None:
            for name in model.split_experts(self.experts.split):
                mark_expert(model.get_parameter(name), self.experts)
        model.requires_grad_(False)
        if self.zero == 3:
            config = frozen_config(model)
            if next(model.parameters()).is_meta:
                partition(model, config, self._device)
            self._frozen_engine = make_frozen_engine(model, config)  # gathers the weights on use
            self._fill_parts(model, self._source(weights))
        return model

    @torch.no_grad()
    def _fill_parts(self, model: Policy, source: Pieces) -> None:
        """Fill this rank's share of a policy that ZeRO 3 spreads without an optimiser."""
        for name, parameter in model.named_parameters():
            part: Any = parameter
            size, held, ranks = part.ds_numel, part.partition_numel(), dist.get_rank(part.ds_process_group)
            start, stop = min(held * ranks, size), min(held * (ranks + 1), size)
            before = self.experts.rank * size if self.experts is not None and name in self._cut else 0
            if stop > start:
                part.ds_tensor[: stop - start].copy_(source.range(name, before + start, before + stop))
        for name, buffer in model.state_dict().items():
            if name not in self._shapes:
                buffer.copy_(source.range(name, 0, buffer.numel()).view_as(buffer))

    # ---------------------------------------------------------------- state

    def pieces(self) -> list[Piece]:
        """What this rank writes: ``weights/NAME``, ``optimizer/KEY/NAME``; together every element once."""
        out = []
        for flat in self._flats:
            state = {f"optimizer/{key}": value for key, value in self.optimizer.state.get(flat.tensor, {}).items()}
            for span in flat.spans:
                if self._writes(flat, span):
                    for kind, value in {"weights": flat.tensor, **state}.items():
                        out += self._piece(kind, value, flat, span)
        frozen = self._frozen()
        if frozen:
            with self.whole(list(frozen.values()), change=False):
                if dist.get_rank() == 0:
                    out += [Piece.whole(f"weights/{name}", parameter.clone()) for name, parameter in frozen.items()]
        if dist.get_rank() == 0:
            out += [Piece.whole(f"weights/{name}", buffer) for name, buffer in self._buffers().items()]
        return out

    def _frozen(self) -> dict[str, nn.Parameter]:
        """Parameters outside the optimiser."""
        held = {span.name for flat in self._flats for span in flat.spans}
        return {name: self.model.get_parameter(name) for name in self._shapes if name not in held}

    def _writes(self, flat: Flat, span: Span) -> bool:
        """Of ranks that hold the same, the first writes."""
        start, stop = flat.range(span)
        if self.zero:
            return stop > start
        replicas = self.experts.replicas if self.experts is not None and span.name in self._cut else None
        return dist.get_rank(replicas) == 0

    def _piece(self, kind: str, value: Tensor | int, flat: Flat, span: Span) -> list[Piece]:
        name, (start, _) = f"{kind}/{span.name}", flat.range(span)
        first = self._shift(span) + start
        if not isinstance(value, Tensor):  # a counter
            return [Piece.whole(name, torch.tensor(value, dtype=torch.int64))] if first == 0 else []
        return [Piece(name=name, shape=self._full(span), start=first, values=flat.view(span, value))]

    def _shift(self, span: Span) -> int:
        """Elements of other ranks' experts before this rank's."""
        if self.experts is None or span.name not in self._cut:
            return 0
        return self.experts.rank * int(np.prod(span.shape))

    def _full(self, span: Span) -> tuple[int, ...]:
        cut = self.experts is not None and span.name in self._cut
        return (span.shape[0] * self.experts.ranks, *span.shape[1:]) if cut and self.experts else span.shape

    def _whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the whole state dict, experts of other ranks included."""
        ranks = self.experts.ranks if self.experts is not None else 1
        shapes = {n: (s[0] * ranks, *s[1:]) if n in self._cut else s for n, s in self._shapes.items()}
        return shapes | {name: tuple(buffer.shape) for name, buffer in self._buffers().items()}

    def restore(self, source: PartsReader) -> None:
        """Load weights and optimiser from ``source``; ValueError if it is another model's."""
        check_shapes(str(source.folder), weight_shapes(source), self._whole_shapes())
        self._take(source, "weights/")
        self.optimizer.state.clear()
        keys = sorted({name.split("/")[1] for name in source.shapes if name.startswith("optimizer/")})
        for flat in self._flats:
            state = self.optimizer.state[flat.tensor]
            for key in keys:
                name = f"optimizer/{key}/{flat.spans[0].name}"
                if name not in source.shapes:
                    continue
                if source.shapes[name] == ():
                    state[key] = int(source.range(name, 0, 1))
                    continue
                state[key] = torch.zeros_like(flat.tensor, requires_grad=False)
                self._fill(flat, state[key], source, f"optimizer/{key}/")

    @torch.no_grad()
    def _take(self, source: Pieces, prefix: str = "") -> None:
        frozen = self._frozen()  # first: what is whole is copied to the optimiser's tensors afterwards
        if frozen:
            with self.whole(list(frozen.values())):
                for name, parameter in frozen.items():
                    parameter.copy_(source.range(prefix + name, 0, parameter.numel()).view_as(parameter))
        for flat in self._flats:
            self._fill(flat, flat.tensor, source, prefix)
        for name, buffer in self._buffers().items():
            buffer.copy_(source.range(prefix + name, 0, buffer.numel()).view_as(buffer))
        self._publish()

    def _fill(self, flat: Flat, tensor: Tensor, source: Pieces, prefix: str) -> None:
        for span in flat.spans:
            start, stop = flat.range(span)
            if stop > start:
                first = self._shift(span) + start
                values = source.range(prefix + span.name, first, first + stop - start)
                flat.view(span, tensor).copy_(values)

    def _publish(self) -> None:
        """Copy the optimiser's tensors to the model's parameters."""
        zero = self.engine.optimizer
        if self.zero in (1, 2):
            zero.update_lp_params()
        elif self.zero == 3:
            zero._partition_all_parameters()
            for i in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(i)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
