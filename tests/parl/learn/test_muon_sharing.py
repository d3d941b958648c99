"""Ranks that share the orthogonalisation take the same step as each alone, to the bit."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from parl.learn.process import free_port
from parl.learn.shard.optimizer import MuonAdamW, deal

SHAPES = [(16, 24), (24, 16), (4, 8, 8), (8, 8), (30, 12)]


def steps(share: bool) -> list[torch.Tensor]:
    """The parameters after three steps, a vector for AdamW among them."""
    g = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in (*SHAPES, (5,))]
    optimizer = MuonAdamW(
        parameters[:-1], parameters[-1:], muon_lr=0.1, lr=0.1, grad_clip=3.0, weight_decay=0.1, share=share
    )
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=g)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def one_rank(rank: int, port: int, folder: Path) -> None:
    """Its parameters, in ``folder``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(steps(share=True), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_matrices_are_dealt_out_once_each_and_by_cost():
    matrices = [torch.zeros(shape) for shape in SHAPES]
    shares = deal(matrices, 3)
    assert sorted(index for share in shares for index in share) == list(range(len(SHAPES)))
    assert all(shares) and deal(matrices, 3) == shares
    assert [len(share) for share in deal(matrices[:1], 3)] == [1, 0, 0]
    costs = [sum(matrices[i].numel() * min(matrices[i].shape[-2:]) for i in share) for share in deal(matrices, 2)]
    assert max(costs) < 1.25 * min(costs)


@pytest.mark.slow
def test_two_ranks_together_take_the_step_of_one_to_the_bit(tmp_path: Path):
    torch.set_num_threads(1)
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [spawn.Process(target=one_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=240)
        assert process.exitcode == 0
    for rank in range(2):
        for got, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), steps(share=False), strict=True):
            assert torch.equal(got, wanted)
