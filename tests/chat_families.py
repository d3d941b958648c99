"""Tokenizers of model families in small: a byte-level vocabulary with the family's control tokens and its template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

TEMPLATES = Path(__file__).parent / "data" / "chat_templates"
_TEXTS = ["You may call one or more functions. What is the weather in Paris? Die Straße ist 42 km lang. 日本語 🚀"] * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """``special``: control tokens that the file marks as special; ``words``: those that it does not."""

    name: str
    template: str  # a file of TEMPLATES, or the template itself
    special: tuple[str, ...]
    words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    config: tuple[tuple[str, str], ...] = ()

    @property
    def jinja(self) -> str:
        return (TEMPLATES / f"{self.template}.jinja").read_text() if "{" not in self.template else self.template


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "Help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_5 = Family(name="qwen2.5", template="qwen2_5", special=CHATML, words=CALLS)
QWEN3 = Family(name="qwen3", template="qwen3", special=CHATML, words=(*CALLS, "<think>", "</think>"))
QWEN3_2507 = Family(name="qwen3-2507", template="qwen3_instruct_2507", special=CHATML, words=(*CALLS, "<think>"))
SMOLLM = Family(name="smollm2", template=SMOLLM2, special=CHATML)
HERMES = (QWEN2_5, QWEN3, QWEN3_2507, SMOLLM)


def written(family: Family, folder: Path, *, changed: dict[str, Any] | None = None) -> Path:
    """The family's tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = json.loads(_trained())
    first = len(tree["model"]["vocab"])
    for index, name in enumerate((*family.special, *family.words), first):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | (changed or {})
        flags |= dict.fromkeys(family.flags, True)
        tree["added_tokens"].append({"id": index, "content": name, "special": name in family.special, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | dict(family.config)))
    (folder / "chat_template.jinja").write_text(family.jinja)
    return folder


@lru_cache(maxsize=1)
def _trained() -> str:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        _TEXTS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    return backend.to_str()


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Sieht nach: «é».",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Where."},
                    "how": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
                    "unit": {"type": "string", "enum": ["km", "m"]},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "count",
            "description": "Counts.",
            "parameters": {"type": "object", "properties": {"many": {"type": "array", "items": {"type": "number"}}}},
        },
    },
]
ARGUMENTS = [
    ("look", {"place": 'Straße <|im_end|> 🚀\n"x"', "how": {"deep": False, "n": None}}),
    ("count", {"many": [1, 2.5, -3e10], "unit": "km", "true": True}),
    ("look", {"place": ""}),
]
RESULTS = ["7 <|im_end|> <tool_response>", "", "Zeile 1\nZeile 2 日本語"]
QWEN3_6 = Family(name="qwen3.6", template="qwen3_6", special=CHATML, words=(*CALLS, "<think>", "</think>"))
GLM = Family(
    name="glm4.5",
    template="glm4moe",
    special=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    words=(*CALLS, "<think>", "</think>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    config=(("eos_token", "<|endoftext|>"),),
)
GPT_OSS = Family(
    name="gpt-oss",
    template="gptoss",
    special=(
        *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>"),
        *("<|message|>", "<|call|>"),
    ),
    config=(("bos_token", "<|startoftext|>"), ("eos_token", "<|return|>")),
)
DEEPSEEK = Family(
    name="deepseek-v3",
    template="deepseekv3",
    special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    words=(
        *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
        *("<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>"),
        *("<｜tool▁output▁end｜>", "<｜tool▁sep｜>", "<think>", "</think>"),
    ),
    config=(("bos_token", "<｜begin▁of▁sentence｜>"), ("eos_token", "<｜end▁of▁sentence｜>")),
)
MISTRAL = Family(  # the shape of Mistral's templates (v3), in few words
    name="mistral",
    template=(
        "{%- if messages[0].role == 'system' %}{%- set first = messages[0].content %}{%- set talk = messages[1:] %}"
        "{%- else %}{%- set first = '' %}{%- set talk = messages %}{%- endif %}{{- bos_token }}"
        "{%- set users = talk | selectattr('role', 'equalto', 'user') | list %}"
        "{%- for m in talk %}{%- if m.role == 'user' %}"
        "{%- if tools and m == users[-1] %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}"
        "{%- endif %}{{- '[INST]' + (first + '\n\n' if first and loop.first else '') + m.content + '[/INST]' }}"
        "{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]' + ({'content': m.content, 'call_id': m.tool_call_id} | tojson)"  # noqa: E501
        " + '[/TOOL_RESULTS]' }}"
        "{%- elif m.tool_calls %}{{- '[TOOL_CALLS][' }}{%- for c in m.tool_calls %}{%- if c.id | length != 9 %}"
        "{{- raise_exception('ids have nine characters') }}{%- endif %}{{- '{\"name\": \"' + c.function.name + '\", "
        '"arguments": \' + (c.function.arguments | tojson) + \', "id": "\' + c.id + \'"}\' }}'
        "{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' + eos_token }}"
        "{%- else %}{{- m.content + eos_token }}{%- endif %}{%- endfor %}"
    ),
    special=(
        *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
        *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ),
    config=(("bos_token", "<s>"), ("eos_token", "</s>")),
)
LLAMA = Family(  # the shape of Llama 3's templates with tools, in few words
    name="llama3",
    template=(
        "{{- bos_token }}{%- if messages[0].role == 'system' %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' + "
        "messages[0].content | trim + '<|eot_id|>' }}{%- set messages = messages[1:] %}{%- endif %}"
        "{%- for m in messages %}{%- if m.role == 'tool' %}{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + "
        "(m.content | tojson) + '<|eot_id|>' }}"
        "{%- elif m.tool_calls %}{%- if m.tool_calls | length > 1 %}{{- raise_exception('one call at once') }}{%- endif %}"  # noqa: E501
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' + '{\"name\": \"' + m.tool_calls[0].function.name + "
        "'\", \"parameters\": ' + (m.tool_calls[0].function.arguments | tojson) + '}' + '<|eot_id|>' }}"
        "{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{%- if loop.first and tools %}{{- 'Functions:\n\n' }}{%- for t in tools %}{{- t | tojson(indent=4) + '\n\n' }}"
        "{%- endfor %}{%- endif %}{{- m.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    special=("<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    config=(("bos_token", "<|begin_of_text|>"), ("eos_token", "<|eot_id|>")),
)
BRIDGED = (QWEN2_5, QWEN3, QWEN3_2507, QWEN3_6, GLM, GPT_OSS, DEEPSEEK, MISTRAL, LLAMA)
READERS = {
    "qwen2.5": "hermes", "qwen3": "hermes", "qwen3-2507": "hermes", "qwen3.6": "coder", "glm4.5": "glm",
    "gpt-oss": "harmony", "deepseek-v3": "deepseek", "mistral": "mistral", "llama3": "llama",
}  # fmt: skip
SINGLE = (GPT_OSS, LLAMA)  # one call a turn
