"""Any byte-exact ``tokenizer.json``: the library's ids, exact bytes back, and never a control id from text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from chat_families import QWEN3, written
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from model.tokenizer.tokenizer import Tokenizer, load_tokenizer

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
NAMES = (
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "[INST]",
    "<｜User｜>",
    "hello",
    "a b",
    "  ",
    "\n\n",
    "ﬁ",
    "<tool_call>",
)
SAID = "Say hello to the world, hello <think> twice. Was ist das? 日本語 🚀 file ﬁ a b  two\n\nlines"
KINDS = ("bytes", "metaspace", "prepended")


def built(kind: str) -> dict[str, Any]:
    """A small vocabulary: byte-level (GPT-2), Gemma's way of writing blanks, or Llama 2's."""
    backend = Backend(models.BPE(byte_fallback=kind != "bytes"))
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        alphabet = sorted({*map(chr, range(32, 127))})
    first = [] if kind == "bytes" else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=first, show_progress=False)
    backend.train_from_iterator([SAID] * 3, trainer)
    tree = json.loads(backend.to_str())
    tree["added_tokens"] = []
    if kind != "bytes":
        tree["pre_tokenizer"] = None
        blanks: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        prepend = [{"type": "Prepend", "prepend": "▁"}] if kind == "prepended" else []
        tree["normalizer"] = {"type": "Sequence", "normalizers": [*prepend, blanks]}
        back = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if kind == "prepended" else []
        tree["decoder"] = {"type": "Sequence", "decoders": [*back, *strip]}
        tree["model"]["unk_token"] = "<unk>"
        tree["added_tokens"] = [added(tree, "<unk>", special=True)]
    else:
        tree["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return tree


def added(tree: dict[str, Any], name: str, **flags: bool) -> dict[str, Any]:
    """An added token: under the id that the vocabulary has for it, else the next one."""
    vocab = tree["model"]["vocab"]
    taken = max([len(vocab) - 1, *(token["id"] for token in tree["added_tokens"])])
    return {"id": vocab.get(name, taken + 1), "content": name, "special": False} | dict.fromkeys(FLAGS, False) | flags


TREES = {kind: json.dumps(built(kind)) for kind in KINDS}


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str]:
    """A tokenizer file with added tokens of any flags, some learnt by the vocabulary too, and its kind."""
    kind = draw(st.sampled_from(KINDS))
    tree = json.loads(TREES[kind])
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    vocab, merges = tree["model"]["vocab"], tree["model"]["merges"]
    for name in names:
        if kind == "bytes" and draw(st.booleans()) and " " not in name and name.isascii() and len(name) > 2:
            for end in range(2, len(name) + 1):  # merges that lead to it
                if name[:end] not in vocab:
                    vocab[name[:end]] = len(vocab)
                    merges.append([name[: end - 1], name[end - 1]])
    for name in names:
        flags = {flag: draw(st.booleans()) for flag in ("special", *FLAGS)}
        tree["added_tokens"].append(added(tree, name, **flags))
    tree["model"]["ignore_merges"] = draw(st.booleans())
    if kind == "bytes" and draw(st.booleans()):
        tree["normalizer"] = {"type": draw(st.sampled_from(["NFC", "NFKC", "Lowercase"]))}
    return json.dumps(tree), kind


texts = st.lists(
    st.one_of(
        st.sampled_from([*NAMES, "｜", "<", "im_end", "|>", "ＩＮＳＴ", "HELLO", "hel", "lo"]), st.text(max_size=4)
    )
)


@settings(max_examples=150, deadline=None)
@given(file=files(), words=texts)
def test_no_text_from_outside_becomes_a_control_token_whatever_the_flags(file: tuple[str, str], words: list[str]):
    content, _ = file
    text = "".join(words)
    try:
        tokenizer = Tokenizer(content)
    except ValueError as error:
        assert any(said in str(error) for said in ("give text back", "would be", "lacks"))
        return
    control = set(tokenizer.special.values())
    marked = {t["content"] for t in json.loads(content)["added_tokens"] if t["special"] or t["content"][0] in "<["}
    assert set(tokenizer.special) == marked
    for said in (text, " ".join(words), *tokenizer.special, *(name.upper() for name in tokenizer.special)):
        assert control.isdisjoint(tokenizer.encode(said))
    pieces = [(text, False), *((name, True) for name in tokenizer.special), (text, False)]
    assert [i for i in tokenizer.encode_segments(pieces) if i in control] == list(tokenizer.special.values())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=20), st.sampled_from([SAID, " x", "  ", "\x00\x7f", "é🚀\n"])))
def test_ids_are_the_librarys_and_the_exact_text_comes_back(kind: str, text: str):
    text = text.replace("▁", "_")  # which these vocabularies write blanks with
    tree = json.loads(TREES[kind])
    tree["added_tokens"] += [added(tree, "<s>", special=True)]
    tokenizer, library = Tokenizer(json.dumps(tree)), Backend.from_str(json.dumps(tree))
    if text and "<s>" not in text and "<unk>" not in text:
        pieces = [("<s>", True), (text, False), ("<s>", True)]
        ids = tokenizer.encode_segments(pieces)
        assert ids == library.encode(f"<s>{text}<s>", add_special_tokens=False).ids
        assert tokenizer.pieces(ids) == pieces
        assert tokenizer.decode_bytes(ids[1:-1]).decode() == (f" {text}" if kind == "prepended" else text)


def test_a_blank_that_stands_at_the_beginning_only_is_never_put_inside_a_conversation():
    tree = json.loads(TREES["metaspace"])
    tree["normalizer"], tree["pre_tokenizer"] = (
        None,
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    )
    tree["added_tokens"] += [added(tree, "<s>", special=True)]
    tokenizer, library = Tokenizer(json.dumps(tree)), Backend.from_str(json.dumps(tree))
    pieces = [("<s>", True), ("hello", False), ("<s>", True), (" world", False)]
    assert tokenizer.encode_segments(pieces) == library.encode("<s>hello<s> world", add_special_tokens=False).ids


def test_blanks_beside_control_tokens_that_eat_them_are_left_out_as_the_library_does():
    tree = json.loads(TREES["bytes"])
    tree["added_tokens"] = [added(tree, "<|end|>", special=True, rstrip=True)]
    tree["added_tokens"] += [added(tree, "<|begin|>", special=True, lstrip=True)]
    tokenizer, library = Tokenizer(json.dumps(tree)), Backend.from_str(json.dumps(tree))
    pieces = [("hello ", False), ("<|end|>", True), ("\n  two\n ", False), ("<|begin|>", True), (" lines", False)]
    wanted = library.encode("".join(text for text, _ in pieces), add_special_tokens=False).ids
    assert tokenizer.encode_segments(pieces) == wanted


def test_words_that_a_file_adds_stay_words_with_their_ids():
    """Runs of blanks and the like: the model was trained with them."""
    tree = json.loads(TREES["bytes"])
    for name in ("<s>", "    ", "</s>", "hello"):
        tree["added_tokens"].append(added(tree, name, special=name[0] == "<"))
    tokenizer, library = Tokenizer(json.dumps(tree)), Backend.from_str(json.dumps(tree))
    assert list(tokenizer.special) == ["<s>", "</s>"]
    for text in ("if x:\n    hello", "hello", "        "):
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree["model"].update(type="Unigram", vocab=[["a", 0.0]]), "only BPE"),
        (lambda tree: tree.update(decoder=None, pre_tokenizer=None), "neither byte-level nor has it byte_fallback"),
        (lambda tree: tree["model"]["vocab"].pop("A"), "lacks 1 bytes of ordinary text, e.g. 'A'"),
        (lambda tree: tree["added_tokens"].append(added(tree, "<s>") | {"id": 9999}), "it would be"),
        (lambda tree: tree["added_tokens"].extend([added(tree, "<s>"), added(tree, "<t>")]), "same id"),
        (lambda tree: tree["added_tokens"].append(added(tree, "A", special=True)), "ordinary text"),
        (lambda tree: tree.update(normalizer={"type": "Lowercase"}), "do not give text back"),
    ],
)
def test_what_cannot_give_text_back_is_refused_by_name(change: Any, said: str):
    tree = json.loads(TREES["bytes"])
    change(tree)
    with pytest.raises(ValueError, match=said):
        Tokenizer(json.dumps(tree))


def test_characters_whose_bytes_have_no_ids_are_read_as_the_replacement_character():
    """SmolLM2's vocabulary lacks 21 bytes; the library would drop them without a word."""
    tree = json.loads(TREES["bytes"])
    del tree["model"]["vocab"]["Ģ"]
    tree["model"]["merges"] = [pair for pair in tree["model"]["merges"] if "Ģ" not in "".join(pair)]
    tree["model"]["vocab"] = {
        name: i for i, name in enumerate(name for name in tree["model"]["vocab"] if "Ģ" not in name)
    }
    tokenizer = Tokenizer(json.dumps(tree))
    lacking = tokenizer._lacking
    assert len(lacking) == 1
    character = (b"\xc3" + lacking).decode()
    assert tokenizer.decode(tokenizer.encode(f"a{character}b")) == "a\ufffdb"


def test_template_and_names_come_along_by_file_pickle_and_save(tmp_path: Path):
    folder = written(QWEN3, tmp_path / "a")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    first = load_tokenizer(folder)
    first.save(tmp_path / "b")
    for one in (first, load_tokenizer(tmp_path / "b"), pickle.loads(pickle.dumps(first))):
        assert one.template == QWEN3.jinja and one.fingerprint == first.fingerprint
        assert (one.named("bos_token"), one.named("eos_token"), one.named("pad_token")) == (
            "<|im_start|>",
            "<|im_end|>",
            None,
        )
        assert one.special == first.special and one.encode(SAID) == first.encode(SAID)
    (folder / "chat_template.jinja").unlink()
    several = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    for chat, wanted in (("one", "one"), (several, "two"), (several[:1], "one"), (None, None)):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": chat}))
        assert load_tokenizer(folder).template == wanted
