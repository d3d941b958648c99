"""All readers, by name. Which one a model needs is found by trying: it must read back what its template writes."""

from __future__ import annotations

from model.chat.calls import json_calls, tagged_calls
from model.chat.calls.base import Reader
from model.chat.calls.harmony import harmony

READERS: dict[str, Reader] = {
    "hermes": json_calls.hermes,
    "coder": tagged_calls.coder,
    "glm": tagged_calls.glm,
    "llama": json_calls.llama,
    "mistral": json_calls.mistral,
    "mistral-named": json_calls.mistral_named,
    "deepseek": json_calls.deepseek,
    "harmony": harmony,
    "gemma": tagged_calls.gemma,
    "cohere": json_calls.cohere,
    "listed": json_calls.listed,
}
