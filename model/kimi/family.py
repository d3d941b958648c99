"""Kimi K2.5 as a family: DeepSeek-V3's architecture, K2.5's vision side and its chat format."""

from __future__ import annotations

from model.chat.base import ChatFormat, Vocabulary
from model.chat.kimi import KimiChat
from model.family import Family
from model.kimi.config import ModelConfig


class Kimi(Family):
    """See :class:`model.family.Family`."""

    Shape = ModelConfig

    def chat(self, tokenizer: Vocabulary | None = None, *, thinking: bool = False) -> ChatFormat:
        """K2.5's."""
        return KimiChat(tokenizer, thinking=thinking)
