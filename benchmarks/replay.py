"""Learner against engine on rollout tokens, with router replay (R3) and without: differences of log-probs.

    python benchmarks/replay.py                 # the shipped starter on the world's tasks, and random near ties
    python benchmarks/replay.py --tasks 40

Upper part: both sides compute with the same values, rounded to bfloat16 or to INT4 (routed experts) or not at
all. Lower part: only the engine's are rounded, and the learner keeps float32, like a server that rounds its
weights. ``overlap``: the share of the engine's experts that the learner would choose too. ``near ties``:
random weights whose routers hardly prefer any expert; its rows are random tokens that the engine continues.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from envs.world.environment import WorldEnvironment
from model.chat.kimi import KimiChat
from model.decoder import Weights, export_weights
from model.kimi.config import ModelConfig
from model.kimi.family import Kimi
from model.kimi.transformer import Transformer
from model.policy_files import load_policy
from model.tokenizer.tokenizer import Tokenizer
from parl.config.load import load_config
from parl.config.schema import Config
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator, episode_rows
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.episode import Trace
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

Rollout = Callable[[EmbeddedEngine], Awaitable[list[Row]]]
STEP = {"temperature": 1.0, "micro_tokens": 8192}


def rounded(weights: Weights) -> Weights:
    """Weights rounded to bfloat16."""
    return {name: torch.from_numpy(array).bfloat16().float().numpy() for name, array in weights.items()}


def near_ties(config: ModelConfig) -> Weights:
    """Random weights whose routers hardly prefer any expert."""
    torch.manual_seed(0)
    model = Transformer(config.model_copy(update={"look_back": False}))
    with torch.no_grad():
        for router in model.routers():
            router.weight.mul_(1e-4)
        for parameter in (p for p in model.parameters() if p.dim() > 1 and p.shape[0] != config.n_routed_experts):
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        for experts in (p for name, p in model.named_parameters() if ".experts." in name):
            experts.copy_(torch.randn_like(experts) * experts.shape[-1] ** -0.5)
    return export_weights(model)


def of_the_world(config: Config, tokenizer: Tokenizer, tasks: int) -> Rollout:
    """Episodes of the training split, orchestrators and sub-agents sampled by the policy; the orchestrators' rows."""

    async def rollout(engine: EmbeddedEngine) -> list[Row]:
        environment = WorldEnvironment(config.envs.config)

        def pool(trace: Trace) -> EmbeddedEngine:
            return engine

        settings = SwarmSettings(chat=KimiChat(tokenizer), pool=pool, budget=config.rollouts.budget, spawning=True)
        stream = environment.task_stream("train", 1)
        episodes = [
            run_episode(stream[i], environment, settings, index=0, seed=i, critical_budget=0) for i in range(tasks)
        ]
        done = await asyncio.gather(*episodes)
        return [row for episode in done for row in episode_rows(episode, 1.0, routed=True)]

    return rollout


def of_random_tokens(config: ModelConfig, count: int) -> Rollout:
    """Prompts of 40 random tokens, each continued by 200."""

    async def one(engine: EmbeddedEngine, number: int) -> Row:
        prompt = np.random.default_rng(number).integers(0, config.vocab_size, 40).tolist()
        sampling = Sampling(seed=number, max_new_tokens=200)
        answer = await engine.generate(prompt, sampling, session=str(number), deadline_s=300.0)
        assert answer.routes is not None
        mask = np.array([False] * len(prompt) + [True] * len(answer.tokens))
        routes = np.concatenate([answer.routes, np.full((1, *answer.routes.shape[1:]), -1, np.int16)])
        return Row(
            key=("random", number, "0"),
            tokens=np.array(prompt + answer.tokens, np.int32),
            mask=mask,
            logprobs=np.array([0.0] * len(prompt) + answer.logprobs, np.float32),
            advantages=mask.astype(np.float32),
            routes=routes,
        )

    async def rollout(engine: EmbeddedEngine) -> list[Row]:
        return list(await asyncio.gather(*(one(engine, number) for number in range(count))))

    return rollout


def sampled(model: ModelConfig, weights: Weights, rollout: Rollout) -> list[Row]:
    """The rows of ``rollout`` by an engine with these weights."""

    async def go() -> list[Row]:
        engine = EmbeddedEngine(model)
        await engine.update(Update(version=1, weights=weights))
        return await rollout(engine)

    return asyncio.run(go())


def line(name: str, learner: Learner, rows: list[Row]) -> None:
    """Print one line of the table."""
    found = []
    for kept in (True, False):
        seen = rows if kept else [replace(row, routes=np.full_like(row.routes, -1)) for row in rows]
        own = learner.logprobs(seen, **STEP)
        gaps = np.concatenate([np.abs(mine - row.logprobs)[row.mask] for mine, row in zip(own, rows, strict=True)])
        found += [f"{gaps.max():9.1e} {gaps.mean():9.1e}"]
    metrics = learner.policy_step(rows, K25(), denominator=denominator(rows), lr_scale=0.0, **STEP)
    tokens = sum(row.trained for row in rows)
    print(f"{name:32} {tokens:7} {found[0]}   {found[1]}   {metrics['route_overlap']:.5f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--starter", type=Path, default=next(Path("configs/starters").iterdir()))
    parser.add_argument("--tasks", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights, plain, tokenizer, _ = load_policy(options.starter, Kimi())
    config = load_config(options.config, [])
    int4 = plain.model_copy(update={"quantize_experts": "int4"})
    policies = {
        "starter": (weights, of_the_world(config, tokenizer, options.tasks)),
        "near ties": (near_ties(plain), of_random_tokens(plain, 8)),
    }
    learners = {model.quantize_experts: Learner(model, OptimizerConfig(), seed=0) for model in (plain, int4)}
    print(f"{'':32} {'':7} {'with replay':>19}   {'without':>19}")
    print(f"{'policy, engine / learner':32} {'tokens':>7} {'max':>9} {'mean':>9}   {'max':>9} {'mean':>9}   overlap")
    mixed = []
    for name, (given, rollout) in policies.items():
        for kind, engine_model, engine_weights in (
            ("float32", plain, given),
            ("bfloat16", plain, rounded(given)),
            ("int4", int4, given),
        ):
            rows = sampled(engine_model, engine_weights, rollout)
            learner = learners[engine_model.quantize_experts]
            learner.load_weights(engine_weights)
            line(f"{name}, {kind} / {kind}", learner, rows)
            mixed += [(f"{name}, {kind} / float32", given, rows)] if kind != "float32" else []
    for name, given, rows in mixed:
        learners[None].load_weights(given)
        line(name, learners[None], rows)


if __name__ == "__main__":
    main()
