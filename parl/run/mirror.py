"""A copy of the run's folder at an fsspec address (``mirror``), from which another machine resumes.

The run works in its local folder. A thread looks every two seconds for files that are new or have changed, and writes
them to the address; what is gone here is deleted there. A checkpoint's manifest goes last and is deleted first, so the
copy never has half of one. Before a checkpoint is saved, the one before must be at the address.

``owner.json`` there says which process writes. A run that finds another one in it ends: it was resumed elsewhere.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.files import file_digest, sync
from parl.errors import MachineError, UserError
from parl.machine.ownership import LOCK
from parl.run.checkpoints import MANIFEST, newest_state
from parl.run.remote import Remote
from parl.run.resume import changes, other_run
from parl.shown.terminal import echo

_OWNER, _COLD, _CONFIG = "owner.json", "cold_start", "config.yaml"
_BY_ITSELF = ("served",)  # of this run's servers
_LAST = (MANIFEST, "meta.json", "summary.json", _CONFIG)  # they say that what is beside them is complete
_EVERY_S = 2.0
_FLUSH_S = 3600.0
_SETTLE_S, _SETTLE_LIMIT_S = 3.0, 600.0  # between two listings that must be alike before a fetch; for all of them
_LAST_S = 120.0  # for the last files of a run that fails

Stamp = tuple[int, int]  # bytes and time of change


class Mirror:
    """The copy of ``folder`` below ``remote``. ``start`` it, and ``close`` it at the end."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        self.remote, self._folder = remote, folder
        self._id = secrets.token_hex(8)
        self._known: dict[str, Stamp | None] = {}  # what is there; None: perhaps another content
        self._wanted, self._passes = threading.Event(), threading.Condition()
        self._begun = self._ended = 0
        self._error: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="mirror")

    def start(self) -> None:
        """Claim the address and begin."""
        _claim(self.remote, self._id)
        for unfinished in self.remote.unfinished():  # of a process that was killed
            self.remote.remove(unfinished)
        self._known = dict.fromkeys(name for name in self.remote.files() if not _apart(name))
        for name, stamp in self._local().items():
            if _manifest(name) and name in self._known:
                self._keep_checkpoint(name, stamp)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of the copying, if any: MachineError that names the address."""
        if self._error is not None:
            raise MachineError(f"{self._error}; {self._folder} is whole, --resume continues") from self._error

    def flush(self, limit_s: float = _FLUSH_S) -> None:
        """Wait until everything that is here now is there. MachineError as :meth:`check`, or after ``limit_s``."""
        with self._passes:
            due = self._begun + 1
            self._wanted.set()
            done = self._passes.wait_for(lambda: self._ended >= due or self._error is not None, limit_s)
        self.check()
        if not done:
            raise MachineError(f"{self.remote.shown} took no files for {limit_s:.0f} s; {self._folder} is whole")

    def close(self, limit_s: float = _FLUSH_S) -> None:
        """Copy the last files, and stop."""
        try:
            self.flush(limit_s)
        finally:
            self._closing = True
            self._wanted.set()

    def add_cold_start(self, cold: Path, *, copied: bool) -> None:
        """The policy in ``cold``, which the run starts from: copied there, or only its digest.

        UserError if the run began from another one.
        """
        digest, told = file_digest(cold / "model.safetensors"), self.remote.read(f"{_COLD}.json")
        if told is not None and json.loads(told)["sha256"] != digest:
            raise UserError(
                f"the run at {self.remote.shown} began from another policy than {cold}: bring the folder of model.init,"
                " with its times of change, or the cold start, from the machine on which it began"
            )
        if told is None:
            for file in sorted(path for path in cold.iterdir() if copied and path.is_file() and _counts(path.name)):
                self.remote.put(file, f"{_COLD}/{file.name}")
            self.remote.write(f"{_COLD}.json", json.dumps({"sha256": digest, "copied": copied}).encode())

    def _work(self) -> None:
        while not self._closing:
            self._wanted.wait(_EVERY_S)
            self._wanted.clear()
            with self._passes:
                self._begun += 1
            try:
                self._pass()
            except Exception as error:  # the run ends with it at its next step
                self._error = error
            with self._passes:
                self._ended = self._begun
                self._passes.notify_all()
            if self._error is not None:
                return

    def _pass(self) -> None:
        local = self._local()
        changed = [name for name, stamp in local.items() if self._known.get(name) != stamp]
        gone = [name for name in self._known if name not in local]
        if not changed and not gone:
            return
        self._check_owner()
        checked = time.monotonic()
        for name in changed:
            if _manifest(name) and name in self._known:  # another checkpoint of that step
                self.remote.remove(name)
        for name in sorted(changed, key=_order):
            if time.monotonic() - checked > _EVERY_S:  # who takes the run over waits for this one file at most
                self._check_owner()
                checked = time.monotonic()
            try:
                self.remote.put(self._folder / name, name)
            except FileNotFoundError:  # dropped meanwhile
                continue
            self._known[name] = local[name]
        if gone:
            self._check_owner()
        kept = self._without_another(gone, local)
        for name in sorted(gone, key=_order, reverse=True):
            if not name.startswith(kept):
                self.remote.remove(name)
                del self._known[name]

    def _without_another(self, gone: list[str], local: dict[str, Stamp]) -> tuple[str, ...]:
        """Checkpoints of ``gone`` that stay until a newer one is there: a listing that was made while one was dropped
        may have neither."""
        whole = {
            Path(name).parents[1] for name, stamp in local.items() if _manifest(name) and self._known.get(name) == stamp
        }
        return tuple(
            name.removesuffix(MANIFEST) for name in gone if _manifest(name) and Path(name).parents[1] not in whole
        )

    def _check_owner(self) -> None:
        said = json.loads(self.remote.read(_OWNER) or b"{}")
        if said.get("id") != self._id:
            whose = f"pid {said['pid']} on {said['host']}" if "host" in said else "nobody"
            raise MachineError(f"{self.remote.shown} is another process's now, {whose}: the run was resumed there")

    def _local(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for folder, folders, files in os.walk(self._folder):
            at_top = Path(folder) == self._folder
            folders[:] = [name for name in folders if _counts(name) and not (at_top and name in _BY_ITSELF)]
            for path in (Path(folder) / name for name in files if _counts(name)):
                try:
                    told = path.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not path.is_symlink():
                    found[path.relative_to(self._folder).as_posix()] = (told.st_size, told.st_mtime_ns)
        return found

    def _keep_checkpoint(self, manifest: str, stamp: Stamp) -> None:
        """Its files need not be written again if the manifest, which has their digests, is the same."""
        if self.remote.read(manifest) == (self._folder / manifest).read_bytes():
            beside = manifest.removesuffix(MANIFEST)
            same = {name: told for name, told in self._local().items() if name.startswith(beside)}
            self._known |= {name: told for name, told in same.items() if name in self._known}


def fetch(address: str | None, run_dir: Path, cold: Path) -> None:
    """Before the run of ``run_dir`` is resumed: its folder from the address, if it is not here, and its cold start.

    A process that still writes there ends. UserError if another run is at the address, if the copy is ahead of the
    folder here, or if that process goes on.
    """
    if address is None:
        return
    remote = _remote(address, run_dir)
    there = remote.files()
    if _CONFIG not in there:
        return
    if (run_dir / _CONFIG).is_file():
        _check_same(remote, there, run_dir)
        return
    if run_dir.exists() and any(path.name != LOCK for path in run_dir.iterdir()):
        raise UserError(f"{run_dir} holds no run, but other files: move them away, and --resume fetches {remote.shown}")
    needed, parent = sum(there.values()), run_dir.parent
    parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(parent).free < needed:
        raise MachineError(f"{parent} has no room for the {needed} bytes of {remote.shown}")
    there = _taken_over(remote)
    _download(remote, {name: size for name, size in there.items() if not _apart(name)}, run_dir)
    files = {name: size for name, size in there.items() if name.startswith(f"{_COLD}/")}
    if files and not (cold / "model.safetensors").exists():
        _download(remote, files, cold, below=f"{_COLD}/")
    echo(f"{len(there)} files, {sum(there.values()) / 1e6:.1f} MB, of {remote.shown} are in {run_dir}")


def _taken_over(remote: Remote) -> dict[str, int]:
    """Claim the address, and wait until nobody writes there: the files, without the owner's. UserError: it goes on."""
    _claim(remote, secrets.token_hex(8))
    give_up, before = time.monotonic() + _SETTLE_LIMIT_S, None
    while (now := remote.files() | remote.unfinished()) != before:
        if time.monotonic() > give_up:
            raise UserError(
                f"another process is still writing to {remote.shown}, {_SETTLE_LIMIT_S:.0f} s after the run was taken"
                " from it: end it, then --resume"
            )
        before = now
        time.sleep(_SETTLE_S)
    return {name: size for name, size in remote.files().items() if name != _OWNER}


def _claim(remote: Remote, name: str) -> None:
    """From here on the run's owner is ``name``, of this process: any other ends."""
    owner = {"id": name, "host": socket.gethostname(), "pid": os.getpid(), "since": round(time.time())}
    remote.write(_OWNER, json.dumps(owner).encode())


def _check_same(remote: Remote, there: dict[str, int], run_dir: Path) -> None:
    """UserError unless the copy at the address is of the run in ``run_dir``, and not ahead of it.

    A run's first checkpoint gives it an identity; before that its configuration tells it from others.
    """
    newest = max((name for name in there if _manifest(name) and Path(name).parts[0] == "checkpoints"), default=None)
    theirs = json.loads(remote.read(newest) or b"{}").get("state", {}).get("wandb_id") if newest else None
    ours = newest_state(run_dir).wandb_id
    if theirs and ours:
        other = [] if theirs == ours else [f"its identity is {theirs}, and that of {run_dir} is {ours}"]
    else:
        other = other_run(changes(run_dir, (remote.read(_CONFIG) or b"").decode()), longer=True)
    if other:
        raise UserError(
            f"{remote.shown} holds another run of this name ({'; '.join(other)}), which would be written over: take"
            f" another mirror= for the run in {run_dir}, or move {run_dir} away, and --resume fetches the other"
        )
    here = {path.relative_to(run_dir).as_posix() for path in run_dir.glob(f"**/{MANIFEST}")}
    if any(step > _steps(here).get(part, -1) for part, step in _steps(there).items()):
        raise UserError(
            f"{remote.shown} is ahead of {run_dir}: the run went on elsewhere. Move {run_dir} away, and --resume"
            " fetches the newer one"
        )


@contextmanager
def mirrored(address: str | None, run_dir: Path, *, resume: bool) -> Iterator[Mirror | None]:
    """The run's copy while the block runs; None without an ``address``. UserError: another run is at the address."""
    if address is None:
        yield None
        return
    remote = _remote(address, run_dir)
    if not resume and remote.read(_CONFIG) is not None:
        raise UserError(f"{remote.shown} holds a run: --resume continues it; else take another name= or mirror=")
    if resume and _CONFIG in (there := remote.files()):  # before anything there may be deleted
        _check_same(remote, there, run_dir)
    mirror = Mirror(run_dir, remote)
    mirror.start()
    try:
        yield mirror
    except BaseException:
        try:
            mirror.close(_LAST_S)
        except MachineError as error:
            echo(str(error), err=True)
        raise
    mirror.close()


def _remote(address: str, run_dir: Path) -> Remote:
    return Remote(f"{address.rstrip('/')}/{run_dir.name}")


def _download(remote: Remote, files: dict[str, int], folder: Path, below: str = "") -> None:
    """``files``, named without ``below``, as ``folder``: whole, or not at all."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        for name, size in files.items():
            remote.get(name, partial / name.removeprefix(below), size)
        shutil.rmtree(folder, ignore_errors=True)  # it holds nothing
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _steps(names: dict[str, int] | set[str]) -> dict[str, int]:
    """The newest complete checkpoint's step in each folder of checkpoints."""
    found: dict[str, int] = {}
    for path in (Path(name) for name in names):
        if path.name == MANIFEST and path.parent.name[5:].isdigit():
            part = path.parents[1].as_posix()
            found[part] = max(found.get(part, 0), int(path.parent.name[5:]))
    return found


def _manifest(name: str) -> bool:
    return name.endswith(f"/{MANIFEST}")


def _counts(name: str) -> bool:
    """Whether a file or folder is part of a run: neither temporary nor a lock."""
    return name != LOCK and not name.endswith((".tmp", ".partial", ".lock"))


def _apart(name: str) -> bool:
    """Whether it is at the address, but not in the run's folder."""
    return name in (_OWNER, f"{_COLD}.json") or name.startswith(f"{_COLD}/")


def _order(name: str) -> tuple[bool, bool, str]:
    """Of writing: checkpoints after the rest, and last what says that its folder is complete; reversed for deleting."""
    path = Path(name)
    return name == _CONFIG or "checkpoints" in path.parts, path.name in _LAST, name
