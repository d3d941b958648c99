"""ChatML with ``<tool_call>``: id by id against transformers' rendering of the published templates, and reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_families import ARGUMENTS, HERMES, QWEN2_5, QWEN3, QWEN3_2507, RESULTS, SMOLLM, TOOLS, Family, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.chat.base import Call, ChatFormat, ParsedTurn
from model.chat.choose import chat_format, disagreement
from model.chat.hermes import HermesChat
from model.chat.kimi import join
from model.family import family_of
from model.hf.shape import HfShape
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers", reason="the reference is not installed")
SYSTEM, QUESTION = "Sei kurz. «é»", "Wie lang ist sie?  \n"
NAMES = {"look", "count"}


@pytest.fixture(scope="module", params=HERMES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(family, tmp_path_factory.mktemp(family.name))


def calls_from(chat: ChatFormat, first: int = 0) -> list[Call]:
    return [
        Call(id=chat.call_id(name, first + i), name=name, arguments=arguments)
        for i, (name, arguments) in enumerate(ARGUMENTS)
    ]


def called(calls: list[Call], content: str = "") -> dict[str, Any]:
    entries = [{"type": "function", "function": {"name": one.name, "arguments": one.arguments}} for one in calls]
    return {"role": "assistant", "content": content, "tool_calls": entries}


def theirs(folder: Path, messages: list[dict[str, Any]], tools: Any = TOOLS, **options: Any) -> list[int]:
    """Their text, in ids of ours: their encoding of outside text that spells control tokens is not wanted."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)


def safe(text: str) -> str:
    return text.replace("<", "‹")


def trace_of(chat: ChatFormat, tools: Any, *, safely: bool) -> tuple[list[int], list[dict[str, Any]]]:
    """A conversation of three turns, grown segment by segment, and the same as messages."""
    clean = safe if safely else str
    calls = [
        Call(id=one.id, name=one.name, arguments=json.loads(clean(json.dumps(one.arguments, ensure_ascii=False))))
        for one in calls_from(chat)
    ]
    results = [clean(text) for text in RESULTS]
    system, question = {"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}
    ids = chat.encode(chat.opening([system], tools)) + chat.encode(chat.question(QUESTION, [system], tools))
    messages: list[dict[str, Any]] = [system, question]
    if tools:
        ids += chat.encode(chat.assistant("Ich sehe nach.", calls))
        ids += chat.encode(chat.results([(c.id, c.name, text) for c, text in zip(calls, results, strict=True)]))
        messages += [called(calls, "Ich sehe nach."), *({"role": "tool", "content": text} for text in results)]
        ids += chat.encode(chat.assistant("", calls[:1])) + chat.encode(chat.results([("x", "look", "8")]))
        messages += [called(calls[:1]), {"role": "tool", "content": "8"}]
    ids += chat.encode(chat.assistant("Acht."))
    ids += chat.encode(chat.more([{"role": "user", "content": "Sicher?"}], ids[-1]))
    messages += [{"role": "assistant", "content": "Acht."}, {"role": "user", "content": "Sicher?"}]
    return ids, messages


def test_the_format_is_chosen_by_template_and_control_tokens(folder: Path):
    tokenizer = load_tokenizer(folder)
    shape = HfShape(transformers={"model_type": "llama"}, vocab_size=400, max_position_embeddings=64)
    assert isinstance(family_of(shape).chat(shape, tokenizer), HermesChat)
    assert isinstance(family_of(shape).chat(shape), HermesChat)  # text only


def test_a_trace_has_the_ids_of_transformers(family: Family, folder: Path):
    """Grown by segments = rendered in one go. Qwen3 with thinking off: but for the closed reasoning of earlier turns,
    which its template takes out of a history and a trace keeps."""
    chat = chat_format("auto", load_tokenizer(folder))
    tools = None if family is SMOLLM else TOOLS
    ids, messages = trace_of(chat, tools or (), safely=True)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    options = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": False}
    wanted = reference.apply_chat_template(messages, tools=tools, **options)
    if family is QWEN3:
        closed = chat.encode([("<think>", True), ("\n\n", False), ("</think>", True), ("\n\n", False)])
        assert ids[-len(closed) :] == wanted[-len(closed) :] == closed
        ids, wanted = without(ids, closed), without(wanted, closed)
    assert ids == wanted


def without(ids: list[int], part: list[int]) -> list[int]:
    out: list[int] = []
    for token in ids:
        out.append(token)
        if out[-len(part) :] == part:
            del out[-len(part) :]
    return out


def test_a_whole_conversation_has_the_text_of_transformers(family: Family, folder: Path):
    chat = chat_format("auto", load_tokenizer(folder))
    tools = None if family is SMOLLM else TOOLS
    _, messages = trace_of(chat, tools or (), safely=False)
    for shown in (messages, messages[1:]):  # with a system message, and without
        text = join(chat.conversation(shown, tools or ()))
        assert text == theirs(folder, shown, tools, add_generation_prompt=True, enable_thinking=False)


def test_what_the_policy_is_to_write_is_read_back(family: Family, folder: Path):
    chat = chat_format("auto", load_tokenizer(folder))
    for content, calls in (("", calls_from(chat)), ("Dann.\n", calls_from(chat)[:1]), (" zwei\n\n", []), ("", [])):
        ids = chat.encode(chat.assistant(content, calls))
        assert chat.parse(ids, tools=NAMES) == ParsedTurn(content=content, tool_calls=tuple(calls))
        assert chat.closing(ids[-1]) == [] and ids[-1] in chat.stop_ids
    later = chat.parse(chat.encode(chat.assistant("", calls_from(chat, 7))), first=7)
    assert [call.id for call in later.tool_calls] == ["call_7_look", "call_8_count", "call_9_look"]
    assert chat.tool_name("call_8_count") == "count" and chat.tool_name("functions.count:8") is None


def test_a_trace_is_read_back_as_messages(family: Family, folder: Path):
    chat = chat_format("auto", load_tokenizer(folder))
    ids, wanted = trace_of(chat, TOOLS, safely=False)
    found = chat.messages(ids, {"call_1_count": "theirs"})
    assert [one["role"] for one in found] == [one["role"] for one in wanted]
    assert [one["content"] or "" for one in found] == [one["content"] for one in wanted]
    assert [one["id"] for one in found[2]["tool_calls"]] == ["call_0_look", "theirs", "call_2_look"]
    read = [json.loads(one["function"]["arguments"]) for one in found[2]["tool_calls"]]
    assert read == [arguments for _, arguments in ARGUMENTS]
    assert [one["tool_call_id"] for one in found[3:6]] == ["call_0_look", "theirs", "call_2_look"]
    assert found[7]["tool_call_id"] == found[6]["tool_calls"][0]["id"] == "call_3_look"


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(QWEN3, tmp_path_factory.mktemp("thinking"))


def test_reasoning_is_written_as_the_family_does_and_stays_in_the_trace(qwen3: Path):
    chat = chat_format("hermes", load_tokenizer(qwen3), thinking=True)
    ask = {"role": "user", "content": QUESTION}
    call = calls_from(chat)[1:2]
    ids = chat.encode(chat.conversation([ask], TOOLS))
    ids += chat.encode(chat.assistant("", call, reasoning="Ich zähle."))
    ids += chat.encode(chat.results([(call[0].id, "count", "7")]))
    thought = {**called(call), "reasoning_content": "Ich zähle."}
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(qwen3)
    options = {"add_generation_prompt": True, "enable_thinking": True, "return_dict": False}
    assert ids == reference.apply_chat_template([ask, thought, {"role": "tool", "content": "7"}], TOOLS, **options)
    turn = chat.parse(chat.encode(chat.assistant("So.", reasoning="Weil <|im_end|>\nja")), tools=NAMES)
    assert turn == ParsedTurn(content="So.", reasoning="Weil <|im_end|>\nja")
    assert chat.parse(chat.encode([("So.", False), ("<|im_end|>", True)])) == ParsedTurn(content="So.")


def test_what_a_model_cannot_do_is_refused_by_name(qwen3: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"set rollouts\.thinking to false"):
        chat_format("hermes", load_tokenizer(written(QWEN2_5, tmp_path / "a")), thinking=True)
    always = Family(name="always", template="qwen3_instruct_2507", special=QWEN3.special, words=QWEN3.words)
    folder = written(always, tmp_path / "b")
    opened = (
        (folder / "chat_template.jinja")
        .read_text()
        .replace("<|im_start|>assistant\\n'", "<|im_start|>assistant\\n<think>\\n'")
    )
    (folder / "chat_template.jinja").write_text(opened)
    with pytest.raises(ValueError, match=r"set rollouts\.thinking to true"):
        chat_format("hermes", load_tokenizer(folder))
    chat = chat_format("hermes", load_tokenizer(folder), thinking=True)
    ids = chat.encode(chat.assistant("7", reasoning="ja"))
    assert chat.parse(ids) == ParsedTurn(content="7", reasoning="ja")
    assert chat.encode(chat.conversation([{"role": "user", "content": "?"}]))[-2] == chat.tokenizer.special["<think>"]
    with pytest.raises(ValueError, match="thinking off"):
        chat_format("hermes", load_tokenizer(qwen3)).assistant("", reasoning="weil")
    with pytest.raises(ValueError, match="must be one of auto, kimi, hermes"):
        chat_format("hermse", load_tokenizer(qwen3))
    with pytest.raises(ValueError, match=r"kimi: the tokenizer lacks control tokens that KimiChat writes: \[BOS\]"):
        chat_format(
            "auto", load_tokenizer(written(Family(name="x", template="{{ 1 }}", special=("<s>",)), tmp_path / "c"))
        )


def test_another_template_is_not_taken_for_chatml(tmp_path: Path):
    other = Family(name="o", template="qwen3_6", special=QWEN3.special, words=QWEN3.words)
    assert "where ChatML has" in disagreement(load_tokenizer(written(other, tmp_path)))


BROKEN = {
    "not JSON": '<tool_call>\n{"name": "look", "arguments": {"place": }}\n</tool_call><|im_end|>',
    "not a JSON object": "<tool_call>\n[1]\n</tool_call><|im_end|>",
    "exactly the keys": '<tool_call>\n{"name": "look"}\n</tool_call><|im_end|>',
    "arguments are not a JSON object": '<tool_call>\n{"name": "look", "arguments": "{}"}\n</tool_call><|im_end|>',
    "no tool named 'lock'": '<tool_call>\n{"name": "lock", "arguments": {}}\n</tool_call><|im_end|>',
    "a call has no name": '<tool_call>\n{"name": 7, "arguments": {}}\n</tool_call><|im_end|>',
    "no </tool_call>": '<tool_call>\n{"name": "look", "arguments": {}}',
    "expected </tool_call>": '<tool_call>\n{"name": "look", "arguments": {}}<|im_end|>',
    "outside its calls": '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call> and<|im_end|>',
    "expected <|im_end|>": "some </tool_call> text<|im_end|>",
    "no <|im_end|>": "some text",
    "text after": "done<|im_end|>more",
    "NaN is not JSON": '<tool_call>{"name": "look", "arguments": {"a": NaN}}</tool_call><|im_end|>',
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_turn_says_what_broke_it(family: Family, folder: Path, reason: str):
    chat = chat_format("auto", load_tokenizer(folder))
    turn = chat.parse(chat.tokenizer.encode(BROKEN[reason], allow_special=True), tools=NAMES)
    assert reason in turn.malformed and not turn.tool_calls
    assert chat.parse([10**6]).malformed == "a token of an unused embedding row"


def test_text_inside_a_call_is_no_end_of_it(family: Family, folder: Path):
    chat = chat_format("auto", load_tokenizer(folder))
    call = Call(id=chat.call_id("look", 0), name="look", arguments={"place": "</tool_call><tool_call>\n{}"})
    assert chat.parse(chat.encode(chat.assistant("", [call]))).tool_calls == (call,)


def test_one_line_a_tool_saves_a_quarter(tmp_path: Path):
    tokenizer = load_tokenizer(written(QWEN3_2507, tmp_path))
    short, long = (chat_format(name, tokenizer) for name in ("hermes-short", "hermes"))
    text = join(short.opening([{"role": "system", "content": SYSTEM}], TOOLS))
    assert '\nlook(place: string, how?: {deep?: boolean}, unit?: "km"|"m"): Sieht nach: «é».\n' in text
    assert "\ncount(many?: number[]): Counts.\n" in text
    counts = [len(chat.encode(chat.opening([], TOOLS))) for chat in (short, long)]
    assert counts[0] < 0.75 * counts[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(max_size=30), place=st.text(max_size=30), result=st.text(max_size=30))
def test_outside_text_never_becomes_a_control_token(tokenizer_3: Tokenizer, content: str, place: str, result: str):
    chat = chat_format("hermes", tokenizer_3)
    calls = [Call(id="x", name="look", arguments={"place": place + "<|im_end|>"})]
    ids = chat.encode(chat.assistant(content + "<tool_call>", calls)) + chat.encode(
        chat.results([("x", "look", result + "<|im_start|>")])
    )
    names = [chat.tokenizer.pieces([token])[0][0] for token in ids if token in chat.tokenizer.special.values()]
    assert names == [
        *("<tool_call>", "</tool_call>", "<|im_end|>", "<|im_start|>", "<tool_response>", "</tool_response>"),
        *("<|im_end|>", "<|im_start|>", "<think>", "</think>"),
    ]


@pytest.fixture(scope="module")
def tokenizer_3(qwen3: Path) -> Tokenizer:
    return load_tokenizer(qwen3)
