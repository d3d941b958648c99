"""Policies on disk, in Hugging Face's layouts and in that of a run.

``deepseek_v3`` and ``kimi_k25`` are ``config.json`` and safetensors, one file or shards with an index. They
are read and written one shard at a time: besides the model, memory holds one tensor when reading and one
shard when writing. A ``kimi_k25`` checkpoint with a vision section includes tower and projector. A run's
layout (:mod:`model.policy_files`) is read here as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.json_file import read_json
from model.kimi import int4
from model.kimi.attention import rope_tables
from model.kimi.config import ModelConfig
from model.kimi.files.hf_config import read_shape, text_section, to_hf
from model.kimi.files.hf_layout import OURS, PREFIXES, VISION, Slot, layout, our_shapes, published_name
from model.kimi.files.vision_checkpoint import from_published, to_published
from model.kimi.transformer import Transformer
from model.policy_files import INDEX, SINGLE, pickled

MODEL_TYPES = {"hf": "deepseek_v3", "kimi_k25": "kimi_k25"}
_INDEX_BYTES = 256 * 2**20  # K2.5's, with 200,000 tensors, has 20 MiB
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_BIAS = "e_score_correction_bias"  # kept in float32: its updates are too small for bfloat16


class _Described(NamedTuple):
    """What a folder's ``config.json`` says about its tensors."""

    config: ModelConfig
    slots: dict[str, Slot]
    skipped: tuple[str, ...] = ()  # prefixes of known tensors that are skipped
    group_size: int | None = None  # inputs that share a scale in INT4 matrices


def load(path: str | Path, dtype: torch.dtype = torch.float32, *, vision: bool = True) -> Transformer:
    """The policy in folder ``path``, Hugging Face's or a run's, its matrices in ``dtype``.

    ``vision=False`` loads the language model alone. FileNotFoundError and ValueError name the file and the
    tensor that is missing, unknown, misshapen or truncated.
    """
    path = Path(path)
    config, slots, skipped, group_size = _described(path, vision)
    shapes, ours, seen = our_shapes(config), {}, set()
    for file, name, tensor in _tensors(path, slots, skipped, group_size):
        if name in seen:
            raise ValueError(f"{file}: tensor {name} is there twice")
        slot = slots[name]
        if tuple(tensor.shape) != slot.shape:
            raise ValueError(f"{file}: {name} has shape {list(tensor.shape)}, config.json makes it {list(slot.shape)}")
        seen.add(name)
        if slot.parts:
            converted = from_published({name: tensor}, config.vision) if config.vision else {}
            ours |= {OURS + part: value.to(dtype, copy=True) for part, value in converted.items()}
            continue
        if slot.name not in ours:
            kind = torch.float32 if slot.name.endswith(_BIAS) else dtype
            ours[slot.name] = torch.empty(shapes[slot.name], dtype=kind)
        slot.of(ours[slot.name]).copy_(tensor)
    missing = [name for name in slots if name not in seen]
    if missing:
        raise ValueError(f"{path} lacks {_listed(missing)}")
    return _assembled(config, ours)


def _described(path: Path, vision: bool) -> _Described:
    hf = read_json(path / "config.json")
    config = read_shape(path)
    if not vision:
        config = config.model_copy(update={"vision": None, "media_placeholder_token_id": None})
    if "model_type" not in hf:  # a run's policy
        _check_count(path, config, one_by_one=False)
        slots = {name: Slot(name, shape) for name, shape in our_shapes(config).items()}
        return _Described(config, slots, () if config.vision else (OURS,))
    text = text_section(hf)
    try:
        quantization = text.get("quantization_config") or hf.get("quantization_config")
        group_size = int4.group_size_of(quantization) if quantization else None
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from None
    _check_count(path, config, one_by_one=True)
    kimi = hf["model_type"] == "kimi_k25"
    slots = layout(config, PREFIXES["kimi_k25" if kimi else "hf"])
    try:
        return _Described(config, slots, _skipped(config, text, kimi), group_size)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from None


def _check_count(path: Path, config: ModelConfig, *, one_by_one: bool) -> None:
    """ValueError if ``config.json`` asks for more tensors than the files hold, before anything is allocated.

    ``one_by_one``: each expert has its own tensors.
    """
    places = _places(path)
    held = len(places)
    if not places:
        with _opened(path / SINGLE) as reader:
            held = len(reader.keys())
    wanted = 4 * config.num_hidden_layers + (3 * config.num_moe_layers * config.n_routed_experts if one_by_one else 0)
    if wanted > held:
        raise ValueError(
            f"{path / 'config.json'}: num_hidden_layers={config.num_hidden_layers} with n_routed_experts="
            f"{config.n_routed_experts} asks for more than {wanted:,} tensors, the files hold {held:,}"
        )


def _assembled(config: ModelConfig, ours: dict[str, Tensor]) -> Transformer:
    """A model that holds the tensors of ``ours`` themselves, without initialisation or copies."""
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(ours, assign=True)
    model.rope_cos, model.rope_sin = rope_tables(config)  # not in any checkpoint
    for router in model.routers():
        router.load_E = torch.zeros(config.n_routed_experts)
    return model


def _skipped(config: ModelConfig, text: dict[str, Any], kimi: bool) -> tuple[str, ...]:
    """Prefixes of known tensors that are skipped: unwanted vision, multi-token prediction layers."""
    first, prefix = config.num_hidden_layers, PREFIXES["kimi_k25" if kimi else "hf"]
    unwanted = VISION if kimi and config.vision is None else ()
    more = text.get("num_nextn_predict_layers") or 0
    if isinstance(more, bool) or not isinstance(more, int) or not 0 <= more <= 64:
        raise ValueError(f"num_nextn_predict_layers={more!r:.80} must be a whole number from 0 to 64")
    extra = range(first, first + more)
    return (*(f"{prefix}model.layers.{layer}." for layer in extra), *unwanted)


def _tensors(
    path: Path, slots: dict[str, Slot], skipped: tuple[str, ...], group_size: int | None
) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor) of every tensor of ours in the checkpoint, INT4 matrices unpacked."""
    places = _places(path)
    for file in sorted(set(places.values())) or [path / SINGLE]:
        with _opened(file) as reader:
            held = set(reader.keys())
            absent = sorted(name for name, place in places.items() if place == file and name not in held)
            if absent:
                raise ValueError(f"{file} lacks {_listed(absent)}, which {INDEX} places in it")
            for name in sorted(held):
                weight = name.rpartition("_")[0] if group_size and name.endswith(int4.SUFFIXES) else name
                ours = published_name(weight)
                if ours.startswith(skipped):
                    continue
                if ours not in slots:
                    raise ValueError(f"{file}: tensor {name} is none of this model")
                if weight == name:
                    tensor = _tensor(reader, file, name)
                    if tensor.dtype not in _FLOATS:
                        kinds = ", ".join(map(str, _FLOATS))
                        raise ValueError(f"{file}: {name} is {tensor.dtype}, only {kinds} can be read")
                    yield file, ours, tensor
                elif name == f"{weight}_packed" and group_size:
                    yield file, weight, _unpacked(reader, file, weight, places, group_size)


def _unpacked(reader: Any, file: Path, weight: str, places: dict[str, Path], group_size: int) -> Tensor:
    """Matrix ``weight`` from its three tensors; scale and shape may be in other shards."""

    def companion(name: str) -> Tensor:
        with _opened(places.get(name, file)) as other:
            if name not in set(other.keys()):
                raise ValueError(f"{places.get(name, file)} lacks {name}")
            return _tensor(other, places.get(name, file), name)

    scale, shape = companion(f"{weight}_scale"), companion(f"{weight}_shape")
    try:
        return int4.unpacked(weight, _tensor(reader, file, f"{weight}_packed"), scale, shape, group_size)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _places(path: Path) -> dict[str, Path]:
    """Name -> file from the index; empty without one."""
    if not (path / INDEX).exists():
        return {}
    places = read_json(path / INDEX, _INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path / INDEX} has no weight_map")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{path / INDEX} places {name} in {file!r}, which is no file of this folder")
    return {name: path / file for name, file in places.items()}


def _opened(file: Path) -> Any:
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: the checkpoint is incomplete{pickled(file.parent)}")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:  # includes a truncated file: its header states the length
        raise ValueError(f"{file} cannot be read: {error}") from error


def _tensor(reader: Any, file: Path, name: str) -> Tensor:
    try:
        return reader.get_tensor(name)
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:  # a dtype that torch does not have
        raise ValueError(f"{file}: {name} cannot be read: {error}") from error


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def save(
    model: Transformer,
    path: str | Path,
    format: str = "hf",
    *,
    dtype: torch.dtype | None = None,
    int4_experts: bool = False,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write ``model`` to folder ``path`` as ``hf`` (deepseek_v3, without vision) or ``kimi_k25``.

    ``dtype``: of the matrices, None: unchanged. ``int4_experts``: pack routed experts as K2.5 does.
    ``config.json`` is written last. A folder with weights is refused.
    """
    if format not in PREFIXES:
        raise ValueError(f"format={format!r} is not one of {', '.join(PREFIXES)}")
    if model.vision is not None and format == "hf":
        raise ValueError("format='hf' (deepseek_v3) cannot hold this policy's vision side: write format='kimi_k25'")
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if any(path.glob("*.safetensors")):
        raise FileExistsError(f"{path} already holds weights; name an empty folder")
    state = model.state_dict()
    slots = layout(model.config, PREFIXES[format])
    kinds = {name: tensor.dtype if name.endswith(_BIAS) else dtype or tensor.dtype for name, tensor in state.items()}

    def tensors_of(name: str) -> dict[str, Tensor]:
        slot = slots[name]
        if int4_experts and slot.expert is not None:
            return int4.packed(name, slot.of(state[slot.name]).detach().cpu())
        if slot.parts and model.config.vision:
            parts = {part.removeprefix(OURS): state[part].detach().cpu() for part in slot.parts}
            tensor = to_published(parts, model.config.vision)[name]
            return {name: tensor.to(kinds[slot.name], copy=True).contiguous()}
        # copy even without conversion: safetensors refuses views of one storage
        return {name: slot.of(state[slot.name]).detach().to("cpu", kinds[slot.name], copy=True).contiguous()}

    shards = _planned(slots, kinds, shard_bytes)
    places: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {part: tensor for name in names for part, tensor in tensors_of(name).items()}
        save_file(tensors, path / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    tree = to_hf(model.config, MODEL_TYPES[format])
    tree["dtype"] = str(kinds["lm_head.weight"]).removeprefix("torch.")
    if int4_experts:
        tree.get("text_config", tree)["quantization_config"] = int4.quantization_config()
    (path / "config.json").write_text(json.dumps(tree, indent=2) + "\n")


def _planned(slots: dict[str, Slot], kinds: dict[str, torch.dtype], shard_bytes: int) -> list[list[str]]:
    """Names by shard, filled in order up to ``shard_bytes`` (one tensor may be larger), before packing."""
    shards: list[list[str]] = []
    filled = 0
    for name, slot in slots.items():
        size = kinds[slot.name].itemsize * torch.Size(slot.shape).numel()
        if not shards or filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
