"""The native decoder of the Llama and Qwen shapes: ``model/kernels/cpu/gqa.cpp`` through ctypes.

Exact and batch-invariant (:class:`model.decoder.Decoder`). Log-probs are those of transformers in the shape's dtype: to
1e-5 in float32; in bfloat16 numbers are rounded where transformers rounds them, and what is left is the order of sums.
"""

from __future__ import annotations

import ctypes

import numpy as np

from model.arrays import BFLOAT16, to_numpy
from model.decoder import PAGE, Features, NotFinite, Shapes, Weights, check_weights, shapes_of
from model.hf.build import own_config
from model.hf.decode.plan import Plan
from model.hf.shape import HfShape
from model.kernels.native import load_library, pointer, sample

KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}


class _Shape(ctypes.Structure):
    """``GqaShape`` of gqa.cpp."""

    _fields_ = (
        *((name, ctypes.c_int) for name in (
            "vocab", "D", "layers", "H", "KV", "dim", "width", "E", "K", "I", "max_pos", "norm_topk", "pages", "kind",
        )),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    )  # fmt: skip


class GqaDecoder:
    """C++ decoder with ``pages`` cache pages. ValueError where it cannot serve ``shape``. Not for concurrent calls.

    ``int8``: keep the matrices in int8, with a scale for every 64 numbers, as their inputs then are: faster, and
    another function than the learner's; for policies that are not trained.
    """

    def __init__(self, shape: HfShape, pages: int, *, int8: bool = False) -> None:
        library = load_library()
        if library is None:
            raise RuntimeError("the native kernels are not available; use make_decoder()")
        plan, self._lib = Plan(shape), library
        c, (experts, chosen, width, norm) = plan.config, plan.experts
        if int8 and shape.dtype != "bfloat16":
            raise ValueError("int8 weights go with dtype=bfloat16")
        sizes = _Shape(
            vocab=shape.vocab_size, D=c.hidden_size, layers=c.num_hidden_layers, H=c.num_attention_heads,
            KV=c.num_key_value_heads, dim=plan.head_dim, width=c.intermediate_size, E=experts, K=chosen, I=width,
            max_pos=shape.max_position_embeddings, norm_topk=norm, pages=pages,
            kind=KINDS["int8" if int8 else shape.dtype], eps=c.rms_norm_eps, scale=plan.head_dim**-0.5,
        )  # fmt: skip
        windows, sparse = np.array(plan.windows, np.int32), np.array(plan.sparse, np.int32)
        self._model = ctypes.c_void_p(
            library.parl_gqa_new(ctypes.byref(sizes), ctypes.sizeof(sizes), pointer(windows), pointer(sparse))
        )
        if not self._model:
            raise RuntimeError("gqa.cpp has another GqaShape, or there is no memory for its pages")
        self._vocabulary, self._tied = shape.vocab_size, bool(c.tie_word_embeddings)
        self._shapes = _weight_shapes(shape)
        self.routes = np.full((pages, PAGE, sum(plan.sparse), chosen), -1, np.int16)
        for name, table in zip(("cos", "sin"), plan.rotary(), strict=True):
            self._set(-1, name, to_numpy(table))

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._lib.parl_gqa_free(self._model)
            self._model = None

    def load(self, weights: Weights) -> None:
        """Take new weights; the cache's contents are stale from here on. Raises ValueError, NotFinite."""
        check_weights(self._shapes, weights)
        for name, array in weights.items():
            if name == "model.embed_tokens.weight":
                self._set(-1, "embed", array)
                if self._tied:
                    self._set(-1, "head", array)
            elif name in ("model.norm.weight", "lm_head.weight"):
                self._set(-1, "norm" if name == "model.norm.weight" else "head", array)
            else:
                _, _, layer, rest = name.split(".", 3)
                self._set(int(layer), rest, array)

    def _set(self, layer: int, name: str, array: np.ndarray) -> None:
        half = array.dtype == BFLOAT16
        data = np.ascontiguousarray(array, array.dtype if half else np.float32)
        if self._lib.parl_gqa_set(self._model, layer, name.encode(), pointer(data), half):
            raise ValueError(f"gqa.cpp knows no weight {name!r}, or there is no memory for it")

    def forward(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        tables: np.ndarray,
        rows: np.ndarray,
        features: Features | None = None,
    ) -> np.ndarray:
        """See :meth:`model.decoder.Decoder.forward`; ValueError for features."""
        if features is not None:
            raise ValueError("this decoder takes no pictures")
        logits = np.empty((len(rows), self._vocabulary), np.float32)
        bad = self._lib.parl_gqa_forward(
            self._model, len(tokens), pointer(tokens), pointer(positions), pointer(sequences), pointer(tables),
            tables.shape[1], pointer(self.routes), len(rows), pointer(rows), pointer(logits),
        )  # fmt: skip
        if bad:
            raise NotFinite("the policy produced a NaN or infinite logit")
        return logits

    def sample(
        self,
        logits: np.ndarray,
        temperature: np.ndarray,
        keys: np.ndarray,
        positions: np.ndarray,
        top_p: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`model.decoder.Decoder.sample`."""
        return sample(self._lib, logits, temperature, keys, positions, top_p)


def _weight_shapes(shape: HfShape) -> Shapes:
    """Name and shape of every weight that transformers' model has, but for a tied head."""
    import torch
    from transformers import AutoModelForCausalLM

    config = own_config(shape.transformers)
    with torch.device("meta"):
        shapes = shapes_of(AutoModelForCausalLM.from_config(config))
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes
