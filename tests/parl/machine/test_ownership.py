"""One owner per folder, and a run's claim on it; refusals leave everything unchanged."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stored import make_run
from tiny import tiny_config

from parl.errors import UserError
from parl.machine import ownership
from parl.machine.ownership import LOCK, Owner, owner_of, owning
from parl.run.claim import claimed

OWN = """
import sys, time
from pathlib import Path
from parl.machine.ownership import owning
with owning(Path(sys.argv[1]), "a run", "wait"):
    print("mine", flush=True)
    {then}
"""


@contextmanager
def other_owner(folder: Path, then: str = "sys.stdin.read()") -> Iterator[subprocess.Popen[str]]:
    """Another process that owns ``folder``."""
    command = [sys.executable, "-c", OWN.format(then=then), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def test_a_second_owner_is_refused_and_told_who_is_there(tmp_path: Path):
    with other_owner(tmp_path) as process, pytest.raises(UserError) as refused:
        ownership._acquire(tmp_path, "an import", "take another", LOCK)
    host = os.uname().nodename
    assert f"a run is under way in {tmp_path} (pid {process.pid} on {host} since 20" in str(refused.value)
    assert str(refused.value).endswith("): take another")


def test_the_lock_ends_with_its_process_however_it_ends(tmp_path: Path):
    with other_owner(tmp_path):
        pass  # killed
    with owning(tmp_path, "a run", "wait"):
        assert owner_of(tmp_path / LOCK) is not None
    assert owner_of(tmp_path / LOCK) is None


@pytest.mark.parametrize(
    "child",
    [
        "import subprocess; subprocess.Popen(['sleep', '30']); print('child', flush=True)",
        "import os; os.fork() or (print('child', flush=True), time.sleep(30))",
    ],
    ids=["started", "forked"],
)
def test_no_child_keeps_the_lock_of_a_dead_owner(tmp_path: Path, child: str):
    with other_owner(tmp_path, f"{child}; sys.stdin.read()") as process:
        assert process.stdout
        assert process.stdout.readline() == "child\n"
        process.kill()
        process.wait()
        with owning(tmp_path, "a run", "wait"):
            pass


def test_a_stopped_owner_is_said_to_be_stopped(tmp_path: Path):
    with other_owner(tmp_path) as process:
        process.send_signal(19)
        while Owner.this_process("x") and (owner := owner_of(tmp_path / LOCK)) and owner.state != "stopped":
            time.sleep(0.01)
        with pytest.raises(UserError, match=f"it is stopped: kill -CONT {process.pid} lets it go on"):
            ownership._acquire(tmp_path, "a run", "wait", LOCK)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', "\x00\xff", '{"pid": -1, "host": "\x1b[2J"}']
)
def test_a_lock_is_free_whatever_was_written_in_it(tmp_path: Path, text: str):
    (tmp_path / LOCK).write_bytes(text.encode("latin-1"))
    assert owner_of(tmp_path / LOCK) is None
    with owning(tmp_path, "a run", "wait"):
        pass


def test_without_locks_the_text_is_believed_while_its_process_lives(tmp_path: Path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with owning(tmp_path, "a run", "wait"), pytest.raises(UserError, match=r"delete .*\.lock"):
        ownership._acquire(tmp_path, "a run", "wait", LOCK)
    for owner in (
        {"pid": os.getpid(), "began": 1.0, "host": os.uname().nodename},  # another process of that number
        {"pid": 2**22 - 1, "began": 1.0, "host": os.uname().nodename},
    ):
        (tmp_path / LOCK).write_text(json.dumps({"what": "a run", "since": "then", **owner}))
        with owning(tmp_path, "a run", "wait"):
            pass
    (tmp_path / LOCK).write_text(
        json.dumps({"what": "a run", "since": "then", "pid": 1, "began": 1.0, "host": "elsewhere"})
    )
    with pytest.raises(UserError, match=r"pid 1 on elsewhere since then.*delete"):
        ownership._acquire(tmp_path, "a run", "wait", LOCK)


def test_a_link_or_a_folder_in_the_locks_place_is_named(tmp_path: Path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / LOCK).symlink_to(tmp_path / "precious")
    (tmp_path / "b" / LOCK).mkdir(parents=True)
    (tmp_path / "c").write_text("a file")
    for name in "abc":
        with pytest.raises(UserError, match=rf"{name}/\.lock cannot be written"):
            ownership._acquire(tmp_path / name, "a run", "wait", LOCK)
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_new_run_gets_a_folder_and_its_configuration(tmp_path: Path):
    config = tiny_config(tmp_path)
    with claimed(config, resume=False) as run_dir:
        assert sorted(path.name for path in run_dir.iterdir()) == [LOCK, "config.yaml"]


def test_a_run_under_way_is_neither_moved_nor_resumed(tmp_path: Path):
    config = tiny_config(tmp_path)
    run = make_run(config)
    before = sorted(run.rglob("*"))
    with other_owner(run):
        for resume in (False, True):
            with pytest.raises(UserError, match=r"a run is under way in .*tiny \(pid"), claimed(config, resume=resume):
                pass
    assert sorted({*run.rglob("*")} - {run / LOCK}) == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_run_that_is_being_evaluated_is_not_moved(tmp_path: Path):
    config = tiny_config(tmp_path)
    run = make_run(config)
    owned = other_owner(run / "evals" / "trained-123")
    with owned, pytest.raises(UserError, match=r"under way in .*trained-123"), claimed(config, resume=False):
        pass
    assert run.is_dir()


def test_an_earlier_run_is_moved_aside_and_the_new_folder_is_ours(tmp_path: Path, capsys):
    config = tiny_config(tmp_path)
    make_run(config)
    with claimed(config, resume=False) as run_dir:
        assert owner_of(run_dir / LOCK) is not None
        assert not (run_dir / "episodes").exists()
        with pytest.raises(UserError, match="under way"), claimed(config, resume=False):
            pass
    assert (tmp_path / "tiny.1" / "episodes").is_dir()
    assert "the earlier run is kept in" in capsys.readouterr().out
    with claimed(config, resume=False):
        assert (tmp_path / "tiny.2").is_dir()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path):
    config = tiny_config(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds no run, but thesis.tex"), claimed(config, resume=False):
        pass
    (tmp_path / "tiny" / "config.yaml").write_text("theirs: 1\n")
    with pytest.raises(UserError, match=r"a config\.yaml that is no run's"), claimed(config, resume=False):
        pass
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["config.yaml", "thesis.tex"]


def test_a_file_in_the_runs_place_is_named(tmp_path: Path):
    (tmp_path / "tiny").write_text("")
    with pytest.raises(UserError, match="is a file"), claimed(tiny_config(tmp_path), resume=False):
        pass


def test_another_seed_does_not_take_the_folder_of_a_run_that_is_called_so(tmp_path: Path):
    first = tiny_config(tmp_path, name="x-seed2")
    make_run(first)
    second = tiny_config(tmp_path, name="x", seed=2)
    assert first.run_dir == second.run_dir
    for resume in (False, True):
        with pytest.raises(UserError, match="is the run name=x-seed2 seed=1"), claimed(second, resume=resume):
            pass


def test_names_that_differ_in_case_alone_are_said(tmp_path: Path, capsys):
    make_run(tiny_config(tmp_path, name="Tiny"))
    with claimed(tiny_config(tmp_path), resume=False):
        assert "Tiny is another run: file systems that ignore case" in capsys.readouterr().out


@pytest.mark.parametrize("torn", ["", "name: [", "- a\n", "name: tiny\nunheard_of: 1\n"])
def test_a_torn_configuration_is_named_at_resume_and_moved_aside_at_a_new_start(tmp_path: Path, torn: str):
    config = tiny_config(tmp_path)
    run = make_run(config)
    (run / "config.yaml").write_text(torn)
    with pytest.raises(UserError, match=r"config\.yaml"), claimed(config, resume=True):
        pass
    with claimed(config, resume=False):
        assert (tmp_path / "tiny.1" / "config.yaml").read_text() == torn


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tmp_path: Path):
    config = tiny_config(tmp_path)
    run = make_run(config)
    (run / ".summary.json.0123.tmp").write_text("{")
    (run / ".policy.0123.tmp").mkdir()
    (run / "episodes" / ".train-000001.parquet.tmp").write_text("PAR")
    with claimed(config, resume=True):
        assert not list(run.rglob("*.tmp"))
