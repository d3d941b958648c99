"""MoonViT-3D and its projector (Kimi K2.5's vision): patches in, rows for the language model's embedding out.

Pictures and video chunks of any size are packed, NaViT style, and each attends to itself only. Parameter
names are those of Hugging Face's ``kimi_k25`` without the prefix ``model.``; queries and keys have its layout
(each head's first half is rotated against its second).

Shapes: P patches of all items, C = 3 colours, S patch side in pixels, D the tower's hidden size, H heads, R
head width, M tokens of all items, E the language model's hidden size. Patches are ordered by frame, then row.

Source: the Kimi K2.5 report, section 4, and the implementation in transformers 5.13 and later.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kimi.vision.config import Grid, VisionConfig

LAYER_NORM_EPS = 1e-5  # not a field of the published configuration
TIME_THETA = 10_000.0  # of the fixed frame embedding


def rope_tables(config: VisionConfig, grids: Sequence[Grid], device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of all patches, float32 [P, 1, R]. Frequencies alternate: column, row, column, row, ...

    Not buffers: they stay float32 when the module is cast, and exist for a module made on the meta device.
    """
    quarter = torch.arange(0, config.head_dim // 2, 2, dtype=torch.float32, device=device) / (config.head_dim // 2)
    frequencies = 1.0 / config.rope_theta**quarter
    angles = []
    for grid in grids:
        columns = torch.arange(grid.w, device=device)[:, None] * frequencies
        rows = torch.arange(grid.h, device=device)[:, None] * frequencies
        shape = (grid.h, grid.w, len(frequencies))
        pairs = torch.stack((columns[None].expand(shape), rows[:, None].expand(shape)), dim=-1)
        angles.append(pairs.view(grid.h * grid.w, -1).repeat(grid.t, 2))  # both halves of a head and all frames alike
    angles_P1R = torch.cat(angles)[:, None]
    return angles_P1R.cos(), angles_P1R.sin()


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's first half against its second, in float32."""
    a, b = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


def time_embedding(frames: int, width: int, device: torch.device) -> Tensor:
    """Fixed embedding of the frames of a chunk, float32 [frames, width]: sines, then cosines."""
    frequencies = TIME_THETA ** -(torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.arange(frames, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class PositionEmbedding(nn.Module):
    """A learned table interpolated to each item's grid, plus a fixed frame embedding."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(
            torch.randn(config.pos_emb_height, config.pos_emb_width, config.hidden_size)
        )

    def forward(self, x_PD: Tensor, grids: Sequence[Grid]) -> Tensor:
        """``x_PD`` with positions added."""
        table = self.position_embeddings.permute(2, 0, 1)[None].float()
        stretched: dict[tuple[int, int], Tensor] = {}
        positions = []
        for grid in grids:
            size = (grid.h, grid.w)
            if size not in stretched:
                fitted = F.interpolate(table, size, mode="bicubic") if size != table.shape[2:] else table
                stretched[size] = fitted[0].flatten(1).T
            place = stretched[size]
            if grid.t > 1:  # one frame is a picture, without time
                place = (place + time_embedding(grid.t, place.shape[1], place.device)[:, None]).flatten(0, 1)
            positions.append(place)
        return x_PD + torch.cat(positions).to(x_PD.dtype)


class PatchEmbedding(nn.Module):
    """A patch's pixels to a vector, with its position."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.pos_emb = PositionEmbedding(config)

    def forward(self, pixels_PCSS: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Embedded patches [P, D]."""
        return self.pos_emb(self.proj(pixels_PCSS).flatten(1), grids)


class VisionAttention(nn.Module):
    """Attention within each item, without a mask."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_PD: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:
        """Attention over the packed patches; ``lengths`` are those of the items, in order."""
        query, key, value = (
            layer(x_PD).unflatten(1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate_halves(query, cos, sin), rotate_halves(key, cos, sin)
        # one call per item: exact block-diagonal attention without a mask of P x P
        items = zip(
            *(packed.transpose(0, 1).split(list(lengths), dim=1) for packed in (query, key, value)), strict=True
        )
        out = [F.scaled_dot_product_attention(q[None], k[None], v[None])[0] for q, k, v in items]
        return self.proj(torch.cat(out, dim=1).transpose(0, 1).flatten(1))


class VisionMLP(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """The feed-forward part, width D to D."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """Pre-norm attention and feed-forward part."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x_PD: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:
        """The residual stream [P, D] after this layer."""
        x_PD = x_PD + self.attn(self.norm1(x_PD), cos, sin, lengths)
        return x_PD + self.mlp(self.norm2(x_PD))


class VisionTower(nn.Module):
    """MoonViT-3D: packed patches in, pooled and merged patches out."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, pixels_PCSS: Tensor, grids: Sequence[Grid]) -> Tensor:
        """The merged patches of each token side by side, [M, patches per token, D]."""
        check_packing(self.config, pixels_PCSS, grids)
        x_PD = self.patch_embed(pixels_PCSS, grids)
        cos, sin = rope_tables(self.config, grids, x_PD.device)
        lengths = [grid.patches for grid in grids]
        for layer in self.layers:
            x_PD = layer(x_PD, cos, sin, lengths)
        return merge_patches(self.final_layernorm(x_PD), grids, self.config.merge_kernel_size)


def merge_patches(x_PD: Tensor, grids: Sequence[Grid], merge: tuple[int, int]) -> Tensor:
    """Mean over an item's frames, then neighbouring patches side by side: [M, merge[0] * merge[1], D]."""
    merged = []
    for item, grid in zip(x_PD.split([grid.patches for grid in grids]), grids, strict=True):
        still = item.view(grid.t, grid.h // merge[0], merge[0], grid.w // merge[1], merge[1], -1).mean(dim=0)
        merged.append(still.transpose(1, 2).reshape(grid.tokens(merge), merge[0] * merge[1], -1))
    return torch.cat(merged)


def check_packing(config: VisionConfig, pixels_PCSS: Tensor, grids: Sequence[Grid]) -> None:
    """ValueError unless pixels and grids fit together."""
    patch, (rows, columns) = (3, config.patch_size, config.patch_size), config.merge_kernel_size
    if pixels_PCSS.dim() != 4 or tuple(pixels_PCSS.shape[1:]) != patch:
        raise ValueError(
            f"pixels of shape {tuple(pixels_PCSS.shape)}: expected [patches, {patch[0]}, {patch[1]}, {patch[2]}]"
        )
    if not grids:
        raise ValueError("grids is empty: leave the tower out where a batch has no media")
    for index, grid in enumerate(grids):
        if min(grid.t, grid.h, grid.w) < 1 or grid.t > config.pos_emb_time:
            raise ValueError(
                f"grids[{index}]={grid}: sides must be positive and t at most {config.pos_emb_time}; cut the video"
            )
        if grid.h % rows or grid.w % columns:
            raise ValueError(
                f"grids[{index}]={grid}: h and w must be multiples of {rows} and {columns}; pad the picture"
            )
    expected = sum(grid.patches for grid in grids)
    if len(pixels_PCSS) != expected:
        raise ValueError(
            f"pixels hold {len(pixels_PCSS)} patches but grids ask for {expected}: pack both from the same items"
        )


class Projector(nn.Module):
    """From the merged patches of a token to the language model's width (K2.5's ``patchmerger``)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.projection_layer_norm_eps)
        self.in_proj = nn.Linear(config.merged_size, config.merged_size)
        self.out_proj = nn.Linear(config.merged_size, config.text_hidden_size)

    def forward(self, merged: Tensor) -> Tensor:
        """[M, patches per token, D] to [M, E]."""
        return self.out_proj(F.gelu(self.in_proj(self.pre_norm(merged).flatten(1))))


class VisionModel(nn.Module):
    """Tower and projector. ``freeze_tower`` trains the projector alone, without the tower's activations."""

    def __init__(self, config: VisionConfig, *, freeze_tower: bool = False) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config)
        self.mm_projector = Projector(config)
        self.tower_frozen = False
        self.freeze_tower(freeze_tower)

    def freeze_tower(self, frozen: bool = True) -> None:
        """Stop or resume training the tower."""
        self.tower_frozen = frozen
        self.vision_tower.requires_grad_(not frozen)

    def forward(self, pixels_PCSS: Tensor, grids: Sequence[Grid]) -> Tensor:
        """One row per media token of the language model, items in order, [M, E]."""
        with torch.no_grad() if self.tower_frozen else nullcontext():
            merged = self.vision_tower(pixels_PCSS, grids)
        return self.mm_projector(merged)
