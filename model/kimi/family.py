"""Kimi K2.5 as a family: DeepSeek-V3's architecture, K2.5's vision tower and chat format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.chat.base import ChatFormat, Vocabulary
from model.chat.kimi import KimiChat
from model.costs import Costs
from model.decoder import Decoder
from model.family import Family, PictureEncoder
from model.kimi.config import ModelConfig

if TYPE_CHECKING:
    from model.policy import Policy


class Kimi(Family):
    """See :class:`model.family.Family`."""

    Shape = ModelConfig
    reads = ("deepseek_v3", "kimi_k2", "kimi_k25")

    def chat(self, shape: ModelConfig, tokenizer: Vocabulary | None = None, *, thinking: bool = False) -> ChatFormat:
        """K2.5's format, for any shape."""
        return KimiChat(tokenizer, thinking=thinking)

    def policy(self, shape: ModelConfig) -> Policy:
        """A :class:`model.kimi.transformer.Transformer`."""
        from model.kimi.transformer import Transformer

        return Transformer(shape)

    def blank(self, shape: ModelConfig) -> Policy:
        """Without what matches embedding, attention and head to one another, which would compute with anything."""
        policy = super().blank(shape.model_copy(update={"look_back": False}))
        policy.config = shape
        return policy

    def decoder(self, shape: ModelConfig, pages: int) -> Decoder:
        """The native decoder if it can be built, else the reference one."""
        from model.kimi.decoder import make_decoder

        return make_decoder(shape, pages)

    def costs(self, shape: ModelConfig) -> Costs:
        """Costs of the language model."""
        from model.kimi.costs import costs

        return costs(shape)

    def picture_encoder(self, shape: ModelConfig) -> PictureEncoder:
        """MoonViT and projector, without the language model."""
        from model.kimi.vision.picture_encoder import PictureEncoder

        if shape.vision is None:
            raise ValueError("this shape has no vision section")
        return PictureEncoder(shape.vision)

    def read_shape(self, folder: Path) -> ModelConfig:
        """The shape of a run's policy, or of a ``deepseek_v3``, ``kimi_k2`` or ``kimi_k25`` checkpoint."""
        from model.kimi.files.hf_config import read_shape

        return read_shape(folder)

    def load(self, folder: Path) -> Policy:
        """A policy from the same folders."""
        from model.kimi.files.checkpoint import load

        return load(folder)

    def load_parts(self, folder: Path, shape: Any) -> Policy:
        """Without tower and projector where ``shape`` has none."""
        from model.kimi.files.checkpoint import load

        return load(folder, vision=shape.vision is not None)

    def export(self, policy: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
        """See :func:`model.kimi.files.export.write_folder`."""
        from model.kimi.files.export import write_folder

        write_folder(policy, tokenizer, folder, **options)
