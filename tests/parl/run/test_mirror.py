"""The run's copy at an fsspec address: it follows the folder, survives failing stores, and is enough to resume from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from tiny import tiny_config

from benchmarks.kill import differences
from parl.config.load import to_yaml
from parl.config.schema import Config
from parl.errors import MachineError, UserError
from parl.learn.shard.parts import Part
from parl.run import mirror as module
from parl.run import remote as remote_module
from parl.run.checkpoints import Checkpoints, State
from parl.run.mirror import Mirror
from parl.run.mirror import fetch as fetch_run
from parl.run.mirror import mirrored as mirrored_run
from parl.run.remote import Remote


class Flaky(LocalFileSystem):
    """Local files behind a store that fails: ``left`` operations succeed, then ``failures`` fail."""

    protocol = "flaky"
    left: ClassVar[float] = float("inf")
    failures: ClassVar[float] = 0
    error: ClassVar[OSError] = OSError("the store is down")
    hangs: ClassVar[threading.Event | None] = None
    operations: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("flaky://"))

    def _met(self, what: str) -> None:
        cls = type(self)
        cls.operations.append(what)
        if cls.hangs:
            cls.hangs.wait(30)
        cls.left -= 1
        if cls.left < 0 and cls.failures > 0:
            cls.failures -= 1
            raise cls.error

    def open(self, path: str, mode: str = "rb", **rest: Any) -> Any:
        self._met(f"open {path}")
        return super().open(path, mode, **rest)

    def mv(self, path1: str, path2: str, **rest: Any) -> None:
        self._met(f"mv {path2}")
        super().mv(path1, path2, **rest)

    def rm_file(self, path: str) -> None:
        self._met(f"rm {path}")
        super().rm_file(path)

    def find(self, path: str, **rest: Any) -> Any:
        self._met("find")
        return super().find(path, **rest)


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.left, Flaky.failures, Flaky.hangs, Flaky.operations = float("inf"), 0, None, []
    Flaky.error = OSError("the store is down")
    monkeypatch.setattr(remote_module, "_PAUSES_S", (0.001,) * 4)
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    monkeypatch.setattr(module, "_SETTLE_S", 0.02)
    MemoryFileSystem.store.clear()
    yield
    if Flaky.hangs:
        Flaky.hangs.set()


def config_in(tmp_path: Path, machine: str, url: str = "") -> Config:
    url = url or f"flaky://{tmp_path}/store"
    return tiny_config(tmp_path).model_copy(update={"root": tmp_path / machine, "mirror": url})


def fetch(config: Config) -> None:
    fetch_run(config.mirror, config.run_dir, config.root / "cold_start" / "0123456789ab")


def mirrored(config: Config, run: Path, *, resume: bool) -> AbstractContextManager[Mirror | None]:
    return mirrored_run(config.mirror, run, resume=resume)


def begun(config: Config) -> Path:
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    return config.run_dir


def save_step(run: Path, step: int, keep: int = 2, wandb_id: str | None = None) -> None:
    checkpoints = Checkpoints(run / "checkpoints", keep)
    state = State(step=step, episodes=step, wandb_id=wandb_id)
    path = checkpoints.begin(state, 1)
    parts = []
    for number in range(2):
        data = f"weights {step} {number}".encode()
        (path / f"part-{number}").write_bytes(data)
        parts.append(Part(file=f"part-{number}", bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    checkpoints.commit(state, path, parts)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def tree(folder: Path, *without: str) -> dict[str, bytes]:
    linked = {path for path in folder.rglob("*") if path.is_symlink()}  # W&B's, to its newest files
    files = (path for path in folder.rglob("*") if path.is_file() and not linked & {path, *path.parents})
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name not in without}


@pytest.mark.parametrize("kind", ["flaky", "file"])
def test_the_copy_follows_the_folder_and_another_machine_gets_it_whole(tmp_path: Path, kind: str):
    url = f"{kind}://{tmp_path}/store"
    config = config_in(tmp_path, "one", url)
    run, there = begun(config), tmp_path / "store" / config.name
    (run / ".lock").touch()
    (run / "served").mkdir()
    (run / "served" / "weights").write_text("for this machine's servers")
    (run / ".a.1234.tmp").write_text("unfinished")
    with mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        for step in range(1, 6):
            save_step(run, step)
            mirror.flush()
            here = {name: data for name, data in tree(run, ".lock").items() if name[0] != "." and name[:6] != "served"}
            assert tree(there, "owner.json") == here
    assert {path.name for path in (there / "checkpoints").iterdir() if any(path.iterdir())} == {
        "step-000004", "step-000005"
    }  # fmt: skip
    other = config_in(tmp_path, "two", url)
    fetch(other)
    assert tree(other.run_dir) == here
    assert Checkpoints(other.run_dir / "checkpoints", 2).latest()[0].step == 5  # type: ignore[index]


def test_an_object_store_takes_it_as_well(tmp_path: Path):
    config = config_in(tmp_path, "one", "memory://bucket/runs")
    run = begun(config)
    with mirrored(config, run, resume=False):
        save_step(run, 1)
    names = Remote(f"memory://bucket/runs/{config.name}").files()
    assert {"config.yaml", "metrics.jsonl", "checkpoints/step-000001/manifest.json", "owner.json"} <= set(names)
    fetch(other := config_in(tmp_path, "two", "memory://bucket/runs"))
    assert tree(other.run_dir) == tree(run)


def test_whenever_the_store_dies_another_machine_finds_an_intact_checkpoint(tmp_path: Path):
    """The store ends after each number of operations in turn, as when the machine is killed at that moment."""
    operations = None
    for deadline in range(2, 400):
        base = tmp_path / str(deadline)
        config = config_in(base, "one")
        run, flushed = begun(config), 0
        Flaky.left, Flaky.failures, Flaky.operations = deadline, float("inf"), []
        with suppress(MachineError):
            mirror = Mirror(run, Remote(f"{config.mirror}/{config.name}"))
            mirror.start()
            for step in range(1, 3):
                save_step(run, step, keep=1)
                mirror.flush()
                flushed = step
            mirror.close()
            operations = len(Flaky.operations)
        Flaky.left = float("inf")
        fetch(other := config_in(base, "two"))
        found = Checkpoints(other.run_dir / "checkpoints", 1).latest() if other.run_dir.exists() else None
        assert (found[0].step if found else 0) >= flushed, f"after {deadline} operations"
        shutil.rmtree(base)
        if operations:
            break
    assert operations and operations > 20


def test_a_store_that_fails_for_a_moment_is_asked_again(tmp_path: Path):
    config = config_in(tmp_path, "one")
    run = begun(config)
    with mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        Flaky.left, Flaky.failures = 0, 4
        save_step(run, 1)
        mirror.flush()
    assert Flaky.failures == 0 and tree(tmp_path / "store" / config.name, "owner.json") == tree(run)


@pytest.mark.parametrize("error", [OSError("the store is down"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_dead_or_full_store_ends_the_run_with_its_address_and_loses_nothing_here(tmp_path: Path, error: OSError):
    config = config_in(tmp_path, "one")
    run = begun(config)
    Flaky.error = error
    with pytest.raises(MachineError) as raised, mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        save_step(run, 1)
        mirror.flush()
        Flaky.left, Flaky.failures = 0, float("inf")
        save_step(run, 2)
        mirror.flush()
    said = str(raised.value)
    assert f"flaky://{tmp_path}/store/{config.name}" in said and "tried 5 times" in said and str(error)[-12:] in said
    assert str(run) in said and "--resume" in said
    Flaky.left = float("inf")
    assert Checkpoints(run / "checkpoints", 2).latest()[0].step == 2  # type: ignore[index]
    with mirrored(config, run, resume=True):
        pass
    assert tree(tmp_path / "store" / config.name, "owner.json") == tree(run)


def test_a_store_that_hangs_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_module, "_ATTEMPT_S", 0.05)
    Flaky.hangs = threading.Event()
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"cannot list flaky://.*tried 5 times: no answer within 0 s"):
        Remote(f"flaky://{tmp_path}/store").files()
    assert time.monotonic() - began < 20


def test_a_run_that_was_resumed_elsewhere_ends_here(tmp_path: Path):
    config = config_in(tmp_path, "one")
    run = begun(config)
    taken = pytest.raises(MachineError, match=r"is another process's now, pid .*the run was resumed there")
    with taken, mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        save_step(run, 1)
        mirror.flush()
        fetch(other := config_in(tmp_path, "two"))
        with mirrored(other, other.run_dir, resume=True):
            save_step(other.run_dir, 2)
        save_step(run, 2)
        mirror.flush()
    there = tree(tmp_path / "store" / config.name)
    assert "checkpoints/step-000002/manifest.json" in there and json.loads(there["owner.json"])["id"]


def test_a_new_run_does_not_write_over_another_and_an_older_copy_here_is_not_taken_for_the_newest(tmp_path: Path):
    config = config_in(tmp_path, "one")
    run = begun(config)
    with mirrored(config, run, resume=False):
        save_step(run, 1)
    with pytest.raises(UserError, match="holds a run: --resume continues it"), mirrored(config, run, resume=False):
        pass
    fetch(other := config_in(tmp_path, "two"))
    with mirrored(other, other.run_dir, resume=True):
        save_step(other.run_dir, 2)
    fetch(other)  # as new as the copy
    with pytest.raises(UserError, match=r"is ahead of .*Move .* away"):
        fetch(config)


def test_a_run_resumed_here_never_replaces_another_run_of_its_name_at_the_address(tmp_path: Path):
    first, second = config_in(tmp_path, "one"), config_in(tmp_path, "two")
    with mirrored(first, begun(first), resume=False):
        save_step(first.run_dir, 30, wandb_id="aaaa")
    before = tree(tmp_path / "store")
    save_step(begun(second), 50, wandb_id="bbbb")
    with pytest.raises(UserError, match=r"holds another run of this name.*aaaa.*bbbb.*another mirror="):
        fetch(second)
    with pytest.raises(UserError, match="holds another run"), mirrored(second, second.run_dir, resume=True):
        pass
    assert tree(tmp_path / "store") == before
    third = config_in(tmp_path, "three")  # nothing trained yet
    begun(third)
    with pytest.raises(UserError, match="is ahead of"):
        fetch(third)


def test_before_the_first_checkpoint_its_settings_tell_a_run_from_another(tmp_path: Path):
    first, same = config_in(tmp_path, "one"), config_in(tmp_path, "two")
    with mirrored(first, begun(first), resume=False):
        pass
    save_step(begun(same), 1, wandb_id="bbbb")
    fetch(same)
    trainer = same.trainer.model_copy(update={"epochs": same.trainer.epochs + 1})
    (same.run_dir / "config.yaml").write_text(to_yaml(same.model_copy(update={"trainer": trainer})))
    with pytest.raises(UserError, match=r"holds another run of this name.*trainer.epochs"):
        fetch(same)


def test_a_run_that_still_writes_elsewhere_is_ended_before_its_files_are_fetched(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_S", 0.3)
    config = config_in(tmp_path, "one")
    run, over = begun(config), threading.Event()

    def train(mirror: Mirror) -> None:
        step = 0
        while not over.is_set():
            with suppress(MachineError):
                save_step(run, step := step + 1)
                mirror.flush()

    taken = pytest.raises(MachineError, match="the run was resumed there")
    with taken, mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        training = threading.Thread(target=train, args=(mirror,))
        training.start()
        while not (tmp_path / "store" / config.name / "checkpoints/step-000003/manifest.json").exists():
            time.sleep(0.01)
        try:
            fetch(other := config_in(tmp_path, "two"))
        finally:
            over.set()
            training.join()
        mirror.check()
    assert Checkpoints(other.run_dir / "checkpoints", 2).latest() is not None


def test_a_process_that_does_not_stop_writing_is_told_to_the_user(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_LIMIT_S", 0.2)
    config = config_in(tmp_path, "one")
    with mirrored(config, begun(config), resume=False):
        pass
    log = tmp_path / "store" / config.name / "metrics.jsonl"
    listed = Flaky.find

    def find(self: Flaky, path: str, **rest: Any) -> Any:
        with log.open("a") as file:
            file.write("more\n")
        return listed(self, path, **rest)

    monkeypatch.setattr(Flaky, "find", find)
    with pytest.raises(UserError, match="another process is still writing to flaky://"):
        fetch(other := config_in(tmp_path, "two"))
    assert not other.run_dir.exists()


def test_a_listing_between_two_checkpoints_leaves_the_copy_with_the_one_that_it_has(tmp_path: Path, monkeypatch):
    config = config_in(tmp_path, "one")
    run, listed = begun(config), Mirror._local

    def none(self: Mirror) -> dict[str, Any]:  # the first was dropped, and the second was not there yet
        return {name: stamp for name, stamp in listed(self).items() if not name.startswith("checkpoints/")}

    with mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        save_step(run, 1, keep=1)
        mirror.flush()
        monkeypatch.setattr(Mirror, "_local", none)
        mirror.flush()
        assert tree(tmp_path / "store" / config.name, "owner.json") == tree(run)
        monkeypatch.setattr(Mirror, "_local", listed)
        save_step(run, 2, keep=1)
        mirror.flush()
    assert tree(tmp_path / "store" / config.name, "owner.json") == tree(run)


def test_what_was_written_in_part_does_not_stay_at_the_address(tmp_path: Path):
    config = config_in(tmp_path, "one")
    run, there = begun(config), tmp_path / "store" / config.name
    there.mkdir(parents=True)
    (there / "metrics.jsonl.part-0123abcd").write_text("of a process that was killed")
    with mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        assert not list(there.rglob("*.part-*"))
        moved = Flaky.mv
        try:
            Flaky.mv = lambda self, path1, path2, **rest: self._met("mv") or (_ for _ in ()).throw(OSError("full"))
            with pytest.raises(MachineError, match="full"):
                mirror.remote.write("notes", b"text")
        finally:
            Flaky.mv = moved
    assert not list(there.rglob("*.part-*"))


def test_resumed_in_place_no_checkpoint_is_written_twice(tmp_path: Path):
    config = config_in(tmp_path, "one")
    run = begun(config)
    with mirrored(config, run, resume=False):
        save_step(run, 1)
    (tmp_path / "store" / config.name / "left over").write_text("of a step that is made again")
    Flaky.operations = []
    with mirrored(config, run, resume=True):
        save_step(run, 2)
    written = [what for what in Flaky.operations if what.startswith("mv")]
    assert not any("step-000001" in what for what in written) and any(
        "step-000002/manifest" in what for what in written
    )
    assert tree(tmp_path / "store" / config.name, "owner.json") == tree(run)


def test_a_checkpoint_that_is_made_again_is_invalid_while_its_files_change(tmp_path: Path):
    config = config_in(tmp_path, "one")
    run = begun(config)
    with mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        save_step(run, 1)
        mirror.flush()
        Flaky.operations = []
        (run / "checkpoints" / "step-000001").rename(tmp_path / "aside")
        time.sleep(0.05)  # files of one size differ in their time, whose clock ticks every few milliseconds
        save_step(run, 1)
    changed = [
        what.partition(" ")[0] for what in Flaky.operations if "manifest.json" in what and not what.startswith("open")
    ]
    assert changed[0] == "rm" and changed[-1] == "mv"
    first = next(place for place, what in enumerate(Flaky.operations) if "step-000001/part-" in what)
    assert Flaky.operations.index(next(what for what in Flaky.operations if what.startswith("rm"))) < first


def test_the_cold_start_comes_along_and_another_one_is_refused(tmp_path: Path):
    config = config_in(tmp_path, "one")
    run = begun(config)
    cold = tmp_path / "cold"
    cold.mkdir()
    (cold / "model.safetensors").write_bytes(b"weights")
    (cold / "tokenizer.json").write_text("{}")
    with mirrored(config, run, resume=False) as mirror:
        assert mirror is not None
        mirror.add_cold_start(cold, copied=True)
    fetch(other := config_in(tmp_path, "two"))
    found = list((other.root / "cold_start").iterdir())
    assert len(found) == 1 and tree(found[0]) == tree(cold) and "cold_start" not in tree(other.run_dir)
    (cold / "model.safetensors").write_bytes(b"other weights")
    with (
        pytest.raises(UserError, match="began from another policy"),
        mirrored(other, other.run_dir, resume=True) as two,
    ):
        assert two is not None
        two.add_cold_start(cold, copied=True)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "a\\..\\outside"])
def test_a_name_that_leads_out_of_the_runs_folder_is_refused(tmp_path: Path, name: str, monkeypatch):
    config = config_in(tmp_path, "one")
    with mirrored(config, begun(config), resume=False):
        pass
    told = {f"{tmp_path}/store/{config.name}/{one}": {"size": 1} for one in ("config.yaml", name)}
    monkeypatch.setattr(Flaky, "find", lambda self, path, **rest: told)
    with pytest.raises(MachineError, match="which no run writes"):
        fetch(config_in(tmp_path, "two"))
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("runs", "is no address of fsspec"),
        ("s3://key:secret@bucket/runs", "has credentials"),
        ("s3://bucket/runs?key=1", "a query"),
    ],
)
def test_addresses_that_cannot_be_are_refused_when_the_configuration_is_read(address: str, said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        type(tiny_config(tmp_path)).model_validate({"mirror": address})


def test_a_store_whose_package_is_missing_names_it():
    with pytest.raises(MachineError, match=r"s3://bucket/runs.*s3fs"):
        Remote("s3://bucket/runs").files()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_is_resumed_on_another_machine_from_the_address_alone(
    finished: Path, tiny_yaml: Path, tmp_path: Path
):
    """Episodes, metrics and checkpoints are those of a run that nobody killed."""
    mirror, script = f"mirror=file://{tmp_path}/store", Path(__file__).parents[1] / "killed_run.py"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "RAY"))}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])

    def parl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments, mirror]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)

    killed = parl(str(script), "checkpoint", "3", "train", str(tiny_yaml), f"root={tmp_path}/one")  # of step 2
    assert killed.returncode == -signal.SIGKILL, killed.stdout[-2000:] + killed.stderr[-4000:]
    shutil.rmtree(tmp_path / "one")
    again = parl("-m", "parl", "train", str(tiny_yaml), "--resume", f"root={tmp_path}/two")
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-4000:]
    run = tmp_path / "two" / "tiny"
    assert f"of file://{tmp_path}/store/tiny are in {run}" in again.stdout.replace("\n", "")
    assert differences(run, finished) == []
    there = tree(tmp_path / "store" / "tiny", "owner.json")
    here = {name: data for name, data in tree(run, ".lock").items() if not name.startswith("served/")}
    assert {name: data for name, data in there.items() if not name.startswith("cold_start")} == here
