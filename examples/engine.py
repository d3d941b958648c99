"""Your own inference engine. With this file's folder on PYTHONPATH:

rollouts: {engine: "engine:Plain", engine_config: {threads: 2}}

The policy itself without a cache: each token is computed from the whole context. It returns no routes, so the
learner chooses experts again for each token (the trait ``routes``).
"""

from __future__ import annotations

import asyncio
import time

from pydantic import Field

from rollouts.engine.base import Completion, EngineConfig, Finish, Place, PoolEngine, Sampling, Update
from rollouts.noise import noise_key


class PlainConfig(EngineConfig):
    """``rollouts.engine_config``."""

    threads: int = Field(default=1, gt=0, description="CPU threads of a replica")


class Plain(PoolEngine):
    """One replica, in its own actor."""

    Config = PlainConfig
    routes = False

    def __init__(self, place: Place) -> None:
        import torch  # here, so that a configuration is read without it

        super().__init__(place)
        settings = place.rollouts.engine_config
        assert isinstance(settings, PlainConfig)
        torch.set_num_threads(settings.threads)
        self.generated, self.busy_s = 0, 0.0

    async def update(self, update: Update) -> None:
        from model.policy_files import with_weights

        self.policy = with_weights(self.place.model, dict(update.weights or {}))
        self.policy_version = update.version

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()):
        tokens, logprobs, began = list(prompt), [], time.monotonic()
        room = min(sampling.max_new_tokens, self.place.model.max_position_embeddings - len(prompt))
        async with asyncio.timeout(deadline_s):
            while len(logprobs) < room and not (logprobs and tokens[-1] in sampling.stop):
                token, logprob = self._next(tokens, sampling)
                tokens.append(token)
                logprobs.append(logprob)
                await asyncio.sleep(0)  # other streams have their turn
        self.generated, self.busy_s = self.generated + len(logprobs), self.busy_s + time.monotonic() - began
        finish = Finish.STOP if logprobs and tokens[-1] in sampling.stop else Finish.LENGTH
        new = tokens[len(prompt) :]
        return Completion(tokens=new, logprobs=logprobs, finish=finish, policy_version=self.policy_version)

    def _next(self, tokens: list[int], sampling: Sampling) -> tuple[int, float]:
        """A token and its log-prob under the sampling temperature; noise is keyed by stream and position."""
        import torch

        with torch.inference_mode():
            last = self.policy.hidden(torch.tensor([tokens]))[0, -1]
            logprobs = torch.log_softmax(self.policy.lm_head(last).float() / (sampling.temperature or 1.0), -1)
        token = logprobs.argmax()
        if sampling.temperature > 0:
            likely, order = logprobs.exp().sort(descending=True)
            likely[likely.cumsum(0) - likely >= sampling.top_p] = 0
            key = torch.Generator().manual_seed(noise_key(sampling.seed, len(tokens)))
            token = order[torch.multinomial(likely, 1, generator=key)[0]]
        return int(token), float(logprobs[token])

    def statistics(self) -> dict[str, float]:
        return {"generated": self.generated, "busy_s": self.busy_s}
