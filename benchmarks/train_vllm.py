"""A few real training steps on a vLLM CPU server: versions, log-prob differences, weight updates.

    python benchmarks/train_vllm.py --python VLLM_ENVIRONMENT/bin/python [--weights reload|transfer|restart] [--dense]

Trains the quickstart policy (a mixture of experts, float32) from its shipped cold start; ``--dense`` a dense
policy of the same sizes from a short cold start. Sub-agents stay on the embedded engine. Prints for each
step: the versions of its tokens, the largest difference between the server's log-probs and the learner's
(before the step's first update), how the new weights reached the server, and the probe's result. Exit code 1
if a token has another version than its step's, or a difference is above 1e-3. Installing vLLM:
benchmarks/vllm_server.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parl.cold_start.starting_policy import starting_policy
from parl.config.load import load_config
from parl.config.schema import Config
from parl.machine.cluster import local_ray
from parl.run.loop import Training
from parl.track.progress import Progress
from rollouts.store.store import EpisodeStore

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-3


def settings(given: argparse.Namespace, place: Path, server: list[str], port: int) -> Config:
    """The run's configuration."""
    restart = shlex.join([*server, "--folder"]) + " {folder}"
    overrides = [
        f"root={place}", "name=vllm", "tracking.wandb=disabled", f"trainer.steps={given.steps}",
        "rollouts.engine=vllm", f"rollouts.http.urls=[http://127.0.0.1:{port}]", f"rollouts.http.restart={restart!r}",
        f"rollouts.http.weights={given.weights}", "rollouts.http.without_routes=live", "rollouts.http.tolerance=0.001",
        "rollouts.http.update_s=1800", "trainer.step_s=3600",
        f"rollouts.tasks_per_step={given.tasks}", f"rollouts.group_size={given.group}", "trainer.ranks=1",
    ]  # fmt: skip
    if given.dense:
        overrides += ["model.first_k_dense_replace=4", "starter=null", "sft.tokens=300000", "sft.copying_tokens=40000"]
        overrides += ["sft.drill_tokens=40000", "rollouts.budget.turn_tokens=64"]
    return load_config(ROOT / "configs" / "quickstart.yaml", overrides)


def report(config: Config) -> bool:
    """Print the table of a finished run; returns whether all is correct."""
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    store, fine = EpisodeStore(config.run_dir / "episodes"), True
    names = ("step", "episodes", "tokens by version", "log-prob difference", "update", "probe", "update s")
    table = Table(*names)
    for line in lines:
        row = json.loads(line)
        step = int(row["step"])
        stored = store.read(step)
        assert stored is not None
        episodes, version = stored
        seen = Counter(v for episode in episodes for v in episode.orchestrator.versions if v >= 0)
        gap = row["policy/engine_gap"]
        fine = fine and set(seen) == {version} and gap <= TOLERANCE
        how = "in place" if row["engine/in_place"] else "restart"
        versions = ", ".join(f"{v}: {count}" for v, count in sorted(seen.items()))
        probe, seconds = f"{row['engine/probe_gap']:.1e}", f"{row['time/sync_s']:.1f}"
        table.add_row(str(step), str(len(episodes)), versions, f"{gap:.1e}", how, probe, seconds)
    Console(width=120).print(table)
    return fine


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(description="training steps against a vLLM CPU server")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vllm")
    parser.add_argument("--weights", default="reload", choices=("reload", "transfer", "restart"))
    parser.add_argument("--dense", action="store_true", help="a policy without experts")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=2, help="tasks a step")
    parser.add_argument("--group", type=int, default=4, help="episodes a task")
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        server = [sys.executable, str(ROOT / "benchmarks" / "vllm_server.py"), "--python", given.python]
        server += ["--port", str(port), "--dtype", "float32", "--length", "2048", "--transfer"]
        server += ["--pid-file", str(place / "vllm.pid"), "--log", str(place / "vllm.log")]
        config = settings(given, place, server, port)
        config.run_dir.mkdir(parents=True)
        try:
            with local_ray(), Progress(given.steps, "vLLM") as progress:
                Training(config, config.run_dir, starting_policy(config)).run(progress)
        except Exception:
            log = place / "vllm.log"
            print("\n".join(log.read_text(errors="replace").splitlines()[-30:]) if log.exists() else "no server log")
            raise
        finally:
            subprocess.run([*server, "--stop"], check=True, timeout=120)
        fine = report(config)
    if not fine:
        raise SystemExit(f"a token of another version, or log-probs that differ by more than {TOLERANCE}")
    print("each token has its step's version; log-probs agree")


if __name__ == "__main__":
    main()
