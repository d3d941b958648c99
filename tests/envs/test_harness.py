"""The program of a harness, before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.harness import HarnessConfig, HarnessEnvironment


def notes(*command: str, **config: object) -> list[str]:
    return list(HarnessEnvironment(HarnessConfig.model_validate({"command": command, **config})).notes())


def test_a_program_that_can_be_started_is_taken(tmp_path: Path):
    (tmp_path / "agent").write_text("#!/bin/sh\n")
    (tmp_path / "agent").chmod(0o755)
    assert not notes("python", "agent.py") and not notes("sh", "x") and not notes("/bin/sh")
    assert not notes(str(tmp_path / "agent")) and not notes("./agent", folder=tmp_path)
    assert not notes("agent", env={"PATH": str(tmp_path)})


def test_a_program_that_is_not_there_or_cannot_be_run_is_named_before_the_run(tmp_path: Path):
    (tmp_path / "plain").write_text("echo")
    for command, config in (
        ("no-such-agent", {}),
        ("plain", {"folder": tmp_path}),  # without a slash only PATH is looked through
        ("./plain", {"folder": tmp_path}),
        ("./agent", {}),  # its own folder is empty
        ("sh", {"env": {"PATH": str(tmp_path)}}),
    ):
        with pytest.raises(ValueError, match=r"envs\.config\.command: there is no program"):
            notes(command, **config)
