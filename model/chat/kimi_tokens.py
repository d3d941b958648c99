"""The control tokens of K2.5's chat format."""

from __future__ import annotations

BOS, EOS, EOT, UNK, PAD = "[BOS]", "[EOS]", "[EOT]", "[UNK]", "[PAD]"
IM_END, IM_MIDDLE = "<|im_end|>", "<|im_middle|>"
IM_USER, IM_ASSISTANT, IM_SYSTEM = "<|im_user|>", "<|im_assistant|>", "<|im_system|>"
SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_ARGUMENT, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
MEDIA_BEGIN, MEDIA_CONTENT = "<|media_begin|>", "<|media_content|>"
MEDIA_END, MEDIA_PAD = "<|media_end|>", "<|media_pad|>"
THINK, END_THINK = "<think>", "</think>"
RETURN_OF = "## Return of "  # how the text of a tool's result begins

# In the order of Kimi's own ids.
SPECIAL_TOKENS: tuple[str, ...] = (
    *(BOS, EOS, IM_END, IM_USER, IM_ASSISTANT, "<|start_header_id|>", "<|end_header_id|>", EOT, IM_SYSTEM),
    *(SECTION_BEGIN, SECTION_END, CALL_BEGIN, CALL_ARGUMENT, CALL_END, IM_MIDDLE),
    *(MEDIA_BEGIN, MEDIA_CONTENT, MEDIA_END, MEDIA_PAD, THINK, END_THINK, UNK, PAD),
)


def call_id(name: str, index: int) -> str:
    """The id of the ``index``-th call of a trace (a running counter from 0)."""
    return f"functions.{name}:{index}"
