"""transformers' decoders as a family: Llama, Qwen, GLM, Mixtral, DeepSeek, gpt-oss, Gemma and what else it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.chat.base import ChatFormat, Vocabulary
from model.chat.choose import chat_format
from model.costs import Costs
from model.decoder import Decoder
from model.family import Family, either_chat
from model.hf.shape import HfShape, read_shape

if TYPE_CHECKING:
    from model.policy import Policy


class Hf(Family):
    """See :class:`model.family.Family`."""

    Shape = HfShape

    def chat(self, shape: HfShape, tokenizer: Vocabulary | None = None, *, thinking: bool = False) -> ChatFormat:
        """``shape.chat``; see :mod:`model.chat.choose`."""
        return chat_format(shape.chat, tokenizer, thinking=thinking)

    def policy(self, shape: HfShape) -> Policy:
        """A :class:`model.hf.policy.HfPolicy`; ValueError with the reason where the model cannot be one."""
        from model.hf.build import check_numbers, new_model
        from model.hf.policy import HfPolicy

        policy = HfPolicy(shape, new_model(shape))
        if not policy.lm_head.weight.is_meta:
            check_numbers(policy.causal, policy.hidden)
        return policy

    def blank(self, shape: HfShape) -> Policy:
        """The same without drawing weights, and without comparing it with transformers."""
        from model.hf.policy import HfPolicy

        return HfPolicy(shape)

    def decoder(self, shape: HfShape, pages: int) -> Decoder:
        """See :func:`model.hf.decode.choose.make_decoder`."""
        from model.hf.decode.choose import make_decoder

        return make_decoder(shape, pages)

    def check_int8(self, shape: HfShape) -> None:
        """Only the native decoder has int8 weights, and for policies in bfloat16."""
        from model.hf.decode.plan import FAMILIES

        if shape.dtype != "bfloat16":
            raise ValueError(f"int8 weights are for model.dtype=bfloat16, not {shape.dtype}")
        if (kind := shape.transformers["model_type"]) not in FAMILIES:
            raise ValueError(f"the decoder of model_type={kind!r} has no int8 weights; that of {FAMILIES} has")

    def int8_decoder(self, shape: HfShape, pages: int) -> Decoder:
        """See :class:`model.hf.decode.native.GqaDecoder`; RuntimeError where the native kernels cannot be built."""
        from model.hf.decode.native import GqaDecoder

        self.check_int8(shape)
        return GqaDecoder(shape, pages, int8=True)

    def costs(self, shape: HfShape) -> Costs:
        """Counted in the model."""
        from model.hf.costs import costs

        return costs(shape)

    def read_shape(self, folder: Path) -> HfShape:
        """A Hugging Face folder, or a run's policy."""
        return read_shape(folder)

    def load(self, folder: Path) -> Policy:
        """The same."""
        from model.hf.files import load

        return load(folder)

    def export(self, policy: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
        """See :func:`model.hf.files.write_folder`."""
        from model.hf.files import write_folder

        stops = either_chat(policy.config, tokenizer).stop_ids
        write_folder(policy, tokenizer, folder, stops, **options)
