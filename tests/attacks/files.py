"""Untrusted files: malicious configurations, models, tokenizers, stores, pictures and trajectories.

Each case writes its file. It must be refused with a readable error (exit code 2 on the command line), within
seconds and without the memory that it asks for.
"""

from __future__ import annotations

import base64
import json
import resource
import struct
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack

ROOT = Path(__file__).parents[2]
SECONDS, MEMORY = 20.0, 1.5e9  # per case; bytes of growth of the process


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def refused(call: Callable[[], Any], says: str) -> None:
    """``call`` must raise one of our errors with ``says`` in its text, within time and memory limits."""
    from parl.errors import UserError
    from rollouts.store.store import StoreError

    began, before = time.monotonic(), _peak()
    try:
        call()
    except (UserError, StoreError, ValueError, FileNotFoundError) as error:
        assert says.lower() in str(error).lower(), f"it says {error!s:.400}"
        assert len(str(error)) < 5000, "the error is a page long"
    else:
        raise AssertionError("it was taken")
    assert time.monotonic() - began < SECONDS, "it took too long"
    assert _peak() - before < MEMORY, "it took too much memory"


def _laughs(levels: int = 12) -> str:
    lines = ['a0: &a0 ["x", "x", "x", "x", "x", "x", "x", "x", "x"]']
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "billion laughs": (_laughs(), "aliases"),
    "laughs by merge keys": ("a: &a {x: 1}\nb: &b {<<: *a, y: *a}\nc: &c [*b, *b]\n" + _laughs(9), "aliases"),
    "an alias of itself": ("a: &a [*a]", "alias"),
    "a merge of itself": ("a: &a {<<: *a, seed: 1}", "alias"),
    "nested lists": ("a: " + "[" * 5000 + "]" * 5000, "deep"),
    "nested mappings": ("a: " + "{a: " * 2000 + "1" + "}" * 2000, "deep"),
    "an open bracket, a megabyte of them": ("a: " + "[" * 1_000_000, "deep"),
    "a python object": ("a: !!python/object/apply:os.system ['true']", "tag"),
    "a python name": ("a: !!python/name:os.system", "tag"),
    "a tag of its own": ("a: !secret x", "tag"),
    "a binary": ("a: !!binary aGVsbG8=", "tag"),
    "a set": ("a: !!set {x, y}", "tag"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "another document"),
    "a key twice": ("seed: 1\nseed: 2\n", "twice"),
    "a nested key twice": ("trainer:\n  steps: 1\n  steps: 2\n", "twice"),
    "a number as key": ("1: x\n", "quote it"),
    "a truth as key": ("on: x\n", "quote it"),
    "nothing as key": ("~: x\n", "quote it"),
    "a list as key": ("? [a, b]\n: x\n", "no text"),
    "a date as key": ("2026-01-01: x\n", "2026-01-01"),
    "a number of ten thousand digits": ("seed: " + "9" * 10_000, "digits"),
    "a number beyond 64 bits": ("seed: 36893488147419103232", "64 bits"),
    "a day that is none": ("seed: 2026-99-99", "seed"),
    "infinity": ("trainer:\n  lr: .inf\n", "trainer.lr"),
    "infinity in a list in a list": ("trainer:\n  lr: [[{a: .nan}]]\n", "finite"),
    "a control character": ("seed: 1\x00\n", "not allowed"),
    "an escape": ("seed: \x1b[31m1\n", "not allowed"),
    "a tab": ("trainer:\n\tsteps: 1\n", "not valid YAML"),
    "Latin-1": (b"run: caf\xe9\n", "not UTF-8"),
    "bytes": (bytes(range(256)), "not UTF-8"),
    "a list": ("- a\n- b\n", "mapping"),
    "a text": ("only words", "mapping"),
    "two megabytes": ("# " + "x" * 2**21, "bytes"),
    "a hundred thousand keys": ("\n".join(f"k{i}: 1" for i in range(60_000)), "values"),
    "an unknown alias": ("a: *b", "undefined alias"),
    "absurd layers": ("model:\n  num_hidden_layers: 1152921504606846976\n", "num_hidden_layers"),
    "negative width": ("model:\n  hidden_size: -8\n", "hidden_size"),
    "a float of heads": ("model:\n  num_attention_heads: 4.0\n", "num_attention_heads"),
    "a text of heads": ('model:\n  num_attention_heads: "4"\n', "num_attention_heads"),
    "true experts": ("model:\n  n_routed_experts: true\n", "n_routed_experts"),
    "a billion experts": ("model:\n  n_routed_experts: 1000000000\n", "n_routed_experts"),
    "a vocabulary without end": ("model:\n  vocab_size: 99999999999\n", "vocab_size"),
}


def _config(content: str | bytes, says: str, folder: Path) -> None:
    from parl.config.load import load_config

    file = folder / "config.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: load_config(file), says)


def _published() -> dict[str, Any]:
    from model.kimi.config import ModelConfig
    from model.kimi.files.hf_config import to_hf

    return to_hf(ModelConfig())


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "2**60 layers": ({"num_hidden_layers": 2**60}, "num_hidden_layers"),
    "10**400 layers": ({"num_hidden_layers": 10**400}, "num_hidden_layers"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "negative heads": ({"num_attention_heads": -4, "num_key_value_heads": -4}, "num_attention_heads"),
    "a float": ({"hidden_size": 128.5}, "hidden_size"),
    "a whole float": ({"hidden_size": 128.0}, "hidden_size"),
    "a text": ({"vocab_size": "1152"}, "vocab_size"),
    "true": ({"n_shared_experts": True}, "n_shared_experts"),
    "a list": ({"moe_intermediate_size": [96]}, "moe_intermediate_size"),
    "an object": ({"intermediate_size": {"a": 1}}, "intermediate_size"),
    "null": ({"kv_lora_rank": None}, "kv_lora_rank"),
    "a billion experts": ({"n_routed_experts": 10**9}, "n_routed_experts"),
    "more experts a token than there are": ({"num_experts_per_tok": 99}, "num_experts_per_tok"),
    "odd rotary width": ({"qk_rope_head_dim": 15}, "qk_rope_head_dim"),
    "a width that groups cannot take": ({"hidden_size": 129}, "hidden_size"),
    "rope as a list": ({"rope_scaling": [1, 2]}, "rope_scaling"),
    "rope as a text": ({"rope_parameters": "yarn"}, "rope_parameters"),
    "rope of length zero": (
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}},
        "original_max_position_embeddings",
    ),
    "rope of text": (
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": "4096"}},
        "original_max_position_embeddings",
    ),
    "rope of a negative factor": (
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 64, "factor": -1}},
        "factor",
    ),
    "another model": ({"model_type": ["deepseek_v3"]}, "model_type"),
    "kimi in kimi in kimi": (
        {"model_type": "kimi_k25", "text_config": {"model_type": "kimi_k25", "text_config": {}}},
        "model_type",
    ),
    "text section as a text": ({"model_type": "kimi_k25", "text_config": "x"}, "text_config"),
}
RAW: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "cannot be read"),
    "half a file": ('{"model_type": "deepseek_v3", ', "cannot be read"),
    "a list": ("[1, 2]", "object"),
    "NaN": ('{"model_type": "deepseek_v3", "rope_theta": NaN}', "NaN"),
    "a key twice": ('{"model_type": "a", "model_type": "deepseek_v3"}', "twice"),
    "nested without end": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested"),
    "UTF-16": ('{"model_type": "deepseek_v3"}'.encode("utf-16"), "cannot be read"),
    "40 MB": ('{"a": "' + "x" * 40_000_000 + '"}', "bytes"),
}


def _changed(changes: dict[str, Any], says: str, folder: Path) -> None:
    from model.kimi.files.hf_config import read_shape

    (folder / "config.json").write_text(json.dumps(_published() | changes))
    refused(lambda: read_shape(folder), says)


def _raw(content: str | bytes, says: str, folder: Path) -> None:
    from model.kimi.files.hf_config import read_shape

    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: read_shape(folder), says)


def _tiny() -> dict[str, Any]:
    small = {"hidden_size": 8, "num_hidden_layers": 2, "n_routed_experts": 2, "vocab_size": 16, "kv_lora_rank": 8}
    small |= {"intermediate_size": 8, "moe_intermediate_size": 8, "q_lora_rank": 8, "num_attention_heads": 1}
    return _published() | small | {"num_key_value_heads": 1, "look_back": False}


def _header(tree: Any, body: bytes = b"", length: int | None = None) -> bytes:
    head = json.dumps(tree).encode() if not isinstance(tree, bytes) else tree
    return struct.pack("<Q", len(head) if length is None else length) + head + body


def _one(start: int = 0, end: int = 64, dtype: str = "F32", shape: Any = (4, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read"),
    "seven bytes": (b"\x01\x00\x00\x00\x00\x00\x00", "cannot be read"),
    "a header of 2**63 bytes": (_header({}, length=2**63), "cannot be read"),
    "a header longer than the file": (_header({"a": _one()}, bytes(64), 10_000), "cannot be read"),
    "a header that is no JSON": (_header(b"{not json"), "cannot be read"),
    "offsets beyond the end": (_header({"a": _one(0, 2**40)}, bytes(64)), "cannot be read"),
    "offsets turned round": (_header({"a": _one(64, 0)}, bytes(64)), "cannot be read"),
    "overlapping tensors": (_header({"a": _one(), "b": _one(32, 96)}, bytes(96)), "cannot be read"),
    "a shape that its bytes deny": (_header({"a": _one(shape=(2**31, 2**31))}, bytes(64)), "cannot be read"),
    "a kind that its bytes deny": (_header({"a": _one(dtype="F64")}, bytes(64)), "cannot be read"),
    "an unknown kind": (_header({"a": _one(dtype="EVIL")}, bytes(64)), "cannot be read"),
    "bytes that nobody owns": (_header({"a": _one()}, bytes(640)), "cannot be read"),
    "one tensor for a whole model": (_header({"a": _one()}, bytes(64)), "tensors"),
    "a pickle by that name": (b"\x80\x04\x95\x10\x00\x00\x00cos\nsystem\n.", "cannot be read"),
}


def _weights(content: bytes, says: str, folder: Path) -> None:
    from model.kimi.files.checkpoint import load

    (folder / "config.json").write_text(json.dumps(_tiny()))
    (folder / "model.safetensors").write_bytes(content)
    refused(lambda: load(folder), says)


def _index(place: Any, says: str, folder: Path) -> None:
    from model.kimi.files.checkpoint import load

    (folder.parent / "outside.safetensors").write_bytes(_header({"a": _one()}, bytes(64)))
    (folder / "config.json").write_text(json.dumps(_tiny()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    refused(lambda: load(folder), says)


def _pickle(folder: Path) -> None:
    from model.kimi.files.checkpoint import load

    (folder / "config.json").write_text(json.dumps(_tiny()))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    refused(lambda: load(folder), "pickle")


def _more_layers(changes: dict[str, Any], says: str, folder: Path) -> None:
    """Valid weights, with a config.json that asks for more than they hold."""
    from model.kimi.files.checkpoint import load

    named = {f"t{i}": _one(64 * i, 64 * i + 64) for i in range(40)}
    (folder / "config.json").write_text(json.dumps(_tiny() | changes))
    (folder / "model.safetensors").write_bytes(_header(named, bytes(64 * 40)))
    refused(lambda: load(folder), says)


QUANTIZED: dict[str, Any] = {
    "as a list": [1],
    "as a text": "int4",
    "groups as a list": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": [1]},
    "weights as a text": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": "all"}},
    },
}


def _quantized(given: Any, folder: Path) -> None:
    from model.kimi.int4 import group_size_of

    refused(lambda: group_size_of(given), "quantization_config")


def _tokenizer() -> dict[str, Any]:
    found = min((ROOT / "configs" / "starters").glob("*/tokenizer.json"))
    return json.loads(found.read_text())


def _flag(name: str, value: bool, tree: dict[str, Any]) -> None:
    next(token for token in tree["added_tokens"] if token["content"] == "<think>")[name] = value


def _in_vocabulary(tree: dict[str, Any]) -> None:
    tree["model"]["vocab"] |= {token["content"]: token["id"] for token in tree["added_tokens"]}


def _learnt(tree: dict[str, Any]) -> None:
    """An ordinary vocabulary entry replaces a control token."""
    _in_vocabulary(tree)
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] != "<|im_end|>"]


def _twin(tree: dict[str, Any]) -> None:
    tokens = {token["content"]: token for token in tree["added_tokens"]}
    tokens["<|im_user|>"]["id"] = tokens["<|im_system|>"]["id"]


def _far(tree: dict[str, Any]) -> None:
    tree["added_tokens"][-1]["id"] = 2**31


def _folding(tree: dict[str, Any]) -> None:
    """A normaliser turns full-width letters into the token's letters before it is looked up."""
    tree["normalizer"] = {"type": "NFKC"}
    _flag("normalized", True, tree)


def _spelt(tree: dict[str, Any]) -> None:
    """The vocabulary has the spellings under the control tokens' ids, and nothing splits them."""
    _in_vocabulary(tree)
    tree["pre_tokenizer"] = None


HARMLESS: dict[str, Callable[[dict[str, Any]], Any]] = {  # accepted, and no text becomes a control token
    "a control token that is text": partial(_flag, "special", False),
    "a control token that eats blanks": partial(_flag, "lstrip", True),
    "a control token that eats what follows": partial(_flag, "rstrip", True),
    "a control token of whole words": partial(_flag, "single_word", True),
    "a control token after normalising": partial(_flag, "normalized", True),
    "full-width letters become a control token": _folding,
}
TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a control token in the vocabulary alone": (_learnt, "im_end"),
    "a text that spells a control token": (_spelt, "give text back"),
    "two control tokens of one id": (_twin, "added_tokens"),
    "an id beyond the vocabulary": (_far, "id"),
    "no added tokens": (lambda tree: tree.pop("added_tokens"), "tokenizer"),
    "no model": (lambda tree: tree.pop("model"), "tokenizer"),
    "a model of another kind": (lambda tree: tree.__setitem__("model", {"type": "EVIL"}), "tokenizer"),
    "a vocabulary as a list": (lambda tree: tree["model"].__setitem__("vocab", [1, 2]), "tokenizer"),
    "merges of what is not there": (lambda tree: tree["model"]["merges"].append(["no", "thing"]), "tokenizer"),
}
TOKENIZER_RAW: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "tokenizer"),
    "a list": (b"[]", "tokenizer"),
    "bytes": (b"\xff\xfe\x00", "tokenizer"),
    "nested without end": (b'{"a":' * 50_000, "tokenizer"),
}


def _spoilt(spoil: Callable[[dict[str, Any]], Any], says: str, folder: Path) -> None:
    from model.chat.kimi import KimiChat
    from model.tokenizer.tokenizer import Tokenizer

    tree = _tokenizer()
    spoil(tree)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    refused(lambda: KimiChat(Tokenizer.load(folder)), says)


def _harmless(spoil: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    from model.chat.kimi import SPECIAL_TOKENS
    from model.tokenizer.tokenizer import Tokenizer

    tree = _tokenizer()
    spoil(tree)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    tokenizer = Tokenizer.load(folder)
    control = set(tokenizer.special.values())
    for name in SPECIAL_TOKENS:
        wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in name)
        for text in (name, f"a{name}b", f" {name}\n", f"{name}{name}", name.upper(), wide):
            if not control.isdisjoint(tokenizer.encode(text)):
                raise AssertionError(f"the text {text!r} becomes a control token")


def _tokenizer_raw(content: bytes, says: str, folder: Path) -> None:
    from model.tokenizer.tokenizer import Tokenizer

    (folder / "tokenizer.json").write_bytes(content)
    refused(lambda: Tokenizer.load(folder), says)


def _ranks(lines: list[bytes], says: str, folder: Path) -> None:
    from model.tokenizer.tokenizer import KimiTokenizer

    (folder / "tiktoken.model").write_bytes(b"\n".join(lines))
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {}}')
    refused(lambda: KimiTokenizer(folder), says)


def _kimi_names(decoder: Any, says: str, folder: Path) -> None:
    from model.tokenizer.tokenizer import KimiTokenizer

    (folder / "tiktoken.model").write_bytes(b"\n".join(_bytes_ranks()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    refused(lambda: KimiTokenizer(folder), says)


def _bytes_ranks() -> list[bytes]:
    return [base64.b64encode(bytes([byte])) + b" %d" % byte for byte in range(256)]


def _table(folder: Path, **columns: Any) -> tuple[Any, Path]:
    """A shard of one episode as an Arrow table with replaced columns, and its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from stored import make_episode, wide_task

    from rollouts.store.store import EpisodeStore

    path = EpisodeStore(folder).write(1, [make_episode(wide_task(1), spawning=True)], policy_version=0)
    table = pq.read_table(path)
    for name, value in columns.items():
        place = table.schema.get_field_index(name)
        if value is None:
            table = table.remove_column(place)
        else:
            made = value if isinstance(value, pa.Array) else pa.array([value], table.schema.field(place).type)
            table = table.set_column(place, name, made)
    return table, path


def _store(says: str, folder: Path, **columns: Any) -> None:
    import pyarrow.parquet as pq

    table, path = _table(folder, **columns)
    pq.write_table(table, path)
    _read(path, says)


def _read(path: Path, says: str) -> None:
    from rollouts.store.lookup import read_episodes
    from rollouts.store.outline import read_outlines
    from rollouts.store.store import read_shard

    refused(lambda: read_shard(path), says)
    refused(lambda: (list(read_outlines([path])), read_shard(path)), says)
    refused(lambda: read_episodes(path, [0]), says)


def _traces(change: Callable[[list[dict[str, Any]]], Any], says: str, folder: Path) -> None:
    table, _ = _table(folder)
    told = json.loads(table["traces"][0].as_py())
    change(told)
    _store(says, folder, traces=json.dumps(told))


def _bytes_of(change: Callable[[bytes], bytes], says: str, folder: Path) -> None:
    _, path = _table(folder)
    path.write_bytes(change(path.read_bytes()))
    _read(path, says)


def _bomb(folder: Path) -> None:
    """A file of some kilobytes that unpacks to gigabytes: one long text, thousands of times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, path = _table(folder)
    text = pa.array(["x" * 8_000_000], pa.large_string())
    small = table.set_column(table.schema.get_field_index("traces"), "traces", text)
    pq.write_table(pa.concat_tables([small] * 64), path, compression="zstd", row_group_size=64)
    assert path.stat().st_size < 3_000_000
    _read(path, "unpack")


def _cut_tail(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _own_parent(told: list[dict[str, Any]]) -> None:
    told[1]["parent"] = told[1]["agent_id"]


def _own_child(told: list[dict[str, Any]]) -> None:
    told[1]["turns"][0]["spawned"] = [told[1]["agent_id"]]


def _twice(told: list[dict[str, Any]]) -> None:
    told[2]["agent_id"] = told[1]["agent_id"]


def _length(told: list[dict[str, Any]]) -> None:
    told[0]["length"]["tokens"] += 8


def _negative(told: list[dict[str, Any]]) -> None:
    told[0]["length"]["tokens"] = -told[0]["length"]["tokens"]


def _wide_routes(told: list[dict[str, Any]]) -> None:
    told[0]["routes"] = [2**40, 2**20, 2**20]


def _png(width: int, height: int, chunks: bytes = b"", data: bytes | None = None) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = zlib.compress(bytes(1000)) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _text_chunk() -> bytes:
    body = b"Comment\0\0" + zlib.compress(b"x" * 200_000_000)
    return struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))


PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "60,000 x 60,000 pixels": (lambda: _png(60_000, 60_000), "pixels"),
    "2**31 pixels wide": (lambda: _png(2**31 - 1, 1), "pixels"),
    "no pixels": (lambda: _png(0, 0), ""),
    "cut off": (lambda: _png(64, 64)[:60], "cannot be read"),
    "data that is no zlib": (lambda: _png(64, 64, data=b"rubbish"), "cannot be read"),
    "too little data": (lambda: _png(640, 640), "cannot be read"),
    "a text chunk of 200 MB": (lambda: _png(8, 8, _text_chunk()), ""),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
    "an SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
    "nothing": (lambda: b"", "cannot be read"),
}


def _picture(make: Callable[[], bytes], says: str, folder: Path) -> None:
    from model.kimi.vision.media import open_image

    refused(lambda: open_image(make()), says)


def _counted(folder: Path) -> None:
    from model.kimi.vision.picture_size import picture_tokens

    refused(lambda: picture_tokens(_png(2**30, 2**30)), "pixels")


def _atif(**fields: Any) -> dict[str, Any]:
    steps = [{"source": "user", "message": "do"}, {"source": "agent", "message": "done"}]
    return {"schema_version": "ATIF-v1.8", "agent": {"name": "a"}, "session_id": "s", "steps": steps} | fields


def _refers(**reference: Any) -> dict[str, Any]:
    result = {"content": "x", "subagent_trajectory_ref": [reference]}
    return _atif(steps=[{"source": "agent", "message": "m", "observation": {"results": [result]}}])


def _step(**fields: Any) -> dict[str, Any]:
    return _atif(steps=[{"source": "agent", "message": "m"} | fields])


def _parl(**fields: Any) -> dict[str, Any]:
    """One of our own exports with a changed field of the episode."""
    from stored import make_episode, wide_task

    from parl.episodes.formats import atif
    from parl.episodes.formats.common import ExportOptions

    document = atif.export(make_episode(wide_task(1), spawning=False), ExportOptions())
    document["extra"]["parl_episode"] |= fields
    return document


ATIF: dict[str, tuple[Callable[[], Any], str]] = {
    "an absolute path": (lambda: _refers(trajectory_path="/etc/hostname"), "trajectory_path"),
    "a path up": (lambda: _refers(trajectory_path="../secret.json"), "trajectory_path"),
    "a path up from below": (lambda: _refers(trajectory_path="a/../../secret.json"), "trajectory_path"),
    "a file address": (lambda: _refers(trajectory_path="file:///etc/hostname"), "trajectory_path"),
    "an address": (lambda: _refers(trajectory_path="http://127.0.0.1:9/x.json"), "trajectory_path"),
    "a share": (lambda: _refers(trajectory_path="\\\\host\\share\\x.json"), "trajectory_path"),
    "a path with a zero byte": (lambda: _refers(trajectory_path="x\0.json"), "trajectory_path"),
    "a path that is a number": (lambda: _refers(trajectory_path=7), "trajectory_path"),
    "a path of ten thousand letters": (lambda: _refers(trajectory_path="x" * 10_000), "trajectory_path"),
    "a link out": (lambda: _refers(trajectory_path="link.json"), "trajectory_path"),
    "itself": (lambda: _refers(trajectory_path="given.json"), "itself"),
    "nobody": (lambda: _refers(trajectory_id="none"), "not there"),
    "steps as a text": (lambda: _atif(steps="many"), "given.json"),
    "steps as numbers": (lambda: _atif(steps=[1, 2]), "given.json"),
    "a name as a list": (lambda: _atif(agent={"name": ["a"]}), "name"),
    "token ids as texts": (lambda: _step(metrics={"completion_token_ids": ["a"], "logprobs": [0.0]}), "token"),
    "token ids beyond 32 bits": (lambda: _step(metrics={"completion_token_ids": [2**40]}), "token"),
    "log-probs of NaN": (lambda: _step(metrics={"completion_token_ids": [1], "logprobs": [float("nan")]}), "log-prob"),
    "times as texts": (lambda: _step(extra={"t_start": "soon"}), "given.json"),
    "times without end": (lambda: _step(extra={"t_start": 1e300}), "t_start"),
    "a seed beyond 64 bits": (lambda: _parl(seed=2**70), "seed"),
    "an index as a text": (lambda: _parl(index="0"), "index"),
    "rewards as texts": (lambda: _parl(rewards={"total": "1"}), "rewards"),
    "an unknown status": (lambda: _parl(status="won"), "given.json"),
    "an answer as an object": (lambda: _parl(answer={"a": 1}), "answer"),
    "another version": (lambda: _atif(schema_version="ATIF-v9.0"), "schema_version"),
    "nested without end": (lambda: b'{"a":' * 50_000, "not JSON"),
    "bytes": (lambda: b"\xff\xfe\x00", "not JSON"),
    "a list": (lambda: b"[]", "not an object"),
}


def _trajectory(make: Callable[[], Any], says: str, folder: Path) -> None:
    from parl.episodes.exchange import chosen_format, import_episodes

    (folder / "secret.json").write_text(json.dumps(_atif()))
    inside = folder / "in"
    inside.mkdir()
    (inside / "link.json").symlink_to(folder / "secret.json")
    given = make()
    file = inside / "given.json"
    file.write_bytes(given if isinstance(given, bytes) else json.dumps(given).encode())
    refused(lambda: import_episodes(file, folder / "out", chosen_format("atif")), says)


def _verifiers(nodes: Any, says: str, folder: Path) -> None:
    from parl.episodes.exchange import chosen_format, import_episodes

    file = folder / "traces.jsonl"
    file.write_text(json.dumps({"traces": [{"nodes": nodes}]}) + "\n")
    refused(lambda: import_episodes(file, folder / "out", chosen_format("verifiers")), says)


def _node(**fields: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "x"}} | fields


def _surrogates(folder: Path) -> None:
    """Lone surrogates in every text can be stored, shown, put on a page and exported."""
    from hostile import hostile_store

    from parl.episodes.exchange import chosen_format, export_episodes
    from parl.episodes.formats.common import ExportOptions
    from parl.episodes.listing import Filter
    from parl.report import write_report
    from rollouts.store.store import read_shard

    store = hostile_store(folder / "store", 2)
    assert len(read_shard(store / "train-000001.parquet")[0]) == 2
    write_report(store, folder / "report.html").read_bytes().decode()
    for name in ("atif", "openai", "verifiers", "otel", "widesearch", "browsecomp-plus", "verifiers-results"):
        assert export_episodes(store, folder / name, chosen_format(name), Filter(), ExportOptions())[0] == 2


def _one_config(key: str, folder: Path) -> None:
    """Credentials in an address reach neither config.yaml nor the output."""
    from parl.shown.redaction import without_credentials

    given = {"rollouts": {"http": {"urls": [f"http://me:{key}@127.0.0.1:8000/v1", f"https://h.example/?token={key}"]}}}
    out = json.dumps(without_credentials(given))
    assert key not in out and "127.0.0.1:8000/v1" in out


def cases() -> list[Attack]:
    """All cases, named after their file."""
    made: list[tuple[str, Callable[[Path], None]]] = []
    for title, table, run in (
        ("configuration", CONFIGS, _config), ("config.json", CHANGES, _changed), ("config.json as", RAW, _raw),
        ("weights", WEIGHTS, _weights), ("tokenizer", TOKENIZERS, _spoilt), ("picture", PICTURES, _picture),
        ("tokenizer.json as", TOKENIZER_RAW, _tokenizer_raw), ("trajectory", ATIF, _trajectory),
    ):  # fmt: skip
        made += [(f"{title}: {name}", partial(run, *row)) for name, row in table.items()]
    made += [(f"quantisation {name}", partial(_quantized, given)) for name, given in QUANTIZED.items()]
    made += [(f"tokenizer: {name}", partial(_harmless, spoil)) for name, spoil in HARMLESS.items()]
    outside = {
        "up": {"a": "../outside.safetensors"}, "absolute": {"a": "/etc/hostname"}, "empty": {}, "a list": ["a"],
        "a number": {"a": 7}, "not there": {f"t{i}": "model-00009.safetensors" for i in range(40)},
    }  # fmt: skip
    made += [(f"index: {name}", partial(_index, place, "")) for name, place in outside.items()]
    made += [
        ("weights: a pickle alone", _pickle),
        ("weights: 1000 layers of 40 tensors", partial(_more_layers, {"num_hidden_layers": 1000}, "tensors")),
        ("weights: 16384 experts of 40 tensors", partial(_more_layers, {"n_routed_experts": 16384}, "tensors")),
        ("weights: further layers without end", partial(_more_layers, {"num_nextn_predict_layers": 2**60}, "nextn")),
        ("vocabulary: no base64", partial(_ranks, [b"\xff\xff 0"], "tiktoken")),
        ("vocabulary: a token twice", partial(_ranks, [*_bytes_ranks(), b"YQ== 256"], "twice")),
        ("vocabulary: a rank left out", partial(_ranks, [*_bytes_ranks(), b"YWE= 999"], "gaps")),
        ("vocabulary: a byte left out", partial(_ranks, [b"YQ== 0", b"Yg== 1"], "bytes")),
        ("vocabulary: empty", partial(_ranks, [], "tiktoken.model")),
        ("names: as a list", partial(_kimi_names, [1], "added_tokens_decoder")),
        ("names: ids as words", partial(_kimi_names, {"x": {"content": "a"}}, "added_tokens_decoder")),
        ("names: one for two", partial(_kimi_names, {str(i): {"content": "[BOS]"} for i in (256, 257)}, "special")),
        ("names: without the control tokens", partial(_kimi_names, {}, "control tokens")),
        ("picture: tokens of 2**60 pixels", _counted),
        ("store: a column left out", partial(_store, "lacks the column", traces=None)),
        ("store: a column of another kind", partial(_other_kind)),
        ("store: traces that are no JSON", partial(_store, "", traces="{")),
        ("store: traces nested without end", partial(_store, "", traces="[" * 50_000)),
        ("store: no agents", partial(_store, "", traces="[]")),
        ("store: an unknown status", partial(_store, "", status="won")),
        ("store: tokens of odd bytes", partial(_store, "", tokens=b"abc")),
        ("store: tokens left out", partial(_store, "", tokens=b"")),
        ("store: more tokens than there are", partial(_traces, _length, "tokens")),
        ("store: a negative length", partial(_traces, _negative, "tokens")),
        ("store: routes of 2**80", partial(_traces, _wide_routes, "routes")),
        ("store: an agent that launched itself", partial(_traces, _own_parent, "launched")),
        ("store: a turn that launches its own agent", partial(_traces, _own_child, "launched")),
        ("store: two agents of one id", partial(_traces, _twice, "one id")),
        ("store: cut off", partial(_bytes_of, _cut_tail, "shard")),
        ("store: another file", partial(_bytes_of, lambda data: b"not parquet at all", "shard")),
        ("store: wrong magic", partial(_bytes_of, lambda data: b"EVIL" + data[4:-4] + b"EVIL", "shard")),
        ("store: empty", partial(_bytes_of, lambda data: b"", "shard")),
        ("store: unpacks to gigabytes", _bomb),
        ("graph: a node that is its own parent", partial(_verifiers, [_node(parent=0)], "parent")),
        ("graph: parents in a circle", partial(_verifiers, [_node(parent=1), _node(parent=0), _node(parent=1)], "")),
        ("graph: a negative parent", partial(_verifiers, [_node(), _node(parent=-1)], "parent")),
        ("graph: a parent as a text", partial(_verifiers, [_node(), _node(parent="0")], "parent")),
        ("graph: nodes as texts", partial(_verifiers, ["a"], "traces.jsonl")),
        ("surrogates everywhere", _surrogates),
        ("configuration: credentials in addresses", partial(_one_config, "hunter2" * 2)),
    ]
    return [Attack(area="files", name=name, run=run) for name, run in made]


def _other_kind(folder: Path) -> None:
    import pyarrow as pa

    _store("column", folder, seed=pa.array(["x"]))
