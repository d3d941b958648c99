"""The dense parts of ``benchmarks/gpu.py``: activation, the gate with its gradient, log-probs of given tokens.

Each runs forward and backward beside torch's operators on the same inputs; parity is the worst deviation of result
and gradients from float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_rows import Bench, deviation
from model.blocks import rotary
from model.blocks.gate import gate_logits
from model.kernels import ops

Call = Callable[..., Tensor]


def _torch_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _wide_gate(x: Tensor, weight: Tensor) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return F.linear(x.to(wide), weight.to(wide))


def dense(bench: Bench) -> None:
    """A row each: milliseconds forward and backward."""
    small = bench.small
    tokens, width, hidden, experts = (16, 24, 32, 8) if small else (16384, 11264, 2048, 64)
    rows, vocabulary = (8, 320) if small else (4096, 163840)
    g = torch.Generator(bench.device).manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=g, device=bench.device) * scale).bfloat16()

    targets = torch.randint(0, vocabulary, (rows,), generator=g, device=bench.device)

    def torch_logprobs(logits: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return torch.log_softmax(wide, -1).gather(1, targets[:, None]).squeeze(1)

    _row(bench, "activation", f"T{tokens} I{width}", ops.swiglu, _torch_swiglu, [normal(tokens, 2 * width)], 6e-3)
    inputs = [normal(tokens, hidden), normal(experts, hidden, scale=0.02)]
    _row(bench, "gate", f"T{tokens} E{experts} D{hidden}", gate_logits, _wide_gate, inputs, 6e-3)
    heads, head, rotated = (2, 24, 8) if small else (16, 192, 64)
    tables = [table.to(bench.device) for table in rotary.tables(rotary.frequencies(rotated, 5e4), tokens // 4)]

    def plain(x: Tensor) -> Tensor:
        kept, tail = x.unflatten(-1, (heads, head)).split((head - rotated, rotated), dim=-1)
        return torch.cat((kept, rotary.rotate(tail, *(table[:, None] for table in tables))), dim=-1).flatten(-2)

    def turned(x: Tensor) -> Tensor:  # in place, so on a copy
        return plain(x) if small else rotary.rotate_tails(x.clone(), head, *tables, True)

    queries = normal(4, tokens // 4, heads * head)
    _row(bench, "rotation of queries", f"T{tokens} H{heads} R{rotated}", turned, plain, [queries], 6e-3)
    shape, logits = f"M{rows} V{vocabulary}", normal(rows, vocabulary, scale=3.0)
    _row(bench, "log-probs", shape, lambda x: ops.token_logprobs(x, targets)[0], torch_logprobs, [logits], 6e-3)


def _row(bench: Bench, what: str, shape: str, ours: Call, theirs: Call, inputs: list[Tensor], tolerance: float) -> None:
    leaves = [x.clone().requires_grad_() for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    exact = theirs(*wide)
    dout = torch.randn(exact.shape, device=bench.device)

    def both(call: Call, given: list[Tensor]) -> list[Tensor]:
        out = call(*given)
        return [out, *torch.autograd.grad(out, given, dout.to(out.dtype))]

    pairs = zip(both(ours, leaves), both(theirs, wide), strict=True)
    off = max(deviation(one, two) for one, two in pairs)
    seconds = bench.times({"ours": lambda: both(ours, leaves), "torch": lambda: both(theirs, leaves)})
    bench.add(f"{what} forward + backward, time", seconds["ours"] * 1e3, "ms", peer="torch operators",
              peer_value=seconds["torch"] * 1e3, parity=off, ok=off <= tolerance, shape=shape,
              dtype="bfloat16")  # fmt: skip


SECTIONS = {"dense": dense}
