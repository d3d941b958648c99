"""The policy: a DeepSeek-V3-shaped decoder as in Kimi K2.5, in the form for training.

With a vision section it includes K2.5's tower and projector, and takes pictures and video chunks.

Shapes: B rows, T positions, D hidden, V vocabulary, L routed layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.blocks.expert_parallel import ExpertGroup, cut
from model.blocks.logprobs import Head
from model.blocks.mlp import SwiGLU
from model.blocks.norms import RMSNorm
from model.blocks.recompute import recomputed
from model.kimi.attention import LatentAttention, rope_tables
from model.kimi.config import ModelConfig
from model.kimi.look_back import look_back, match
from model.kimi.moe import Experts, MixtureOfExperts, Router
from model.kimi.vision.media import MediaBatch, merge_media, place_media
from model.kimi.vision.tower import VisionModel
from model.policy import Policy


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward part (dense in the first layers, experts after)."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        dense = index < config.first_k_dense_replace
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size) if dense else MixtureOfExperts(config)

    def forward(self, *args: Any, recompute: bool = False) -> Tensor:
        """:meth:`inside`; ``recompute``: keep only its arguments and compute it again in the backward pass.

        The second pass starts inside this module: there ZeRO 3 has the whole layer's weights.
        """
        return recomputed(self.inside, *args) if recompute else self.inside(*args)

    def inside(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        routes_BTK: Tensor | None,
        real_BT: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """The residual stream [B, T, D] after this layer; ``real_BT``, ``lengths`` as in :class:`LatentAttention`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, real_BT, lengths)
        h = self.post_attention_layernorm(x)
        return x + (self.mlp(h, routes_BTK) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(h))


class Transformer(Policy):
    """Token ids in, hidden states or log-probs out (:class:`model.policy.Policy`).

    Either every B is a row (with padding on the right, if any), or B is 1 and T packs rows of ``lengths``,
    each with positions from 0.
    """

    layer_classes = ("model.kimi.transformer.DecoderLayer",)
    adapter_owners: ClassVar = {"attention": (LatentAttention,), "shared_experts": (MixtureOfExperts,)}

    config: ModelConfig
    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        cos, sin = rope_tables(config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.vision: VisionModel | None = None
        self.reset_parameters()
        if config.vision is not None:  # last, so that the language model's initial weights do not depend on it
            self.vision = VisionModel(config.vision)
            self._start_projector(self.vision)

    def reset_parameters(self) -> None:
        """Normal initialisation with the config's ranges; residual outputs are scaled by depth."""
        config = self.config
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            std = config.initializer_range
            if name == "embed_tokens.weight":
                std = config.embedding_range
            elif name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                std *= (2 * config.num_hidden_layers) ** -0.5
            elif name == "lm_head.weight":
                std = config.hidden_size**-1.0  # nearly uniform initial predictions
            nn.init.normal_(parameter, std=std)
        with torch.no_grad():
            mean = config.embedding_mean * torch.randn(config.hidden_size)
            self.embed_tokens.weight += mean
            if config.look_back and config.embedding_mean and config.q_lora_rank and not mean.is_meta:
                attention = [block.self_attn for block in self.blocks()]
                match(attention, self.embed_tokens.weight, self.lm_head, mean)
                look_back(attention, mean, config.embedding_range)

    @torch.no_grad()
    def _start_projector(self, vision: VisionModel) -> None:
        """Let picture rows start about as large as embeddings, with the direction that all embeddings share."""
        if not self.config.embedding_mean:
            return
        out = vision.mm_projector.out_proj
        nn.init.normal_(out.weight, std=self.config.embedding_range * out.in_features**-0.5)
        out.bias.copy_(self.embed_tokens.weight.mean(0))

    def embedded(self, tokens_BT: Tensor, media: MediaBatch | None = None) -> Tensor:
        """Embeddings [B, T, D] with the rows of ``media`` in place; ValueError if these do not fit."""
        x = self.embed_tokens(tokens_BT)
        if media is None:
            return x
        placeholder = self.config.media_placeholder_token_id
        if self.vision is None or placeholder is None:
            raise ValueError("media for a policy without a vision section: set model.vision, or leave the media out")
        kind = self.vision.mm_projector.out_proj.weight.dtype
        features_MD = self.vision(media.pixels_PCSS.to(x.device, kind), media.grids)
        if media.places_BT is None:
            return merge_media(x, tokens_BT, features_MD, placeholder=placeholder)
        return place_media(x, media.places_BT, features_MD)

    def hidden(
        self,
        tokens_BT: Tensor,
        routes_BTLK: Tensor | None = None,
        real_BT: Tensor | None = None,
        media: MediaBatch | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Final-norm hidden states [B, T, D]; ``routes_BTLK`` replays expert choices (-1 = live).

        ``real_BT``: also record the largest attention logits, of queries at these positions. ``media``: the
        pictures and video chunks of the rows, in the order of their placeholders.
        """
        cos, sin = (self._positions(table, lengths or tokens_BT.shape[1:]) for table in (self.rope_cos, self.rope_sin))
        x = self.embedded(tokens_BT, media)
        first = self.config.first_k_dense_replace
        for index, layer in enumerate(self.blocks()):
            replay = None if routes_BTLK is None or index < first else routes_BTLK[:, :, index - first]
            x = layer(x, cos, sin, replay, real_BT, lengths, recompute=self.recompute and self.training)
        return self.norm(x)

    def _positions(self, table: Tensor, lengths: Sequence[int]) -> Tensor:
        """The rows of ``table`` for positions 0, 1, ... of each row; ValueError beyond the context."""
        longest, limit = max(lengths), self.config.max_position_embeddings
        if longest > limit:
            raise ValueError(f"row of {longest} tokens exceeds max_position_embeddings={limit}")
        return torch.cat([table[:length] for length in lengths]) if len(lengths) > 1 else table[:longest]

    def blocks(self) -> list[DecoderLayer]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def freeze_tower(self, frozen: bool = True) -> None:
        """Stop or resume training the vision tower; the projector is always trained."""
        if self.vision is not None:
            self.vision.freeze_tower(frozen)

    def routers(self) -> list[Router]:
        """The routers of all mixture-of-experts layers, first to last."""
        return [layer.mlp.gate for layer in self.blocks() if isinstance(layer.mlp, MixtureOfExperts)]

    def weights_changed(self) -> None:
        """Called after parameters were written without autograd, as DeepSpeed does: drops quantised copies."""
        for module in self.modules():
            if isinstance(module, Experts):
                module.weights_changed()

    def attention_layers(self) -> list[LatentAttention]:
        """The attention of all layers."""
        return [block.self_attn for block in self.blocks()]

    def split_experts(self, group: dist.ProcessGroup) -> list[str]:
        """See :mod:`model.blocks.expert_parallel`."""
        shared, names = ExpertGroup(group), []
        for name, module in self.named_modules():
            if isinstance(module, Experts):
                names += [f"{name}.{key}" for key in cut(module, shared)]
                module.group = shared
        return names

    def muon_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(matrices for Muon, the rest for AdamW): embeddings, head, router and gains are not orthogonalised."""
        matrices, rest = [], []
        expert_ids = {id(p) for m in self.modules() if isinstance(m, Experts) for p in m.parameters()}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:  # a frozen tower
                continue
            apart = any(key in name for key in ("embed_tokens", "lm_head", "mlp.gate.weight"))
            plain = parameter.dim() == 2 and not apart
            (matrices if plain or id(parameter) in expert_ids else rest).append(parameter)
        return matrices, rest
