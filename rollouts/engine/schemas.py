"""Schemas of inference servers' answers, validated before anything is used. No torch.

Types are strict: a number in quotes is not a number, true is not a token. Unread keys are allowed. What
depends on the request (number of tokens, stop tokens, the prompt) is checked by the caller.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict

from rollouts.engine.client import BadAnswer

_COUNT_MAX = 2**53  # what every JSON reader keeps exactly
_NAME = 512  # characters of an id or a name


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, le=_COUNT_MAX)]
Logprob = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=_NAME)]


class TokenUsage(_Part):
    """A server's reported usage; a part that it does not report is None."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class VllmToken(_Part):
    """One sampled token."""

    token_id: TokenId
    logprob: Logprob


class VllmTokens(_Part):
    """The sampled tokens."""

    content: list[VllmToken]


class VllmSpan(_Part):
    """Tokens ``start`` to ``end`` were sampled by weights ``version``."""

    version: Name
    start: Count | None = None
    end: Count | None = None


class VllmChoice(_Part):
    """One completion."""

    finish_reason: Name | None
    logprobs: VllmTokens | None = None
    token_ids: list[TokenId] | None = None
    weight_versions: list[VllmSpan] | None = None
    routed_experts: str | None = None


class VllmAnswer(_Part):
    """Answer of ``/inference/v1/generate``."""

    choices: Annotated[list[VllmChoice], Field(min_length=1, max_length=1)]
    model: Name | None = None
    usage: TokenUsage | None = None
    prompt_token_ids: list[TokenId] | None = None


class VllmLogprob(_Part):
    """The log-prob of one prompt token."""

    logprob: Logprob


class VllmScores(_Part):
    """The same endpoint with the prompt's log-probs: by position, then by token id."""

    prompt_logprobs: list[dict[str, VllmLogprob] | None] | None = None


class WorkerPulled(_Part):
    """How far a worker of vLLM is with fetching a version; see ``rollouts.engine.servers.puller.Pulled``."""

    version: int
    done: bool
    error: Annotated[str, Field(max_length=2**14)]
    fetched: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    deltas: Count
    wholes: Count


class VllmPulled(_Part):
    """Answer of our worker extension's ``parl_pulled``."""

    results: Annotated[list[WorkerPulled], Field(min_length=1, max_length=4096)]


# (log-prob, id, text); JSON has no tuples, so the outermost type is not strict
SglangToken = Annotated[tuple[Logprob | None, TokenId, Any], Strict(False)]


class SglangFinish(_Part):
    """Why it finished."""

    type: Name


class SglangMeta(_Part):
    """Everything except the text."""

    finish_reason: SglangFinish | Name | None = None
    output_token_logprobs: list[SglangToken] | None = None
    input_token_logprobs: list[SglangToken] | None = None
    weight_version: Name | int = ""
    routed_experts: str | None = None
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class SglangAnswer(_Part):
    """Answer of ``/generate``."""

    meta_info: SglangMeta
    output_ids: list[TokenId] | None = None


class ChatFunction(_Part):
    """The called function. Arguments that are not JSON are the model's mistake, and kept."""

    name: Name
    arguments: str | dict[str, Any] | list[Any] | int | float | bool | None = None


class ChatCall(_Part):
    """One call of a tool."""

    id: Name | None = None
    function: ChatFunction


class ChatText(_Part):
    """A part of a message's content; parts other than text are not read."""

    text: str | None = None


class ChatMessage(_Part):
    """The model's message."""

    content: str | list[ChatText] | None = None
    tool_calls: list[ChatCall] | None = None

    @property
    def text(self) -> str:
        """The text of the whole content."""
        parts = self.content if isinstance(self.content, list) else []
        return self.content if isinstance(self.content, str) else "".join(part.text or "" for part in parts)


class ChatChoice(_Part):
    """One answer."""

    message: ChatMessage
    finish_reason: Name | None = None


class ChatAnswer(_Part):
    """Answer of ``/chat/completions``; of several choices the first is read."""

    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: TokenUsage | None = None
    model: Name | None = None


class ChatModelName(_Part):
    """One model on the server."""

    id: Name


class ChatModels(_Part):
    """Answer of ``/models``."""

    data: list[ChatModelName] = []


def npy(text: str, most: int) -> np.ndarray:
    """The array in ``text``, numpy's file format in base64: at most ``most`` integers. Else BadAnswer.

    The header is checked first, so that no claimed size is allocated.
    """
    file = io.BytesIO(_base64(text))
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(file)
    except (ValueError, EOFError, OSError) as error:
        raise BadAnswer(f"routed_experts: no numpy array: {str(error)[:100]}") from None
    rest = file.read()
    size = 1
    for side in shape:
        size *= side
    if kind.kind not in "iu" or not 0 <= size <= most or len(rest) != size * kind.itemsize:
        raise BadAnswer(f"routed_experts: {str(shape)[:60]} of {kind} in {len(rest)} bytes, not whole numbers that fit")
    return np.frombuffer(rest, kind).reshape(shape, order="F" if by_columns else "C")


def int32s(text: str) -> np.ndarray:
    """The 32-bit numbers in ``text``, base64. BadAnswer for anything else."""
    data = _base64(text)
    if len(data) % 4:
        raise BadAnswer(f"routed_experts: {len(data)} bytes are no 32-bit numbers")
    return np.frombuffer(data, dtype="<i4")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadAnswer(f"routed_experts: not base64: {error}") from None
