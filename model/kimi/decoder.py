"""Kimi's decoders (:class:`model.decoder.Decoder`), exact and batch-invariant.

``NativeDecoder`` runs the C++ kernels. ``ReferenceDecoder`` computes the same in plain PyTorch, one sequence
at a time: the specification in tests and the fallback without a compiler.
"""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from model.arrays import fill
from model.blocks.mlp import SwiGLU
from model.blocks.rotary import rotate
from model.decoder import (
    PAGE,
    Decoder,
    Features,
    NotFinite,
    Shapes,
    Weights,
    check_weights,
    sampled,
    shapes_of,
)
from model.kernels.native import load_library, pointer, sample
from model.kimi.attention import LatentAttention, rope_tables
from model.kimi.config import ModelConfig
from model.kimi.int4 import fake_quant
from model.kimi.transformer import Transformer
from model.kimi.vision.picture_encoder import PREFIX


def weight_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of all weights of a policy of ``config``."""
    return shapes_of(Transformer(config))


class _Shape(ctypes.Structure):
    """``DecoderShape`` of decoder.cpp, with our shape's names."""

    _fields_ = (
        *((name, ctypes.c_int) for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "first_k_dense_replace", "intermediate_size",
            "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
            "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size",
            "max_position_embeddings", "n_group", "topk_group", "norm_topk_prob",
        )),
        *((name, ctypes.c_float) for name in (
            "rms_norm_eps", "latent_eps", "routed_scaling_factor", "softmax_scale", "rope_theta",
        )),
    )  # fmt: skip

    @classmethod
    def of(cls, config: ModelConfig) -> _Shape:
        """The struct of ``config``; null becomes 0."""
        return cls(**{field[0]: getattr(config, field[0]) or 0 for field in cls._fields_})


class NativeDecoder:
    """C++ decoder with ``pages`` cache pages. Not safe for concurrent calls."""

    def __init__(self, config: ModelConfig, pages: int) -> None:
        library = load_library()
        if library is None:
            raise RuntimeError("the native kernels are not available; use make_decoder()")
        c, self.config, self._lib = config, config, library
        self._shapes = weight_shapes(config)
        shape = _Shape.of(config)
        self._model = ctypes.c_void_p(library.parl_decoder_new(ctypes.byref(shape), ctypes.sizeof(shape)))
        if not self._model:
            raise RuntimeError("decoder.cpp has another DecoderShape: the built kernels are of another version")
        if c.rope_scaling:  # decoder.cpp makes the plain tables itself
            for name, table in zip(("rope_cos", "rope_sin"), rope_tables(c), strict=True):
                library.parl_decoder_set(self._model, -1, name.encode(), pointer(table.numpy()))
        self._pages = np.zeros((pages, library.parl_page_floats(self._model)), np.float32)
        self.routes = np.full((pages, PAGE, c.num_moe_layers, c.num_experts_per_tok), -1, np.int16)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._lib.parl_decoder_free(self._model)
            self._model = None

    def load(self, weights: Weights) -> None:
        """Take new weights; the cache's contents become stale. Raises ValueError, NotFinite."""
        check_weights(self._shapes, weights)
        for name, array in weights.items():
            if name.startswith(PREFIX):  # features come from outside (model.kimi.vision.picture_encoder)
                continue
            layer, key = _native_name(name)
            if self.config.quantize_experts and ".experts." in name:
                array = fake_quant(torch.from_numpy(np.array(array, np.float32))).numpy()
            if not self.config.rope_interleave:
                array = _interleaved(key, array, self.config)
            data = np.ascontiguousarray(array, np.float32)
            if self._lib.parl_decoder_set(self._model, layer, key.encode(), pointer(data)):
                raise ValueError(f"decoder.cpp knows no weight {name!r}")

    def forward(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        tables: np.ndarray,
        rows: np.ndarray,
        features: Features | None = None,
    ) -> np.ndarray:
        """See :meth:`model.decoder.Decoder.forward`."""
        logits = np.empty((len(rows), self.config.vocab_size), np.float32)
        places, values = _checked(features, self.config)
        bad = self._lib.parl_decoder_forward(
            self._model, len(tokens), pointer(tokens), pointer(positions), pointer(sequences), pointer(tables),
            tables.shape[1], pointer(self._pages), pointer(self.routes), len(rows), pointer(rows), pointer(logits),
            len(places), pointer(places), pointer(values),
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


def _checked(features: Features | None, config: ModelConfig) -> Features:
    """``features`` as contiguous int32 [F] and float32 [F, D]; ValueError for another shape."""
    if features is None:
        return np.empty(0, np.int32), np.empty((0, config.hidden_size), np.float32)
    places, values = np.ascontiguousarray(features[0], np.int32), np.ascontiguousarray(features[1], np.float32)
    if values.shape != (len(places), config.hidden_size):
        raise ValueError(f"features of shape {values.shape} for {len(places)} rows of width {config.hidden_size}")
    return places, values


def _native_name(name: str) -> tuple[int, str]:
    top = {"embed_tokens.weight": "embed", "norm.weight": "norm", "lm_head.weight": "head"}
    if name in top:
        return -1, top[name]
    _, layer, rest = name.split(".", 2)
    return int(layer), rest.removesuffix(".weight")


def _interleaved(key: str, array: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows of rotary parts in halves, (i, i + R / 2), reordered to the pairs (2i, 2i + 1) of decoder.cpp.

    Queries and keys change together, so their products stay.
    """
    order = np.arange(config.qk_rope_head_dim).reshape(2, -1).T.ravel()
    if key == "self_attn.kv_a_proj_with_mqa":
        return np.concatenate((array[: config.kv_lora_rank], array[config.kv_lora_rank :][order]))
    if key in ("self_attn.q_b_proj", "self_attn.q_proj"):
        heads = array.reshape(config.num_attention_heads, config.qk_head_dim, -1).copy()
        heads[:, config.qk_nope_head_dim :] = heads[:, config.qk_nope_head_dim :][:, order]
        return heads.reshape(array.shape)
    return array


class ReferenceDecoder:
    """The same contract in plain PyTorch, one token at a time, with attention from a cache of latents."""

    def __init__(self, config: ModelConfig, pages: int) -> None:
        self.config = config
        self.model = Transformer(config).eval()
        self._shapes = weight_shapes(config)
        width = config.kv_lora_rank + config.qk_rope_head_dim
        self._cache = torch.zeros(config.num_hidden_layers, pages * PAGE, width)
        self.routes = np.full((pages, PAGE, config.num_moe_layers, config.num_experts_per_tok), -1, np.int16)

    def load(self, weights: Weights) -> None:
        """See :meth:`NativeDecoder.load`."""
        check_weights(self._shapes, weights)
        fill(self.model, weights)

    @torch.no_grad()
    def forward(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        tables: np.ndarray,
        rows: np.ndarray,
        features: Features | None = None,
    ) -> np.ndarray:
        """See :meth:`NativeDecoder.forward`."""
        hidden = {}
        places, values = _checked(features, self.config)
        given = {int(place): torch.from_numpy(value) for place, value in zip(places, values, strict=True)}
        for index in range(len(tokens)):
            slots = (tables[sequences[index]][:, None].astype(np.int64) * PAGE + np.arange(PAGE)).ravel()
            x = given.get(index, self.model.embed_tokens.weight[int(tokens[index])])
            hidden[index] = self._one(x, int(positions[index]), torch.from_numpy(slots))
        logits = np.empty((len(rows), self.config.vocab_size), np.float32)
        for index, row in enumerate(rows):
            logits[index] = self.model.lm_head(self.model.norm(hidden[int(row)])).numpy()
        if not np.isfinite(logits).all():
            raise NotFinite("the policy produced a NaN or infinite logit")
        return logits

    def _one(self, x: torch.Tensor, position: int, slots: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.model.blocks()):
            x = x + self._attend(layer.self_attn, index, layer.input_layernorm(x), position, slots)
            h = layer.post_attention_layernorm(x)
            if isinstance(layer.mlp, SwiGLU):
                x = x + layer.mlp(h)
                continue
            weights, ids, _ = layer.mlp.gate(h[None])
            slot = int(slots[position])
            self.routes[slot // PAGE, slot % PAGE, index - self.config.first_k_dense_replace] = ids[0].numpy()
            routed = layer.mlp.experts(h[None], ids, weights)[0]
            x = x + (routed if layer.mlp.shared_experts is None else routed + layer.mlp.shared_experts(h))
        return x

    def _attend(
        self, attn: LatentAttention, index: int, h: torch.Tensor, position: int, slots: torch.Tensor
    ) -> torch.Tensor:
        c, cos, sin = self.config, self.model.rope_cos[position], self.model.rope_sin[position]
        turned = partial(rotate, cos=cos, sin=sin, interleave=c.rope_interleave)
        latent, k_rope = attn.kv_a_proj_with_mqa(h).split((c.kv_lora_rank, c.qk_rope_head_dim))
        self._cache[index, slots[position]] = torch.cat((attn.kv_a_layernorm(latent), turned(k_rope)))
        q = attn.query(h).view(c.num_attention_heads, c.qk_head_dim)
        q_nope, q_rope = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)
        up = attn.kv_b_proj.weight.view(c.num_attention_heads, -1, c.kv_lora_rank)
        key_up, value_up = up.split((c.qk_nope_head_dim, c.v_head_dim), dim=1)
        query = torch.cat((torch.einsum("hn,hnc->hc", q_nope, key_up), turned(q_rope)), dim=-1)
        past = self._cache[index, slots[: position + 1]]
        weight = F.softmax(query @ past.T * c.softmax_scale, dim=-1)
        out = torch.einsum("hc,hvc->hv", weight @ past[:, : c.kv_lora_rank], value_up)
        return attn.o_proj(out.flatten())

    def sample(
        self,
        logits: np.ndarray,
        temperature: np.ndarray,
        keys: np.ndarray,
        positions: np.ndarray,
        top_p: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :func:`model.decoder.sampled`."""
        return sampled(logits, temperature, keys, positions, top_p)


def make_decoder(config: ModelConfig, pages: int) -> Decoder:
    """The native decoder if it can be built, else the reference one (a warning says why)."""
    return NativeDecoder(config, pages) if load_library() is not None else ReferenceDecoder(config, pages)
