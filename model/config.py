"""Shape of the policy: DeepSeek-V3's architecture as Kimi K2.5 configures it. Hugging Face's field names. No torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """A K2.5-shaped decoder. The defaults are the quickstart's tiny one (about 1.5 M parameters)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(default=1152, gt=0, description="rows of the embedding; the tokenizer may use fewer")
    hidden_size: int = Field(default=128, gt=0)
    num_hidden_layers: int = Field(default=4, gt=0)
    first_k_dense_replace: int = Field(
        default=1, ge=0, description="how many first layers have a dense feed-forward part"
    )
    intermediate_size: int = Field(default=384, gt=0, description="width of the dense feed-forward part")
    num_attention_heads: int = Field(default=4, gt=0)
    q_lora_rank: int = Field(default=128, gt=0)
    kv_lora_rank: int = Field(default=96, gt=0)
    qk_nope_head_dim: int = Field(default=32, gt=0)
    qk_rope_head_dim: int = Field(default=16, gt=0)
    v_head_dim: int = Field(default=48, gt=0)
    n_routed_experts: int = Field(default=8, gt=0)
    num_experts_per_tok: int = Field(default=2, gt=0)
    n_shared_experts: int = Field(default=1, ge=0)
    moe_intermediate_size: int = Field(default=96, gt=0)
    routed_scaling_factor: float = Field(default=1.0, gt=0)
    norm_topk_prob: bool = True
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=500.0, gt=0)
    max_position_embeddings: int = Field(default=2048, gt=0, description="longest trace in tokens")
    initializer_range: float = Field(default=0.06, gt=0, description="spread of the matrices at the start")
    embedding_range: float = Field(
        default=1.0, gt=0, description="spread of the embeddings: large, so that a layer's output cannot drown a token"
    )
    embedding_mean: float = Field(
        default=2.0, ge=0, description="size of a random vector that all embeddings share: what heads that look at a"
        " position, whatever token stands there, can hold on to from the first step",
    )  # fmt: skip

    look_back: bool = Field(
        default=True, description="start with first-layer heads that look one, two, three, ... positions back"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim={self.qk_rope_head_dim} must be even: it is rotated in pairs")
        for name in ("hidden_size", "moe_intermediate_size"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of 8 (grouped products)")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds n_routed_experts={self.n_routed_experts}"
            )
        return self

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: the part without and the part with rotary position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Layers whose tokens carry routes."""
        return max(0, self.num_hidden_layers - self.first_k_dense_replace)
