"""The script engine for a policy that sees: its log-probs are those with the pictures."""

from __future__ import annotations

from forced import Forced


class Seeing(Forced):
    """One replica, in its own actor."""

    pictures = True

    async def update(self, update):
        await super().update(update)
        policy = self.policy
        self.policy = lambda tokens, mask: policy(tokens, mask, media=self.media)

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()):
        rules = self.place.model.pictures
        self.media = rules.batch([png for _, png in media], None) if media else None
        return await super().generate(prompt, sampling, session=session, deadline_s=deadline_s)
