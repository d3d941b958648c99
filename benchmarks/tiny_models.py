"""Writes a tiny random model as a published one looks: a Hugging Face folder made by transformers and tokenizers.

    python benchmarks/tiny_models.py qwen3_moe FOLDER [--dtype bfloat16] [--sharded] [--tied] [--no-template]

The vocabulary is byte-level and trained on docs/, with the family's control tokens; the chat template is the family's
own, as in tests/data/chat_templates. The weights are random, so the model says nothing: such folders show that a
model's form is read, trained, exported and served, in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCAB = 2048  # without control tokens
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_HARMONY = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_SIZES: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 8192},
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """``template``: a file in tests/data/chat_templates, or the template itself; ``words``: tokens that are not special

    but one id each."""

    template: str
    special: tuple[str, ...]
    words: tuple[str, ...] = ()
    bos: str | None = None
    eos: str
    pad: str
    own: dict[str, Any] = field(default_factory=dict)  # of config.json


_QWEN = {"template": "qwen3", "special": _CHATML, "words": _WORDS, "eos": "<|im_end|>", "pad": "<|endoftext|>"}
KINDS: dict[str, Kind] = {
    "llama": Kind(**_QWEN),
    "qwen2": Kind(**_QWEN | {"template": "qwen2_5"}),
    "qwen3": Kind(**_QWEN),
    "qwen3_moe": Kind(**_QWEN, own=_EXPERTS | {"num_experts": 8, "norm_topk_prob": True}),
    "gpt_oss": Kind(
        template="gptoss",
        special=(*_HARMONY, "<|message|>", "<|call|>"),
        bos="<|startoftext|>",
        eos="<|return|>",
        pad="<|endoftext|>",
        own=_EXPERTS | {"num_local_experts": 8, "sliding_window": 128},
    ),
    "gemma3_text": Kind(
        template=_GEMMA_TURNS,
        special=_GEMMA,
        bos="<bos>",
        eos="<end_of_turn>",
        pad="<pad>",
        own={"sliding_window": 128, "query_pre_attn_scalar": 32},
    ),
}


def write(
    name: str, folder: Path, *, dtype: str = "bfloat16", sharded: bool = False, tied: bool = False, spoken: bool = True
) -> Path:
    """Write the kind ``name`` to ``folder``; ``spoken``: with a chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = KINDS[name]
    ids = _write_tokenizer(kind, folder, spoken)
    tokens = {f"{role}_token_id": ids.get(getattr(kind, role)) for role in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(
        name, **_SIZES | kind.own, vocab_size=VOCAB + 64, tie_word_embeddings=tied, use_cache=True, **tokens
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # logits that differ enough for greedy tokens not to hang on rounding
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        model.get_input_embeddings().weight.normal_()
    size = "200KB" if sharded else "5GB"
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=size)
    return folder


def _write_tokenizer(kind: Kind, folder: Path, spoken: bool) -> dict[str | None, int]:
    """Write the vocabulary with its settings; returns the ids of its control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    made.train([str(file) for file in sorted((ROOT / "docs").glob("*.md"))], trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in kind.special])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.words])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    named = {f"{role}_token": getattr(kind, role) for role in ("bos", "eos", "pad")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named, indent=1) + "\n")
    if spoken:
        stored = ROOT / "tests" / "data" / "chat_templates" / f"{kind.template}.jinja"
        text = kind.template if "{" in kind.template else stored.read_text()
        (folder / "chat_template.jinja").write_text(text)
    find: Callable[[str], int] = made.token_to_id
    return {token: find(token) for token in (*kind.special, *kind.words)}


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--sharded", action="store_true", help="several files and an index")
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--no-template", action="store_true", help="as a base model: without a chat template")
    given = parser.parse_args()
    form = {"sharded": given.sharded, "tied": given.tied, "spoken": not given.no_template}
    write(given.kind, given.folder, dtype=given.dtype, **form)
    print(f"{given.kind} in {given.folder}: " + ", ".join(sorted(file.name for file in given.folder.iterdir())))


if __name__ == "__main__":
    main()
