"""Formats of the package ``renderers`` (extra: ``renderers``): hand-written renderers of published models.

They render in a template's place (:mod:`model.chat.bridge.template`): outside texts go in as masks, so what the package
encodes as a control token is what it wrote itself, and calls are read by parl's readers, which are strict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.chat.base import Message, Tool
from model.chat.bridge.template import Renders, TemplateChat


def library_chat(name: str, tokenizer: Any, *, thinking: bool = False) -> TemplateChat:
    """The format of the renderer ``name``. ValueError where the package or the renderer is not there, or as
    :class:`TemplateChat`."""
    try:
        import renderers  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(f"renderers:{name} needs a package: pip install 'parl-swarm[renderers]' ({error})") from error
    try:
        config = renderers.config_from_name(name)
    except (KeyError, ValueError) as error:
        raise ValueError(f"renderers:{name}: {error}") from error
    if config is None:
        raise ValueError("renderers:auto goes by published names of models: name the renderer")
    if "enable_thinking" in type(config).model_fields:
        config = config.model_copy(update={"enable_thinking": thinking})
    try:
        renderer = renderers.create_renderer(_Adapter(tokenizer), config)
    except Exception as error:  # tokens that the vocabulary lacks, files that cannot be had
        raise ValueError(f"renderers:{name}: {error}") from error
    return TemplateChat(tokenizer, thinking=thinking, renders=_renders(renderer, tokenizer))


def _renders(renderer: Any, tokenizer: Any) -> Renders:
    def text(messages: Sequence[Message], tools: Sequence[Tool], prompt: bool) -> str:
        shown = [{"content": "", **message} for message in messages]
        try:
            ids = renderer.render_ids(shown, tools=list(tools) or None, add_generation_prompt=prompt)
        except Exception as error:  # a stranger's code may raise anything
            raise ValueError(f"the renderer refuses a conversation: {type(error).__name__}: {error}") from error
        return tokenizer.decode(ids)

    return text


class _Adapter:
    """What the package asks of a tokenizer. Its ``encode`` sees control tokens: it gets the renderer's own text."""

    name_or_path = ""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.unk_token_id = (self._id(tokenizer.named(role)) for role in ("eos_token", "unk_token"))

    def encode(self, text: str, *_: Any, **__: Any) -> list[int]:
        """Ids, spellings of control tokens among them."""
        return self._tokenizer.encode(text, allow_special=True)

    def decode(self, token_ids: Any, *_: Any, **__: Any) -> str:
        """The text of one id or several."""
        return self._tokenizer.decode([token_ids] if isinstance(token_ids, int) else token_ids)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a control token, or of several; None for others."""
        return self._id(tokens) if isinstance(tokens, str) else [self._id(one) for one in tokens]

    def _id(self, name: str | None) -> int | None:
        return self._tokenizer.special.get(name)
