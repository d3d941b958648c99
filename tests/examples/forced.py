"""An engine that writes a script, with the policy's own log-probs of it: real calls from a policy that knows none."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from model.family import family_of
from model.tokenizer.tokenizer import load_tokenizer
from rollouts.engine.base import Completion, EngineConfig, Finish, Place, PoolEngine, Update
from rollouts.engine.scripted import render_action

Turn = str | list[tuple[str, dict[str, Any]]]


class ForcedConfig(EngineConfig):
    """``rollouts.engine_config``: turns of the orchestrator (``policy``) and of sub-agents (``frozen``).

    A turn is an answer or calls; ``other`` replaces the last one in half of the episodes.
    """

    policy: list[Turn]
    frozen: list[Turn] = Field(default_factory=list)
    other: Turn = ""


class Forced(PoolEngine):
    """One replica, in its own actor."""

    Config = ForcedConfig
    routes = False

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.chat = family_of(place.model).chat(place.model, load_tokenizer(place.tokenizer))
        self.turns: dict[str, tuple[int, int]] = {}  # of a session: turns and calls written so far

    async def update(self, update: Update) -> None:
        from model.policy_files import with_weights

        self.policy = with_weights(self.place.model, dict(update.weights or {}))
        self.policy_version = update.version

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()):
        import torch

        settings: Any = self.place.rollouts.engine_config
        script = list(getattr(settings, self.place.pool))
        if settings.other and self.place.pool == "policy" and (sampling.seed >> 32) % 2:
            script[-1] = settings.other
        turn, calls = self.turns.get(session, (0, 0))
        action = script[min(turn, len(script) - 1)]
        self.turns[session] = turn + 1, calls + (0 if isinstance(action, str) else len(action))
        new = render_action(self.chat, action, calls)
        tokens = torch.tensor([[*prompt, *new]])
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[0, len(prompt) :] = True
        with torch.inference_mode():
            logprobs, _ = self.policy(tokens, mask)
        return Completion(
            tokens=new, logprobs=logprobs.tolist(), finish=Finish.STOP, policy_version=self.policy_version
        )

    async def release(self, session: str) -> None:
        self.turns.pop(session, None)
