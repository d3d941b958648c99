"""What is imitated, as rows: a teacher's demonstrations, or conversations that somebody recorded.

Both are made in an actor beside the learner, a chunk at a time, and a chunk is a function of its numbers alone.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from model.tokenizer.tokenizer import load_tokenizer
from parl.cold_start.conversations import Conversation, conversation_row, read_conversations
from parl.cold_start.demos import Demonstrator
from parl.cold_start.shipped import Recipe
from parl.config.family import chat_format
from parl.config.schema import TEACHER
from parl.learn.batch import TextRow
from rollouts.beat import AsyncBeating
from rollouts.episode import EpisodeStatus, Trace

CHUNK = 48  # demonstrations that one call makes
_SUBAGENTS = 2  # sub-agent traces kept of one demonstration: they are all alike
_TAUGHT = 1  # the same over given weights: what takes the tokens there is when to go on and when to answer


class DemoWorker(AsyncBeating):
    """Ray actor: an environment's demonstrations as rows."""

    def __init__(self, recipe: Recipe, tokenizer: str) -> None:
        """``tokenizer``: its file or folder."""
        self._recipe = recipe
        self._demos = Demonstrator(recipe, load_tokenizer(tokenizer))

    async def rows(self, start: int, count: int = CHUNK) -> list[TextRow]:
        """Rows of ``count`` demonstrations from ``start`` on: a function of its arguments alone."""
        return (await self.chunk(start, count))[0]

    async def chunk(self, start: int, count: int = CHUNK) -> tuple[list[TextRow], list[int]]:
        """The same, and the lengths of the orchestrators' traces, those that do not fit among them."""
        rng = Random(f"rows:{self._recipe.sft.seed}:{start}")
        rows: list[TextRow] = []
        lengths = []
        for index in range(start, start + count):
            episode = await self._demos.episode(index)
            if episode.status is not EpisodeStatus.ANSWERED:
                raise RuntimeError(f"demonstration {index} ended {episode.status}: {episode.error or episode.limit}")
            limit = self._recipe.model.max_position_embeddings
            most = _SUBAGENTS if self._recipe.model.init is None else _TAUGHT
            fitting = text_rows(episode, self._recipe.sft.observation_weight, rng, most)
            rows += [row for row in fitting if len(row.tokens) <= limit]
            lengths.append(len(episode.orchestrator.tokens))
        return rows, lengths


class RecordedWorker(AsyncBeating):
    """Ray actor: conversations of ``sft.data`` as rows, each time through in another order."""

    def __init__(self, recipe: Recipe, tokenizer: str) -> None:
        """``tokenizer``: its file or folder. UserError where the data cannot be used."""
        assert recipe.sft.data is not None
        self._recipe = recipe
        self._chat = chat_format(recipe.model, recipe.rollouts, load_tokenizer(tokenizer))
        own = recipe.envs.build().tools()
        spawning = recipe.rollouts.prompts.spawning if recipe.rollouts.swarm else ()
        self._tools = [[tool.to_openai() for tool in tools] for tools in ((*own, *spawning), own)]
        self._recorded = read_conversations(Path(recipe.sft.data), recipe.sft.best)
        self._orders: dict[int, list[int]] = {}  # by lap

    async def rows(self, start: int, count: int = CHUNK) -> list[TextRow]:
        """As those of :class:`DemoWorker`."""
        return (await self.chunk(start, count))[0]

    async def chunk(self, start: int, count: int = CHUNK) -> tuple[list[TextRow], list[int]]:
        """The same, and the lengths of the orchestrators' conversations, those that do not fit among them."""
        rng = Random(f"rows:{self._recipe.sft.seed}:{start}")
        rows: list[TextRow] = []
        lengths = []
        for index in range(start, start + count):
            orchestrator, *subagents = self._recorded[self._place(index)]
            own = self._row(orchestrator, 0)
            lengths.append(len(own.tokens))
            rows += [own, *(self._row(told, 1) for told in rng.sample(subagents, min(_SUBAGENTS, len(subagents))))]
        limit = self._recipe.model.max_position_embeddings
        return [row for row in rows if len(row.tokens) <= limit], lengths

    def _place(self, index: int) -> int:
        """Which conversation is the ``index``-th: every time through, all of them once."""
        lap, place = divmod(index, len(self._recorded))
        if lap not in self._orders:
            everyone = range(len(self._recorded))
            self._orders[lap] = Random(f"order:{self._recipe.sft.seed}:{lap}").sample(everyone, len(everyone))
        return self._orders[lap][place]

    def _row(self, told: Conversation, role: int) -> TextRow:
        tools = self._tools[role] if told.tools is None else told.tools
        return conversation_row(self._chat, told, tools, self._recipe.sft.observation_weight)


def row_maker(recipe: Recipe, tokenizer: Path) -> tuple[Any, ...]:
    """The actor's class, and what it is made with."""
    made = DemoWorker if recipe.sft.data in (None, TEACHER) else RecordedWorker
    return made, recipe, str(tokenizer.resolve())


def text_rows(demonstration, observation_weight: float, rng: Random, most: int = _SUBAGENTS) -> list[TextRow]:
    """The traces of a demonstration as rows; of its sub-agents ``most`` at random."""
    subagents = demonstration.subagents
    chosen = rng.sample(subagents, min(most, len(subagents)))
    return [_row(trace, observation_weight) for trace in (demonstration.orchestrator, *chosen)]


def _row(trace: Trace, observation_weight: float) -> TextRow:
    weights = np.where(np.array(trace.mask), np.float32(1), np.float32(observation_weight))
    if trace.media:  # that a placeholder follows the last one teaches nothing
        weights[np.array(trace.tokens) == trace.tokens[trace.media_at[0]]] = 0
    return TextRow(tokens=np.array(trace.tokens, np.int32), weights=weights, media=tuple(trace.media))
