"""Demonstrations: scripted policies solving tasks of the embedded world through the same swarm code as any rollout.

Each demonstration is an episode, so its tokens are exactly those that a rollout would have; its sub-agents' traces
teach the sub-agents' part. Most demonstrations are serial, some spawn where it pays, some spawn where it does not:
the cold start must leave the choice open, or reinforcement learning would have nothing to show.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Literal

from envs.base import Role, Task
from envs.world.config import PICTURE
from envs.world.corpus import corpus_texts
from envs.world.environment import WorldEnvironment, world_tools
from envs.world.knowledge import ATTRIBUTES, CATEGORIES, GROUP_SIZES, RELATIONS
from envs.world.lexicon import FIRSTS, SECONDS
from envs.world.pictures import picture_act, picture_texts
from envs.world.reference import CREATE, WORKER, ReferencePolicy, subagent_act
from model.tokenizer.bpe import plain_texts, train_tokenizer
from model.tokenizer.tokenizer import Tokenizer
from parl.config.family import chat_format
from parl.config.schema import Config
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

Style = Literal["serial", "parallel", "partial", "wrong"]
_ROOMY = BudgetConfig(orchestrator_steps=200, subagents=64, total_tokens=10**9, turn_tokens=10**6)


_CALLS = (  # the recurring scaffolding of a call should cost a token or two
    {"query": ""},
    {"url": ""},
    {"url": "", "pattern": ""},
    {"agent": WORKER, "prompt": ""},
    CREATE[1],
)


def build_tokenizer(config: Config) -> Tokenizer:
    """BPE over the world's text and the chat scaffolding; names are split in their syllables.

    Values, labels and the numbers of lists are one token each: what is asked, what a page says and what a table's head
    says must be the same token, or a small policy has to learn a dictionary before it can look anything up.
    """
    values = [value for values in CATEGORIES.values() for value in values]
    values += [*ATTRIBUTES, *RELATIONS, "next", "first", "members", "none"]
    items = min(max(config.envs.world.widths[1], GROUP_SIZES[1]), 40)
    texts, atoms = _texts(config), [*FIRSTS, *SECONDS]
    return train_tokenizer(texts, config.tokenizer.vocab_size, atoms=atoms, words=values, items=items)


def _texts(config: Config) -> Iterable[str]:
    """World text, and conversations' plain runs with their scaffolding as often as rollouts show it."""
    rng = Random(config.sft.seed)
    chat, prompts, own = chat_format(config), config.rollouts.prompts, world_tools(config.envs.world)
    names = [tool.name for tool in (*own, *prompts.spawning)]
    if config.envs.world.pictures:
        yield from picture_texts(Random(config.sft.seed), 1000)
    for text in corpus_texts(config.sft.seed, 8000):
        yield text
        name = rng.choice(names)
        yield chat.arguments(rng.choice(_CALLS))
        yield chat.call_id(name, rng.randrange(40))
        yield from plain_texts(chat.results([(chat.call_id(name, rng.randrange(40)), name, text)]))
    for tools in (own, (*own, *prompts.spawning)):
        declared = [tool.to_openai() for tool in tools]
        messages = [{"role": "system", "content": prompts.orchestrator}, {"role": "user", "content": ""}]
        for _ in range(150):
            yield from plain_texts(chat.conversation(messages, declared))


def draw_style(task: Task, config: Config, rng: Random) -> Style:
    """How the demonstration of ``task`` goes."""
    useful = task.oracle is not None and task.oracle.width > 0
    roll = rng.random()
    if useful:
        spawning = "parallel" if roll < config.sft.parallel else "partial"
        return spawning if roll < config.sft.parallel + 0.05 else "serial"
    return "wrong" if roll < config.sft.wrong else "serial"


class Demonstrator:
    """Makes demonstration ``i`` of a run: a pure function of (config, i)."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config, self.chat = config, chat_format(config, tokenizer)
        self.environment = WorldEnvironment(config.envs.world)
        self._stream = self.environment.task_stream("train", config.sft.seed + 10_000)

    async def episode(self, index: int) -> Episode:
        """The ``index``-th demonstration."""
        task = self._stream[index]
        rng = Random(f"{self.config.sft.seed}:{index}")
        style = draw_style(task, self.config, rng)
        policy = ReferencePolicy(style=style, seed=rng.randrange(2**31))

        def pool(trace: Trace) -> ScriptedEngine:
            if trace.role is Role.ORCHESTRATOR:
                if task.family == PICTURE:  # what it sees is in no history of texts
                    return ScriptedEngine(trace, self.chat, lambda _: picture_act(task, trace.media))
                return ScriptedEngine(trace, self.chat, lambda history: policy.act(task, history))
            return ScriptedEngine(trace, self.chat, lambda history: subagent_act(trace.prompt, history))

        # a demonstration without any spawning also teaches the single agent's tool list
        spawning = style != "serial" or rng.random() < 0.6
        vision = self.config.model.vision
        media = vision.limits if vision else None
        settings = SwarmSettings(
            chat=self.chat,
            pool=pool,
            budget=_ROOMY,
            prompts=self.config.rollouts.prompts,
            spawning=spawning,
            media=media,
        )
        return await run_episode(task, self.environment, settings, index=0, seed=0, critical_budget=0)
