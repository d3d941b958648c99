"""Output paths that cannot be written: exit 2 with the path, no traceback."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from attacks.torn import copy_of_a_run, parl

from parl.cli.errors import written_to
from parl.errors import UserError

COMMANDS = (
    "report RUN --out OUT",
    "compare RUN --out OUT",
    "export RUN --out OUT",
    "episodes export RUN --format openai --out OUT",
    "episodes export RUN --format atif --out OUT",
    "episodes import ATIF --format atif --out OUT",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = copy_of_a_run(tmp_path_factory.mktemp("places"))
    code, said = parl(["episodes", "export", str(made / "eval"), "--format", "atif", "--out", str(made / "atif")])
    assert code == 0, said
    return made


@pytest.mark.parametrize("place", ["/proc/page.html", "/dev/null/page.html", "RUN/summary.json/page.html", "x" * 300])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_where_nothing_can_be_made_is_named(run: Path, command: str, place: str):
    place = place.replace("RUN", str(run))
    given = command.replace("RUN", str(run)).replace("ATIF", str(run / "atif")).replace("OUT", place)
    code, said = parl(given.split())
    assert code == 2, f"exit {code}: {said[-500:]}"
    assert "Traceback" not in said
    assert Path(place).parts[-2 if "/" in place else -1] in said.replace("\n", "")


def test_a_file_that_is_missing_elsewhere_stays_what_it_is(tmp_path: Path):
    with pytest.raises(FileNotFoundError), written_to(tmp_path / "page.html"):
        (tmp_path / "run" / "episodes").read_text()
    with pytest.raises(OSError), written_to(tmp_path / "page.html"):
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "page.html"))
    page = tmp_path / "none" / "page.html"
    with pytest.raises(UserError, match=r"/none/page\.html cannot be made .*name another place with"), written_to(page):
        page.write_text("")


@pytest.mark.parametrize("flag, hint", [(["--dry-run"], False), ([], True)])
def test_a_full_disk_hints_at_resume_only_where_a_run_has_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: list[str], hint: bool
):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("parl.plan.limits.check_memory", full)
    code, said = parl(["train", "quickstart", f"root={tmp_path}", *flag])
    assert code == 1 and "No space left on device" in said
    assert ("--resume" in said) == hint
