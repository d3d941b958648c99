"""Formats of the package ``renderers``, where it is installed: the ids of the models' own templates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chat_families import ARGUMENTS, GLM, QWEN3, QWEN3_6, RESULTS, TOOLS, Family, written

from model.chat.base import Call, ParsedTurn
from model.chat.bridge.template import TemplateChat
from model.chat.choose import chat_format
from model.tokenizer.tokenizer import load_tokenizer

renderers = pytest.importorskip("renderers", reason="the package is not installed (extra: renderers)")
SEES = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN3_6_SEES = replace(QWEN3_6, words=(*QWEN3_6.words, *SEES))
NAMES = {"qwen3": QWEN3, "qwen3.6": QWEN3_6_SEES, "glm-4.5": GLM}  # gpt-oss downloads a vocabulary of its own


@pytest.mark.parametrize("name", NAMES)
def test_a_renderer_and_the_models_template_give_the_same_ids(name: str, tmp_path: Path):
    family: Family = NAMES[name]
    tokenizer = load_tokenizer(written(family, tmp_path))
    thinking = name in ("qwen3", "qwen3.6")  # with it on, both keep what was thought
    ours, theirs = (
        TemplateChat(tokenizer, thinking=thinking),
        chat_format(f"renderers:{name}", tokenizer, thinking=thinking),
    )
    assert isinstance(theirs, TemplateChat) and theirs.reader == ours.reader and theirs.stop_ids == ours.stop_ids
    calls = [Call(id=f"{i:09d}", name=name, arguments=given) for i, (name, given) in enumerate(ARGUMENTS)]
    calls = calls if ours.parallel else calls[:1]
    for turn in (ours.assistant("", calls), ours.assistant("Ja. <|im_end|>")):
        ids = ours.encode(turn)
        assert theirs.parse(ids) == ours.parse(ids)
    assert theirs.encode(theirs.assistant("", calls)) == ours.encode(ours.assistant("", calls))
    assert theirs.parse(theirs.encode(theirs.assistant("", calls))) == ParsedTurn(tool_calls=tuple(calls))
    shown = [(call.id, call.name, text) for call, text in zip(calls, RESULTS, strict=False)]
    assert theirs.encode(theirs.results(shown)) == ours.encode(ours.results(shown))
    system = [{"role": "system", "content": "Kurz. <|im_end|>"}]
    for render in ("opening", "question"):
        given = (system, TOOLS) if render == "opening" else ("Wo? <think>", system, TOOLS)
        assert theirs.encode(getattr(theirs, render)(*given)) == ours.encode(getattr(ours, render)(*given)), render


def test_a_renderer_that_is_not_there_is_named(tmp_path: Path):
    tokenizer = load_tokenizer(written(QWEN3, tmp_path))
    with pytest.raises(ValueError, match="qwen33"):
        chat_format("renderers:qwen33", tokenizer)
    with pytest.raises(ValueError, match="name the renderer"):
        chat_format("renderers:auto", tokenizer)
