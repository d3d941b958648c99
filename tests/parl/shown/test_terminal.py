"""Output of commands: untrusted text neither controls the terminal nor is read as markup."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hostile import FORBIDDEN, STRINGS, hostile_episode, hostile_store
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from parl.cli.main import app
from parl.episodes.stores import Store
from parl.shown.terminal import _Console, cell, line, plain, styled

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "st[red]ore[/]\x1b[2J"
    return hostile_store(folder)


COMMANDS = (
    ("episodes", "ls"),
    ("episodes", "ls", "--json"),
    ("episodes", "show", "train-000001:0"),
    ("episodes", "show", "train-000001:1", "--full"),
    ("episodes", "show", "train-000001:2", "--json"),
    ("episodes", "show", "k\x1b[2J[/]#7"),
    ("episodes", "show", "train-000001:0", "--raw"),
    ("rescore",),
    ("compare",),
    ("top",),
    ("report",),
    ("replay",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_passes_a_control_character_on(command: tuple[str, ...], store: Path):
    words = (*command[:2], str(store), *command[2:]) if command[0] == "episodes" else (*command, str(store))
    result = CliRunner().invoke(app, words)
    assert not FORBIDDEN & set(result.output), sorted(FORBIDDEN & set(result.output))
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output


@pytest.mark.parametrize("pattern", ["red", "evil", "half", "line"])
def test_matches_are_printed_plain(pattern: str, store: Path):
    result = CliRunner().invoke(app, ["episodes", "grep", pattern, str(store)])
    assert result.exit_code == 0 and not FORBIDDEN & set(result.output)
    assert "[link=https://evil.example]" in result.output or pattern != "evil"  # seen, not obeyed


@pytest.mark.parametrize("text", STRINGS)
def test_a_name_in_an_error_is_plain(text: str):
    result = CliRunner().invoke(app, ["top", text.replace("\x00", "").replace("\ud800", "").replace("\udfff", "")])
    assert result.exit_code == 2 and not FORBIDDEN & set(result.output)


@given(st.text())
def test_any_text_becomes_harmless_and_ordinary_text_stays(text: str):
    shown = plain(text)
    assert not FORBIDDEN & set(shown) and plain(shown) == shown
    assert shown.encode("utf-8").decode() == shown  # which a lone surrogate would refuse
    assert "\n" not in line(text)
    if text.isascii() and text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    "text", ["naïve — “quotes” 4 217 €", "日本語 العربية עברית हिन्दी", "👩‍👩‍👧 🏳️‍🌈", "a\tb\nc", "क्‍ष"]
)
def test_ordinary_text_of_any_language_stays(text: str):
    assert plain(text) == text


@pytest.mark.parametrize("text", STRINGS)
def test_nothing_hostile_is_markup_and_the_console_is_a_net(text: str):
    out = io.StringIO()
    console = _Console(file=out, width=200, markup=False, emoji=False, force_terminal=False)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    for shown in (text, cell(text), styled("[bold]{}[/]", text), table):
        console.print(shown)
    assert not FORBIDDEN & set(out.getvalue())


def test_markup_of_a_stranger_is_text():
    out = io.StringIO()
    Console(file=out, width=80).print(styled("[bold]{}[/] {}", "[red]x[/]", "[/]"))
    assert out.getvalue() == "[red]x[/] [/]\n"


def test_everything_is_printed_from_one_place():
    away = re.compile(r"typer\.echo\(|(?<![\w.])print\(|(?<![\w.\"])Console\(|print_exc\(|sys\.std(?:out|err)\.write\(")
    for file in sorted((ROOT / "parl").rglob("*.py")):
        if file.name not in ("terminal.py", "probe.py"):  # a probe's output is read by a program
            found = [text for text in file.read_text().splitlines() if away.search(text)]
            assert not found, f"{file}: print with parl.shown.terminal's echo and console: {found}"


def test_the_store_keeps_hostile_episodes(tmp_path: Path):
    [found] = {store.folder for store in [Store(folder=hostile_store(tmp_path / "s", 1), shards=(), run=None)]}
    from rollouts.store.store import read_shard

    [episode], _ = read_shard(found / "train-000001.parquet")
    wanted = hostile_episode(0)
    assert episode.orchestrator.turns == wanted.orchestrator.turns
    assert episode.error.encode() and episode.task.prompt == wanted.task.prompt
