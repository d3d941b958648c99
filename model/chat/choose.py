"""Which chat format a model speaks, by its tokenizer and its chat template.

=============== ================================================================================================
``auto``        the first of these that agrees with the tokenizer and the template; refused with the reasons else
``kimi``        Kimi K2.5's format
``hermes``      ChatML with ``<tool_call>`` JSON: Qwen2.5, Qwen3, SmolLM2; tools declared by their JSON schemas
``hermes-short`` the same with one line a tool, which a policy has to be taught
``template``    the model's own Jinja template, where turns can be appended and a reader knows its calls
``renderers:N`` the renderer N of the package ``renderers`` (an extra of that name)
=============== ================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.chat.base import LIBRARY, ChatFormat, known_format
from model.chat.bridge.jinja import render
from model.chat.bridge.library import library_chat
from model.chat.bridge.template import TemplateChat
from model.chat.hermes import HermesChat, Reasoning
from model.chat.hermes_parser import IM_END, IM_START
from model.chat.kimi import KimiChat, join

_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks it up.",
        "parameters": {"type": "object", "properties": {"it": {"type": "string"}}, "required": ["it"]},
    },
}
_CALLS = [{"type": "function", "function": {"name": "look", "arguments": {"it": "é", "n": [1, None, False]}}}] * 2
_CALLED = {"role": "assistant", "content": "", "tool_calls": _CALLS}
_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
    _CALLED,
    {"role": "tool", "content": "one"},
    {"role": "tool", "content": "two"},
    {"role": "assistant", "content": "It is one."},
    {"role": "user", "content": "Sure?"},
]


def chat_format(name: str, tokenizer: Any | None, *, thinking: bool = False) -> ChatFormat:
    """The format ``name`` over ``tokenizer`` (:class:`model.tokenizer.tokenizer.Tokenizer`).

    Without a tokenizer one that renders text only: ChatML for all that depend on the model's own template. ValueError
    says why a format does not go with the tokenizer, or names the formats there are.
    """
    known_format(name)
    if tokenizer is None:
        return KimiChat(thinking=thinking) if name == "kimi" else HermesChat(lines=name == "hermes-short")
    makers: dict[str, Callable[[], ChatFormat]] = {
        "kimi": lambda: KimiChat(tokenizer, thinking=thinking),
        "hermes": lambda: hermes(tokenizer, thinking=thinking),
        "hermes-short": lambda: hermes(tokenizer, thinking=thinking, lines=True),
        "template": lambda: TemplateChat(tokenizer, thinking=thinking),
    }
    if name.startswith(LIBRARY):
        return library_chat(name.removeprefix(LIBRARY), tokenizer, thinking=thinking)
    if name != "auto":
        return makers[name]()
    reasons = []
    for kind in ("kimi", "hermes", "template"):
        try:
            if kind == "hermes" and (fault := disagreement(tokenizer)):
                raise ValueError(fault)
            return makers[kind]()
        except ValueError as error:
            reasons.append(f"{kind}: {error}")
    cure = (
        "take a model that was taught to call tools, or put a chat template that writes tool calls beside"
        " tokenizer.json, as chat_template.jinja"
    )
    raise ValueError(f"no chat format goes with this tokenizer; {'; '.join(reasons)}: {cure}")


def hermes(tokenizer: Any, *, thinking: bool, lines: bool = False) -> HermesChat:
    """ChatML with what the model's template says about reasoning and the system message that it begins with."""
    reasoning, system = _habits(tokenizer)
    return HermesChat(tokenizer, thinking=thinking, lines=lines, system=system, reasoning=reasoning)


def disagreement(tokenizer: Any) -> str:
    """What the model's template writes otherwise than ChatML with ``<tool_call>``; empty where they agree.

    Also empty where there is no template, or one that writes no tools: tools are then shown as Qwen's templates do.
    """
    missing = [name for name in (IM_START, IM_END) if name not in tokenizer.special]
    if missing:
        return f"the tokenizer lacks {', '.join(missing)}"
    template = tokenizer.template
    if template is None:
        return ""
    reasoning, system = _habits(tokenizer)
    chat = HermesChat(thinking=reasoning == "always", system=system, reasoning=reasoning)
    tools = "tool" in template
    talks = [_TALK, _TALK[1:]] if tools else [[one for one in _TALK if one["role"] != "tool" and one is not _CALLED]]
    for talk in talks:
        ours = join(chat.conversation(talk, [_TOOL] if tools else ()))
        theirs = _rendered(tokenizer, talk, [_TOOL] if tools else None, enable_thinking=chat.thinking)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
            return f"the template writes {theirs[at : at + 40]!r} where ChatML has {ours[at : at + 40]!r}"
    return ""


def _habits(tokenizer: Any) -> tuple[Reasoning, str]:
    """Whether the template lets the model reason, and the system message that it adds."""
    if tokenizer.template is None:
        return "none", ""
    asked = [{"role": "user", "content": "?"}]
    off, on = (_rendered(tokenizer, asked, None, enable_thinking=flag) for flag in (False, True))
    before = off.partition(f"{IM_START}user\n")[0]
    system = before.removeprefix(f"{IM_START}system\n").removesuffix(f"{IM_END}\n")
    if off.endswith("<think>\n"):
        return "always", system
    return ("none" if off == on else "optional"), system


def _rendered(tokenizer: Any, messages: Any, tools: Any, **options: Any) -> str:
    names = {role: found for role in ("bos_token", "eos_token") if (found := tokenizer.named(role))}
    return render(tokenizer.template, messages, tools, prompt=True, names=names, **options)
