"""Muon over ranges of parameters, as under ZeRO: matrices are made whole for Newton-Schulz only.

A matrix that lies whole on one rank is orthogonalised there; with stacks of experts that is nearly all of the
work. A matrix that is cut over ranks is assembled on all of them, orthogonalised by one rank, and its update
sent back. Assembling is a sum with zeros elsewhere, so every element keeps its bits, and at most ``_BUCKET``
elements are whole at a time (a larger matrix alone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parl.learn.shard.optimizer import muon_scale, orthogonalise

_BUCKET = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Parameter ``name`` in an optimiser's flat tensor that a group of ranks shares."""

    name: str
    shape: tuple[int, ...]  # of the parameter on this rank: with expert parallelism, of its experts
    offset: int  # of its first element on this rank, within this rank's tensor
    cuts: tuple[tuple[int, int], ...]  # the range of its elements on each rank of the group


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Consecutive whole matrices [count, n, m] from ``offset``."""

    offset: int
    count: int
    n: int
    m: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A matrix [n, m] over several ranks: this one holds elements ``start`` to ``stop``, at ``offset``."""

    n: int
    m: int
    owner: int
    offset: int
    start: int
    stop: int


class SplitMuon:
    """The update of one flat tensor of matrices; all ranks of ``group`` must call it.

    ``dtype``: that of the Newton-Schulz iteration. bfloat16, as the Muon reference has it, halves its time where the
    processor has bfloat16 units, and turns updates by 1.4 degrees.
    """

    def __init__(
        self,
        spans: list[Span],
        group: dist.ProcessGroup,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._group, self._device, self._rank = group, device, dist.get_rank(group)
        self._dtype = dtype
        self._runs: list[_Run] = []
        self._cuts: list[_Cut] = []
        loads = [0] * dist.get_world_size(group)
        for span in spans:
            self._place(span, loads)

    def _place(self, span: Span, loads: list[int]) -> None:
        n, m = span.shape[-2:]
        size, (mine, end) = n * m, span.cuts[self._rank]
        whole = 0
        for first in range(0, math.prod(span.shape), size):
            holders = [rank for rank, (start, stop) in enumerate(span.cuts) if start < first + size and stop > first]
            if len(holders) == 1:
                whole += holders[0] == self._rank
                continue
            owner = min(holders, key=loads.__getitem__)
            loads[owner] += size * min(n, m)
            start, stop = max(mine, first), max(min(end, first + size), max(mine, first))
            offset = span.offset + start - mine
            self._cuts.append(_Cut(n=n, m=m, owner=owner, offset=offset, start=start - first, stop=stop - first))
        if whole:  # neighbours: this rank's range is contiguous
            begin = span.offset - mine + math.ceil(mine / size) * size
            self._runs.append(_Run(offset=begin, count=whole, n=n, m=m))

    def update(self, ahead: Tensor) -> Tensor:
        """The update, before the learning rate, of this rank's flat tensor for its look-ahead ``ahead``: in its place,
        since it is as large as the rank's share of the weights; 0 where no matrix is."""
        for start, stop in self._gaps(len(ahead)):
            ahead[start:stop] = 0
        for run in self._runs:
            part = slice(run.offset, run.offset + run.count * run.n * run.m)
            matrices = ahead[part].view(run.count, run.n, run.m)
            ahead[part] = self._orthogonal(matrices)
        for bucket in self._buckets():
            self._together(bucket, ahead)
        return ahead

    def _gaps(self, size: int) -> list[tuple[int, int]]:
        """The ranges of a flat tensor of ``size`` elements in which no matrix lies: padding."""
        parts = [(run.offset, run.offset + run.count * run.n * run.m) for run in self._runs]
        parts += [(cut.offset, cut.offset + cut.stop - cut.start) for cut in self._cuts]
        parts = sorted(part for part in parts if part[1] > part[0])
        ends, starts = [0, *(stop for _, stop in parts)], [*(start for start, _ in parts), size]
        return [(end, start) for end, start in zip(ends, starts, strict=True) if start > end]

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        """Flat, in the type of ``matrices``, scaled to AdamW's size."""
        out = orthogonalise(matrices.to(self._dtype)).to(matrices.dtype)
        return (out * muon_scale(*matrices.shape[-2:])).flatten()

    def _buckets(self) -> list[list[_Cut]]:
        buckets: list[list[_Cut]] = []
        held = _BUCKET
        for cut in self._cuts:
            held += cut.n * cut.m
            if held > _BUCKET:
                buckets.append([])
                held = cut.n * cut.m
            buckets[-1].append(cut)
        return buckets

    def _together(self, bucket: list[_Cut], ahead: Tensor) -> None:
        places = [0]
        for cut in bucket:
            places.append(places[-1] + cut.n * cut.m)
        whole = torch.zeros(places[-1], dtype=ahead.dtype, device=self._device)
        for cut, place in zip(bucket, places, strict=False):
            own = ahead[cut.offset : cut.offset + cut.stop - cut.start]
            whole[place + cut.start : place + cut.stop] = own.to(self._device)
        dist.all_reduce(whole, group=self._group)
        done = torch.zeros_like(whole)
        for cut, place in zip(bucket, places, strict=False):
            if cut.owner == self._rank:
                matrix = whole[place : place + cut.n * cut.m].view(cut.n, cut.m)
                done[place : place + cut.n * cut.m] = self._orthogonal(matrix)
        dist.all_reduce(done, group=self._group)
        for cut, place in zip(bucket, places, strict=False):
            part = slice(cut.offset, cut.offset + cut.stop - cut.start)
            ahead[part] = done[place + cut.start : place + cut.stop].to(ahead.device)
