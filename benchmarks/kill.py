"""Kills runs at random moments by SIGKILL, and compares the resumed runs with an uninterrupted one.

    python benchmarks/kill.py                       # 50 kills and the verdict; exit status 1 if one differs
    python benchmarks/kill.py --kills 5 --steps 6 --seed 2

The run is tiny (three layers, eight short episodes per step, two learner ranks). A victim is drawn for each
kill: the driver, a rank of the learner, an engine, a rollout worker, or everything at once, Ray's processes
included. Late kills strike while the run trains, within two steps after its first new one; three in ten of
the resumed runs are killed during start-up. A run whose engine or worker dies goes on by itself; any other is
resumed. Between late kills the run makes at least one step, and every checkpoint on disk must have the bytes
(SHA-256 of its parts) and the state of the uninterrupted run's. At the end metrics and the policy's file are
compared too. A run that ends before all kills are spent is followed by another.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from parl.config.load import load_config, to_yaml
from parl.config.schema import Config
from parl.machine.cluster import local_ray
from parl.run.checkpoints import MANIFEST, complete
from parl.track.tracker import read_rows

ACTORS = {"rank": "ray::Learner", "engine": "ray::EngineActor", "worker": "ray::RolloutWorker"}
ALL = (*ACTORS.values(), "ray::DemoWorker")
VICTIMS = ("driver", "everything", *ACTORS)
EARLY = 0.3  # share of the resumed runs that are killed while they start
_DEADLINE_S = 300.0  # of anything that is waited for


def tiny(root: Path, steps: int) -> Config:
    """The configuration of the run."""
    shape = {"vocab_size": 800, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}
    shape |= {"num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8}
    shape |= {"qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "moe_intermediate_size": 16}
    drills = {"tokens": 6_000, "copying_tokens": 1_000, "drill_tokens": 1_000, "batch_tokens": 600}
    budget = {"orchestrator_steps": 3, "turn_tokens": 32}
    return Config.model_validate(
        {
            "root": root,
            "model": {**shape, "max_position_embeddings": 1024},
            "tokenizer": {"vocab_size": 800},
            "envs": {"config": {"entities": 120, "widths": (2, 4)}},
            "sft": drills,
            "rollouts": {"group_size": 4, "tasks_per_step": 2, "workers": 1, "concurrency": 8, "budget": budget},
            "trainer": {"steps": steps, "ranks": 2, "step_s": 120.0, "most_unread": 1.0},
            "tracking": {"wandb": "disabled"},
        }
    )


class Log:
    """Progress as lines that the parent reads."""

    def phase(self, text: str, *_: Any) -> None:
        """Print the current activity."""
        print(text, flush=True)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Print that a step is done."""
        print(f"after step {step}", flush=True)


def child(file: Path, folder: Path) -> None:
    """Train in ``folder`` from its checkpoints, like ``parl train --resume``."""
    from parl.cold_start.imitation import run_sft
    from parl.run.loop import Training

    config = load_config(file)
    with local_ray():
        cold = run_sft(config, report=lambda *_: None)
        Training(config, folder, cold).run(Log())  # type: ignore[arg-type]


@dataclass
class Run:
    """A child process."""

    process: subprocess.Popen
    folder: Path
    log: Path
    began: float
    own_ray: bool

    def last(self) -> str:
        """Its last line of output."""
        lines = self.log.read_text().splitlines()
        return lines[-1] if lines else "importing"

    def steps(self) -> int:
        """Steps finished by this process."""
        return self.log.read_text().count("after step")

    def family(self) -> list[psutil.Process]:
        """The driver, its actors, and its Ray if that is its own."""
        own = psutil.Process(self.process.pid) if self.process.poll() is None else None
        below = own.children(recursive=True) if own else []
        shared = [] if self.own_ray else actors()
        return [*([own] if own else []), *below, *shared]


def actors() -> list[psutil.Process]:
    """A run's actors below this process, in whichever Ray."""
    return [process for process in psutil.Process().children(recursive=True) if title(process).startswith(ALL)]


def title(process: psutil.Process) -> str:
    """Its command line; empty when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def start(config: Path, folder: Path, address: str | None) -> Run:
    """A run in ``folder``, in the Ray at ``address`` or in its own."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    if address:
        token = os.environ["RAY_AUTH_TOKEN_PATH"]  # of this process's own Ray, which the run joins on loopback
        environment |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
        environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    log = folder / f"child-{time.monotonic_ns()}.log"
    with log.open("w") as out:
        command = [sys.executable, __file__, "--child", str(config), str(folder)]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    return Run(process, folder, log, time.monotonic(), address is None)


def kill(run: Run, victim: str, rng: random.Random) -> int:
    """SIGKILL; returns the number of processes that existed."""
    if victim == "driver":
        targets = [psutil.Process(run.process.pid)]
    elif victim == "everything":
        targets = run.family()
        rng.shuffle(targets)
    else:
        alive = [process for process in run.family() if title(process).startswith(ACTORS[victim])]
        targets = [rng.choice(alive)] if alive else []
    struck = 0
    for process in targets:
        try:
            process.send_signal(signal.SIGKILL)
            struck += 1
        except psutil.Error:
            pass
    return struck


def wait_until(true: Any, what: str) -> None:
    """Wait until ``true()``; TimeoutError names ``what``."""
    end = time.monotonic() + _DEADLINE_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


def checkpoint(path: Path) -> dict[str, Any]:
    """State and bytes of a checkpoint, without clock values and random ids."""
    manifest = json.loads((path / MANIFEST).read_text())
    state = {name: value for name, value in manifest["state"].items() if name not in ("elapsed_s", "wandb_id")}
    return {"state": state, "score": manifest["score"], "parts": manifest["parts"]}


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows without values of clocks, caches and restarts."""
    hidden = ("time/", "speed/", "latency/", "rollouts/restarts", "engine/pause_s")
    return [{k: v for k, v in row.items() if not k.startswith(hidden)} for row in read_rows(folder / "metrics.jsonl")]


def differences(folder: Path, reference: Path) -> list[str]:
    """Steps whose checkpoint in ``folder`` is not the one in ``reference``."""
    wrong = []
    for path in complete(folder / "checkpoints"):
        try:
            found = checkpoint(path)
        except FileNotFoundError:  # the run has just dropped it
            continue
        if found != checkpoint(reference / "checkpoints" / path.name):
            wrong.append(path.name)
    return wrong


def finished(folder: Path, reference: Path) -> list[str]:
    """Differences of two ended runs."""
    wrong = differences(folder, reference)
    if (folder / "policy/model.safetensors").read_bytes() != (reference / "policy/model.safetensors").read_bytes():
        wrong.append("policy")
    return wrong + ["metrics"] * (metrics(folder) != metrics(reference))


class Killer:
    """Kills, resumes and compares until ``kills`` are spent."""

    def __init__(self, root: Path, steps: int, kills: int, seed: int, address: str) -> None:
        self.root, self.kills, self.rng, self.address = root, kills, random.Random(seed), address
        self.config, self.reference = root / "killed.yaml", root / "reference"
        config = tiny(root, steps)
        self.config.write_text(to_yaml(config))
        everything = config.trainer.model_copy(update={"keep_checkpoints": steps + 1})
        (root / "reference.yaml").write_text(to_yaml(config.model_copy(update={"trainer": everything})))
        self.rows: list[dict[str, Any]] = []
        self.round = 0
        self.run: Run
        self.start_s = self.step_s = 0.0

    def uninterrupted(self) -> None:
        """The reference run."""
        run = start(self.root / "reference.yaml", self.reference, self.address)
        wait_until(lambda: run.steps() or run.process.poll() is not None, f"the first step, see {run.log}")
        self.start_s, steps = time.monotonic() - run.began, run.steps()
        wait_until(lambda: run.process.poll() is not None, "the end of the uninterrupted run")
        if run.process.returncode:
            raise RuntimeError(run.log.read_text()[-3000:])
        self.step_s = (time.monotonic() - run.began - self.start_s) / max(run.steps() - steps, 1)
        print(f"uninterrupted: {self.start_s:.1f} s to the first step, {self.step_s:.2f} s a step", flush=True)

    def new_round(self) -> Path:
        """The folder of another run to kill."""
        self.round += 1
        return self.root / f"killed-{self.round}"

    def all(self) -> bool:
        """All kills; returns whether all comparisons were equal."""
        folder, alive, struck = self.new_round(), False, 0
        while struck < self.kills:
            victim, early = self.rng.choice(VICTIMS), self.rng.random() < EARLY
            if not alive:
                self.run = start(self.config, folder, None if victim == "everything" else self.address)
            row = {"kill": struck + 1, "round": self.round, "victim": victim}
            self.strike(row, victim, early and not alive)
            alive = self.settle(row)
            self.rows.append(row)
            struck += row["processes"] > 0  # a run may end before the kill
            if row["ended"] == "finished":
                folder, alive = self.new_round(), False
            print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        if not alive:
            self.run = start(self.config, folder, self.address)
        wait_until(lambda: self.run.process.poll() is not None, "the end of the last run")
        wrong = finished(folder, self.reference)
        self.rows[-1]["differs"] += wrong
        print("the last run ended:", wrong or "the same", flush=True)
        return not any(row["differs"] for row in self.rows)

    def strike(self, row: dict[str, Any], victim: str, early: bool) -> None:
        """Wait for the moment, then kill."""
        run, before = self.run, self.run.steps()
        if not early:
            wait_until(lambda: run.steps() > before or run.process.poll() is not None, f"a step, see {run.log}")
        row["differs"] = differences(run.folder, self.reference)
        time.sleep(self.rng.uniform(0, self.start_s if early else 2 * self.step_s))
        row |= {"moment": "early" if early else "late", "seconds": round(time.monotonic() - run.began, 1)}
        row["while"] = run.last()
        row["processes"] = kill(run, victim, self.rng) if run.process.poll() is None else 0

    def settle(self, row: dict[str, Any]) -> bool:
        """Wait for the consequence of a kill; returns whether the run goes on by itself."""
        run = self.run
        if row["victim"] in ("engine", "worker") and row["processes"]:
            before = run.steps()
            wait_until(lambda: run.steps() > before or run.process.poll() is not None, f"a restart, see {run.log}")
        elif row["processes"]:
            wait_until(lambda: run.process.poll() is not None, f"the driver to end, see {run.log}")
        if run.process.poll() is None:
            row["ended"] = "went on"
            return True
        row["ended"] = "finished" if run.process.returncode == 0 else f"exit {run.process.returncode}"
        if run.process.returncode == 0:
            row["differs"] += finished(run.folder, self.reference)
        wait_until(lambda: not actors(), "the actors of a dead driver to go")
        return False


@contextmanager
def scratch(keep: Path | None):
    """A temporary folder, or ``keep``."""
    folder = keep or Path(tempfile.mkdtemp(prefix="kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def killed(kills: int, steps: int, seed: int, keep: Path | None = None) -> SimpleNamespace:
    """Run everything: ``rows`` of the table, ``same`` as the verdict."""
    import ray

    with scratch(keep) as root, local_ray():
        killer = Killer(root, steps, kills, seed, ray.get_runtime_context().gcs_address)
        killer.uninterrupted()
        same = killer.all()
    return SimpleNamespace(rows=killer.rows, same=same)


def main() -> int:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40, help="of a run")
    parser.add_argument("--seed", type=int, default=1, help="of victims and moments")
    parser.add_argument("--keep", type=Path, help="folder of the runs, kept")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    began = time.monotonic()
    found = killed(options.kills, options.steps, options.seed, options.keep)
    count = Counter((row["victim"], row["ended"]) for row in found.rows)
    for (victim, ended), number in sorted(count.items()):
        print(f"{victim:12}{ended:14}{number:4}")
    struck = sum(row["processes"] > 0 for row in found.rows)
    print(f"{struck} kills struck in {time.monotonic() - began:.0f} s; verdict:",
          "all continued bit by bit" if found.same else "DIFFERENT")  # fmt: skip
    return 0 if found.same else 1


if __name__ == "__main__":
    sys.exit(main())
