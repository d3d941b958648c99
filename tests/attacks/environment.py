"""Environment variables of a shell: invalid ones are named in one line, leftovers have no effect."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from attacks.base import Attack

ROOT = Path(__file__).parents[2]
REFUSED = [
    {"OMP_NUM_THREADS": "rubbish"},
    {"OMP_NUM_THREADS": "0"},
    {"OMP_NUM_THREADS": "-2"},
    {"OMP_NUM_THREADS": "1.5"},
    {"OMP_NUM_THREADS": "1e3"},
    {"MKL_NUM_THREADS": "all"},
    {"OPENBLAS_NUM_THREADS": "²"},
    {"RAY_ADDRESS": "rubbish"},
    {"RAY_ADDRESS": "http://head:6379"},
    {"RAY_ADDRESS": "10.0.0.1"},
    {"RAY_ADDRESS": "head:port"},
    {"RAY_ADDRESS": "head:99999"},
    {"RAY_ADDRESS": "127.0.0.1:0"},
    {"RAY_ADDRESS": "ray://"},
    {"RAY_ADDRESS": "head:6379 --block"},
    {"RAY_ADDRESS": "\x1b[31mhead"},
    {"RAY_worker_niceness": "abc"},
    {"RAY_memory_usage_threshold": "95%"},
    {"RAY_AUTH_MODE": "rubbish", "RAY_ADDRESS": "127.0.0.1:6379"},
    {"RAY_AUTH_MODE": "", "RAY_ADDRESS": "127.0.0.1:6379"},
    {"WANDB_MODE": "rubbish"},
    {"WANDB_MODE": "on"},
]
LEFT_OVER = [
    {"OMP_NUM_THREADS": ""},
    {"OMP_NUM_THREADS": "4,2"},
    {"RAY_ADDRESS": ""},
    {"RAY_ADDRESS": "local"},
    {"RAY_AUTH_MODE": "rubbish"},
    {"RAY_NAMESPACE": "x", "RAY_JOB_ID": "zz", "RAY_RUNTIME_ENV_HOOK": "no.such", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{"},
    {"RANK": "x", "WORLD_SIZE": "-1", "LOCAL_RANK": "", "MASTER_ADDR": "gone", "MASTER_PORT": "x"},
    {"TMPDIR": "/nonexistent"},
    {"TMPDIR": "/etc/passwd"},
    {"HOME": "/nonexistent"},
    {"HOME": ""},
    {"CUDA_VISIBLE_DEVICES": "rubbish"},
    {"HF_HUB_OFFLINE": "rubbish"},
    {"HTTP_PROXY": "::::", "ALL_PROXY": "socks5://nowhere:1", "NO_PROXY": ""},
    {"WANDB_MODE": "dryrun", "WANDB_DIR": "/nonexistent", "WANDB_RESUME": "must", "WANDB_RUN_ID": "../x"},
    {"WANDB_DISABLED": "true", "WANDB_MODE": "rubbish"},
    {"COLUMNS": "rubbish", "LINES": "-1", "TERM": "", "NO_COLOR": "x", "LANG": "xx_YY"},
]


@contextmanager
def shell(variables: dict[str, str]):
    """``os.environ`` as set by a shell with these variables."""
    with mock.patch.dict(os.environ, variables), mock.patch.object(tempfile, "tempdir", None):
        yield


def said(variables: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and output of ``parl train quickstart --dry-run``, or of another command."""
    from typer.testing import CliRunner

    from parl.cli.main import app

    command = list(arguments) or ["train", str(ROOT / "configs" / "quickstart.yaml"), "--dry-run"]
    with shell(variables):
        done = CliRunner().invoke(app, command)
    return done.exit_code, done.output


def _refused(variables: dict[str, str], folder: Path) -> None:
    code, text = said(variables)
    lines = text.strip().splitlines()
    assert code == 2 and len(lines) == 1, (code, text)
    assert lines[0].startswith("error: ") and next(iter(variables)) in lines[0], text
    assert any(cure in lines[0] for cure in ("unset", "set ")), text
    assert "\x1b" not in text


def _harmless(variables: dict[str, str], folder: Path) -> None:
    code, text = said(variables)
    assert code == 0, text


def _nobody_answers(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"  # bound, without a listener
        code, text = said({"RAY_ADDRESS": address})
    assert code == 2 and address in text and "nobody answers" in text and len(text.splitlines()) == 1, text


def _loopback_is_spared(folder: Path) -> None:
    from parl.machine.shell_variables import tidy

    for given in ({}, {"NO_PROXY": "corp.example"}, {"no_proxy": "a,b", "NO_PROXY": ""}):
        environ = {"HTTPS_PROXY": "http://proxy:1", "HOME": str(folder), **given}
        tidy(environ)
        for name in ("NO_PROXY", "no_proxy"):
            kept = environ[name].split(",")
            assert {"127.0.0.1", "localhost", "::1", *filter(None, ",".join(given.values()).split(","))} == set(kept)
    environ = {"https_proxy": "http://proxy:1", "NO_PROXY": "*", "HOME": str(folder)}
    tidy(environ)
    assert environ["NO_PROXY"] == "*"


def _socks(folder: Path) -> None:
    from parl.errors import UserError
    from parl.machine.shell_variables import check_proxy

    with mock.patch("importlib.util.find_spec", return_value=None):
        try:
            check_proxy({"ALL_PROXY": "socks5://user:secret@proxy:1"})
        except UserError as error:
            assert "pip install socksio" in str(error) and "secret" not in str(error)
        else:
            raise AssertionError("not named")


def _leftovers_are_dropped(folder: Path) -> None:
    from parl.machine.shell_variables import tidy

    environ = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_GCS_SERVER_PORT": "1",
        "RAY_health_check_period_ms": "500",
        "RANK": "1",
    }
    tidy(environ | {"HOME": str(folder)})
    environ["HOME"] = str(folder)
    tidy(environ)
    assert environ == {"RAY_health_check_period_ms": "500", "HOME": str(folder)}, environ
    cluster = {"RAY_ADDRESS": "head:6379", "RAY_AUTH_TOKEN": "t", "RAY_NAMESPACE": "n", "HOME": str(folder)}
    tidy(given := dict(cluster))
    assert given == cluster  # the user's cluster keeps its own variables


def _wandb_modes(folder: Path) -> None:
    """The strictest of configuration and shell applies; ``auto`` follows the shell."""
    from parl.machine.shell_variables import wandb_mode

    table = [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "DISABLED"}, "disabled"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("online", {}, "online"),
    ]
    for configured, environ, mode in table:
        assert wandb_mode(configured, environ) == mode, (configured, environ)  # pyright: ignore[reportArgumentType]


def _foreign_folder(folder: Path) -> None:
    """A cache folder created by another user is not used, since compiled code is loaded from it."""
    from parl.machine.shell_variables import tidy

    with shell({"TMPDIR": str(folder)}):
        planted = folder / f"parl-home-{os.getuid()}"
        planted.mkdir(mode=0o777)
        planted.chmod(0o777)
        environ = {"HOME": "/nonexistent"}
        tidy(environ)
        assert environ["PARL_CACHE"] and planted not in Path(environ["PARL_CACHE"]).parents


def _session_folder(folder: Path) -> None:
    """Mode 700, deleted at the end; folders of killed runs are deleted, others stay; a long TMPDIR works."""
    from parl.machine import session_folder as room

    deep = folder / ("long" * 30)
    deep.mkdir()
    with shell({"TMPDIR": str(deep)}):
        old = os.umask(0)
        try:
            with room.session_folder() as own, room.session_folder() as second:
                assert own != second and deep not in own.parents
                assert own.stat().st_mode & 0o777 == 0o700 and (own / "token").stat().st_mode & 0o777 == 0o600
                assert (own / "token").read_text() != (second / "token").read_text()
                os.utime(own, (0, 0))
                room._sweep(own.parent)
                assert own.exists(), "a living run's folder was swept"
            assert not own.exists() and not second.exists()
            dead = Path(tempfile.mkdtemp(prefix="parl-ray-", dir=folder))
            os.utime(dead, (0, 0))
            (folder / "parl-ray-link").symlink_to(folder)
            room._sweep(folder)
            assert not dead.exists() and deep.exists()
        finally:
            os.umask(old)


def cases() -> list[Attack]:
    """All cases of this area."""
    tries: list[tuple[str, Callable[[Path], None]]] = [
        *((f"refused: {_named(variables)}", partial(_refused, variables)) for variables in REFUSED),
        *((f"harmless: {_named(variables)}", partial(_harmless, variables)) for variables in LEFT_OVER),
        ("nobody answers at RAY_ADDRESS", _nobody_answers),
        ("loopback goes through no proxy", _loopback_is_spared),
        ("a SOCKS proxy without its package", _socks),
        ("leftovers of other Rays and launchers are dropped", _leftovers_are_dropped),
        ("WANDB_MODE against tracking.wandb", _wandb_modes),
        ("a planted folder in place of a missing home", _foreign_folder),
        ("the session folder: modes, sweep, long TMPDIR", _session_folder),
    ]
    return [Attack(area="environment", name=name, run=run) for name, run in tries]


def _named(variables: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in variables.items()).replace("\x1b", "ESC")
