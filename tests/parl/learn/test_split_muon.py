"""Muon on ranges: for any ranges, the update is that of whole matrices. Ranks are threads with a barrier."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier, current_thread
from typing import Any

import pytest
import torch

from parl.learn.shard import split_muon
from parl.learn.shard.optimizer import muon_scale, orthogonalise
from parl.learn.shard.split_muon import Span, SplitMuon

SHAPES = [(6, 10), (4, 8, 5), (10, 6), (7, 3), (2, 3, 4)]
RANKS = 3


class Threads:
    """The three calls of ``torch.distributed`` that are used, for threads named by their rank."""

    def __init__(self, ranks: int) -> None:
        self._barrier, self._held, self._ranks = Barrier(ranks, timeout=30), {}, ranks

    def get_rank(self, group: Any = None) -> int:
        return int(current_thread().name.rsplit("_", 1)[1])

    def get_world_size(self, group: Any) -> int:
        return self._ranks

    def all_reduce(self, tensor: torch.Tensor, group: Any) -> None:
        self._held[self.get_rank(group)] = tensor.clone()
        self._barrier.wait()
        tensor.copy_(sum(self._held[rank] for rank in range(self._ranks)))
        self._barrier.wait()


def end_to_end(sizes: list[int]) -> list[list[tuple[int, int]]]:
    """ZeRO 1 and 2: per parameter the ranges of each rank when all are concatenated and split equally."""
    part = math.ceil(sum(sizes) / RANKS)
    cuts, first = [], 0
    for size in sizes:
        bounds = [min(max(part * rank - first, 0), size) for rank in range(RANKS + 1)]
        cuts.append(list(pairwise(bounds)))
        first += size
    return cuts


def each_cut(sizes: list[int]) -> list[list[tuple[int, int]]]:
    """ZeRO 3: each parameter is split by itself."""
    parts = [math.ceil(size / RANKS) for size in sizes]
    return [
        [(min(part * r, size), min(part * (r + 1), size)) for r in range(RANKS)]
        for part, size in zip(parts, sizes, strict=True)
    ]


@pytest.mark.parametrize("layout", [end_to_end, each_cut])
@pytest.mark.parametrize("bucket", [1, 100, 10**6])
def test_cut_matrices_get_the_update_of_whole_ones(monkeypatch: pytest.MonkeyPatch, layout, bucket: int):
    monkeypatch.setattr(split_muon, "dist", Threads(RANKS))
    monkeypatch.setattr(split_muon, "_BUCKET", bucket)
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(SHAPES)]
    cuts = layout([matrix.numel() for matrix in matrices])

    started = Barrier(RANKS, timeout=30)

    def one(_: int) -> tuple[int, list[torch.Tensor]]:
        started.wait()  # so that every thread takes one
        rank = split_muon.dist.get_rank()
        spans, flat, offset = [], [], 0
        for i, (matrix, ranges) in enumerate(zip(matrices, cuts, strict=True)):
            start, stop = ranges[rank]
            spans.append(Span(name=str(i), shape=tuple(matrix.shape), offset=offset, cuts=tuple(ranges)))
            flat.append(matrix.flatten()[start:stop])
            offset += stop - start
        padded = torch.cat([*flat, torch.zeros(2)])
        out = SplitMuon(spans, None, torch.device("cpu")).update(padded)  # type: ignore[arg-type]
        assert not out[offset:].any()
        return rank, list(out[:offset].split([len(part) for part in flat]))

    with ThreadPoolExecutor(RANKS, thread_name_prefix="rank") as pool:
        found = dict(pool.map(one, range(RANKS), timeout=60))
    for i, matrix in enumerate(matrices):
        wanted = (orthogonalise(matrix) * muon_scale(*matrix.shape[-2:])).flatten()
        got = torch.zeros_like(wanted)
        for rank, parts in found.items():
            start, stop = cuts[i][rank]
            got[start:stop] = parts[i]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
