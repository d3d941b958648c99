"""Typed access to a request's fields; :class:`BadRequest` names the path, the value and the expected type.

null counts as left out, as in OpenAI's API.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rollouts.gateway.request_json import BadRequest, below, short

NAME_LENGTH = 512  # characters of an episode's or a task's name, as of OpenAI's metadata values
_WHOLE_64 = 2**63
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # categories: control characters, surrogates, line and paragraph separators
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# field -> values without effect; others would change the meaning of an answer
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([], ""),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "audio": (),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "web_search_options": (),
    # fields of vLLM and SGLang that would change sampling or rendering
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "stop_regex": ([], ""),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "use_beam_search": (False,),
    "best_of": (1,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "truncate_prompt_tokens": (),
    "chat_template": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
}
# field -> types of ignored fields, which describe the caller or OpenAI's service
_PASSED_OVER: dict[str, tuple[type, ...]] = {
    "store": (bool,),
    "service_tier": (str,),
    "reasoning_effort": (str,),
    "verbosity": (str,),
    "prompt_cache_key": (str,),
    "prompt_cache_retention": (str,),
    "safety_identifier": (str,),
    "prediction": (dict,),
}
_WORDS = {str: "text", bool: "true or false", dict: "an object", list: "a list", int: "a whole number"}


def check_unused(tree: Mapping[str, Any]) -> None:
    """BadRequest for an unsupported field, or an ignored one of a wrong type."""
    for field, neutral in _NEUTRAL.items():
        value = tree.get(field)
        if value is not None and not any(_same(value, good) for good in neutral):
            raise BadRequest(field, f"{short(value)} is not supported; leave it out")
    for field, kinds in _PASSED_OVER.items():
        value = tree.get(field)
        if value is not None and not isinstance(value, kinds):
            raise wrong_type(field, value, kinds[0])


def wrong_type(path: str, value: Any, wanted: type) -> BadRequest:
    """The error for a ``value`` of another type than ``wanted``."""
    return BadRequest(path, f"{short(value)} must be {_WORDS[wanted]}")


def text(tree: Mapping[str, Any], field: str, path: str = "") -> str | None:
    """A text; None if left out."""
    return _of_type(tree, field, path, str)


def flag(tree: Mapping[str, Any], field: str, path: str = "") -> bool:
    """True or false; false if left out."""
    return bool(_of_type(tree, field, path, bool))


def mapping(tree: Mapping[str, Any], field: str, path: str = "") -> dict[str, Any]:
    """An object; an empty one if left out."""
    return _of_type(tree, field, path, dict) or {}


def sequence(tree: Mapping[str, Any], field: str, path: str = "") -> Sequence[Any]:
    """A list; an empty one if left out."""
    return _of_type(tree, field, path, list) or []


def number(tree: Mapping[str, Any], field: str, default: float, low: float, high: float) -> float:
    """A number from ``low`` to ``high``."""
    value = tree.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(field, f"{short(value)} must be a number from {low:g} to {high:g}")
    return float(value)


def count(tree: Mapping[str, Any], field: str) -> int | None:
    """An integer above 0; None if left out."""
    value = tree.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(field, f"{short(value)} must be a whole number above 0")
    return value


def seed(tree: Mapping[str, Any], field: str = "seed") -> int | None:
    """A 64-bit integer; None if left out."""
    value = tree.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -_WHOLE_64 <= value < _WHOLE_64:
        raise BadRequest(field, f"{short(value)} must be a whole number of 64 bits")
    return value


def name(value: str | None, path: str) -> str | None:
    """An episode's or task's name, valid in a URL, a header and a terminal; None if empty."""
    if not value:
        return None
    if len(value) > NAME_LENGTH:
        raise BadRequest(path, f"has {len(value)} characters, a name has at most {NAME_LENGTH}")
    if value != value.strip():
        raise BadRequest(path, f"{short(value)} begins or ends with white space")
    if any(unicodedata.category(one) in _UNSEEN or one in _BIDI for one in value):
        raise BadRequest(path, f"{short(value)} holds control characters")
    if any(part in (".", "..") for part in value.replace("\\", "/").split("/")):
        raise BadRequest(path, f"{short(value)} has a part . or .., which URLs resolve: its reward could not be given")
    return value


def _of_type(tree: Mapping[str, Any], field: str, path: str, wanted: type) -> Any:
    value = tree.get(field)
    if value is not None and not isinstance(value, wanted):
        raise wrong_type(below(path, field), value, wanted)
    return value


def _same(value: Any, good: Any) -> bool:
    return value == good and isinstance(value, bool) == isinstance(good, bool)
