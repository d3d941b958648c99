"""Checkpoints: parts readable by any number of ranks, concurrent saves, and damaged files."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import tiny_config

from parl.errors import UserError
from parl.learn.shard.learner_state import Snapshot, restore, saved_weights, share_of, whole_pieces
from parl.learn.shard.optimizer import MuonAdamW
from parl.learn.shard.parts import PartsReader, Piece, part_name, write_part
from parl.run.checkpoints import MANIFEST, Checkpoints, State, newest_state
from parl.run.loop import Training
from parl.run.saver import Saver


class OneTensor:
    """A learner whose state is one tensor; it writes when released."""

    def __init__(self) -> None:
        self.weights, self.let = torch.arange(1000.0), threading.Event()
        self.let.set()
        self.taken: Snapshot

    def snapshot(self) -> int:
        self.taken = Snapshot([Piece.whole("weights/w", self.weights)], 0, 1)
        return self.taken.bytes

    def write_snapshot(self, folder: Path) -> list[Any]:
        taken = self.taken
        assert self.let.wait(30)
        return [taken.write(folder)]


def saver(folder: Path, keep: int = 2) -> tuple[Saver, OneTensor, Checkpoints]:
    learner, checkpoints = OneTensor(), Checkpoints(folder, keep)
    return Saver(checkpoints, learner), learner, checkpoints  # type: ignore[arg-type]


def saved(folder: Path, steps: range, **settings: int) -> Checkpoints:
    """Checkpoints of ``steps``, the weights of each its number."""
    saving, learner, checkpoints = saver(folder, **settings)
    for step in steps:
        learner.weights.fill_(step)
        saving.save(State(step=step))
    saving.close()
    return checkpoints


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Writes beyond ``size`` bytes fail, as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ranks=st.integers(1, 4),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)
def test_any_ranks_read_any_range_of_what_any_ranks_wrote(shape, ranks: int, data, dtype):
    tensor = torch.randn(shape).mul(100).to(dtype)
    flat, size = tensor.reshape(-1), tensor.numel()
    cuts = sorted(data.draw(st.lists(st.integers(0, size), min_size=ranks - 1, max_size=ranks - 1)))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
    with TemporaryDirectory() as folder:
        for rank, (first, last) in enumerate(zip([0, *cuts], [*cuts, size], strict=True)):
            write_part(Path(folder), rank, ranks, [Piece("a/b.c", tuple(shape), first, flat[first:last])])
        reader = PartsReader(Path(folder))
        whole, some = reader.read("a/b.c"), reader.range("a/b.c", start, stop)
    assert torch.equal(whole, tensor) and whole.dtype == dtype
    assert torch.equal(some, flat[start:stop])


def test_parts_are_plain_safetensors_files_and_a_missing_one_is_named(tmp_path: Path):
    pieces = [Piece.whole("weights/a", torch.ones(2, 3)), Piece.whole("weights/b", torch.zeros(5))]
    for rank in range(2):
        write_part(tmp_path, rank, 2, share_of(pieces, rank, 2))
    assert torch.equal(load_file(tmp_path / part_name(0))["weights/a@0"], torch.ones(6))
    (tmp_path / part_name(1)).unlink()
    with pytest.raises(ValueError, match="has 1 of 2 parts"):
        PartsReader(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        PartsReader(tmp_path / "nothing")


def test_a_range_that_no_part_holds_is_an_error(tmp_path: Path):
    write_part(tmp_path, 0, 1, [Piece("w", (10,), 0, torch.ones(4)), Piece("w", (10,), 6, torch.ones(4))])
    reader = PartsReader(tmp_path)
    assert len(reader.range("w", 6, 10)) == 4
    with pytest.raises(ValueError, match="elements 4 to 10 of w are in no part"):
        reader.read("w")


def small(seed: int) -> tuple[torch.nn.Module, MuonAdamW]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    matrices = [p for p in model.parameters() if p.dim() == 2]
    return model, MuonAdamW(matrices, [p for p in model.parameters() if p.dim() < 2], muon_lr=0.1, lr=0.1)


def take_step(model: torch.nn.Module, optimizer: MuonAdamW) -> None:
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 8).view(2, 4)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("ranks", [1, 3])
def test_weights_and_optimiser_come_back_bit_for_bit(tmp_path: Path, ranks: int):
    first, other = small(0), small(1)
    take_step(*first)
    for rank in range(ranks):
        Snapshot(share_of(whole_pieces(*first), rank, ranks), rank, ranks).write(tmp_path)
    take_step(*other)  # what it remembers is replaced
    restore(*other, PartsReader(tmp_path))
    for model, optimizer in (first, other):
        take_step(model, optimizer)
    for mine, theirs in zip(first[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_checkpoints_weights_can_be_read_alone(tmp_path: Path):
    model, optimizer = small(0)
    take_step(model, optimizer)
    for rank in range(2):
        Snapshot(share_of(whole_pieces(model, optimizer), rank, 2), rank, 2).write(tmp_path)
    found = saved_weights(tmp_path)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(torch.from_numpy(found[name]), value) for name, value in model.state_dict().items())


def test_another_models_checkpoint_is_refused_by_the_tensors_name(tmp_path: Path):
    Snapshot(whole_pieces(*small(0)), 0, 1).write(tmp_path)
    wider = torch.nn.Sequential(torch.nn.Linear(4, 5))
    with pytest.raises(ValueError, match=r"another model's: 0\.bias is \(3,\) there, \(5,\) here"):
        restore(wider, torch.optim.SGD(wider.parameters()), PartsReader(tmp_path))


def test_what_is_saved_is_the_state_at_the_call_though_it_is_written_later(tmp_path: Path):
    saving, learner, checkpoints = saver(tmp_path)
    learner.let.clear()
    state = State(step=1)
    saving.save(state)
    state.step, learner.weights = 2, learner.weights.add_(1)  # the next step, in place
    saving.check()
    assert checkpoints.all() == []
    learner.let.set()
    saving.wait()
    found, path = checkpoints.latest() or pytest.fail("no checkpoint")
    assert found.step == 1 and torch.equal(PartsReader(path).read("weights/w"), torch.arange(1000.0))


def test_a_second_save_waits_for_the_first(tmp_path: Path):
    saving, learner, checkpoints = saver(tmp_path)
    learner.let.clear()
    saving.save(State(step=1))
    second = threading.Thread(target=saving.save, args=(State(step=2),))
    second.start()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001.partial"]
    learner.let.set()
    second.join(30)
    saving.close()
    assert [path.name for path in checkpoints.all()] == ["step-000001", "step-000002"]


@pytest.mark.parametrize("size", [0, 1, 7, 100, 300, 2000, 4100])
def test_a_disk_that_fills_at_any_byte_of_a_save_loses_nothing_and_is_told_at_the_next_step(tmp_path: Path, size: int):
    saved(tmp_path, range(1, 2))
    saving, _, checkpoints = saver(tmp_path)
    with no_file_longer_than(size):
        saving.save(State(step=2))
        while saving._pending and not saving._pending.done():
            threading.Event().wait(0.001)
    with pytest.raises(UserError, match=r"step-000002 could not be written: .*step-000001 is the newest: make room"):
        saving.check()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    saving.save(State(step=2))  # there is room again
    saving.close()
    assert (checkpoints.latest() or pytest.fail("no checkpoint"))[0].step == 2


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing", "manifest"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(tmp_path: Path, harm: str, capsys):
    checkpoints = saved(tmp_path, range(1, 4), keep=3)
    newest = checkpoints.all()[-1]
    file = newest / (MANIFEST if harm == "manifest" else part_name(0))
    data = bytearray(file.read_bytes())
    if harm == "flipped":
        data[-5] ^= 1
    file.write_bytes(data if harm == "flipped" else data[: len(data) // 2])
    if harm == "missing":
        file.unlink()
    state, path = checkpoints.latest() or pytest.fail("no checkpoint")
    assert state.step == 2 and torch.equal(PartsReader(path).read("weights/w"), torch.full((1000,), 2.0))
    told = {"cut": "bytes, not", "flipped": "sha256", "missing": "is missing", "manifest": "cannot be read"}
    assert f"{newest} is damaged" in (out := capsys.readouterr().out) and told[harm] in out


def test_where_all_are_damaged_nothing_is_trained_from_scratch_in_silence(tmp_path: Path):
    checkpoints = saved(tmp_path, range(1, 3))
    for path in checkpoints.all():
        (path / part_name(0)).write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint is intact"):
        checkpoints.latest()


def test_an_unfinished_checkpoint_is_never_found_and_its_leftovers_go(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in range(1, 5):
        path = checkpoints.begin(State(step=step), 10)
        (path / "learner").write_text(str(step))
        if step < 4:  # the fourth is cut off
            checkpoints.commit(State(step=step, wandb_id="w"), path)
    state, path = checkpoints.latest() or pytest.fail("no checkpoint")
    assert (state.step, state.wandb_id, (path / "learner").read_text()) == (3, "w", "3")
    assert [p.name for p in Checkpoints(tmp_path, keep=2).all()] == ["step-000002", "step-000003"]
    assert len(list(tmp_path.iterdir())) == 2  # the leftover went with the next start


def test_the_newest_stay_and_the_best(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    kept = []
    for step, score in enumerate([None, 0.2, 0.9, 0.1, 0.3, 0.9, 0.5, None, 0.4]):
        path = checkpoints.begin(State(step=step), 10)
        checkpoints.commit(State(step=step), path, score=score)
        kept.append([int(p.name[5:]) for p in checkpoints.all()])
    assert kept == [[0], [0, 1], [1, 2], [2, 3], [2, 3, 4], [4, 5], [5, 6], [5, 6, 7], [5, 7, 8]]


def test_a_runs_state_is_that_of_its_newest_checkpoint(tmp_path: Path):
    assert newest_state(tmp_path) == State()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in range(1, 6):
        state = State(step=step, tasks_drawn=8 * step)
        checkpoints.commit(state, checkpoints.begin(state, 10))
    assert newest_state(tmp_path) == State(step=5, tasks_drawn=40)


def test_a_metric_that_the_first_step_lacks_cannot_choose_the_best(tmp_path: Path):
    training = Training(tiny_config(tmp_path, trainer={"keep_best": "reward/pref"}), tmp_path, tmp_path)
    training.state.step = 1
    with pytest.raises(UserError, match=r"trainer\.keep_best = reward/pref is no metric .* take one of reward/perf"):
        training._score({"reward/perf": 0.5})
    training.state.step = 2  # a later step may lack it, and is not the best then
    assert training._score({"reward/perf": 0.5}) is None
