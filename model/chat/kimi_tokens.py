"""The control tokens of K2.5's chat format, and a tool call as the model writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BOS, EOS, EOT, UNK, PAD = "[BOS]", "[EOS]", "[EOT]", "[UNK]", "[PAD]"
IM_END, IM_MIDDLE = "<|im_end|>", "<|im_middle|>"
IM_USER, IM_ASSISTANT, IM_SYSTEM = "<|im_user|>", "<|im_assistant|>", "<|im_system|>"
SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_ARGUMENT, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
MEDIA_BEGIN, MEDIA_CONTENT = "<|media_begin|>", "<|media_content|>"
MEDIA_END, MEDIA_PAD = "<|media_end|>", "<|media_pad|>"
THINK, END_THINK = "<think>", "</think>"

# In the order of Kimi's own ids.
SPECIAL_TOKENS: tuple[str, ...] = (
    *(BOS, EOS, IM_END, IM_USER, IM_ASSISTANT, "<|start_header_id|>", "<|end_header_id|>", EOT, IM_SYSTEM),
    *(SECTION_BEGIN, SECTION_END, CALL_BEGIN, CALL_ARGUMENT, CALL_END, IM_MIDDLE),
    *(MEDIA_BEGIN, MEDIA_CONTENT, MEDIA_END, MEDIA_PAD, THINK, END_THINK, UNK, PAD),
)

Piece = tuple[str, bool]  # text, and whether the template wrote it as one control token


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call as the model writes it: ``id`` is ``functions.NAME:INDEX``."""

    id: str
    name: str
    arguments: dict[str, Any]


def call_id(name: str, index: int) -> str:
    """The id of the ``index``-th call of a trace (a running counter from 0)."""
    return f"functions.{name}:{index}"


def dump_arguments(arguments: Mapping[str, Any]) -> str:
    """Arguments in the one spelling used for demonstrations: compact JSON, characters as they are."""
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
