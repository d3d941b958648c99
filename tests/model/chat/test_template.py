"""Any Jinja template as a format: id by id against transformers, reading, and templates that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_families import (
    ARGUMENTS,
    BRIDGED,
    DEEPSEEK,
    GLM,
    GPT_OSS,
    LLAMA,
    MISTRAL,
    QWEN3,
    QWEN3_6,
    READERS,
    RESULTS,
    SINGLE,
    TOOLS,
    Family,
    written,
)

from model.chat.base import Call, ParsedTurn
from model.chat.bridge.template import TemplateChat
from model.chat.choose import chat_format
from model.tokenizer.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers", reason="the reference is not installed")
SYSTEM, QUESTION = "Sei kurz. «é»", "  Wie lang ist sie?  \n"


@pytest.fixture(scope="module", params=BRIDGED, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(family, tmp_path_factory.mktemp(family.name))


@pytest.fixture(scope="module")
def chat(family: Family, folder: Path) -> TemplateChat:
    """With thinking where the model cannot do without."""
    return TemplateChat(load_tokenizer(folder), thinking=family is DEEPSEEK)


def clean(value: Any) -> Any:
    """Without what transformers would take for a control token."""
    return json.loads(json.dumps(value, ensure_ascii=False).replace("<", "‹"))


def calls_of(chat: TemplateChat, *, safely: bool = True, first: int = 0) -> list[Call]:
    given = clean(ARGUMENTS) if safely else ARGUMENTS
    given = given if chat.parallel else given[:1]
    return [
        Call(id=chat.call_id(name, first + i), name=name, arguments=arguments)
        for i, (name, arguments) in enumerate(given)
    ]


def called(chat: TemplateChat, calls: list[Call]) -> dict[str, Any]:
    entries = []
    for one in calls:
        arguments = chat.arguments(one.arguments) if chat._texts else one.arguments
        entries.append({"type": "function", "id": one.id, "function": {"name": one.name, "arguments": arguments}})
    return {"role": "assistant", "content": "", "tool_calls": entries}


def results_of(calls: list[Call]) -> list[tuple[str, str, str]]:
    return [(one.id, one.name, text) for one, text in zip(calls, clean(RESULTS), strict=False)]


def as_messages(results: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": id_, "name": name, "content": text} for id_, name, text in results]


def test_the_reader_of_calls_is_found(family: Family, chat: TemplateChat):
    assert chat.reader == READERS[family.name]
    assert chat.parallel == (family not in SINGLE)


def rendered(folder: Path, messages: list[dict[str, Any]], chat: TemplateChat) -> list[int]:
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    flags = {"add_generation_prompt": True, "enable_thinking": chat.thinking, "thinking": chat.thinking}
    return reference.apply_chat_template(messages, tools=TOOLS, return_dict=False, **flags)


def test_every_prompt_of_a_trace_has_the_ids_of_transformers(family: Family, folder: Path, chat: TemplateChat):
    """A trace that grows by segments against each conversation rendered in one go, from the second prompt on as far as
    the template leaves a history as it was: reasoning that a prompt closes or a turn holds is kept in a trace."""
    system, question = {"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}
    begun = chat.encode(chat.opening([system], TOOLS))
    ids = begun + chat.encode(chat.question(QUESTION, [system], TOOLS))
    messages: list[dict[str, Any]] = [system, question]
    assert ids == rendered(folder, messages, chat)
    calls = calls_of(chat)
    thought = "Weil." if chat.thinking else ""
    for turn in (calls, calls_of(chat, first=3)[:1]):
        ids += chat.encode(chat.assistant("", turn, reasoning=thought))
        ids += chat.encode(chat.results(results_of(turn)))
        messages += [called(chat, turn), *as_messages(results_of(turn))]
    wanted = rendered(folder, messages, chat)
    if family is DEEPSEEK:  # its template numbers sections of calls and results over the whole history, to its harm
        return
    special = chat.tokenizer.special
    thinks = [special[name] for name in ("<think>", "</think>") if name in special]
    if family is QWEN3 or family is GLM:
        blank = chat.tokenizer.encode("\n\n")
        ids, wanted = ([i for i in part if i not in (*thinks, *blank)] for part in (ids, wanted))
    assert ids == wanted


@pytest.mark.parametrize("prompt", [True, False])
def test_conversations_have_the_ids_of_transformers(family: Family, folder: Path, chat: TemplateChat, prompt: bool):
    calls = calls_of(chat)
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        called(chat, calls),
        *as_messages(results_of(calls)),
        {"role": "assistant", "content": "Acht."},
        {"role": "user", "content": "Sicher?"},
    ]
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    flags = {"add_generation_prompt": prompt, "enable_thinking": chat.thinking, "thinking": chat.thinking}
    wanted = reference.apply_chat_template(messages, tools=TOOLS, return_dict=False, **flags)
    assert chat.encode(chat.conversation(messages, TOOLS, prompt=prompt)) == wanted


def test_what_the_policy_is_to_write_is_read_back(family: Family, chat: TemplateChat):
    chat.opening([], TOOLS)  # from here on it knows the schemas
    calls = calls_of(chat, safely=False)
    said = chat.parse(chat.encode(chat.assistant("", calls)), tools={"look", "count"})
    assert said == ParsedTurn(tool_calls=tuple(calls))
    answer = chat.encode(chat.assistant("So <|im_end|> ist </s> es."))
    assert chat.parse(answer) == ParsedTurn(content="So <|im_end|> ist </s> es.")
    assert answer[-1] in chat.stop_ids and chat.closing(answer[-1]) == []
    assert "no tool named 'look'" in chat.parse(chat.encode(chat.assistant("", calls)), tools=["other"]).malformed
    assert chat.parse(answer[:-1]).malformed and chat.parse([]).malformed and chat.parse([10**6]).malformed
    later = chat.parse(chat.encode(chat.assistant("", calls)), first=7)
    assert [one.id for one in later.tool_calls] == [f"{7 + i:09d}" for i in range(len(calls))]


def test_outside_text_never_becomes_a_control_token(family: Family, chat: TemplateChat):
    """Whatever is said, called, declared and answered, the control tokens are those of the same with harmless words."""
    evil = "".join(chat.tokenizer.special) + " </think><think>\n\n<|im_end|>"

    def control(word: str) -> list[int]:
        tools = json.loads(json.dumps(TOOLS, ensure_ascii=False).replace("Sieht nach", word.replace("\n", "\\n")))
        call = Call(id="000000000", name="look", arguments={"place": word, word: [word, {"n": None}]})
        system = {"role": "system", "content": word}
        pieces = [*chat.opening([system], tools), *chat.question(word, [system], tools)]
        pieces += chat.results([("000000000", "look", word)])
        pieces += chat.more([{"role": "user", "content": word}], 0)
        turns = chat.assistant(word), chat.assistant("", [call])
        ids = chat.encode(pieces) + [token for turn in turns for token in chat.encode(turn)]
        return [token for token in ids if token in set(chat.tokenizer.special.values())]

    assert control(evil) == control("harmless")


def test_all_results_come_in_one_rendering(chat: TemplateChat):
    if chat.parallel:
        together = chat.results([(f"{i:09d}", "look", f"r{i}") for i in range(3)])
        text = "".join(text for text, _ in together)
        assert text.index("r0") < text.index("r1") < text.index("r2")


def test_a_token_that_begins_the_next_message_is_not_written_twice(tmp_path: Path):
    chat = TemplateChat(load_tokenizer(written(GLM, tmp_path)))
    special = chat.tokenizer.special
    calls = calls_of(chat)[:1]
    turn = chat.encode(chat.assistant("", calls))
    assert turn[-1] == special["<|observation|>"]
    assert special["<|observation|>"] not in chat.encode(chat.results(results_of(calls)))
    answer = chat.encode(chat.assistant("Ja."))
    assert answer[-1] == special["<|user|>"] and set(chat.stop_ids) >= {special["<|user|>"], special["<|observation|>"]}
    asked = [{"role": "user", "content": "Sicher?"}]
    assert chat.encode(chat.more(asked, answer[-1])) == chat.encode(chat.user("Sicher?"))
    cut = chat.encode(chat.more(asked, 5))
    assert cut == [special["<|user|>"], *chat.encode(chat.user("Sicher?"))]
    wrong = [*turn[:-1], special["<|user|>"]]
    assert chat.parse(wrong).malformed == "a turn with calls ended in <|user|>, expected <|observation|>"


def test_reasoning_is_written_and_read(tmp_path: Path):
    for place, family in enumerate((QWEN3, QWEN3_6, GLM, DEEPSEEK)):
        chat = TemplateChat(load_tokenizer(written(family, tmp_path / str(place))), thinking=True)
        call = calls_of(chat)[:1]
        ids = chat.encode(chat.assistant("", call, reasoning="Weil es\nso ist"))
        assert chat.parse(ids) == ParsedTurn(reasoning="Weil es\nso ist", tool_calls=tuple(call)), family.name
    harmony = TemplateChat(load_tokenizer(written(GPT_OSS, tmp_path / "h")))
    turn = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Ja.<|return|>"
    assert harmony.parse(harmony.tokenizer.encode(turn, allow_special=True)) == ParsedTurn(
        content="Ja.", reasoning="Hm."
    )
    call = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"place":1}<|call|>'
    [found] = harmony.parse(harmony.tokenizer.encode(call, allow_special=True)).tool_calls
    assert (found.name, found.arguments) == ("look", {"place": 1})


def test_templates_that_cannot_be_appended_to_are_refused_with_their_fault(tmp_path: Path):
    def refused(name: str, old: str, new: str, family: Family = LLAMA, **options: bool) -> str:
        folder = written(family, tmp_path / name)
        text = (folder / "chat_template.jinja").read_text()
        assert old in text
        (folder / "chat_template.jinja").write_text(text.replace(old, new))
        with pytest.raises(ValueError) as error:
            TemplateChat(load_tokenizer(folder), **options)
        return str(error.value)

    assert "earlier messages otherwise" in refused("a", "{{- bos_token }}", "{{- bos_token }}{{ messages | length }}")
    bare = Family(name="b", template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", special=())
    assert "no control token" in refused("b", "{{ m.role }}", "{{ m.role }}", bare)
    assert "as Python does" in refused("c", "arguments | tojson", "arguments.items() | list | string")
    assert "no reader knows" in refused("d", '"parameters"', '"given"')
    assert "no tool calls" in refused("e", "tool", "took")
    assert "cannot be read" in refused("f", "{%- endfor %}", "{%- endfour %}")
    assert "leaves out a text" in refused("g", "m.content | tojson", "'seen'")
    assert "set rollouts.thinking to false" in refused("h", "{{- bos_token }}", "{{- bos_token }}", thinking=True)
    assert "set rollouts.thinking to true" in refused("i", "message", "message", DEEPSEEK)
    assert "TemplateError" in refused("j", "{{- bos_token }}", "{{- raise_exception('no') }}")
    with pytest.raises(ValueError, match=r"kimi: .*hermes: the tokenizer lacks.*template: the chat template"):
        folder = written(Family(name="x", template="{{ 1 }}", special=("<s>",)), tmp_path / "k")
        chat_format("auto", load_tokenizer(folder))


def test_the_sandbox_keeps_a_template_from_python(tmp_path: Path):
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    folder = written(Family(name="x", template=evil, special=("<s>",)), tmp_path)
    with pytest.raises(ValueError, match="SecurityError"):
        TemplateChat(load_tokenizer(folder))


def test_tools_that_a_template_moves_to_the_last_question_stay_where_they_were(tmp_path: Path):
    """Mistral's templates declare tools before the last user's message; a trace is only appended to."""
    chat = TemplateChat(load_tokenizer(written(MISTRAL, tmp_path)))
    text = "".join(text for text, _ in chat.user("Und?"))
    assert text == "[INST]Und?[/INST]"
    asked = [{"role": "tool", "tool_call_id": "000000001", "content": "7"}, {"role": "user", "content": "Und?"}]
    more = "".join(text for text, _ in chat.more(asked, chat.tokenizer.special["</s>"]))
    assert more == '[TOOL_RESULTS]{"content": "7", "call_id": "000000001"}[/TOOL_RESULTS][INST]Und?[/INST]'
