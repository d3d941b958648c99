"""Shape of the policy: DeepSeek-V3's architecture as configured in K2.5; Hugging Face's names. No torch."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.family import Routes, Shape
from model.kimi.vision.config import VisionConfig, check_sizes
from model.kimi.vision.pictures import KimiPictures

# Larger than any real model: such a file is damaged or hostile, and nothing is allocated for it
LARGEST = {
    "vocab_size": 2**24, "hidden_size": 2**17, "num_hidden_layers": 1024, "intermediate_size": 2**20,
    "num_attention_heads": 2**12, "q_lora_rank": 2**17, "kv_lora_rank": 2**17, "qk_nope_head_dim": 2**14,
    "qk_rope_head_dim": 2**14, "v_head_dim": 2**14, "n_routed_experts": 2**14, "n_shared_experts": 2**10,
    "moe_intermediate_size": 2**20, "max_position_embeddings": 2**28,
}  # fmt: skip


class YarnScaling(BaseModel):
    """YaRN (arXiv 2309.00071): extends the pretrained context by ``factor``. transformers' names, defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: float = Field(gt=0, description="how many times longer than the pretrained context")
    original_max_position_embeddings: int = Field(gt=0, description="the pretrained context in tokens")
    beta_fast: float = Field(default=32.0, gt=0, description="pairs that turn more often in it keep their frequency")
    beta_slow: float = Field(default=1.0, gt=0, description="pairs that turn less often are slowed by the factor")
    mscale: float = Field(default=0.0, ge=0, description="0: not given")
    mscale_all_dim: float = Field(default=0.0, ge=0, description="0: not given, the softmax scale stays")

    @property
    def rotation_scale(self) -> float:
        """Factor on cos and sin; 1 if both mscales are equal, as in DeepSeek-V3 and K2.5."""
        if self.mscale and self.mscale_all_dim:
            return self._gain(self.mscale) / self._gain(self.mscale_all_dim)
        return self._gain(1.0)

    @property
    def softmax_gain(self) -> float:
        """Factor on the softmax scale: the gain of queries times the gain of keys."""
        return self._gain(self.mscale_all_dim) ** 2

    def _gain(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


class ModelConfig(Shape):
    """A K2.5-shaped decoder. The defaults are the quickstart's tiny one (about 1.5 M parameters)."""

    home = "model.kimi.family:Kimi"
    optional: ClassVar[tuple[str, ...]] = (  # unused by the small policy
        *("n_group", "topk_group", "rope_scaling", "rope_interleave", "latent_norm_eps", "quantize_experts"),
        *("vision", "media_placeholder_token_id"),
    )

    chosen: ClassVar[tuple[str, ...]] = ("quantize_experts",)
    left_out: ClassVar[tuple[str, ...]] = ("vision",)

    vocab_size: int = Field(default=1152, gt=0, description="rows of the embedding; the tokenizer may use fewer")
    hidden_size: int = Field(default=128, gt=0)
    num_hidden_layers: int = Field(default=4, gt=0)
    first_k_dense_replace: int = Field(
        default=1, ge=0, description="how many first layers have a dense feed-forward part"
    )
    intermediate_size: int = Field(default=384, gt=0, description="width of the dense feed-forward part")
    num_attention_heads: int = Field(default=4, gt=0)
    q_lora_rank: int | None = Field(default=128, gt=0, description="rank of the queries' latent; null: no latent")
    kv_lora_rank: int = Field(default=96, gt=0)
    qk_nope_head_dim: int = Field(default=32, gt=0)
    qk_rope_head_dim: int = Field(default=16, gt=0)
    v_head_dim: int = Field(default=48, gt=0)
    n_routed_experts: int = Field(default=8, gt=0)
    num_experts_per_tok: int = Field(default=2, gt=0)
    n_shared_experts: int = Field(default=1, ge=0)
    moe_intermediate_size: int = Field(default=96, gt=0)
    n_group: int = Field(default=1, gt=0, description="groups of experts for group-limited routing")
    topk_group: int = Field(default=1, gt=0, description="groups that a token may choose experts from")
    routed_scaling_factor: float = Field(default=1.0, gt=0)
    norm_topk_prob: bool = True
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    latent_norm_eps: float | None = Field(
        default=None, gt=0, description="epsilon of the latents' norms; null: `rms_norm_eps`"
    )
    quantize_experts: Literal["int4"] | None = Field(
        default=None,
        description="compute with the routed experts' INT4 values (groups of 32); gradients pass straight through",
    )
    rope_theta: float = Field(default=500.0, gt=0)
    rope_interleave: bool = Field(
        default=True, description="rotate pairs of neighbours (2i, 2i + 1), as DeepSeek does; false: (i, i + half)"
    )
    rope_scaling: YarnScaling | None = Field(default=None, description="YaRN's values; null: none")
    max_position_embeddings: int = Field(default=2048, gt=0, description="longest trace in tokens")
    initializer_range: float = Field(default=0.06, gt=0, description="standard deviation of the initial matrices")
    embedding_range: float = Field(
        default=1.0, gt=0, description="standard deviation of the embeddings; large against a layer's output"
    )
    embedding_mean: float = Field(
        default=2.0, ge=0, description="size of a random vector that all embeddings share, for `look_back`"
    )

    look_back: bool = Field(
        default=True,
        description="initialise heads that copy: the first layer looks 1, 2, ... positions back, the next match"
        " earlier occurrences; needs a mean and a query latent",
    )

    vision: VisionConfig | None = Field(default=None, description="K2.5's tower and projector; null: text only")
    media_placeholder_token_id: int | None = Field(
        default=None, ge=0, description="id of `<|media_pad|>`, where rows of pictures go; needed with `vision`"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        check_sizes(self, LARGEST)
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim={self.qk_rope_head_dim} must be even: it is rotated in pairs")
        for name in ("hidden_size", "moe_intermediate_size"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of 8 (grouped products)")
        for name in ("hidden_size", "moe_intermediate_size"):
            if self.quantize_experts and getattr(self, name) % 32:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of 32 with quantize_experts=int4")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds n_routed_experts={self.n_routed_experts}"
            )
        self._check_groups()
        self._check_vision()
        return self

    def _spares(self, name: str) -> bool:
        """A placeholder without a tower: the checkpoint's was left out, and a dump has to say so."""
        return name != "vision" or self.media_placeholder_token_id is None

    def _check_vision(self) -> None:
        """The projector's width must be ours, and the placeholder one of our tokens."""
        if self.vision is None:
            return
        if self.vision.text_hidden_size != self.hidden_size:
            raise ValueError(
                f"vision.text_hidden_size={self.vision.text_hidden_size} must be hidden_size={self.hidden_size}: the"
                " projector's rows stand among the embeddings"
            )
        placeholder = self.media_placeholder_token_id
        if placeholder is None or placeholder >= self.vocab_size:
            raise ValueError(
                f"media_placeholder_token_id={placeholder} must be the id of <|media_pad|>, below"
                f" vocab_size={self.vocab_size}, where there is a vision section"
            )

    def _check_groups(self) -> None:
        """A group's score is the sum of its two best, and the chosen groups must hold enough experts."""
        size, rest = divmod(self.n_routed_experts, self.n_group)
        if rest or (self.n_group > 1 and size < 2):
            raise ValueError(
                f"n_group={self.n_group} must split n_routed_experts={self.n_routed_experts} into equal"
                " groups of two or more"
            )
        if self.topk_group > self.n_group or self.topk_group * size < self.num_experts_per_tok:
            raise ValueError(
                f"topk_group={self.topk_group} of n_group={self.n_group} groups of {size} experts cannot give"
                f" num_experts_per_tok={self.num_experts_per_tok} experts"
            )

    @property
    def softmax_scale(self) -> float:
        """Factor on the products of queries and keys."""
        return self.qk_head_dim**-0.5 * (self.rope_scaling.softmax_gain if self.rope_scaling else 1.0)

    @property
    def latent_eps(self) -> float:
        """Epsilon of the latents' norms."""
        return self.rms_norm_eps if self.latent_norm_eps is None else self.latent_norm_eps

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: the part without and the part with rotary position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Number of layers with routes."""
        return max(0, self.num_hidden_layers - self.first_k_dense_replace)

    @property
    def routes(self) -> Routes | None:
        """The experts of each token; None if all layers are dense."""
        if not self.num_moe_layers:
            return None
        return Routes(
            layers=self.num_moe_layers,
            chosen=self.num_experts_per_tok,
            experts=self.n_routed_experts,
            first=self.first_k_dense_replace,
        )

    @property
    def pictures(self) -> KimiPictures | None:
        """How the tower cuts pictures."""
        return KimiPictures(self.vision.limits) if self.vision else None

    @property
    def picture_id(self) -> int | None:
        """``<|media_pad|>``, for a policy with vision."""
        return self.media_placeholder_token_id if self.vision else None
