"""Shape of the vision tower MoonViT-3D and its projector, as configured in Kimi K2.5. No torch.

Field names are those of Hugging Face's ``kimi_k25``; the defaults are K2.5's.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True, slots=True)
class Grid:
    """How one picture or video chunk is cut: ``t`` frames of ``h`` x ``w`` patches."""

    t: int
    h: int
    w: int

    @property
    def patches(self) -> int:
        """Patches of all frames, over which the tower attends."""
        return self.t * self.h * self.w

    def tokens(self, merge: tuple[int, int] = (2, 2)) -> int:
        """Positions in the language model: frames are averaged, patches merged ``merge[0]`` x ``merge[1]``."""
        return (self.h // merge[0]) * (self.w // merge[1])


# Larger than any real tower
LARGEST = {
    "patch_size": 2**10, "pos_emb_height": 2**12, "pos_emb_width": 2**12, "pos_emb_time": 2**12,
    "num_hidden_layers": 1024, "hidden_size": 2**17, "intermediate_size": 2**20, "num_attention_heads": 2**12,
    "text_hidden_size": 2**17,
}  # fmt: skip


def check_sizes(config: BaseModel, largest: dict[str, int]) -> None:
    """ValueError if a size is unreasonable."""
    for name, most in largest.items():
        value = getattr(config, name)
        if value is not None and value > most:
            raise ValueError(f"{name}={value} must be at most {most}: no model is that large")


class VisionConfig(BaseModel):
    """MoonViT-3D (416.9 M parameters by default) and its projector (54.3 M)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch_size: int = Field(default=14, gt=0, description="side of a patch in pixels")
    pos_emb_height: int = Field(default=64, gt=0, description="rows of the learned position table")
    pos_emb_width: int = Field(default=64, gt=0, description="its columns")
    pos_emb_time: int = Field(default=4, gt=0, description="most frames in one video chunk")
    num_hidden_layers: int = Field(default=27, gt=0)
    hidden_size: int = Field(default=1152, gt=0)
    intermediate_size: int = Field(default=4304, gt=0)
    num_attention_heads: int = Field(default=16, gt=0)
    merge_kernel_size: tuple[int, int] = Field(
        default=(2, 2), description="patches that become one token: rows, columns"
    )
    rope_theta: float = Field(default=10_000.0, gt=0)
    text_hidden_size: int = Field(default=7168, gt=0, description="the language model's hidden_size")
    projection_layer_norm_eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _check(self) -> VisionConfig:
        check_sizes(self, LARGEST)
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of 4 x num_attention_heads="
                f"{self.num_attention_heads}: a head's width is rotated in pairs, half of them by row, half by column"
            )
        if not all(1 <= side <= 64 for side in self.merge_kernel_size):
            raise ValueError(f"merge_kernel_size={self.merge_kernel_size} must hold two numbers from 1 to 64")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def limits(self) -> MediaLimits:
        """Limits of this tower: K2.5's, with its own patches and tokens."""
        return MediaLimits(patch_size=self.patch_size, merge_size=self.merge_kernel_size[0])

    @property
    def merged_size(self) -> int:
        """Width of the patches of one token, side by side."""
        return self.hidden_size * self.merge_kernel_size[0] * self.merge_kernel_size[1]


class MediaLimits(BaseModel):
    """Limits on pictures and how they are cut. The defaults are K2.5's (``preprocessor_config.json``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch_size: int = Field(default=14, gt=0, description="side of a patch in pixels")
    merge_size: int = Field(default=2, gt=0, description="sides are padded to multiples of merge_size patches")
    image_patches: int = Field(default=16_384, gt=0, description="most patches of a picture, before padding")
    side_patches: int = Field(default=512, gt=0, description="most patches along one side")
    mean: float = Field(default=0.5, description="subtracted from every channel, of the range 0 to 1")
    std: float = Field(default=0.5, gt=0, description="by which every channel is divided then")

    @model_validator(mode="after")
    def _check(self) -> MediaLimits:
        if self.side_patches % self.merge_size:
            raise ValueError(
                f"side_patches={self.side_patches} must be a multiple of merge_size={self.merge_size}, or padding"
                " would exceed it"
            )
        return self
