"""Record a black-box harness as episodes: conversations become traces, token by token as sampled.

A request whose messages begin with those of an earlier exchange, answer included, continues its trace:
sampled tokens stay as they are and only what is new is rendered, so nothing is tokenised twice. A request
that branches off a trace becomes a new trace, whose common prefix is context and is not trained again. Any
other request starts a new trace.

An episode is everything with one name (``openai_format.read_request``); without one each conversation is its
own. Its reward comes at the end, from the caller.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.base import Gold, Role, Task, ToolCall, ToolResult, task_key
from model.chat.base import ChatFormat, ParsedTurn, Piece
from rollouts.engine.base import Completion
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.gateway.openai_errors import Refused
from rollouts.gateway.openai_format import ChatRequest, Message
from rollouts.gateway.request_json import BadRequest, below, short
from rollouts.swarm.transcript import Transcript

MAX_REWARD = 1e9  # either way: keeps sums and squares of a group's rewards finite in float32
_MAX_PARTS, _PART_NAME = 64, 128  # of a reward, and the length of a part's name
_TASKS = 100_000  # whose attempts are counted


@dataclass(slots=True)
class Conversation:
    """A growing trace. ``history``: its messages in normal form; ``ends``: counts after each exchange."""

    transcript: Transcript
    session: str
    tools: str
    history: list[Message] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)  # messages, tokens
    busy: bool = False
    asked_s: float = 0.0  # of the episode, when the answer under way was asked for
    broken: bool = False  # an answer failed, and its prompt is in the trace

    def ends_at(self, messages: int) -> bool:
        """Whether a request with the first ``messages`` messages may continue here."""
        return not self.busy and not self.broken and self.ends[-1][0] == messages

    def tokens_after(self, messages: int) -> int:
        """Tokens of the first ``messages`` messages, after which an exchange must have ended."""
        return next(tokens for count, tokens in self.ends if count == messages)

    @property
    def trace(self) -> Trace:
        """The trace so far."""
        return self.transcript.trace


@dataclass(slots=True)
class Recording:
    """A running episode. ``temperatures``: those of its tokens."""

    name: str
    task: str
    began: float = field(default_factory=time.monotonic)
    touched: float = field(default_factory=time.monotonic)
    conversations: list[Conversation] = field(default_factory=list)
    temperatures: set[float] = field(default_factory=set)
    closing: bool = False  # it is being stored
    index: int | None = None  # number of the attempt at its task, once it ends
    named: bool = True  # by its caller
    use: str = ""  # unique per use of the name: keys its noise

    @property
    def busy(self) -> bool:
        """Whether it is being stored, or waits for an answer."""
        return self.closing or any(conversation.busy for conversation in self.conversations)


class Recorder:
    """The running episodes. ``recorded``: episodes stored before, to keep names and noise distinct."""

    def __init__(self, chat: ChatFormat, *, longest: int, recorded: int = 0) -> None:
        self._chat, self._longest = chat, longest
        tokenizer = chat.tokenizer
        self._token_bytes = max(len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab_size))
        self._anonymous = self._recorded = recorded
        self._uses: Counter[str] = Counter()  # of each name
        self._attempts: Counter[str] = Counter()  # finished episodes of each task
        self.open: dict[str, Recording] = {}

    def begin(self, request: ChatRequest) -> tuple[Recording, Conversation]:
        """The conversation that ``request`` continues or starts, with the prompt in its trace.

        Then call :meth:`answered` or :meth:`failed`. Raises BadRequest (too long) or Refused, without
        changes.
        """
        if request.episode in self.open and self.open[request.episode].closing:
            raise Refused(409, None, f"episode {short(request.episode)} is being stored")
        tools = hashlib.sha256(json.dumps(request.tools, sort_keys=True).encode()).hexdigest()
        found, length = self._continued(request, tools)
        of = found[1] if found else None
        goes_on = of is not None and of.ends_at(length)
        known = [] if of is None else of.trace.tokens[: None if goes_on else of.tokens_after(length)]
        rest = list(request.messages[length:])
        ids = self._prompt(known, rest, request.tools)
        recording = found[0] if found else self._recording(request)
        recording.touched = time.monotonic()
        recording.temperatures.add(request.temperature)
        conversation = of if of is not None and goes_on else self._branch(recording, of, length, tools)
        if not conversation.trace.tokens:
            conversation.trace.prompt = next((m["content"] for m in rest if m["role"] == "user"), "")
        conversation.transcript.observe((), after=ids)
        self._results(conversation, rest)
        conversation.history += rest
        conversation.busy = True
        conversation.asked_s = time.monotonic() - recording.began
        return recording, conversation

    def _prompt(self, known: list[int], rest: list[Message], tools: Sequence[Any]) -> list[int]:
        """Ids of what is new after ``known``; BadRequest if the whole exceeds the context, or if the chat format
        refuses the messages (a model's own template may want roles to alternate)."""
        try:
            pieces = self._more(rest, known[-1]) if known else self._chat.conversation(rest, tools)
        except ValueError as error:
            raise BadRequest("messages", str(error)) from error
        characters = sum(len(text) for text, _ in pieces)
        if characters > self._longest * self._token_bytes:  # certainly too long
            count = f"more than {characters // self._token_bytes}"
        elif len(known) + len(ids := self._chat.encode(pieces)) >= self._longest:
            count = f"{len(known) + len(ids)}"
        else:
            return ids
        text = f"context_length_exceeded: {count} tokens, the model's context has {self._longest}"
        raise BadRequest("messages", text)

    def answered(
        self, recording: Recording, conversation: Conversation, completion: Completion, turn: ParsedTurn, reply: Message
    ) -> None:
        """Record the policy's answer. ``reply``: the caller's answer in normal form."""
        start, end = conversation.transcript.sampled(completion)
        calls = [ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in turn.tool_calls]
        trace, now = conversation.trace, time.monotonic() - recording.began
        step = Turn(start=start, end=end, content=turn.content, calls=calls, malformed=turn.malformed)
        step.t_start, step.t_model, step.t_end = conversation.asked_s, now, now
        trace.turns.append(step)
        trace.message = turn.content
        trace.status = TraceStatus.MALFORMED if turn.malformed else TraceStatus.FINISHED
        conversation.history.append(reply)
        conversation.ends.append((len(conversation.history), end))
        conversation.busy = False

    def failed(self, recording: Recording, conversation: Conversation) -> None:
        """The policy gave no answer: the trace ends, and a retry starts a new one.

        A trace without sampled tokens is dropped if it is the last.
        """
        conversation.trace.status = TraceStatus.FAILED
        conversation.busy, conversation.broken = False, True
        if not conversation.trace.turns and recording.conversations[-1] is conversation:
            recording.conversations.pop()
            if not recording.conversations:
                self.open.pop(recording.name, None)

    def episode(self, name: str, reward: float | None, parts: dict[str, float], *, why: str = "") -> Episode:
        """The episode ``name`` with its reward; FAILED, with ``why``, without one. KeyError if it is unknown.

        It stays under way until :meth:`forget`.
        """
        recording = self.open[name]
        if recording.index is None:
            recording.index = self._recorded + self._attempts[recording.task]
            self._attempts[recording.task] += 1
            if len(self._attempts) > _TASKS:
                del self._attempts[next(iter(self._attempts))]
        for conversation in recording.conversations:
            conversation.transcript.close()
        task = Task(
            key=recording.task,
            family="gateway",
            split="train",
            prompt=recording.conversations[0].trace.prompt,
            gold=Gold(kind="none"),
        )
        episode = Episode(
            task=task,
            index=recording.index,
            seed=0,
            traces=[conversation.trace for conversation in recording.conversations],
            status=EpisodeStatus.FAILED if reward is None else EpisodeStatus.ANSWERED,
            answer=recording.conversations[0].trace.message,
            error=why,
            wall_s=time.monotonic() - recording.began,
            metrics={"gateway/episode": name, "gateway/temperatures": sorted(recording.temperatures)},
        )
        if reward is not None:
            episode.rewards = {**parts, "total": reward}
        return episode

    def forget(self, name: str, *, counted: bool = True) -> None:
        """Drop the episode ``name``; not ``counted``, its next use has the same noise."""
        if self.open.pop(name).named and counted:
            self._uses[name] += 1
            if len(self._uses) > _TASKS:
                del self._uses[next(iter(self._uses))]

    def held(self) -> tuple[int, int]:
        """Number of conversations under way, and of their tokens."""
        all_of = [conversation for recording in self.open.values() for conversation in recording.conversations]
        return len(all_of), sum(len(conversation.trace.tokens) for conversation in all_of)

    def oldest(self, but: str | None) -> str | None:
        """The longest idle episode; ``but`` only if there is no other."""
        free = [recording for recording in self.open.values() if not recording.busy]
        found = min(free, key=lambda recording: (recording.name == but, recording.touched), default=None)
        return found and found.name

    def idle(self, seconds: float) -> list[str]:
        """Episodes idle for ``seconds``."""
        now = time.monotonic()
        idle = [recording for recording in self.open.values() if now - recording.touched > seconds]
        return [recording.name for recording in idle if not recording.busy]

    def _recording(self, request: ChatRequest) -> Recording:
        name = request.episode
        if name is None:
            while name is None or name in self.open:
                self._anonymous += 1
                name = f"conversation-{self._anonymous}"
        if name not in self.open:
            asked = next((m["content"] for m in request.messages if m["role"] == "user"), "")
            use = f"{self._recorded}.{self._uses[name]}"
            named = request.episode is not None
            self.open[name] = Recording(name=name, task=request.task or task_key(asked, {}), named=named, use=use)
        return self.open[name]

    def _continued(self, request: ChatRequest, tools: str) -> tuple[tuple[Recording, Conversation] | None, int]:
        """The longest exchange that ``request`` begins with, preferring one that can be continued."""
        best: tuple[tuple[int, bool], Recording, Conversation] | None = None
        for recording in self.open.values():
            other = recording.named if request.episode is None else recording.name != request.episode
            if recording.closing or other:
                continue
            for conversation in recording.conversations:
                if conversation.tools != tools:
                    continue
                for count, _ in reversed(conversation.ends):
                    if (
                        count <= len(request.messages)
                        and list(request.messages[:count]) == conversation.history[:count]
                    ):
                        rank = (count, conversation.ends_at(count))
                        if best is None or rank > best[0]:
                            best = (rank, recording, conversation)
                        break
        return (None, 0) if best is None else ((best[1], best[2]), best[0][0])

    def _branch(self, recording: Recording, of: Conversation | None, length: int, tools: str) -> Conversation:
        """A new trace, starting with the first ``length`` messages of another one as context."""
        number = len(recording.conversations)
        trace = Trace(
            agent_id="0" if number == 0 else f"0/{number - 1}",
            role=Role.ORCHESTRATOR if number == 0 else Role.SUBAGENT,
            name="gateway",
            parent=None if number == 0 else "0",
            trainable=True,
        )
        session = f"{id(self):x}/{recording.name}/{number}/{time.monotonic_ns():x}"
        conversation = Conversation(Transcript(trace, self._chat), session, tools)
        recording.conversations.append(conversation)
        if of is not None:
            conversation.transcript.copied(of.trace.tokens[: of.tokens_after(length)])
            conversation.history = of.history[:length]
            trace.prompt = of.trace.prompt
        return conversation

    def _more(self, messages: Sequence[Message], after: int) -> list[Piece]:
        """The rendering after a turn that ended in ``after``. Results get tools' names from the ids of calls."""
        named = [
            {**m, "name": self._chat.tool_name(m["tool_call_id"]) or "tool"}
            if m["role"] == "tool" and "name" not in m
            else m
            for m in messages
        ]
        return self._chat.more(named, after)

    def _results(self, conversation: Conversation, messages: Sequence[Message]) -> None:
        """Store tool messages with the calls that they answer, for display."""
        if conversation.trace.turns:
            answers = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
            turn = conversation.trace.turns[-1]
            turn.results = [ToolResult(text=answers.get(call.id, "")) for call in turn.calls]


def read_reward(tree: Any) -> tuple[float, dict[str, float]]:
    """The reward and its parts in ``{"reward": NUMBER, "parts": {NAME: NUMBER}}``; BadRequest otherwise."""
    if not isinstance(tree, dict):
        raise BadRequest(
            "reward", 'the body must be {"reward": NUMBER, "parts": {NAME: NUMBER}}; parts may be left out'
        )
    if other := [name for name in tree if name not in ("reward", "parts")]:
        path = below("", other[0])
        raise BadRequest(f"body{path}" if path.startswith("[") else path, "is not known, only reward and parts are")
    parts = tree.get("parts")
    if parts is not None and not isinstance(parts, dict):
        raise BadRequest("parts", f"{short(parts)} must be an object of numbers")
    if len(parts or {}) > _MAX_PARTS:
        raise BadRequest("parts", f"are {len(parts or {})}, {_MAX_PARTS} are possible")
    numbers: dict[str, float] = {}
    for part, value in (parts or {}).items():
        if not part.isprintable() or len(part) > _PART_NAME or part in ("", "total"):
            raise BadRequest(below("parts", part), f"a part's name is printable, up to {_PART_NAME} long, not total")
        numbers[part] = _reward(value, below("parts", part))
    return _reward(tree.get("reward"), "reward"), numbers


def is_reward(value: Any) -> bool:
    """Whether ``value`` is a number from which advantages can be computed."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return good and math.isfinite(value) and abs(value) <= MAX_REWARD


def _reward(value: Any, path: str) -> float:
    if not is_reward(value):
        raise BadRequest(path, f"{short(value)} must be a finite number, at most {MAX_REWARD:g} either way")
    return float(value)
