"""Trains on three hosts with Ray, kills hosts, and compares with one host.

    python benchmarks/nodes.py                  # all scenarios; about ten minutes on two idle cores
    python benchmarks/nodes.py --json nodes.json --keep FOLDER

The hosts are namespaces of this machine (``nodes_hosts.py``): their own network, files, host names, process
numbers and clocks. Only the first has the code and the run's folder. Hosts are killed as by a power cut: first
the cable, then every process. The run is the quickstart, from its shipped cold start, with eight episodes a
step, five steps and two learner ranks.
The last line is ``K of N scenarios hold``; the exit status is 1 unless all do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nodes_hosts import CODE, Host, Switch, possible

PORT = 6379
STEPS = 5
_STORE_BYTES = 150 * 2**20
_START_S, _RUN_S = 600.0, 1800.0
_TOKEN = "nodes-of-one-machine-0123456789abcdef"
_RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
_ROOT = "/srv/work/runs"
LABELS = {"alpha": (2, "at=alpha"), "beta": (1, "at=beta,pair=beta-gamma"), "gamma": (1, "at=gamma,pair=beta-gamma")}
PARTS = ("checks", "learner_lost", "others_lost")
CONFIG = f"{CODE}/configs/quickstart.yaml"
SMALLER = (  # the quickstart's policy, tasks and objective; deadlines for a machine that three hosts share
    f"trainer.steps={STEPS}",
    "trainer.ranks=2",
    f"trainer.keep_checkpoints={STEPS + 1}",
    "trainer.step_s=1500",
    "rollouts.tasks_per_step=2",
    "rollouts.group_size=4",
    "rollouts.workers=1",
    "rollouts.budget.call_s=300",
    "rollouts.budget.episode_s=1400",
    "baseline=false",
    "eval.tasks=2",
    "tracking.wandb=disabled",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One scenario: whether it holds, and what was seen."""

    what: str
    ok: bool
    value: str


class Hosts:
    """The three hosts and the Ray on them."""

    def __init__(self) -> None:
        self._switch = Switch()
        self.hosts: dict[str, Host] = {}
        self._made = 0
        self._joined: set[str] = set()
        self.head = self.boot("alpha")

    def three(self) -> None:
        """Have all three hosts in the cluster: boot and join those that are missing."""
        missing = [self.boot(name) for name in LABELS if name not in self.hosts]
        if self.head.name not in self._joined:
            self._join(self.head)
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._join, missing))

    def boot(self, name: str) -> Host:
        """A new host; the compiled kernels of this machine lie in its cache, as in an image."""
        self._made += 1
        self.hosts[name] = host = Host(self._switch, name, self._made, code=self._made == 1)
        cache = Path(os.environ.get("PARL_CACHE") or Path.home() / ".cache" / "parl")
        home = host.path("/tmp/home")
        for kernels in cache.glob("kernels-*.so"):
            (home / ".cache" / "parl").mkdir(parents=True, exist_ok=True)
            shutil.copy(kernels, home / ".cache" / "parl")
        return host

    def _join(self, host: Host) -> None:
        """Start Ray on ``host``: the cluster's first node on the head, a further one elsewhere."""
        cpus, labels = LABELS[host.name]
        command = ["python", "-m", "ray.scripts.scripts", "start", "--node-ip-address", host.address]
        command += ["--num-cpus", str(cpus), "--labels", labels, "--object-store-memory", str(_STORE_BYTES)]
        command += ["--disable-usage-stats", "--include-log-monitor", "false"]
        head = ["--head", "--port", str(PORT), "--include-dashboard", "false"]
        command += head if host is self.head else ["--address", self.address]
        code, text = host.run(command, _RAY, timeout_s=_START_S)
        if code:
            raise RuntimeError(f"Ray did not start on {host.name}: {text[-2000:]}")
        self._joined.add(host.name)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.head.address}:{PORT}"

    def cut(self, name: str) -> None:
        """Pull the cable of a host, and end everything on it."""
        host = self.hosts.pop(name)
        self._switch.unplug(host.name)
        host.kill()

    def close(self) -> None:
        """End all hosts."""
        for host in self.hosts.values():
            host.kill()
        self._switch.close()


class Kept:
    """A run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def weights(self, step: int) -> str:
        """The hash of the learner's tensors after ``step``: its weights and its optimiser's states."""
        from parl.learn.shard.parts import PartsReader

        reader, digest = PartsReader(self.folder / "checkpoints" / f"step-{step:06d}"), hashlib.sha256()
        for name in reader.names():
            digest.update(name.encode() + reader.read(name).numpy().tobytes())
        return digest.hexdigest()

    def episodes(self, step: int) -> str:
        """The hash of the step's episodes: the tokens, log-probs, experts and rewards of every trace."""
        from rollouts.store.store import EpisodeStore

        found, digest = EpisodeStore(self.folder / "episodes").read(step), hashlib.sha256()
        assert found is not None
        for episode in found[0]:
            digest.update(f"{episode.task.key} {episode.index} {sorted(episode.rewards.items())}".encode())
            for trace in episode.traces:
                digest.update(repr((list(trace.tokens), list(trace.mask), list(trace.logprobs))).encode())
                digest.update(b"" if trace.routes is None else trace.routes.tobytes())
        return digest.hexdigest()

    def differing(self, other: Kept, steps: range) -> list[str]:
        """Where the episodes or the learner's states of two runs differ."""
        return [
            f"{what} of step {step}"
            for step in steps
            for what, of in (("episodes", Kept.episodes), ("state", Kept.weights))
            if of(self, step) != of(other, step)
        ]


class Run(Kept):
    """``parl train`` on the head, with its output in a file."""

    def __init__(self, hosts: Hosts, name: str, *arguments: str, cluster: dict[str, Any] | None = None) -> None:
        super().__init__(hosts.head.path(f"{_ROOT}/{name}"))
        given = [f"name={name}", f"root={_ROOT}", *SMALLER]
        given += [f"cluster.{key}={json.dumps(value)}" for key, value in (cluster or {}).items()]
        self._log = hosts.head.path(f"/srv/work/{name}.log")
        variables = (_RAY if cluster else {}) | {"PYTHONPATH": CODE}
        command = ["python", "-m", "parl", "train", CONFIG, *given, *arguments]
        self._began = time.monotonic()
        with self._log.open("a") as out:
            self._process = hosts.head.start(command, variables, stdout=out, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    @property
    def steps(self) -> int:
        """Those trained and on disk so far."""
        return len(list(self.folder.glob("checkpoints/step-*[0-9]"))) - 1

    def until(self, step: int) -> None:
        """Wait until ``step`` is trained and saved; RuntimeError if the run ends before, or after a while."""
        self._wait(lambda: self.steps >= step, f"step {step}")

    def until_said(self, text: str, count: int) -> None:
        """Wait until ``count`` lines of the output hold ``text``; RuntimeError as :meth:`until`."""
        self._wait(lambda: sum(text in line for line in self.said.splitlines()) >= count, f"{text!r}")

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        while not reached():
            if self._process.poll() is not None:
                raise RuntimeError(f"the run ended before {what}:\n{self.said[-3000:]}")
            if time.monotonic() - self._began > _RUN_S:
                raise RuntimeError(f"no {what} within {_RUN_S:g} s:\n{self.said[-3000:]}")
            time.sleep(0.2)

    def stop_after_last(self) -> None:
        """Wait for the last step, and do without the evaluation. RuntimeError as :meth:`until`."""
        self.until(STEPS)
        self._process.terminate()
        self.end()

    def end(self) -> int:
        """Wait for the end; its exit code. TimeoutExpired."""
        return self._process.wait(timeout=_RUN_S)


def _on(*hosts: str) -> dict[str, str]:
    """Labels of the one host, or of the pair, by which a role is placed."""
    return {"at": hosts[0]} if len(hosts) == 1 else {"pair": "-".join(hosts)}


class Scenarios:
    """Run in order, on the same hosts; ``rows``: what was found."""

    def __init__(self, hosts: Hosts, reference: Path | None) -> None:
        self.hosts, self.rows = hosts, list[Row]()
        self.reference = Kept(reference or Path())

    def note(self, what: str, ok: bool, value: str) -> None:
        """Record and print one scenario."""
        self.rows.append(Row(what=what, ok=ok, value=value))
        print(f"{'holds' if ok else 'FAILS'}: {what} ({value})", flush=True)

    def alone(self) -> None:
        """The run on one host, without a cluster: what all others are compared with."""
        if self.reference.folder == Path():
            self.reference = run = Run(self.hosts, "alone")
            run.stop_after_last()

    def checks(self) -> None:
        """Three nodes; ``parl cluster check`` says that they will do, or why not."""
        hosts = self.hosts
        hosts.three()
        began = time.monotonic()
        code, text = self._check()
        took = time.monotonic() - began
        self.note("parl cluster check passes three nodes", code == 0 and "3 nodes: will do" in text, f"{took:.0f} s")
        with _OtherVersion(hosts.hosts["gamma"], "numpy"):
            code, text = self._check()
        named = [line for line in text.splitlines() if line.startswith("problem: gamma")]
        told = code == 1 and len(named) == 1 and "numpy" in named[0]
        self.note("a node with another version is refused by name", told, named[0] if named else text[-300:])

    def _check(self) -> tuple[int, str]:
        command = ["python", "-m", "parl", "cluster", "check", self.hosts.address]
        return self.hosts.head.run(command, _RAY | {"PYTHONPATH": CODE}, timeout_s=_START_S)

    def learner_lost(self) -> None:
        """Ranks on beta and gamma; gamma is cut in the middle, and the run is resumed on two nodes."""
        hosts = self.hosts
        hosts.three()
        cluster = {"address": hosts.address, "labels": {"learner": _on("beta", "gamma"), "engine": _on("alpha")}}
        run = Run(hosts, "ranks", cluster=cluster)
        run.until(2)
        apart = not hosts.hosts["beta"].exists(str(Path(_ROOT) / "ranks")) and not hosts.hosts["beta"].exists(CODE)
        began = time.monotonic()
        hosts.cut("gamma")  # at once: on a fast machine the run is soon over
        code, ended = run.end(), time.monotonic() - began
        wrong = run.differing(self.reference, range(1, 3))
        self.note(
            "three nodes, ranks on two of them: the episodes and states of one node",
            not wrong and apart,
            ", ".join(wrong) or "every bit of 2 steps; code and run folder are on the first host alone",
        )
        named = [line for line in run.said.splitlines() if "learner rank" in line and "gamma" in line]
        loud = code == 1 and bool(named)
        said = f"exit {code} after {ended:.0f} s: {named[-1][:160] if named else run.said[-300:]}"
        self.note("a learner's node is lost: the run ends and names it", loud, said)
        fewer = cluster | {"labels": {}}
        resumed = Run(hosts, "ranks", "--resume", cluster=fewer)
        code = resumed.end()
        wrong = resumed.differing(self.reference, range(1, STEPS + 1)) if code == 0 else [resumed.said[-600:]]
        self.note(
            "resumed on two nodes: the states of one node to the end",
            code == 0 and not wrong,
            ", ".join(wrong) or f"every bit of {STEPS} steps",
        )

    def others_lost(self) -> None:
        """Engines on beta and the worker on gamma; each is cut in the middle of the run."""
        hosts = self.hosts
        hosts.three()
        labels = {"learner": _on("alpha"), "engine": _on("beta"), "worker": _on("gamma")}
        run = Run(hosts, "cut", cluster={"address": hosts.address, "labels": labels})
        losses = ((1, "gamma", "the rollout worker's"), (3, "beta", "the engines'"))
        for count, (step, name, role) in enumerate(losses, 1):
            run.until(step)
            hosts.cut(name)
            began = time.monotonic()
            run.until_said("started again", count)
            noticed = time.monotonic() - began
            step = run.steps + 1
            run.until(step)
            took = time.monotonic() - began
            wrong = run.differing(self.reference, range(1, step + 1))
            seen = f"noticed after {noticed:.0f} s, step {step} was trained after {took:.0f} s, every bit the same"
            self.note(f"{role} node is lost: the run goes on", not wrong, ", ".join(wrong) or seen)
        run.stop_after_last()
        wrong = run.differing(self.reference, range(1, STEPS + 1))
        seen = ", ".join(wrong) or f"every bit of {STEPS} steps"
        self.note("after both losses: the states of one node to the end", not wrong, seen)


class _OtherVersion:
    """Let a distribution of ``host`` say another version."""

    def __init__(self, host: Host, name: str) -> None:
        found = sorted(host.path("/srv/venv").glob(f"lib/python3*/site-packages/{name}-*.dist-info/METADATA"))
        self._host, self._file = host, "/srv/venv/" + str(found[0].relative_to(host.path("/srv/venv")))
        text = found[0].read_text(errors="replace").splitlines()
        changed = [f"{line}.999" if line.startswith("Version: ") else line for line in text]
        host.path("/srv/work/METADATA").write_text("\n".join(changed))

    def __enter__(self) -> None:
        self._host.run(["mount", "--bind", "/srv/work/METADATA", self._file], {}, timeout_s=60)

    def __exit__(self, *_: object) -> None:
        self._host.run(["umount", self._file], {}, timeout_s=60)


def run_all(parts: Sequence[str], keep: Path | None = None, reference: Path | None = None) -> list[Row]:
    """All scenarios; the first that cannot go on ends them, as a row that fails."""
    hosts = Hosts()
    scenarios = Scenarios(hosts, reference)
    try:
        for part in ("alone", *parts):
            try:
                getattr(scenarios, part)()
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                scenarios.note(f"{part} could not go on", False, str(error)[-1500:])
                break
    finally:
        if keep:
            shutil.copytree(hosts.head.path("/srv/work"), keep, dirs_exist_ok=True)
        hosts.close()
    return scenarios.rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--keep", type=Path, help="copy the runs' folders here")
    parser.add_argument("--reference", type=Path, help="FOLDER/runs/alone of an earlier --keep: do not run it again")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    given = parser.parse_args()
    if why := possible():
        sys.exit(f"hosts cannot be made here: {why}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are closed
    rows = run_all(given.only or PARTS, given.keep, given.reference)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    held = sum(row.ok for row in rows)
    print(f"{held} of {len(rows)} scenarios hold")
    sys.exit(held != len(rows))


if __name__ == "__main__":
    main()
