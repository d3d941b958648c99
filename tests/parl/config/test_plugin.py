"""Names to classes: built-in, module:Class, entry point; messages for unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest

from parl.config import plugin
from parl.config.plugin import Kind, PluginError


def has_loss(kind: type) -> None:
    if not hasattr(kind, "loss"):
        raise ValueError("it has no method loss")


KIND = Kind(
    what="objective", built_in={"path": "pathlib:Path", "purepath": "pathlib:PurePath"}, check=lambda kind: None
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "of_mine.py").write_text("class Mine:\n    def loss(self): ...\n\nclass Other: ...\nnumber = 3\n")
    (tmp_path / "broken.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "needs.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "of_mine"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str):
    info = tmp_path / "their_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[parl.objectives]\ntheirs = of_mine:Mine\n")
    plugin._installed.cache_clear()
    yield
    plugin._installed.cache_clear()


def test_the_three_ways_to_name_a_class(installed: None):
    assert KIND.resolve("path") is Path
    assert KIND.resolve("of_mine:Mine").__name__ == "Mine"
    assert KIND.resolve("theirs") is KIND.resolve("of_mine:Mine")
    assert KIND.names() == ["path", "purepath", "theirs"]
    assert [KIND.origin(name) for name in ("path", "theirs", "of_mine:Mine")] == [
        "built in",
        "their-package 1.2",
        "of_mine",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pathh", "must be one of path, purepath, theirs, or package.module:Class; did you mean path?"),
        ("their", "did you mean theirs?"),
        ("of_mine.Mine", "a class of your own is written of_mine:Mine"),
        ("of_mine:Min", "of_mine has no Min; did you mean Mine?"),
        ("of_mine:number", "of_mine:number is int, not a class"),
        ("of_miine:Mine", "there is no module of_miine: is its folder on PYTHONPATH, or installed?"),
        ("no.such.module:Mine", "there is no module no"),
        ("broken:Mine", "broken.py:2"),
        ("needs:Mine", "needs cannot be imported: No module named 'not_installed_anywhere'"),
        ("of mine:Mine", "is not written package.module:Class"),
        (":", "is not written package.module:Class"),
        ("of_mine:", "is not written package.module:Class"),
        (3, "must be one of path, purepath, theirs, or package.module:Class"),
    ],
)
def test_a_name_that_leads_nowhere_says_why(name: object, said: str, installed: None):
    with pytest.raises(PluginError) as caught:
        KIND.resolve(name)
    assert said in str(caught.value)


def test_a_class_must_have_what_its_kind_asks_for(module: str):
    kind = Kind(what="objective", built_in={}, check=has_loss)
    assert kind.resolve("of_mine:Mine").__name__ == "Mine"
    with pytest.raises(PluginError, match="of_mine:Other is no objective: it has no method loss"):
        kind.resolve("of_mine:Other")


def test_kinds_name_their_entry_points_groups():
    groups = [Kind(what=what, built_in={}, check=has_loss).group for what in ("environment", "family", "reward")]
    assert groups == ["parl.environments", "parl.families", "parl.rewards"]
