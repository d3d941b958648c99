"""A tool returns a picture: its position in the stream, its storage, and policies without vision."""

from __future__ import annotations

from pathlib import Path

import pytest
from seeing import a_picture

from envs.base import Gold, Role, Task, ToolCall, ToolResult, ToolSpec
from model.chat.kimi import MEDIA_PAD, KimiChat, render
from model.kimi.vision.config import MediaLimits
from model.kimi.vision.picture_size import K25_LIMITS, picture_tokens, png_size
from model.kimi.vision.pictures import KimiPictures
from model.tokenizer.tokenizer import Tokenizer
from parl.learn.rows import episode_rows
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, EpisodeStatus, Trace
from rollouts.store.lookup import read_episodes
from rollouts.store.outline import read_outlines
from rollouts.store.store import EpisodeStore
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
TASK = Task(key="t", family="picture", split="test", prompt="What?", gold=Gold(kind="exact", answers=("42",)))
SHOW = ToolSpec(name="show", description="Show.", parameters={"type": "object", "properties": {}})
CREATE = ("create_subagent", {"name": "worker", "system_prompt": "Look."})
ASSIGN = ("assign_task", {"agent": "worker", "prompt": "see"})
FIRST, SECOND = a_picture(1, 2), a_picture(2, 4)
SHOWN = {
    "one": ToolResult(text="", images=(FIRST,)),
    "two": ToolResult(text=f"two of them {MEDIA_PAD}", images=(FIRST, SECOND)),
    "none": ToolResult(text=f"a text about {MEDIA_PAD}"),
}


class Gallery:
    """An environment with one tool that returns pictures."""

    def tasks(self, split: str) -> list[Task]:
        return [TASK]

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> Gallery:
        return self

    def tools(self, role: Role) -> list[ToolSpec]:
        return [SHOW]

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        return SHOWN[call.arguments["which"]]

    async def close(self) -> None:
        pass


def show(which: str) -> tuple[str, dict]:
    return ("show", {"which": which})


PICTURES = KimiPictures(K25_LIMITS)


async def play(tokenizer: Tokenizer, *plan, media: KimiPictures | None = PICTURES) -> Episode:
    def pool(trace: Trace) -> ScriptedEngine:
        turns = plan if trace.role is Role.ORCHESTRATOR else ([show("one")], "seen")
        return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: turns[len(history)])

    budget = BudgetConfig(episode_s=10.0)
    settings = SwarmSettings(chat=KimiChat(tokenizer), pool=pool, budget=budget, media=media)
    return await run_episode(TASK, Gallery(), settings, index=0, seed=0, critical_budget=0)


async def test_pictures_stand_at_the_placeholders_that_the_template_writes(tokenizer: Tokenizer):
    episode = await play(tokenizer, [show("two")], [show("none")], [show("one")], "42")
    assert (episode.status, episode.answer) == (EpisodeStatus.ANSWERED, "42")
    trace, pad = episode.orchestrator, tokenizer.special[MEDIA_PAD]
    assert [png for _, png in trace.media] == [FIRST, SECOND, FIRST]
    covered = [p for at, png in trace.media for p in range(at, at + picture_tokens(png))]
    assert covered == [p for p, token in enumerate(trace.tokens) if token == pad]  # text never becomes a control token
    assert len(covered) == 6 + 12 + 6 and not any(trace.mask[p] for p in covered)
    assert len(trace.mask) == len(trace.logprobs) == len(trace.tokens)
    call = {"function": {"name": "show", "arguments": '{"which":"two"}'}, "id": "functions.show:0", "type": "function"}
    parts = [{"type": "text", "text": SHOWN["two"].text}, {"type": "image"}, {"type": "image"}]
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "show", "tool_call_id": "functions.show:0", "content": parts},
    ]
    expected = render(messages, thinking=False, add_generation_prompt=True)
    shown = tokenizer.decode(trace.tokens).replace(MEDIA_PAD * 12, MEDIA_PAD).replace(MEDIA_PAD * 6, MEDIA_PAD)
    assert expected in shown


async def test_rows_and_the_store_keep_the_pictures(tokenizer: Tokenizer, tmp_path: Path):
    episode = await play(tokenizer, [show("two")], [CREATE, ASSIGN], "42")
    assert [len(trace.media) for trace in episode.traces] == [2, 1]
    [row] = episode_rows(episode, 0.5)
    assert row.media == tuple(episode.orchestrator.media)
    store = EpisodeStore(tmp_path)
    store.write(1, [episode], policy_version=0)
    read = store.read(1)
    assert read is not None
    for trace, again in zip(episode.traces, read[0][0].traces, strict=True):
        assert again.media == trace.media and again.turns == trace.turns and again.tokens == trace.tokens
    assert [result.images for result in read[0][0].orchestrator.turns[0].results] == [(FIRST, SECOND)]


async def test_outlines_and_single_episodes_have_them_too(tokenizer: Tokenizer, tmp_path: Path):
    episode = await play(tokenizer, [show("two")], [CREATE, ASSIGN], "42")
    path = EpisodeStore(tmp_path).write(1, [episode], policy_version=0)
    [whole], [outline], [bare] = read_episodes(path, [0]), read_outlines([path]), read_outlines([path], texts=False)
    for trace, again, seen in zip(episode.traces, whole.traces, outline.episode.traces, strict=True):
        assert again.media == trace.media == seen.media
        assert [turn.results for turn in seen.turns] == [turn.results for turn in trace.turns]
    assert outline.lengths == bare.lengths == [len(trace.tokens) for trace in episode.traces]
    assert not any(trace.media for trace in bare.episode.traces)
    assert SHOWN["one"].readable == "[picture]"
    assert SHOWN["two"].readable == f"{SHOWN['two'].text}\n[picture]\n[picture]"


async def test_an_agent_that_cannot_see_ends_the_episode_with_the_reason(tokenizer: Tokenizer):
    episode = await play(tokenizer, [show("one")], "42", media=None)
    assert episode.status is EpisodeStatus.FAILED and "without model.vision" in episode.error
    blind = await play(tokenizer, [show("none")], "42", media=None)
    assert blind.status is EpisodeStatus.ANSWERED


def test_a_pictures_size_is_read_from_its_header():
    assert png_size(SECOND) == (112, 84) and picture_tokens(SECOND) == 12
    assert picture_tokens(SECOND, MediaLimits(patch_size=7)) == 48
    assert picture_tokens(SECOND, MediaLimits(patch_size=7, image_patches=48)) < 48
    for bad in (b"", b"\x89PNG", SECOND[:20], b"GIF89a" + bytes(30)):
        with pytest.raises(ValueError, match="no PNG file"):
            png_size(bad)
