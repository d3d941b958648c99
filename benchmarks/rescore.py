"""Episodes per second of ``parl rescore`` on one core, reading included.

    python benchmarks/rescore.py                   # the demonstrations of the quickstart's world, 512 episodes
    python benchmarks/rescore.py --store runs/x    # a run of your own
    python benchmarks/rescore.py --profile         # and where the time goes

Without ``--store`` scripted policies solve tasks of the world through the swarm's own code, with the shipped
tokenizer: episodes as long as a trained policy's, in all families. It counts CPU seconds of this process, so
other load matters little. The rewards are another configuration's than the stored ones.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.demos import Demonstrator
from parl.cold_start.shipped import Recipe
from parl.config.schema import Config
from parl.episodes.stores import find_stores
from parl.evaluate.rescore import rescore
from parl.evaluate.scoring import Scoring
from rewards.parl_reward import Parl
from rollouts.episode import Episode
from rollouts.store.store import EpisodeStore

STEPS = 4
OTHER = Config(rewards=Parl(lambda_parallel=0.1, critical_penalty=0.5, parallel_cap=8))


def make_store(folder: Path, episodes: int, tokenizer: Path) -> None:
    """``episodes`` scored demonstrations in ``STEPS`` shards."""
    config = Config(name="rescore")
    demonstrator = Demonstrator(Recipe.of(config), Tokenizer.load(tokenizer))

    async def demonstrations() -> list[Episode]:
        return [await demonstrator.episode(index) for index in range(episodes)]

    made = asyncio.run(demonstrations())
    scoring = Scoring(reward=config.rewards, steps=STEPS)
    for episode in made:
        scoring.score_held_out(episode)
    for step in range(STEPS):
        EpisodeStore(folder).write(step + 1, made[step::STEPS], policy_version=step)


def measure(store: Path, rounds: int) -> tuple[int, float]:
    """(episodes, the fastest round's CPU seconds for all of them)."""
    times, count = [], 0
    for _ in range(rounds):
        began = time.process_time()
        count = sum(1 for _ in rescore(store, OTHER))
        times.append(time.process_time() - began)
    return count, min(times)


def main() -> None:
    """Make a store if none is given, measure, print."""
    parser = argparse.ArgumentParser(description="episodes re-scored a second on one core")
    parser.add_argument("--store", type=Path, help="a run, a store or a shard")
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path, default=next(Path("configs/starters").glob("*/tokenizer.json"), None))
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or Path(folder)
        if arguments.store is None:
            make_store(store, arguments.episodes, arguments.tokenizer)
        agents = turns = 0
        for outline in (outline for found in find_stores(store) for outline in found.outlines(texts=False)):
            agents += len(outline.episode.traces)
            turns += sum(trace.steps for trace in outline.episode.traces)
        count, seconds = measure(store, arguments.rounds)
        print(f"{count} episodes of {agents / count:.1f} agents and {turns / count:.1f} turns on average")
        print(f"{count / seconds:,.0f} episodes/s on one core, {1e6 * seconds / count:.0f} µs each")
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(measure, store, 1)
            pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
