"""What a black-box harness asked and got, as episodes: conversations become traces, token by token as sampled.

A request whose messages begin with those of an earlier exchange, answer included, continues its trace: the sampled
tokens stay as they are and only what is new is rendered. So nothing is tokenised twice. A request that begins like a
trace which has gone on since becomes a trace of its own, whose common beginning is context and is not trained again.
Any other request begins a new trace.

An episode is what shares a name (``rollouts.openai_format.read_request``); without one each conversation is its own.
Its reward comes at the end, from the caller.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from envs.base import Gold, Role, Task, ToolCall, ToolResult, task_key
from model.chat import IM_END, chat_pieces, prompt_pieces
from model.chat_parser import ParsedTurn
from model.tokenizer import Tokenizer
from rollouts.engine.base import Completion
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.openai_format import ChatRequest, Message
from rollouts.transcript import Transcript


@dataclass(slots=True)
class Conversation:
    """One trace as it grows. ``history``: its messages in normal form; ``ends``: their numbers after each exchange."""

    transcript: Transcript
    session: str
    tools: str
    history: list[Message] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)  # messages, tokens
    busy: bool = False
    broken: bool = False  # an answer never came, and its prompt stands in the trace

    def ends_at(self, messages: int) -> bool:
        """Whether a request that begins with the first ``messages`` messages may go on here."""
        return not self.busy and not self.broken and self.ends[-1][0] == messages

    @property
    def trace(self) -> Trace:
        """The trace so far."""
        return self.transcript.trace


@dataclass(slots=True)
class Recording:
    """One episode under way. ``temperatures``: those that its tokens were sampled at."""

    name: str
    task: str
    began: float = field(default_factory=time.monotonic)
    touched: float = field(default_factory=time.monotonic)
    conversations: list[Conversation] = field(default_factory=list)
    temperatures: set[float] = field(default_factory=set)


class Recorder:
    """The episodes under way. ``thinking``: whether the policy thinks before it answers."""

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool) -> None:
        self._tokenizer, self._thinking = tokenizer, thinking
        self._anonymous = 0
        self._attempts: Counter[str] = Counter()  # finished episodes of each task
        self.open: dict[str, Recording] = {}

    def begin(self, request: ChatRequest) -> tuple[Recording, Conversation]:
        """The conversation that ``request`` continues or begins, with the prompt in its trace; mark it done with
        :meth:`answered` or :meth:`failed`."""
        tools = json.dumps(request.tools, sort_keys=True)
        found, length = self._continued(request, tools)
        recording = found[0] if found else self._recording(request)
        recording.touched = time.monotonic()
        recording.temperatures.add(request.temperature)
        conversation = found[1] if found else None
        rest = list(request.messages[length:])
        if conversation is None or not conversation.ends_at(length):
            conversation = self._branch(recording, conversation, length, tools)
        if conversation.trace.tokens:
            conversation.transcript.observe([*self._closing(conversation), *self._more(rest)])
        else:
            pieces = prompt_pieces(rest, request.tools, thinking=self._thinking)
            conversation.trace.prompt = next((m["content"] for m in rest if m["role"] == "user"), "")
            conversation.transcript.observe(pieces)
        self._results(conversation, rest)
        conversation.history += rest
        conversation.busy = True
        return recording, conversation

    def answered(
        self, recording: Recording, conversation: Conversation, completion: Completion, turn: ParsedTurn, reply: Message
    ) -> None:
        """Take in what the policy wrote. ``reply``: what the caller got, in normal form."""
        start, end = conversation.transcript.sampled(completion)
        calls = [ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in turn.tool_calls]
        trace, now = conversation.trace, time.monotonic() - recording.began
        step = Turn(start=start, end=end, content=turn.content, calls=calls, malformed=turn.malformed)
        step.t_start = step.t_model = step.t_end = now
        trace.turns.append(step)
        trace.message = turn.content
        trace.status = TraceStatus.MALFORMED if turn.malformed else TraceStatus.FINISHED
        conversation.history.append(reply)
        conversation.ends.append((len(conversation.history), end))
        conversation.busy = False

    def failed(self, conversation: Conversation) -> None:
        """The policy gave no answer: the trace goes no further; asked again, the caller gets a trace of its own."""
        conversation.trace.status = TraceStatus.FAILED
        conversation.busy, conversation.broken = False, True

    def finish(self, name: str, reward: float | None, parts: dict[str, float], *, why: str = "") -> Episode:
        """The episode ``name`` with its reward; FAILED, with ``why``, without one. KeyError if it is not under way."""
        recording = self.open.pop(name)
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
            index=self._attempts[recording.task],
            seed=0,
            traces=[conversation.trace for conversation in recording.conversations],
            status=EpisodeStatus.FAILED if reward is None else EpisodeStatus.ANSWERED,
            answer=recording.conversations[0].trace.message,
            error=why,
            wall_s=time.monotonic() - recording.began,
            metrics={"gateway/episode": name, "gateway/temperatures": sorted(recording.temperatures)},
        )
        self._attempts[recording.task] += 1
        if reward is not None:
            episode.rewards = {**parts, "total": reward}
        return episode

    def idle(self, seconds: float) -> list[str]:
        """Episodes that nothing was heard of for ``seconds``."""
        now = time.monotonic()
        return [name for name, recording in self.open.items() if now - recording.touched > seconds]

    def _recording(self, request: ChatRequest) -> Recording:
        name = request.episode
        if name is None:
            self._anonymous += 1
            name = f"conversation-{self._anonymous}"
        if name not in self.open:
            asked = next((m["content"] for m in request.messages if m["role"] == "user"), "")
            self.open[name] = Recording(name=name, task=request.task or task_key(asked, {}))
        return self.open[name]

    def _continued(self, request: ChatRequest, tools: str) -> tuple[tuple[Recording, Conversation] | None, int]:
        """The exchange with the most messages that ``request`` begins with, one that can be continued before others."""
        best: tuple[tuple[int, bool], Recording, Conversation] | None = None
        for recording in self.open.values():
            if request.episode is not None and recording.name != request.episode:
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
        """A trace of its own; from the first ``length`` messages of another one, whose tokens are context here."""
        number = len(recording.conversations)
        trace = Trace(
            agent_id="0" if number == 0 else f"0/{number - 1}",
            role=Role.ORCHESTRATOR if number == 0 else Role.SUBAGENT,
            name="gateway",
            parent=None if number == 0 else "0",
            trainable=True,
        )
        session = f"{id(self):x}/{recording.name}/{number}/{time.monotonic_ns():x}"
        conversation = Conversation(Transcript(trace, self._tokenizer), session, tools)
        recording.conversations.append(conversation)
        if of is not None:
            end = next(tokens for count, tokens in of.ends if count == length)
            conversation.transcript.copied(of.trace.tokens[:end])
            conversation.history = of.history[:length]
            trace.prompt = of.trace.prompt
        return conversation

    def _closing(self, conversation: Conversation) -> list[tuple[str, bool]]:
        """What a turn that was cut off lacks."""
        return [] if conversation.trace.tokens[-1] == self._tokenizer.im_end_id else [(IM_END, True)]

    def _more(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        named = [{**m, "name": _tool_of(m)} if m["role"] == "tool" and "name" not in m else m for m in messages]
        return chat_pieces(named, thinking=self._thinking, preserve_thinking=True)

    def _results(self, conversation: Conversation, messages: Sequence[Message]) -> None:
        """Put tool messages beside the calls that they answer, for whoever looks at the episode."""
        if conversation.trace.turns:
            answers = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
            turn = conversation.trace.turns[-1]
            turn.results = [ToolResult(text=answers.get(call.id, "")) for call in turn.calls]


def _tool_of(message: Message) -> str:
    """The tool's name from an id as the policy writes it, functions.NAME:INDEX; else what Kimi writes."""
    identifier = message["tool_call_id"]
    if identifier.startswith("functions.") and ":" in identifier:
        return identifier.removeprefix("functions.").rpartition(":")[0]
    return "tool"
