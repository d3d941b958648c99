"""Any model's Jinja chat template as a chat format: pieces are only appended, whatever the template does to a history.

Templates render whole conversations. Here a tiny conversation is rendered that ends in what is new, and what stands
after the turn in it is appended to the sampled tokens; the turn itself is never rendered again. That is checked when
the format is made: messages that are appended must leave what stands before as it is, turns must end in a control
token, and calls must be read back as they are written. A template that fails is refused with its fault.

Turns may end in several tokens. Where one also begins the next message (GLM), it is sampled and not written again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from model.chat.base import Call, ChatFormat, Message, ParsedTurn, Piece, Tool, Vocabulary
from model.chat.bridge.jinja import compiled, render
from model.chat.bridge.masks import Masks, Part, after
from model.chat.bridge.parts import (
    ASKED,
    CLOSED,
    END_THINK,
    THINK,
    behind,
    masked_content,
    parsed,
    same_start,
    thought_of,
    tools_named,
)
from model.chat.calls.base import Said, Turn, flat
from model.chat.calls.readers import READERS
from model.chat.reading import Malformed, known_name

_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
_SCHEMAS = 4096  # tools whose schemas are remembered
_PROBE = {"place": 'x "y"\n', "deep": {"all": [1, -2.5, None, True], "é": {}}, "flag": False, "many": 3}


Renders = Callable[[Sequence[Message], Sequence[Tool], bool], str]  # the text of a conversation, or with its prompt


class TemplateChat(ChatFormat):
    """The format of ``tokenizer.template``. ``parallel``: whether a turn may have several calls; ``reader``: the name
    of the reader of its calls (:mod:`model.chat.calls.readers`)."""

    def __init__(self, tokenizer: Vocabulary, *, thinking: bool = False, renders: Renders | None = None) -> None:
        """``renders``: what renders conversations in the template's place. ValueError names the fault of a template
        that cannot be appended to, or whose calls cannot be read."""
        super().__init__(tokenizer, thinking=thinking)
        self._renders = renders or self._jinja
        if renders is None:
            if self.tokenizer.template is None:
                raise ValueError("the tokenizer has no chat template")
            compiled(self.tokenizer.template)
        self._given = {role: name for role in _NAMES if (name := self.tokenizer.named(role)) is not None}
        self._schemas: dict[str, Any] = {}
        self._texts = False  # whether arguments are given as JSON text
        self.parallel = True
        self._opened = self._opens_reasoning()
        self._learn_ends()
        self._learn_calls()
        if thinking and self.reader != "harmony":
            self._check_reasoning()

    # ---------------------------------------------------------------- rendering

    def conversation(
        self, messages: Sequence[Message], tools: Iterable[Tool] = (), *, prompt: bool = True
    ) -> list[Piece]:
        """As the template renders it."""
        masks = Masks()
        return self._pieces(self._rendered(masks, self._masked(masks, messages), self._declared(tools), prompt))

    def opening(self, messages: Sequence[Message], tools: Iterable[Tool] = ()) -> list[Piece]:
        """What stands before the first user's message, to the last control token."""
        return self._begin("?", messages, tools)[0]

    def question(self, content: str, messages: Sequence[Message], tools: Iterable[Tool] = ()) -> list[Piece]:
        """The rest."""
        return self._begin(content, messages, tools)[1]

    def user(self, content: str) -> list[Piece]:
        """What follows an answer."""
        return self._next([{"role": "user", "content": content}])[1]

    def results(self, results: Iterable[tuple[str, str, Any]]) -> list[Piece]:
        """All in one rendering, after one turn with as many calls."""
        shown = [{"role": "tool", "tool_call_id": id_, "name": name, "content": text} for id_, name, text in results]
        return self._next(shown)[1]

    def more(self, messages: Sequence[Message], after: int) -> list[Piece]:
        """Closes the turn where it was cut short."""
        end, pieces = self._next(messages)
        if after == self.tokenizer.special[end[0]] or (after in self.stop_ids and not self._shared):
            return pieces
        return [end, *pieces]

    def assistant(self, content: str, calls: Iterable[Call] = (), *, reasoning: str = "") -> list[Piece]:
        """See :meth:`model.chat.base.ChatFormat.assistant`. ValueError for what the template cannot write."""
        if reasoning and not self.thinking:
            raise ValueError("reasoning cannot be written with thinking off: the prompt has already closed it")
        return self._pieces(self._turn(content, list(calls), reasoning))

    def closing(self, token: int) -> list[Piece]:
        """The end of an answer where ``token`` ends no turn."""
        return [] if token in self.stop_ids else [(self._end, True)]

    def call_id(self, name: str, index: int) -> str:
        """Nine digits, which every template takes (Mistral's takes no others)."""
        return f"{index:09d}"

    def tool_name(self, call_id: str) -> str | None:
        """None: ids hold no names."""
        return None

    # ---------------------------------------------------------------- reading

    def parse(self, ids: Sequence[int], *, tools: Collection[str] | None = None, first: int = 0) -> ParsedTurn:
        """By the reader that reads back what the template writes."""
        if max(ids, default=0) >= self.tokenizer.vocab_size:
            return ParsedTurn(malformed="a token of an unused embedding row")
        try:
            said = self._read(self.tokenizer.pieces(ids), self.reader)
            calls = tuple(
                Call(id=self.call_id("", first + i), name=known_name(name, tools), arguments=arguments)
                for i, (name, arguments) in enumerate(said.calls)
            )
        except Malformed as error:
            return ParsedTurn(malformed=str(error))
        if calls and not self.parallel and len(calls) > 1:
            return ParsedTurn(malformed="more than one call, which the chat template cannot write")
        return ParsedTurn(content=said.content, reasoning=said.reasoning, tool_calls=calls)

    def messages(self, ids: Iterable[int], call_ids: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """ValueError: a template renders, and nothing says how a conversation is read back."""
        raise ValueError("the model's own template cannot be read back as messages: set model.chat to hermes or kimi")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """All tokens in which answers and calls end, and the tokenizer's end of text."""
        names = dict.fromkeys((self._end, *self._ends, self._given.get("eos_token")))
        return tuple(self.tokenizer.special[name] for name in names if name in self.tokenizer.special)

    # ---------------------------------------------------------------- parts of renderings

    def _rendered(self, masks: Masks, messages: Sequence[Message], tools: Sequence[Tool], prompt: bool) -> list[Part]:
        return masks.parts(self._renders(messages, tools, prompt))

    def _jinja(self, messages: Sequence[Message], tools: Sequence[Tool], prompt: bool) -> str:
        options = {"enable_thinking": self.thinking, "thinking": self.thinking}
        return render(self.tokenizer.template, messages, tools, prompt=prompt, names=self._given, **options)

    def _masked(self, masks: Masks, messages: Iterable[Message]) -> list[dict[str, Any]]:
        return [self._message(masks, message) for message in messages]

    def _message(self, masks: Masks, message: Message) -> dict[str, Any]:
        out = {**message, "content": masked_content(masks, message.get("content"))}
        if "reasoning_content" in message:
            out["reasoning_content"] = masks.hide(message["reasoning_content"])
        for key in ("name", "tool_call_id"):
            if key in message:
                out[key] = masks.guard(message[key])
        if message.get("tool_calls"):
            out["tool_calls"] = [self._call(masks, call) for call in message["tool_calls"]]
        return out

    def _call(self, masks: Masks, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = parsed(arguments)
        if self._texts:
            arguments = masks.put(self.arguments(arguments) if isinstance(arguments, dict) else arguments)
        else:
            arguments = masks.hide(arguments)
        named = {"name": masks.guard(function["name"]), "arguments": arguments}
        return {"type": "function", "id": masks.guard(call.get("id") or "000000000"), "function": named}

    def _declared(self, tools: Iterable[Tool]) -> list[Tool]:
        """Tools as the template gets them; their schemas are remembered for reading."""
        tools = list(tools)
        for tool in tools:
            if len(self._schemas) < _SCHEMAS:
                self._schemas[tool["function"]["name"]] = tool["function"].get("parameters")
        return tools

    def _begin(
        self, content: str, messages: Sequence[Message], tools: Iterable[Tool]
    ) -> tuple[list[Piece], list[Piece]]:
        masks = Masks()
        before = self._masked(masks, messages)
        asked = {"role": "user", "content": masks.put(content)}
        own = masks.last
        declared = [masks.guard(tool) for tool in self._declared(tools)]
        parts = self._rendered(masks, [*before, asked], declared, True)
        rest = after(parts, own)
        place = len(parts) - len(rest) - 1
        lead = self._pieces(parts[:place])
        cut = 1 + max((i for i, (_, control) in enumerate(lead) if control), default=-1)
        return lead[:cut], [*lead[cut:], *self._pieces(parts[place:])]

    def _next(self, messages: Sequence[Message]) -> tuple[Piece, list[Piece]]:
        """The token that ends the turn before ``messages``, and what comes after it."""
        results = [one for one in messages if one["role"] == "tool"]
        masks = Masks()
        turn, names = self._stand_in(masks, results)
        own = masks.last
        alone = len(results) == len(messages)  # some templates move declarations to the last question
        tools = tools_named(names) if alone else []
        skipped = self._call_tail(masks, turn, tools) if results else self._answer_tail
        shown = self._masked(masks, messages)
        parts = self._rendered(masks, [ASKED, turn, *shown], tools, True)
        pieces = self._pieces(after(parts, own))
        if pieces[: len(skipped)] != skipped or len(pieces) == len(skipped) or not pieces[len(skipped)][1]:
            raise ValueError("the chat template writes an earlier turn otherwise once messages follow it")
        for number in range(own + 1, masks.last + 1):
            after(parts, number)  # nothing that an agent is told may be left out
        return pieces[len(skipped)], pieces[len(skipped) + 1 :]

    def _call_tail(self, masks: Masks, turn: dict[str, Any], tools: Sequence[Tool]) -> list[Piece]:
        """What stands between the last argument of a ``turn`` with calls and the token that ends it."""
        pieces = self._pieces(after(self._rendered(masks, [ASKED, turn], tools, False), masks.last))
        if self._shared:
            return pieces
        return pieces[: max((i for i, (_, control) in enumerate(pieces) if control), default=len(pieces))]

    def _stand_in(self, masks: Masks, results: Sequence[Message]) -> tuple[dict[str, Any], list[str]]:
        """A turn in place of the sampled one, whose last text is the last mask."""
        if not results:
            return {"role": "assistant", "content": masks.put("x")}, ["look"]
        calls = []
        for number, result in enumerate(results):
            function = {"name": result.get("name") or "tool", "arguments": {"x": "y"}}
            calls.append({"id": result.get("tool_call_id") or f"{number:09d}", "function": function})
        turn = {"role": "assistant", "content": "", "tool_calls": [self._call(masks, call) for call in calls]}
        return turn, [call["function"]["name"] for call in calls]

    def _turn(self, content: str, calls: Sequence[Call], reasoning: str = "") -> list[Part]:
        """What a turn generates, its end included."""
        entries = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in calls]
        message: dict[str, Any] = {"role": "assistant", "content": content}
        message |= {"tool_calls": entries} if entries else {}
        message |= {"reasoning_content": reasoning} if reasoning or self._opened else {}
        tools = tools_named([call.name for call in calls] or ["look"])
        prompt = self._rendered(Masks(), [ASKED], tools, True)
        masks = Masks()
        shown = self._message(masks, message)
        parts, closed = behind(prompt, self._rendered(masks, [ASKED, shown], tools, False))
        thought: list[Part] = []
        if self._opened and not closed:  # the template drops reasoning, and its prompt opens it
            thought = [Part(f"{reasoning}\n", masks.last + 1), Part(f"{END_THINK}\n\n")]
            parts = [Part(CLOSED.sub("", parts[0].text)), *parts[1:]]
        lost = set(range(masks.last + 1)) - {part.mask for part in parts}
        if lost and not (thought and reasoning and len(lost) == 1):
            raise ValueError(f"the chat template leaves out {len(lost)} texts of a turn")
        return [*thought, *self._ended(parts, bool(calls))]

    def _ended(self, parts: list[Part], called: bool) -> list[Part]:
        """``parts`` to the token that ends the turn, which is added where the template writes none."""
        if self._shared:
            return [*parts, Part(self._call_end if called else self._end)]
        text = parts[-1].text if parts and parts[-1].mask is None else ""
        ends = (self._call_end,) if called else (self._end,)
        at = max((text.rfind(end) + len(end) for end in ends if end in text), default=0)
        if not at:
            raise ValueError("the chat template ends a turn in no token of its own")
        return [*parts[:-1], Part(text[:at])]

    def _pieces(self, parts: Iterable[Part]) -> list[Piece]:
        pieces: list[Piece] = []
        for part in parts:
            pieces += [(part.text, False)] if part.mask is not None else self.tokenizer.trusted(part.text)
        return [piece for piece in pieces if piece[0]]

    # ---------------------------------------------------------------- what the template is like

    def _opens_reasoning(self) -> bool:
        """Whether the prompt opens the reasoning, which the turn has to close. ValueError where thinking is off."""
        text = "".join(part.text for part in self._rendered(Masks(), [ASKED], [], True)).rstrip()
        opened = text.endswith(THINK)
        if opened and not self.thinking:
            raise ValueError("the chat template always opens the reasoning: set rollouts.thinking to true")
        return opened

    def _learn_ends(self) -> None:
        """The tokens in which answers and calls end."""
        masks = Masks()
        answer = {"role": "assistant", "content": masks.put("x")}
        closed = self._pieces(after(self._rendered(masks, [ASKED, answer], [], False), 0))
        more = self._rendered(masks, [ASKED, answer, ASKED], [], True)
        extended = self._pieces(after(more, 0))
        if not same_start(self._rendered(Masks(), [ASKED], [], True), more):
            raise ValueError("the chat template writes earlier messages otherwise once others follow")
        found = next((i for i, (_, control) in enumerate(closed) if control), None)
        self._shared = found is None
        tail = extended if found is None else closed
        place = next((i for i, (_, control) in enumerate(tail) if control), None)
        if place is None:
            raise ValueError("the chat template ends a turn in no control token")
        self._end, self._answer_tail = tail[place][0], tail[:place]
        self._ends = {piece[0] for piece in (tail[place], extended[min(place, len(extended) - 1)]) if piece[1]}
        self._call_end, self._lead = self._end, ""

    def _learn_calls(self) -> None:
        """How calls are written and by which reader they are read. ValueError where nothing reads them."""
        faults: list[str] = []
        for texts, count in ((False, 2), (True, 2), (False, 1), (True, 1)):
            self._texts, self.parallel = texts, count > 1
            calls = [Call(id=f"{i:09d}", name="look", arguments=_PROBE) for i in range(count)]
            try:
                if self._renders == self._jinja and "tool" not in self.tokenizer.template:
                    raise ValueError("the chat template writes no tool calls")
                self._learn_call_end(count)
                thought = "x" if self._opened else ""
                pieces = self._pieces(self._turn("", calls, thought))
                answer = self._turn("So be it.", [], thought)
                said = self._pieces(answer)
            except ValueError as error:
                faults.append(str(error))
                continue
            for name in READERS:
                if self._reads(name, pieces, [("look", _PROBE)] * count) and self._reads(name, said, [], "So be it."):
                    self.reader = name
                    self._lead = answer[0].text if answer[0].mask is None and answer[0].text.isspace() else ""
                    return
            faults.append(f"no reader knows the calls that it writes: {''.join(text for text, _ in pieces)[:160]!r}")
        raise ValueError(faults[-1] if len(set(faults)) == 1 else "; ".join(dict.fromkeys(faults)))

    def _learn_call_end(self, count: int) -> None:
        masks = Masks()
        shown = [{"tool_call_id": f"{i:09d}", "name": "look"} for i in range(count)]
        turn, names = self._stand_in(masks, shown)
        own, tools = masks.last, tools_named(names)
        tail = self._call_tail(masks, turn, tools)
        results = [{"role": "tool", **one, "content": masks.put("z")} for one in shown]
        more = self._rendered(masks, [ASKED, turn, *results], tools, True)
        if not same_start(self._rendered(Masks(), [ASKED], tools, True), more):
            raise ValueError("the chat template writes earlier messages otherwise once results follow")
        for number in range(own + 1, masks.last + 1):
            after(more, number)
        extended = self._pieces(after(more, own))
        if extended[: len(tail)] != tail or len(extended) == len(tail) or not extended[len(tail)][1]:
            raise ValueError("the chat template ends a turn with calls in no token that stays once results follow")
        self._call_end = extended[len(tail)][0]
        self._ends = {*self._ends, self._call_end}

    def _check_reasoning(self) -> None:
        try:
            said = self._read(self._pieces(self._turn("x", [], "because")), self.reader)
        except (Malformed, ValueError):
            said = Said()
        if said.reasoning.strip() != "because":
            raise ValueError("the chat template writes no reasoning that can be read: set rollouts.thinking to false")

    def _reads(self, name: str, pieces: list[Piece], calls: list[Any], content: str = "") -> bool:
        try:
            said = self._read(pieces, name)
        except Malformed:
            return False
        return list(said.calls) == calls and said.content.strip() == content

    def _read(self, pieces: Sequence[Piece], reader: str) -> Said:
        ends = {*self._ends, self._end}
        if not pieces or not pieces[-1][1] or pieces[-1][0] not in ends:
            shown = f"ended in {pieces[-1][0]!r}" if pieces and pieces[-1][1] else "is cut off"
            raise Malformed(f"the turn {shown}: no {' or '.join(sorted(ends))}")
        turn = Turn(text=flat(pieces[:-1]), special=self.tokenizer.special, schemas=self._schemas)
        reasoning = ""
        if reader != "harmony" and self.thinking:
            reasoning, rest = thought_of(turn, self._opened)
            turn = Turn(text=rest, special=turn.special, schemas=turn.schemas)
        elif self._lead:
            turn = Turn(text=turn.text.removeprefix(self._lead), special=turn.special, schemas=turn.schemas)
        said = READERS[reader](turn)
        if said.calls and pieces[-1][0] != self._call_end and self._shared:
            raise Malformed(f"a turn with calls ended in {pieces[-1][0]}, expected {self._call_end}")
        return Said(content=said.content, calls=said.calls, reasoning=reasoning or said.reasoning)
