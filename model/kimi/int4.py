"""INT4 weights in compressed-tensors' ``pack-quantized`` format, as in K2.5's published routed experts.

Symmetric, one scale per group of 32 neighbouring inputs. A weight is code times scale; codes have 4 bits, -8
to 7. Shapes: O outputs, I inputs of a matrix, G = I / 32 groups.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

GROUP_SIZE = 32
SUFFIXES = ("_packed", "_scale", "_shape")  # of the three tensors that stand for one ``weight``

_IN_A_WORD = 8
_WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}


def quantize(weight_OI: Tensor, group_size: int = GROUP_SIZE) -> tuple[Tensor, Tensor]:
    """(codes int8 [O, I] from -7 to 7, scales bfloat16 [O, G]): a group's scale is its largest value over 7.

    Scales are rounded to bfloat16 before the division, so quantising the dequantised result gives the same
    codes and scales. Whether the published weights follow this rule is unknown.
    """
    outputs, inputs = weight_OI.shape
    if inputs % group_size:
        raise ValueError(f"a matrix with {inputs} inputs has no whole groups of {group_size}: it cannot be INT4")
    groups = weight_OI.float().view(outputs, -1, group_size)
    scale = (groups.abs().amax(-1) / 7).clamp(min=1e-5).to(torch.bfloat16)  # the minimum keeps groups of zeros finite
    codes = (groups / scale.float()[..., None]).round().clamp(-7, 7)
    return codes.to(torch.int8).view(outputs, inputs), scale


def dequantize(codes_OI: Tensor, scale_OG: Tensor) -> Tensor:
    """Code times scale in float32 [O, I], which holds the product exactly; bfloat16 would round it."""
    outputs, inputs = codes_OI.shape
    groups = codes_OI.float().view(outputs, scale_OG.shape[1], -1)
    return (groups * scale_OG.float()[..., None]).view(outputs, inputs)


class _StraightThrough(torch.autograd.Function):
    """Another value in place of a weight; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        return value.detach()  # the same memory, in a tensor for autograd

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


@torch.no_grad()
def _what_int4_makes_of(weight: Tensor) -> Tensor:
    if weight.is_cuda and importlib.util.find_spec("triton"):
        return importlib.import_module("model.kernels.triton").fake_quant_int4_g32(weight.detach())
    return dequantize(*quantize(weight.flatten(0, -2))).view_as(weight).to(weight.dtype)


def fake_quant(weight: Tensor) -> Tensor:
    """Matrices [..., O, I] with the values of their INT4 checkpoint, bit for bit.

    For quantisation-aware training: the gradient with respect to ``weight`` is that of the result.
    """
    return _StraightThrough.apply(weight, _what_int4_makes_of(weight))  # pyright: ignore[reportReturnType]


class QuantizedCopy:
    """:func:`fake_quant` of a parameter, recomputed only when the parameter changes.

    Changes are detected by version counter, memory and dtype. Writes through ``parameter.data`` change none
    of them: then call :meth:`forget`. The copy takes as much memory as the parameter.
    """

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._of: tuple | None = None

    def forget(self) -> None:
        """Free the copy; the next :meth:`of` quantises again."""
        self._copy = self._of = None

    def of(self, weight: Tensor) -> Tensor:
        """The INT4 values of ``weight``; the gradient passes straight through to it."""
        now = weight._version, weight.data_ptr(), weight.dtype, weight.shape
        if self._copy is None or self._of != now:
            self._copy, self._of = _what_int4_makes_of(weight), now
        return _StraightThrough.apply(weight, self._copy)  # pyright: ignore[reportReturnType]


def pack(codes_OI: Tensor) -> Tensor:
    """Codes + 8 as int32 words [O, I / 8], the first code in the lowest four bits."""
    nibbles = (codes_OI.to(torch.int64) + 8).unflatten(-1, (-1, _IN_A_WORD))
    shifts = torch.arange(0, 32, 4, device=codes_OI.device)
    words = (nibbles << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)  # two's complement


def unpack(words: Tensor) -> Tensor:
    """Codes int8 [O, I] of int32 words [O, I / 8]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts & 15) - 8).to(torch.int8).flatten(-2)


def packed(name: str, weight_OI: Tensor) -> dict[str, Tensor]:
    """The three checkpoint tensors of matrix ``name``."""
    codes, scale = quantize(weight_OI)
    shape = torch.tensor(weight_OI.shape, dtype=torch.int32)
    return {name + suffix: tensor for suffix, tensor in zip(SUFFIXES, (pack(codes), scale, shape), strict=True)}


def unpacked(name: str, words: Tensor, scale: Tensor, shape: Tensor, group_size: int) -> Tensor:
    """The float32 matrix of three checkpoint tensors; ValueError if they do not fit together."""
    if shape.numel() != 2 or shape.is_floating_point() or scale.dim() != 2 or words.dim() != 2:
        raise ValueError(f"{name}: _shape must hold two whole numbers, _packed and _scale must be matrices")
    outputs, inputs = size = tuple(shape.flatten().tolist())
    for suffix, tensor, width in (("_packed", words, _IN_A_WORD), ("_scale", scale, group_size)):
        if inputs % width or tuple(tensor.shape) != (outputs, inputs // width):
            raise ValueError(f"{name}{suffix} has shape {list(tensor.shape)}, {name}_shape {list(size)} is another")
    if words.dtype != torch.int32:
        raise ValueError(f"{name}_packed is {words.dtype}, it must be torch.int32")
    return dequantize(unpack(words), scale)


def quantization_config() -> dict[str, Any]:
    """``quantization_config`` of a checkpoint in which only routed experts are packed."""
    weights = {**_WEIGHTS, "group_size": GROUP_SIZE, "dynamic": False, "observer": "minmax", "actorder": None}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    ignored = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ignored,
        "config_groups": {"group_0": group},
    }


def group_size_of(config: Any) -> int:
    """Inputs per scale in this ``quantization_config``; ValueError names what cannot be read."""
    if not isinstance(config, dict):
        raise ValueError(f"quantization_config={config!r:.80} must be an object")
    for key, only in (("quant_method", "compressed-tensors"), ("format", "pack-quantized")):
        if config.get(key) != only:
            raise ValueError(f"quantization_config.{key}={config.get(key)!r:.80} is not supported, only {only!r} is")
    groups = config.get("config_groups") or {}
    if not isinstance(groups, dict) or len(groups) != 1:
        raise ValueError(f"quantization_config.config_groups={groups!r:.80} is not supported, only a single one is")
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"quantization_config.config_groups={groups!r:.80}: its group must hold an object weights")
    for key, only in (*_WEIGHTS.items(), ("actorder", None)):
        if weights.get(key) != only:
            raise ValueError(
                f"quantization_config weights.{key}={weights.get(key)!r:.80} is not supported, only {only!r} is"
            )
    size = weights.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= 2**17:
        raise ValueError(f"quantization_config weights.group_size={size!r:.80} must be a whole number > 0")
    return size
