"""Two writers of one folder: the second gets exit 2 and the first's name, and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attacks.base import Attack
from attacks.torn import copy_of_a_run, parl

_OWN = """
import sys
from pathlib import Path
from parl.machine.ownership import owning
with owning(Path(sys.argv[1]), "a run", "wait", name=sys.argv[2]):
    print("mine", flush=True)
    sys.stdin.read()
"""
# What the first owns; the second's command. COLD is the cold start, STORE an evaluation.
SECOND = {
    "train the same name": (".", "train RUN/config.yaml"),
    "train --resume": (".", "train RUN/config.yaml --resume"),
    "train --resume by name": (".", "train RUN --resume"),
    "train --resume, made longer": (".", "train RUN --resume trainer.steps=50"),
    "train what is being evaluated": ("evals/trained-0123456789ab", "train RUN/config.yaml"),
    "train what a gateway records in": ("recorded", "train RUN/config.yaml"),
    "record in the same folder": ("recorded", "gateway RUN --record RUN/recorded"),
    "import into the same folder": ("imported", "episodes import EXPORTED --format atif --out RUN/imported"),
    "build the same cold start": ("COLD", "sft RUN --from-scratch"),
    "evaluate the same store": ("STORE", "eval RUN"),
    "evaluate another policy of the same run": ("evals", "eval RUN --policy cold_start"),
    "evaluate with other settings": ("evals", "eval RUN --n 2 eval.seed=5"),
}
READERS = (
    "top RUN --once",
    "report RUN --out OUT",
    "compare RUN",
    "episodes ls RUN",
    "rescore RUN",
    "episodes show RUN/eval trained-000000:0",
)


def cases() -> list[Attack]:
    """Each second writer against a running and a stopped first one; readers are not blocked."""
    found = []
    for name, (owned, command) in SECOND.items():
        for stopped in (False, True):
            label = f"{name}{', the first is stopped' if stopped else ''}"
            found.append(Attack(area="writers", name=label, run=_refused(owned, command, stopped)))
    found += [Attack(area="writers", name=f"read meanwhile: {command}", run=_read(command)) for command in READERS]
    return found


def _refused(owned: str, command: str, stopped: bool) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        made = copy_of_a_run(folder)
        place, lock = _place(made, owned)
        given = command.replace("RUN", str(made)).replace("EXPORTED", str(_exported(folder, made, command)))
        with _owner(place, lock, stopped) as process:
            before = _files(folder)
            code, said = parl(given.split())
            after = _files(folder)
        text = " ".join(said.split())
        assert code == 2, f"exit {code}: {text[-500:]}"
        assert f"(pid {process.pid} on " in text, text
        assert "is under way in" in text, text
        assert ("it is stopped" in text) == stopped, text
        assert after == before, sorted(after.items() ^ before.items())

    return run


def _read(command: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        made = copy_of_a_run(folder)
        with _owner(made, ".lock", False):
            code, said = parl(command.replace("RUN", str(made)).replace("OUT", str(folder / "out")).split())
        assert code == 0, f"exit {code}: {said[-500:]}"

    return run


def _place(made: Path, owned: str) -> tuple[Path, str]:
    """The folder owned by the first writer, and the name of its lock."""
    if owned == "COLD":
        key = next(path for path in (made.parent / "cold_start").iterdir() if path.is_dir())
        return key.parent, f".{key.name}.lock"
    if owned == "STORE":
        return _store(made), ".lock"
    return made / owned, ".lock"


def _store(made: Path) -> Path:
    """The store of ``parl eval`` for the trained policy."""
    from parl.config.runs import configuration
    from parl.evaluate.policies import local_policies

    return local_policies(configuration(made), None, False, ("trained",))[0].store


def _exported(folder: Path, made: Path, command: str) -> Path:
    out = folder / "exported"
    if "EXPORTED" in command:
        code, said = parl(["episodes", "export", str(made / "eval"), "--format", "atif", "--out", str(out)])
        assert code == 0, said
    return out


def _files(folder: Path) -> dict[str, bytes]:
    """All files with their content, without locks, which the first writer changes."""
    found = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@contextmanager
def _owner(folder: Path, lock: str, stopped: bool) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns ``folder``."""
    command = [sys.executable, "-c", _OWN, str(folder), lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "mine\n"
        if stopped:
            process.send_signal(19)
            import psutil

            while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                pass
        try:
            yield process
        finally:
            process.kill()
