"""Your own model family: a dense decoder with grouped queries. Sampled through its own forward pass (slow).

    PYTHONPATH=examples parl train configs/quickstart.yaml model='{family: "family:Dense"}' starter=null

It uses K2.5's chat format over parl's own vocabulary. A fast family also implements ``decoder``.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from model import family
from model.blocks import rotary
from model.blocks.attention import causal_attention
from model.blocks.logprobs import Head
from model.blocks.mlp import SwiGLU
from model.blocks.norms import RMSNorm
from model.chat.kimi import KimiChat
from model.policy import Policy


class DenseShape(family.Shape):
    """The keys under ``model``, validated like parl's own."""

    vocab_size: int = Field(default=1152, gt=0)
    max_position_embeddings: int = Field(default=2048, gt=0)
    width: int = Field(default=64, gt=0, description="of the residual stream")
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0, description="of queries; keys and values have half as many", multiple_of=2)
    head_dim: int = Field(default=16, gt=0, multiple_of=2)


class Layer(nn.Module):
    """Attention and feed-forward part, each behind a norm."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        inner, self.head_dim = shape.heads * shape.head_dim, shape.head_dim
        self.norm_1, self.norm_2 = RMSNorm(shape.width, 1e-5), RMSNorm(shape.width, 1e-5)
        self.q, self.kv = nn.Linear(shape.width, inner, bias=False), nn.Linear(shape.width, inner, bias=False)
        self.out, self.mlp = nn.Linear(inner, shape.width, bias=False), SwiGLU(shape.width, 3 * shape.width)

    def forward(self, x_TD: Tensor, cos: Tensor, sin: Tensor, lengths: list[int]) -> Tensor:
        """The residual stream after this layer; rows are packed, ``lengths`` long."""
        h = self.norm_1(x_TD)
        query, (key, value) = self.q(h).unflatten(-1, (-1, self.head_dim)), self.kv(h).chunk(2, dim=-1)
        key, value = (x.unflatten(-1, (-1, self.head_dim)).repeat_interleave(2, dim=1) for x in (key, value))
        query, key = rotary.rotate(query, cos, sin), rotary.rotate(key, cos, sin)
        x_TD = x_TD + self.out(causal_attention(query, key, value, lengths, None).flatten(1))
        return x_TD + self.mlp(self.norm_2(x_TD))


class DenseModel(Policy):
    """Embedding, layers, head, without routes and vision."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__(shape)
        self.embed, self.norm = nn.Embedding(shape.vocab_size, shape.width), RMSNorm(shape.width, 1e-5)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.lm_head = Head(shape.width, shape.vocab_size)

    def hidden(self, tokens_BT, routes_BTLK=None, real_BT=None, media=None, lengths=None) -> Tensor:
        rows = list(lengths or [tokens_BT.shape[1]] * len(tokens_BT))  # end to end, whichever way they come
        tables = rotary.tables(rotary.frequencies(self.config.head_dim, 1e4), max(rows))
        cos, sin = (torch.cat([table[:row] for row in rows])[:, None] for table in tables)
        x_TD = self.embed(tokens_BT.flatten())
        for layer in self.layers:
            x_TD = layer(x_TD, cos, sin, rows)
        return self.norm(x_TD).view(*tokens_BT.shape, -1)


class Dense(family.Family):
    Shape = DenseShape

    def chat(self, shape, tokenizer=None, *, thinking=False) -> KimiChat:
        return KimiChat(tokenizer, thinking=thinking)

    def policy(self, shape: DenseShape) -> Policy:
        return DenseModel(shape)
