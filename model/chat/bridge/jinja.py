"""Renders a model's Jinja chat template as transformers does: the same sandbox, filters and functions.

Templates are a stranger's code: they run in Jinja's immutable sandbox, on plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.chat.base import Message, Tool


class Generation(Extension):
    """``{% generation %}…{% endgeneration %}``, which marks what assistants wrote: the text itself."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Any) -> Any:
        """The statements inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def render(
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    prompt: bool = False,
    names: Mapping[str, str] | None = None,
    **options: Any,
) -> str:
    """The text of a conversation. ``names``: ``bos_token`` and its like; ``options``: what else the template reads.

    ValueError with what the template says where it refuses the conversation or is broken.
    """
    shown = [{key: value for key, value in message.items() if value is not None} for message in messages]
    shown = [{"thinking": one["reasoning_content"], **one} if "reasoning_content" in one else one for one in shown]
    given = {**(names or {}), **options, "messages": shown, "documents": None, "add_generation_prompt": prompt}
    try:
        return compiled(template).render(**given, tools=list(tools) if tools else None)
    except Exception as error:  # a stranger's code may raise anything
        raise ValueError(f"the chat template refuses a conversation: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """The template, ready to render. ValueError where it is no Jinja template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise ValueError(f"the chat template cannot be read: {error}") from error


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
