"""``parl chat``: try a policy by hand, with the tools of an environment; the terminal shows its swarm live.

Each question is a separate episode, without memory of the last one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.live import Live

from envs.base import Environment, Gold, Role, Task
from model.family import Family, family_of
from model.policy_files import load_policy
from model.tokenizer.tokenizer import load_tokenizer
from parl.cold_start.starting_policy import shown_start, starting_policy
from parl.collect.free_running import free_running
from parl.config.family import chat_format
from parl.config.schema import Config
from parl.episodes.view import episode_tree
from parl.errors import UserError
from parl.evaluate.policies import check_policy
from parl.shown import terminal
from parl.shown.terminal import cell, echo, styled
from rollouts.critical_path import critical_steps
from rollouts.engine.base import Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.episode import Episode
from rollouts.swarm.partial import Flight
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

_LOOKS_A_SECOND = 4


def chat(
    config: Config,
    *,
    model: Path | None = None,
    spawning: bool | None = None,
    temperature: float = 1.0,
    questions: Iterable[str] | None = None,
) -> None:
    """Read questions until the input ends, and answer each. UserError: no such policy, or it does not fit.

    ``model``: a policy's folder; by default the run's trained policy, or else the policy that training would
    start from. ``spawning`` overrides ``rollouts.swarm``. ``questions`` from the command line are asked one
    after another.
    """
    rollouts, family, environment = config.rollouts, family_of(config.model), config.envs.build()
    cold = shown_start(config.name, partial(starting_policy, config, check=free_running(config)))
    trained = config.run_dir / "policy"
    folder = model or (trained if trained.is_dir() else cold)
    others = rollouts.subagent_policy or cold
    check_policy(config.model, folder)
    echo(f"policy: {folder}; sub-agents: {others}")

    async def talk() -> None:
        policy = await _engine(family, folder)
        frozen = policy if others == folder else await _engine(family, others)
        tokenizer = load_tokenizer(folder)
        settings = SwarmSettings.of(
            rollouts,
            chat=chat_format(config.model, rollouts, tokenizer),
            subagent_chat=chat_format(config.model, rollouts, tokenizer, role=Role.SUBAGENT),
            pool=lambda trace: policy if trace.role is Role.ORCHESTRATOR else frozen,
            spawning=rollouts.swarm if spawning is None else spawning,
            temperature=temperature,
        )
        try:
            for number, question in enumerate(questions if questions is not None else _typed()):
                print_answer(await answered(question, environment, settings, number, config.seed))
        finally:
            await environment.close()

    asyncio.run(talk())


async def _engine(family: Family, folder: Path) -> EmbeddedEngine:
    weights, shape, _, meta = load_policy(folder, family)
    if shape.pictures is not None:
        raise UserError(f"{folder} takes images, which a terminal cannot show: use parl gateway")
    engine = EmbeddedEngine(shape, record_routes=False)
    await engine.update(Update(version=int(meta.get("policy_version", 0)), weights=weights))
    return engine


def _typed() -> Iterator[str]:
    """Non-empty lines of the terminal, or of piped input."""
    shown = sys.stdin.isatty()
    if shown:
        echo("one question a line; ctrl-d ends")
    while True:
        try:
            line = input("> " if shown else "").strip()
        except EOFError:
            return
        if line:
            yield line


async def answered(
    question: str,
    environment: Environment,
    settings: SwarmSettings,
    number: int,
    seed: int,
    console: Console | None = None,
) -> Episode:
    """The episode of a question; a terminal shows its agents while they work."""
    settings = replace(settings, score=None)
    task = Task(key=f"chat-{number}", family="chat", split="test", prompt=question, gold=Gold(kind="exact"))
    console, flight = console or terminal.console(), Flight()
    running = asyncio.ensure_future(
        run_episode(task, environment, settings, index=0, seed=seed, critical_budget=0, flight=flight)
    )
    with Live(console=console, refresh_per_second=_LOOKS_A_SECOND, transient=True) as live:
        while not running.done():
            await asyncio.wait([running], timeout=1 / _LOOKS_A_SECOND)
            if not running.done() and console.is_terminal and flight.state is not None:
                live.update(episode_tree(flight.state().episode))
    return running.result()


def print_answer(episode: Episode, console: Console | None = None) -> None:
    """The whole tree, the answer, and its costs."""
    console = console or terminal.console()
    console.print(episode_tree(episode, None))
    console.print(styled("[bold]{}[/]", episode.answer or f"no answer: {episode.status} {episode.limit}"))
    steps = sum(trace.steps for trace in episode.traces)
    cost = f"{critical_steps(episode)} critical steps, {steps} in all, {len(episode.traces) - 1} sub-agents"
    console.print(cell(f"{cost}, {episode.wall_s:.1f} s", "dim"))
    if episode.error:
        console.print(cell(episode.error, "red"))
