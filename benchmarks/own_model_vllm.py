"""A model of your own from its folder to a server: trained, exported, trained against vLLM, and served by it.

    python benchmarks/own_model_vllm.py --model FOLDER --python VLLM_ENVIRONMENT/bin/python [--json FILE]

What a user does, by the same commands: `parl train configs/own_model.yaml model.init=FOLDER` for two steps on the
embedded engine; `parl export`, read by transformers; training from that folder against a vLLM CPU server, which gets
the weights of a dense model in place and those of a mixture of experts by transfer; `parl export` of the result, whose
greedy tokens in transformers must be those of the server. Prints rows {check, value, tolerance, ok}; exit code 1 if
one is not ok. Installing vLLM: benchmarks/vllm_server.py; a folder to try: benchmarks/tiny_models.py.

The reward is the share of sampled tokens with an even id, so that the weights of a random model move, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import httpx  # noqa: E402
import numpy as np  # noqa: E402
from serve_vllm import reference, served  # noqa: E402

from envs.base import Score  # noqa: E402
from model.arrays import fill  # noqa: E402
from model.decoder import export_weights  # noqa: E402
from model.hf.shape import read_shape  # noqa: E402
from parl.cold_start.starting_policy import starting_policy  # noqa: E402
from parl.config.family import family_at  # noqa: E402
from parl.config.load import load_config  # noqa: E402
from parl.machine.cluster import local_ray  # noqa: E402
from parl.run.loop import Training  # noqa: E402
from parl.track.progress import Progress  # noqa: E402
from rewards.base import Parts, Reward, Weights  # noqa: E402
from rollouts.episode import Episode  # noqa: E402
from rollouts.store.store import EpisodeStore  # noqa: E402

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}  # of one token's log-prob, in nats
PROBE = {"float32": 1e-3, "bfloat16": 0.05}  # of the mean over the probe
LENGTH = 4096  # longest stream in tokens, as in configs/own_model.yaml
PROMPTS, GREEDY = (1, 6, 24, 80), 16  # lengths of prompts; greedy tokens a prompt
_RUN_S = 3000.0


class EvenTokens(Reward):
    """The share of the orchestrator's sampled tokens whose id is even."""

    def parts(self, episode: Episode, score: Score | None) -> Parts:
        """``even``."""
        trace = episode.orchestrator
        own = [token for token, sampled in zip(trace.tokens, trace.mask, strict=True) if sampled]
        return {"even": sum(token % 2 == 0 for token in own) / max(len(own), 1)}

    def weights(self, step: int, steps: int) -> Weights:
        """The answer's score counts nothing."""
        return {"perf": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check: what was found and the most that is tolerated."""

    check: str
    value: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is tolerated."""
        return self.value <= self.tolerance


def parl(place: Path, *arguments: str) -> None:
    """Run ``parl`` in ``place``; SystemExit with its last lines if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "parl", *arguments],
        cwd=place, timeout=_RUN_S, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"parl {shlex.join(arguments)}\n" + (done.stdout + done.stderr)[-6000:])


def training(name: str, init: Path, dtype: str, steps: int, *more: str) -> list[str]:
    """The arguments of a short run of configs/own_model.yaml without a cold start."""
    reward = "rewards={name: 'own_model_vllm:EvenTokens'}"
    return [
        "train", str(ROOT / "configs" / "own_model.yaml"), f"name={name}", f"model.init={init}",
        f"model.dtype={dtype}", f"trainer.steps={steps}", "sft.data=null", "sft.enough=null",
        reward, "optimizer.lr=1e-3", "rollouts.budget.turn_tokens=32", "rollouts.tasks_per_step=4", "eval.tasks=2",
        "trainer.most_unread=1", "trainer.keep_best=null", "tracking.wandb=disabled", *more,
    ]  # fmt: skip


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run's steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def free_port() -> tuple[int, str]:
    """A free port on loopback, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port, f"http://127.0.0.1:{port}"


# ---------------------------------------------------------------- the exported folder


class Exported:
    """An exported folder in transformers: what it says of some prompts."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        kind = getattr(torch, dtype)
        self.model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, output_loading_info=True)
        self.model.eval().generation_config.eos_token_id = None  # all tokens that were asked for
        self.missing = sum(len(names) for names in found.values())
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = self.tokenizer.get_vocab().keys() - self.tokenizer.get_added_vocab().keys()
        ids = sorted(self.tokenizer.convert_tokens_to_ids(list(plain)))
        draw = np.random.default_rng(1)
        self.prompts = [draw.choice(ids, size).tolist() for size in PROMPTS]
        self.said = [reference(self.model, prompt, GREEDY) for prompt in self.prompts]

    def against_policy(self, run: Path) -> list[Row]:
        """Its greedy tokens against those of the policy of ``run``, both computed in float32."""
        import torch

        family = family_at(run / "policy")
        trained = family.load(run / "policy")
        policy = family.blank(trained.config.model_copy(update={"dtype": "float32"})).eval()
        fill(policy, export_weights(trained))
        differing = 0
        for prompt, (wanted, _) in zip(self.prompts, self.said, strict=True):
            tokens = torch.tensor(prompt)
            with torch.no_grad():
                for token in wanted:
                    differing += int(policy.next_logits(tokens).argmax()) != token
                    tokens = torch.cat([tokens, torch.tensor([token])])
        return [
            Row(check="export: tensors missing or unknown to transformers", value=self.missing, tolerance=0),
            Row(check="export: greedy tokens of transformers, not the policy's", value=differing, tolerance=0),
        ]

    def against_server(self, url: str, dtype: str) -> list[Row]:
        """Its greedy tokens and log-probs against those of the server at ``url``, and the prompt of a chat."""
        rows, gap, differing = [], 0.0, 0
        with httpx.Client(base_url=url, timeout=120.0) as client:
            for prompt, (wanted, logprobs) in zip(self.prompts, self.said, strict=True):
                differing += sum(a != b for a, b in zip(served(client, prompt, GREEDY)[0], wanted, strict=True))
                whole = served(client, prompt + wanted, 1)[1][: len(logprobs)]
                gap = max(gap, *(abs(a - b) for a, b in zip(whole, logprobs, strict=True)))
            if self.tokenizer.chat_template:
                rows.append(self._chat(client))
        if dtype == "float32":  # bfloat16 rounds away what decides between two that score alike
            rows.append(Row(check="vLLM: greedy tokens, not transformers'", value=differing, tolerance=0))
        return [*rows, Row(check="vLLM: log-probs against transformers'", value=gap, tolerance=TOLERANCE[dtype])]

    def _chat(self, client: httpx.Client) -> Row:
        talk = [{"role": "user", "content": "How tall is the tower? «é» <tool_call>"}]
        body = {"model": "policy", "messages": talk, "max_tokens": 1, "return_token_ids": True}
        answer = client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        ids = self.tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        found = answer.json()["prompt_token_ids"]
        other = sum(a != b for a, b in zip_longest(found, ids))
        return Row(check="vLLM: ids of a chat's prompt, not transformers'", value=other, tolerance=0)


# ---------------------------------------------------------------- training against a server


class Server:
    """A vLLM server that the run starts by `rollouts.http.restart`; it is stopped at the end."""

    def __init__(self, python: str, place: Path, dtype: str) -> None:
        port, self.url = free_port()
        self.log = place / "vllm.log"
        self._command = [sys.executable, str(ROOT / "benchmarks" / "vllm_server.py"), "--python", python]
        self._command += ["--port", str(port), "--dtype", dtype, "--length", str(LENGTH), "--transfer"]
        self._command += ["--pid-file", str(place / "vllm.pid"), "--log", str(self.log)]

    def settings(self, weights: str, dtype: str) -> list[str]:
        """The overrides of a run that trains against it."""
        restart = shlex.join([*self._command, "--folder"]) + " {folder}"
        return [
            "rollouts.engine=vllm", f"rollouts.http.urls=[{self.url}]", f"rollouts.http.restart={restart!r}",
            f"rollouts.http.weights={weights}", f"rollouts.http.tolerance={PROBE[dtype]}",
            "rollouts.http.update_s=1800", "trainer.step_s=3600",
        ]  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.log.exists():
            print("\n".join(self.log.read_text(errors="replace").splitlines()[-30:]))
        subprocess.run([*self._command, "--stop"], check=True, timeout=120)


def learned(run: Path, dtype: str) -> list[Row]:
    """The rows of a run against a server: each step's log-probs, each version's probe, and what was not in place."""
    rows, store, foreign = [], EpisodeStore(run / "episodes"), 0
    for metrics in steps_of(run):
        stored = store.read(int(metrics["step"]))
        assert stored is not None
        episodes, version = stored
        seen = Counter(v for episode in episodes for v in episode.orchestrator.versions if v >= 0)
        foreign += sum(count for label, count in seen.items() if label != version)
        tokens = f"version {version}: {seen[version]} tokens' log-probs against the learner's"
        rows.append(Row(check=tokens, value=metrics["policy/engine_gap"], tolerance=TOLERANCE[dtype]))
        update = f"version {version + 1}: probe after the update of {metrics['time/sync_s']:.1f} s"
        rows.append(Row(check=update, value=metrics["engine/probe_gap"], tolerance=PROBE[dtype]))
    restarts = steps_of(run)[-1]["engine/server_restarts"] - 1  # the first starts it
    return [
        *rows,
        Row(check="tokens of another version than their step's", value=foreign, tolerance=0),
        Row(check="updates that needed a restart", value=restarts, tolerance=0),
    ]


def main() -> None:
    """Train, export, train against the server, export; print and exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vllm")
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCE), help="of the policy in training")
    parser.add_argument("--weights", choices=("reload", "transfer", "restart"), help="default: as the model needs it")
    parser.add_argument("--steps", type=int, default=6, help="training steps against the server")
    parser.add_argument("--work", type=Path, help="keep the runs in this new folder")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))  # for the processes of runs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives it
    with tempfile.TemporaryDirectory() as name:
        rows = whole(given, (given.work or Path(name)).resolve())
    if given.json:
        given.json.write_text(json.dumps([{**asdict(row), "ok": row.ok} for row in rows], indent=1) + "\n")
    if not all(row.ok for row in rows):
        raise SystemExit(1)


def whole(given: argparse.Namespace, place: Path) -> list[Row]:
    """All rows, printed as they come."""
    place.mkdir(parents=True, exist_ok=True)
    runs, dtype = place / "runs", given.dtype
    parl(place, *training("embedded", given.model.resolve(), dtype, 2))
    gap = max(metrics["policy/engine_gap"] for metrics in steps_of(runs / "embedded"))
    rows = show([Row(check="embedded: log-probs against the learner's", value=gap, tolerance=TOLERANCE[dtype])])
    parl(place, "export", "embedded", "--out", "exported")
    rows += show(Exported(place / "exported", "float32").against_policy(runs / "embedded"))
    routed = read_shape(place / "exported").routes is not None
    weights = given.weights or ("transfer" if routed else "reload")
    with Server(given.python, place, dtype) as server:
        more = [*server.settings(weights, dtype), *["rollouts.http.without_routes=live"] * routed]
        _, file, *overrides = training("served", place / "exported", dtype, given.steps, *more)
        config = load_config(file, [*overrides, f"root={runs}"])
        config.run_dir.mkdir(parents=True)
        with local_ray(), Progress(given.steps, "vLLM") as progress:  # no evaluation: it would start the server again
            Training(config, config.run_dir, starting_policy(config)).run(progress)
        rows += show(learned(runs / "served", dtype))
        parl(place, "export", "served", "--out", "trained")
        rows += show(Exported(place / "trained", dtype).against_server(server.url, dtype))
    return rows


def show(rows: list[Row]) -> list[Row]:
    """Print ``rows``."""
    for row in rows:
        print(f"{row.check:60} {row.value:9.1e}  of {row.tolerance:.1e}  {'ok' if row.ok else 'BAD'}", flush=True)
    return rows


if __name__ == "__main__":
    main()
