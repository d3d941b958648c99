"""Environment variables: those that a run obeys, leftovers of other programs, and invalid ones.

:func:`tidy` is called before anything heavy is imported, because Ray and OpenMP read their variables at
import.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import stat
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Literal

from parl.errors import UserError

_NO_PROXY = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# of a launcher that started this shell; the learner's ranks set their own
_LAUNCHER = re.compile(
    r"(RANK|(LOCAL|GROUP|ROLE|NODE|CROSS)_RANK|(LOCAL_|ROLE_|GROUP_)?WORLD_SIZE|MASTER_(ADDR|PORT))$"
)
_LAUNCHER_PREFIXES = ("TORCHELASTIC_", "OMPI_COMM_WORLD_", "PMI_", "PMIX_")
_CACHES = ("PARL_CACHE", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# variables that a user may set for a one-machine run's Ray; RAY_lower_case are Ray's tuning values
_RAY_KEPT = re.compile(r"RAY_(DEDUP_LOGS\w*|COLOR_PREFIX|BACKEND_LOG_LEVEL|USAGE_STATS_ENABLED|[a-z]\w*)$")
_RAY_VALUE = re.compile(r"(true|false|-?\d+(\.\d+)?)$", re.IGNORECASE)
_HOST_PORT = re.compile(r"(ray://)?(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})$")
_CONNECT_S = 3.0
WandbMode = Literal["online", "offline", "disabled"]
_WANDB_MODES: dict[str, WandbMode] = {
    **dict.fromkeys(("online", "run", "shared"), "online"),
    **dict.fromkeys(("offline", "dryrun"), "offline"),
    **dict.fromkeys(("disabled", "off"), "disabled"),
}
_STRICTNESS: tuple[WandbMode, ...] = ("online", "offline", "disabled")


def tidy(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make ``environ`` fit for a run and its child processes; UserError names an invalid variable.

    Drops leftovers of other Rays (without a cluster's address) and of launchers. Loopback never uses a proxy.
    """
    for name in _THREADS:
        value = environ.get(name, "").strip()
        if not value:
            environ.pop(name, None)
        elif not re.fullmatch(r"[1-9]\d{0,3}(\s*,\s*[1-9]\d{0,3})*", value):
            raise UserError(f"{name}={_shown(value)}: must be a whole number of at least 1; correct or unset it")
    for name in [n for n in environ if _LAUNCHER.match(n) or n.startswith(_LAUNCHER_PREFIXES)]:
        del environ[name]
    if cluster_address(environ) is None:
        _tidy_ray(environ)
    elif environ.get("RAY_AUTH_MODE", "token").lower() not in ("token", "disabled"):
        raise UserError(
            f"RAY_AUTH_MODE={_shown(environ['RAY_AUTH_MODE'])}: Ray takes token or disabled, and reads anything else as"
            " disabled; set what the cluster of RAY_ADDRESS was started with"
        )
    if any(environ.get(name) or environ.get(name.lower()) for name in _PROXIES):
        _spare_loopback(environ)
    if environ.get("TMPDIR") and not _writable(Path(environ["TMPDIR"])):
        del environ["TMPDIR"]  # Python, Ray and compilers handle it differently
        tempfile.tempdir = None
    home = environ.get("HOME")
    if not (_writable(Path(home)) if home else os.path.isabs(os.path.expanduser("~"))):
        _spare_home(environ)


def cluster_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """The address in RAY_ADDRESS; None for a one-machine run. UserError if it is not an address."""
    address = environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    found = _HOST_PORT.match(address)
    if address != "auto" and (found is None or not 0 < int(found["port"]) < 65536):
        raise UserError(f"RAY_ADDRESS={_shown(address)}: must be HOST:PORT, ray://HOST:PORT, auto or local; {_UNSET}")
    return address


_UNSET = "or unset it to train on this machine alone"


_dropped: dict[str, str] = {}  # Ray's variables of this shell that a run without a cluster must not see


def join(address: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Let ``address``, a configuration's, be the cluster of this process; UserError if it cannot be.

    Brings back what :func:`tidy` dropped before the configuration was known, such as the cluster's token.
    """
    given = cluster_address(environ)
    if given not in (None, address):
        raise UserError(f"RAY_ADDRESS={_shown(given)} and cluster.address={_shown(address)}: leave one of them out")
    for name, value in _dropped.items():
        environ.setdefault(name, value)
    environ["RAY_ADDRESS"] = address
    tidy(environ)


def check_cluster(environ: Mapping[str, str] = os.environ) -> None:
    """UserError within seconds if nobody listens at RAY_ADDRESS."""
    address = cluster_address(environ)
    found = _HOST_PORT.match(address) if address else None
    if found is None:
        return
    host = found["host"].strip("[]")
    try:
        socket.create_connection((host, int(found["port"])), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={_shown(environ['RAY_ADDRESS'])}: nobody answers there ({error}); start the cluster, correct"
            f" the address, {_UNSET}"
        ) from None


def wandb_mode(
    configured: Literal["auto", "online", "offline", "disabled"], environ: Mapping[str, str] = os.environ
) -> WandbMode:
    """The strictest of ``tracking.wandb`` and WANDB_MODE: online, offline or disabled; UserError if invalid.

    ``auto`` follows WANDB_MODE alone; without it, W&B is online if a key is set.
    """
    given = environ.get("WANDB_MODE", "").strip().lower()
    mode = _WANDB_MODES.get(given)
    if environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1", "yes", "on"):
        mode = "disabled"
    elif given and mode is None:
        raise UserError(f"WANDB_MODE={_shown(given)}: must be online, offline or disabled; correct or unset it")
    if configured == "auto":
        return mode or ("online" if environ.get("WANDB_API_KEY") else "offline")
    return max((configured, mode or "online"), key=_STRICTNESS.index)


def check_proxy(environ: Mapping[str, str] = os.environ) -> None:
    """UserError if the shell's proxy is unusable."""
    for name in (form for proxy in _PROXIES for form in (proxy, proxy.lower())):
        value = environ.get(name, "")
        if value.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise UserError(
                f"{name}={_shown(value)}: a SOCKS proxy needs socksio: pip install socksio, or unset {name}"
            )


def _tidy_ray(environ: MutableMapping[str, str]) -> None:
    for name in [name for name in environ if name.startswith("RAY_")]:
        if not _RAY_KEPT.match(name):
            _dropped[name] = environ.pop(name)
        elif name[4].islower() and not _RAY_VALUE.match(environ[name].strip()):
            raise UserError(
                f"{name}={_shown(environ[name])}: Ray takes a number, true or false here, and ends without a word at"
                " anything else; correct or unset it"
            )


def _spare_loopback(environ: MutableMapping[str, str]) -> None:
    """Set both spellings, because libraries differ in which one they read first."""
    given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if "*" not in names:
        environ["NO_PROXY"] = environ["no_proxy"] = ",".join([*names, *(n for n in _NO_PROXY if n not in names)])


def _spare_home(environ: MutableMapping[str, str]) -> None:
    """Use a private folder for caches and settings if the home is missing or read-only."""
    folder = Path(tempfile.gettempdir()) / f"parl-home-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError as error:
        raise UserError(f"HOME={_shown(environ.get('HOME', ''))} cannot be written, nor {folder} ({error})") from None
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        folder = Path(tempfile.mkdtemp(prefix="parl-home-"))  # not shared: compiled code is kept there
    if not environ.get("HOME"):
        environ["HOME"] = str(folder)
    for name in _CACHES:
        environ.setdefault(name, str(folder / name.lower()))


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _shown(value: str) -> str:
    """Short, without what could be a password."""
    text = re.sub(r"//[^/@\s]*@", "//***@", value)
    return repr(text if len(text) <= 60 else text[:57] + "...")
