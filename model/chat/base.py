"""The contract of a chat format: how a conversation is written as tokens, and how a sampled turn is read.

Everything is rendered as *pieces*, ``(text, is_control)``. Only a piece that the format itself writes is a control
token; prompts, tool results and arguments are plain text whatever they contain.

A trace only ever grows: its opening, then after each sampled turn what answers it. So each method below renders one
segment, which is appended to what stands there; sampled tokens are never rendered again.

    opening + question → turn → results → turn → ... , each but the turns ending in the prompt of the next turn

Messages and tools are dictionaries as OpenAI's API has them. No torch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator

Piece = tuple[str, bool]  # text, and whether the format wrote it as one control token
Message = Mapping[str, Any]
Tool = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call. ``id`` is what its format makes of name and index (:meth:`ChatFormat.call_id`)."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTurn:
    """One assistant turn. ``malformed`` is empty, or says what broke the format; then there are no calls."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[Call, ...] = ()
    malformed: str = ""


FORMATS = ("auto", "kimi", "hermes", "hermes-short", "template")  # see model.chat.choose
LIBRARY = "renderers:"  # what stands before the name of one of that package's renderers


def known_format(name: str) -> str:
    """``name``; ValueError where there is no format of that name."""
    if name not in FORMATS and not (name.startswith(LIBRARY) and name != LIBRARY):
        raise ValueError(f"{name!r} is unknown: it must be one of {', '.join(FORMATS)}, or {LIBRARY}NAME")
    return name


FormatName = Annotated[str, AfterValidator(known_format)]


class Vocabulary(Protocol):
    """What a format needs of a tokenizer (:class:`model.tokenizer.tokenizer.Tokenizer` has more)."""

    vocab_size: int
    special: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text."""
        ...

    def encode_segments(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of pieces: control pieces become control ids, all other text is plain."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids."""
        ...

    def pieces(self, ids: Iterable[int]) -> list[Piece]:
        """Ids as pieces, control tokens known by id."""
        ...


class ChatFormat(ABC):
    """A chat format over one tokenizer. ``thinking``: whether the model reasons before it answers.

    Without a tokenizer a format renders pieces, which is enough to describe what agents are shown; whatever needs ids
    raises ValueError.
    """

    picture: str | None = None  # the control token that stands for one row of a picture; None: it shows none
    control: tuple[str, ...] = ()  # control tokens that the tokenizer must have

    def __init__(self, tokenizer: Vocabulary | None = None, *, thinking: bool = False) -> None:
        """ValueError where ``tokenizer`` lacks a control token of the format."""
        missing = [name for name in self.control if tokenizer is not None and name not in tokenizer.special]
        if missing:
            kind = type(self).__name__
            named = ", ".join(missing[:3]) + f" and {len(missing) - 3} more" * (len(missing) > 3)
            raise ValueError(f"the tokenizer lacks control tokens that {kind} writes: {named}")
        self._tokenizer = tokenizer
        self.thinking = thinking

    @property
    def tokenizer(self) -> Any:
        """The tokenizer. ValueError where the format was made without."""
        if self._tokenizer is None:
            raise ValueError(f"{type(self).__name__} was made without a tokenizer: it renders pieces, and no ids")
        return self._tokenizer

    # ---------------------------------------------------------------- rendering

    @abstractmethod
    def conversation(
        self, messages: Sequence[Message], tools: Iterable[Tool] = (), *, prompt: bool = True
    ) -> list[Piece]:
        """Declaration of ``tools``, then ``messages`` with their reasoning kept; ``prompt``: then that of a turn."""

    def opening(self, messages: Sequence[Message], tools: Iterable[Tool] = ()) -> list[Piece]:
        """How a trace begins: tools and system prompt. Ends in a control token, so that anything may follow."""
        return self.conversation(messages, tools, prompt=False)

    def question(self, content: str, messages: Sequence[Message], tools: Iterable[Tool] = ()) -> list[Piece]:
        """The first user's message after :meth:`opening` (``messages``, ``tools``), and the prompt of a turn."""
        return self.user(content)

    def user(self, content: str) -> list[Piece]:
        """A user's message (or the harness's in the user's place), and the prompt of the next turn."""
        return self.conversation([{"role": "user", "content": content}])

    def more(self, messages: Sequence[Message], after: int) -> list[Piece]:
        """``messages`` after a turn whose last token is ``after``, and the prompt of the next one.

        It begins with what the turn lacks where it was cut short.
        """
        return [*self.closing(after), *self.conversation(messages)]

    @abstractmethod
    def results(self, results: Iterable[tuple[str, str, Any]]) -> list[Piece]:
        """What answers a turn with calls: ``(call id, tool's name, content)`` each, and the prompt of the next turn.

        A content is text, or a list of parts of type ``text`` and ``image``. Results of one turn come together.
        """

    @abstractmethod
    def assistant(self, content: str, calls: Iterable[Call] = (), *, reasoning: str = "") -> list[Piece]:
        """Exactly what the model has to generate after the prompt of a turn, to the control token that ends it.

        ValueError for reasoning with thinking off.
        """

    @abstractmethod
    def closing(self, token: int) -> list[Piece]:
        """What a turn lacks that was cut short after ``token``; nothing where ``token`` ends a turn."""

    @abstractmethod
    def call_id(self, name: str, index: int) -> str:
        """The id of the ``index``-th call of a trace (a running counter from 0)."""

    @abstractmethod
    def tool_name(self, call_id: str) -> str | None:
        """The tool's name in an id that :meth:`call_id` made; None where it holds none."""

    def arguments(self, arguments: Mapping[str, Any]) -> str:
        """Arguments in the one spelling that demonstrations have: compact JSON, characters as they are."""
        return dump_arguments(arguments)

    # ---------------------------------------------------------------- reading

    @abstractmethod
    def parse(self, ids: Sequence[int], *, tools: Collection[str] | None = None, first: int = 0) -> ParsedTurn:
        """Read a sampled turn; what broke the format is said in ``malformed``, nothing raises and nothing is guessed.

        ``tools``: names on offer, any other is malformed; None: any is taken. ``first``: calls of the trace before this
        turn, from where a format that writes no ids counts them.
        """

    @abstractmethod
    def messages(self, ids: Iterable[int], call_ids: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The conversation that the tokens of a trace hold, without the declaration of tools.

        ``call_ids`` gives calls other ids: those by which a server knows them.
        """

    # ---------------------------------------------------------------- ids

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn."""

    @property
    def picture_id(self) -> int:
        """Id of :attr:`picture`. ValueError where the format shows none."""
        if self.picture is None:
            raise ValueError(f"{type(self).__name__} shows no pictures")
        return self.tokenizer.special[self.picture]

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of ``pieces``."""
        return self.tokenizer.encode_segments(pieces)


def dump_arguments(arguments: Mapping[str, Any]) -> str:
    """Arguments as compact JSON, characters as they are."""
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
