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
