"""Harbor tasks whose agents put things in the way of the tests."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.base import ToolCall
from envs.benchmarks.base import write_prepared
from envs.benchmarks.harbor import Harbor, HarborSession, _reward

NOBODY = 65534
TEST = "ls /tests | wc -l > /logs/verifier/reward.txt\n"
ROW = {
    "id": "one",
    "instruction": "Do it.",
    "test_s": 30.0,
    "files": {"environment/Dockerfile": "FROM x\nWORKDIR /app\n", "tests/test.sh": TEST, "tests/data/a.txt": "a"},
}


def as_another_user(work: Callable[[], None]) -> None:
    """Run ``work`` in a process of a user whom permissions hold: root removes everything anyway."""
    if sys.platform != "linux":
        pytest.skip("fork and users as Linux has them")
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def link_out(folder: Path, outside: Path) -> None:
    (folder / "tests").mkdir()
    (folder / "tests" / "test.sh").symlink_to(outside)
    (folder / "tests").chmod(0o555)


def plant_beside(folder: Path, outside: Path) -> None:
    (folder / "tests" / "inner").mkdir(parents=True)
    (folder / "tests" / "inner" / "conftest.py").write_text("cheat")
    (folder / "tests" / "inner").chmod(0o000)
    (folder / "tests").chmod(0o555)


def lock_logs(folder: Path, outside: Path) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "kept").write_text("x")
    (folder / "logs").chmod(0o555)


def lock_all(folder: Path, outside: Path) -> None:
    (folder / "logs").mkdir(mode=0o555)
    (folder / "tests").symlink_to(outside.parent)
    folder.chmod(0o555)


def nest(folder: Path, outside: Path) -> None:
    place = os.open(folder, os.O_RDONLY)
    for _ in range(2000):  # deeper than a path may be long, and than Python recurses
        os.mkdir("tests", dir_fd=place)
        inner = os.open("tests", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


@pytest.mark.parametrize("way", [link_out, plant_beside, lock_logs, lock_all, nest])
def test_what_an_agent_leaves_neither_stays_among_the_tests_nor_leads_out_nor_stops_the_scoring(
    way: Any, monkeypatch: pytest.MonkeyPatch
):
    given = SimpleNamespace(level="rlimits")  # that user may not see our Python, which a real one starts
    monkeypatch.setattr("envs.benchmarks.harbor.Sandbox", lambda **_: given)

    def work() -> None:
        outside = Path(tempfile.mkdtemp()) / "profile"
        outside.write_text("mine")
        session = HarborSession(ROW)
        way(session._folder, outside)
        session._place_tests()
        found = sorted(str(p.relative_to(session._folder)) for p in session._folder.rglob("*") if p.is_file())
        assert found == ["tests/data/a.txt", "tests/test.sh"], found
        assert (session._folder / "logs" / "verifier").is_dir() and outside.read_text() == "mine"
        session._remove()
        assert not session._folder.exists()
        shutil.rmtree(outside.parent)

    as_another_user(work)


async def test_a_folder_that_an_agent_locked_is_scored_by_the_tests_alone():
    session = HarborSession({**ROW, "test_s": 30.0})
    cheat = "mkdir -p /tests /logs; touch /tests/conftest.py; ln -s /etc/passwd /tests/test.sh; chmod 555 /tests /logs"
    said = await session.run("0", ToolCall(id="b:0", name="bash", arguments={"command": cheat}), 30.0)
    assert said.text == ""
    score = await session.grade("done")
    assert score.parts == {"reward": 2.0, "tests_ran": 1.0}  # test.sh and data
    folder = session._folder
    await session.close()
    assert not folder.exists()


def test_only_a_finite_number_is_a_reward():
    assert (_reward(b"0.5", None), _reward(None, b'{"reward": 1}'), _reward(None, b"0.25")) == (0.5, 1.0, 0.25)
    for text in (b"", b"nan", b"inf", b"x", b"1e999"):
        assert _reward(text, None) == 0.0
    for document in (b"[]", b"[" * 100_000, b"1" + b"0" * 400, b'{"reward": "good"}', b"NaN", b"\xff"):
        assert _reward(None, document) == 0.0


def test_scoring_takes_as_long_as_the_slowest_tests_and_some(tmp_path: Path):
    for name, seconds in (("one", 900), ("two", 5)):
        for file, text in {
            "task.toml": f"[verifier]\ntimeout_sec = {seconds}\n",
            "instruction.md": "Do it.",
            "environment/Dockerfile": "FROM x\n",
            "tests/test.sh": TEST,
        }.items():
            (tmp_path / "from" / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "from" / name / file).write_text(text)
    (tmp_path / "p").mkdir()
    write_prepared(Harbor(tmp_path / "p"), tmp_path / "from", tmp_path / "p")
    assert Harbor(tmp_path / "p").scoring_s == 930.0


def test_a_dockerfiles_path_outside_is_refused():
    with pytest.raises(ValueError, match="leads outside"):
        HarborSession({**ROW, "files": ROW["files"] | {"environment/Dockerfile": "WORKDIR ../../x\n"}})
