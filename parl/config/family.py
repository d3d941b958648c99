"""What follows from a run's model family for those who make its episodes. No torch."""

from __future__ import annotations

from model.chat.base import ChatFormat, Vocabulary
from model.family import family_of
from parl.config.schema import Config


def chat_format(config: Config, tokenizer: Vocabulary | None = None) -> ChatFormat:
    """How conversations of the policies of ``config`` are written; without a tokenizer, to render text only."""
    return family_of(config.model).chat(tokenizer, thinking=config.rollouts.thinking)
