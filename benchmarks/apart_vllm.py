"""Weights for a vLLM server that does not see the run's disk, beside servers that do: bytes, pause, probe.

    python benchmarks/apart_vllm.py --python VLLM_ENVIRONMENT/bin/python [--json FILE]      # root: mount namespaces

A tiny dense model and a tiny mixture of experts (benchmarks/tiny_models.py, or --model FOLDER) are trained against
vLLM's CPU build, twice each. `pull`: the server runs in a mount namespace in which the run's folder is empty, starts
with drawn weights from a copy of config.json and tokenizer, and fetches each version before it is paused. `reload`
(`transfer` for experts, which vLLM's CPU build reloads wrongly): trainer and server share the folder. A row a version:
bytes that the server read, seconds until it had them, seconds of its pause, the probe's mean log-prob difference, and
the largest difference of a sampled token to the learner. vLLM's CPU build returns no experts: in bfloat16 a router's
near tie may fall otherwise in the learner, so that this largest difference is no criterion for experts there; in
float32 (--dtype) it is.
The last line says how many versions of `pull` are within the tolerances; exit code 1 unless all are.
Installing vLLM: benchmarks/vllm_server.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from own_model_vllm import LENGTH, PROBE, TOLERANCE, free_port, steps_of, training  # noqa: E402
from tiny_models import write  # noqa: E402

from model.hf.shape import read_shape  # noqa: E402
from parl.cold_start.starting_policy import starting_policy  # noqa: E402
from parl.config.load import load_config  # noqa: E402
from parl.machine.cluster import local_ray  # noqa: E402
from parl.run.loop import Training  # noqa: E402
from parl.track.progress import Progress  # noqa: E402

KINDS = ("qwen3", "qwen3_moe")
_NO_WEIGHTS = shutil.ignore_patterns("*.safetensors", "*.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One version that reached a server."""

    model: str
    weights: str  # rollouts.http.weights
    version: int
    bytes: int  # fetched or read by the server
    before_s: float  # until it had them, unpaused; a shared folder: 0
    pause_s: float
    probe: float
    restarts: int
    gap: float  # largest log-prob difference of the tokens that it sampled to the learner's
    ok: bool


class Server:
    """A vLLM server of the run: ``hidden`` None where it sees the run's folder."""

    def __init__(self, given: argparse.Namespace, folder: Path, place: Path, hidden: Path | None) -> None:
        port, self.url = free_port()
        place.mkdir()
        self.log = place / "vllm.log"
        self._command = [sys.executable, str(ROOT / "benchmarks" / "vllm_server.py"), "--python", given.python]
        self._command += ["--port", str(port), "--dtype", given.dtype, "--length", str(LENGTH), "--transfer"]
        self._command += ["--pid-file", str(place / "vllm.pid"), "--log", str(self.log)]
        if hidden is None:
            self.restart = shlex.join([*self._command, "--folder"]) + " {folder}"
            return
        bare = shutil.copytree(folder, place / "bare", ignore=_NO_WEIGHTS)  # what an operator copies there once
        self._command += ["--hide", str(hidden), "--shards", str(place / "shards"), "--drawn"]
        self.restart = shlex.join([*self._command, "--folder", str(bare)])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.log.exists():
            print("\n".join(self.log.read_text(errors="replace").splitlines()[-30:]))
        subprocess.run([*self._command, "--stop"], check=True, timeout=120)


def train(given: argparse.Namespace, name: str, folder: Path, weights: str, place: Path) -> list[Row]:
    """Train ``folder`` against a server; a row for each version that the training made."""
    runs, label = place / "runs", f"{name}-{weights}"
    runs.mkdir(exist_ok=True)
    with Server(given, folder, place / f"server-{label}", runs if weights == "pull" else None) as server:
        more = [
            "rollouts.engine=vllm", f"rollouts.http.urls=[{server.url}]", f"rollouts.http.restart={server.restart!r}",
            f"rollouts.http.weights={weights}", f"rollouts.http.tolerance={PROBE[given.dtype]}",
            "rollouts.http.update_s=1800", "trainer.step_s=3600", f"optimizer.lr={given.lr}",
            f"optimizer.muon_lr={given.lr}",
        ]  # fmt: skip
        more += ["rollouts.http.without_routes=live"] * (read_shape(folder).routes is not None)
        _, file, *overrides = training(label, folder, given.dtype, given.steps, *more)
        config = load_config(file, [*overrides, f"root={runs}"])
        config.run_dir.mkdir(parents=True)
        if weights == "pull":
            subprocess.run(shlex.split(server.restart), check=True, timeout=120)
        with local_ray(), Progress(given.steps, label) as progress:  # no evaluation
            Training(config, config.run_dir, starting_policy(config)).run(progress)
        whole = sum(file.stat().st_size for file in sorted((config.run_dir / "served").glob("policy-*"))[-1].glob("*"))
        if weights == "pull" and "\n0\n" not in f"\n{server.log.read_text(errors='replace')}"[:200]:
            raise SystemExit(f"{server.log}: the run's folder is not empty in the server's namespace")
    live = read_shape(folder).routes is not None and given.dtype == "bfloat16"
    return [row_of(name, weights, metrics, whole, given.dtype, live=live) for metrics in steps_of(config.run_dir)]


def row_of(name: str, weights: str, metrics: dict[str, float], whole: int, dtype: str, *, live: bool) -> Row:
    """The row of one step's metrics; ``live``: the learner's experts may be others than the server's."""
    pulls = weights == "pull"
    started = 0 if pulls else 1  # a shared server is started by the first version
    restarts, probe = int(metrics["engine/server_restarts"]) - started, metrics["engine/probe_gap"]
    return Row(
        model=name, weights=weights, version=int(metrics["step"]),  # the one that the step made
        bytes=int(metrics["engine/pulled_bytes"]) if pulls else whole, before_s=metrics["engine/pull_s"],
        pause_s=metrics["engine/pause_s"], probe=probe, restarts=restarts, gap=metrics["policy/engine_gap"],
        ok=probe <= PROBE[dtype] and restarts == 0 and (live or metrics["policy/engine_gap"] <= TOLERANCE[dtype]),
    )  # fmt: skip


def main() -> None:
    """Train, print the table, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vllm")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder instead of the tiny models")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, default=5, help="versions besides the first")
    parser.add_argument("--only", nargs="+", choices=("pull", "shared"), default=["pull", "shared"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))  # for the processes of runs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives it
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / "models" / name for name in KINDS}
        if given.model is None:
            for name, folder in folders.items():
                write(name, folder, dtype=given.dtype)
        else:
            folders = {given.model.name: given.model.resolve()}
        print(f"{'model':10} {'weights':8} {'version':7} {'bytes':>11} {'before':>7} {'pause':>7} {'probe':>8}", end="")
        print(f" {'gap':>8}  ok")
        for name, folder in folders.items():
            shared = "reload" if read_shape(folder).routes is None else "transfer"
            for weights in [{"pull": "pull", "shared": shared}[one] for one in given.only]:
                rows += show(train(given, name, folder, weights, Path(place)))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    apart = [row for row in rows if row.weights == "pull"]
    print(f"{sum(row.ok for row in apart)} of {len(apart)} versions without a shared disk hold")
    if not all(row.ok for row in apart):
        raise SystemExit(1)


def show(rows: list[Row]) -> list[Row]:
    """Print ``rows``."""
    for row in rows:
        times = f"{row.before_s:5.2f} s {row.pause_s:5.2f} s"
        said = f"{row.gap:8.1e}  {'ok' if row.ok else f'BAD ({row.restarts} restarts)'}"
        print(f"{row.model:10} {row.weights:8} {row.version:7} {row.bytes:11,} {times} {row.probe:8.1e} {said}",
              flush=True)  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
