"""What a resumed run may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_config

from parl.config import Config
from parl.errors import UserError
from parl.loading import load_config, to_yaml
from parl.resume import continue_run


def begun(folder: Path) -> tuple[Path, Config]:
    config = tiny_config(folder)
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    return file, config


def test_the_same_configuration_continues_in_silence(tmp_path: Path, capsys):
    file, config = begun(tmp_path)
    continue_run(file, config)
    assert capsys.readouterr().out == ""


def test_another_number_of_ranks_continues_and_is_told_and_kept(tmp_path: Path, capsys):
    file, config = begun(tmp_path)
    changed = config.model_copy(update={"trainer": config.trainer.model_copy(update={"ranks": 1, "keep_best": None})})
    continue_run(file, changed)
    assert capsys.readouterr().out == "trainer.ranks was 2 and is 1 now: equal to rounding, not to the bit\n"
    assert load_config(file) == changed


@pytest.mark.parametrize("section, key, value", [("trainer", "epochs", 2), ("optimizer", "lr", 0.5)])
def test_what_the_run_computes_cannot_change(tmp_path: Path, section: str, key: str, value: float):
    file, _ = begun(tmp_path)
    before = file.read_text()
    other = tiny_config(tmp_path, **{section: {key: value}})
    with pytest.raises(UserError, match=r"config\.yaml differs from this configuration in more than trainer\.ranks"):
        continue_run(file, other)
    assert file.read_text() == before
