"""Which prompts, pages and demonstrations fit the policy's context. No torch.

An agent reads its tools, its system prompt and the question. These and room to answer have to fit
``model.max_position_embeddings`` (or ``rollouts.context.orchestrator_tokens``, if less). The room is the
tokens of the gold answer, at least an eighth of the context.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from envs.base import Gold, Task, ToolSpec
from model.chat.base import Piece
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer
from parl.cold_start.shipped import Recipe, cold_start_folder, shipped
from parl.config.family import chat_format
from parl.config.schema import PolicyFields
from parl.errors import UserError
from rewards.outcome.reach import ideal_answer
from rollouts.config import RolloutsConfig

if TYPE_CHECKING:
    from parl.cold_start.demos import Demonstrator

_LONGEST_TOKEN = 32  # characters: a text longer than this many times the limit need not be read whole
_FRAME = 32  # minimum tokens that the template puts around a question
_SHARE = 8  # at least 1/8 of the context is left for the answer
_SAMPLED = 24  # demonstrations checked beforehand
_ENOUGH, _PATIENCE_S = 8, 3.0  # as many if all of them fit, or if they take long


class Context:
    """The orchestrator's context and the tokens of texts in it. ``tokenizer`` builds the policy's on demand."""

    def __init__(
        self,
        model: PolicyFields,
        rollouts: RolloutsConfig,
        tools: Sequence[ToolSpec],
        tokenizer: Callable[[], Tokenizer],
    ) -> None:
        own = rollouts.context.orchestrator_tokens
        self.limit = min(filter(None, (model.max_position_embeddings, own)))
        less = own is not None and own == self.limit
        self.name = "rollouts.context.orchestrator_tokens" if less else "model.max_position_embeddings"
        self._prompts, self._tokenizer = rollouts.prompts, tokenizer
        given = self.tokenizer if model.init is not None else None  # its template may determine how tools are declared
        self._chat = chat_format(model, rollouts, given)
        self._tools = (*tools, *(rollouts.prompts.spawning if rollouts.swarm else ()))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The policy's tokenizer."""
        return self._tokenizer()

    @cached_property
    def opening(self) -> int:
        """Tokens of tools and system prompt."""
        return len(self.tokenizer.encode_segments(self._pieces))

    @cached_property
    def _pieces(self) -> list[Piece]:
        declared = [tool.to_openai() for tool in self._tools]
        return self._chat.opening([{"role": "system", "content": self._prompts.orchestrator}], declared)

    @cached_property
    def _most(self) -> int:
        """Lower bound on the opening's tokens without a vocabulary: a token has at least one byte."""
        return sum(len(text.encode()) for text, _ in self._pieces)

    def prompt(self, text: str) -> int:
        """Tokens of an episode's opening with the question ``text``."""
        declared = [tool.to_openai() for tool in self._tools]
        system = [{"role": "system", "content": self._prompts.orchestrator}]
        return self.opening + len(self.tokenizer.encode_segments(self._chat.question(text, system, declared)))

    def room(self, gold: Gold) -> int:
        """Tokens reserved for the answer."""
        least = self.limit // _SHARE
        answer = ideal_answer(gold)
        return least if _bytes(answer) <= least else max(least, len(self.tokenizer.encode(answer)))

    def too_long(self, task: Task) -> int | None:
        """Tokens of the prompt of ``task`` if it does not fit, else None."""
        most = _bytes(task.prompt) + max(_bytes(ideal_answer(task.gold)), self.limit // _SHARE) + _FRAME
        if self._most + most <= self.limit or self.opening + most <= self.limit:
            return None
        tokens = self.prompt(task.prompt)
        return tokens if tokens + self.room(task.gold) > self.limit else None

    def page_too_long(self, text: str) -> bool:
        """Whether a page of ``text`` leaves an agent no room."""
        if self._most + _bytes(text) <= self.limit or self.opening + _bytes(text) <= self.limit:
            return False
        return self.opening + len(self.tokenizer.encode(text[: _LONGEST_TOKEN * self.limit])) > self.limit


def demonstrations_that_fit(demos: Demonstrator, limit: int) -> tuple[int, int, int]:
    """Of the first demonstrations: how many fit, how many were checked, tokens of the shortest."""
    began = time.monotonic()

    async def lengths() -> list[int]:
        found: list[int] = []
        try:
            while len(found) < _SAMPLED:
                found.append(len((await demos.episode(len(found))).orchestrator.tokens))
                sure = max(found) <= limit or time.monotonic() - began > _PATIENCE_S
                if sure and len(found) >= _ENOUGH:
                    break
            return found
        finally:
            await demos.environment.close()

    found = asyncio.run(lengths())
    return sum(length <= limit for length in found), len(found), min(found)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def policy_tokenizer(recipe: Recipe, *, estimate: bool = False) -> Tokenizer:
    """The tokenizer of a run's policies: of ``model.init`` or the cold start, or trained now.

    ``estimate``: any starter's if the run's own does not exist yet. UserError: ``model.init`` has none.
    """
    if recipe.model.init is not None:
        try:
            return load_tokenizer(recipe.model.init)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"model.init: {error}") from error
    exact = [cold_start_folder(recipe), shipped(recipe)]
    others = sorted(recipe.starter.glob("*/tokenizer.json")) if estimate and recipe.starter else []
    for folder in (*exact, *(file.parent for file in others)):
        if folder is not None and (folder / "tokenizer.json").is_file():
            return Tokenizer.load(folder)
    from parl.cold_start.vocabulary import build_tokenizer

    return build_tokenizer(recipe)
