"""Our mixture-of-experts kernels beside what torch and transformers offer, same inputs, interleaved runs.

    python benchmarks/moe.py --quick                      # three training shapes, the router, decoding; under a minute
    python benchmarks/moe.py --json moe.json              # all shapes; long on a CPU without bfloat16 units
    python benchmarks/moe.py --only 64,6,256 --dtype float32 --tokens 4096

Medians of forward and backward, with the spread (interquartile range over median): CPU time on one thread,
wall time on several and on CUDA devices. GFLOP/s, and their share of the fastest square matmul measured in
the same run, in this dtype or float32. ``kept``: what autograd keeps for the backward pass, without the
matrices. ``error``: largest deviation from float64, of output and gradients, relative to the largest element.
``equal``: a second run gives the same bits (not asked of others whose first took longer than the budget). A T of
up to 32 is decoding: no gradients. Freed memory is kept, so that page faults are not measured.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import ops, reference

SIZES = [(16, 2, 256), (16, 2, 512), (16, 2, 1024), (64, 6, 256), (64, 6, 512), (64, 6, 1024)]  # E, K, D; I = D / 2
TRAINING, DECODING = (64, 4096), (1, 8, 32)
QUICKSTART = (8, 2, 128, 96, 2048)  # E, K, D, I, T of configs/quickstart.yaml, a micro-batch
QUICK = [QUICKSTART, (16, 2, 256, 128, 512), (64, 6, 256, 128, 64)]
ROUTERS = [(384, 8), (64, 6), (8, 2)]  # E, K
LARGEST = 6 << 30  # bytes that batched_mm may copy the matrices to

Layer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # x, w13, w2, ids int16, weights -> out


def ours(x: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The operators, dispatch included."""
    return ops.experts(x, w13, w2, ids, weights)


def _sorted(ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    flat = ids.flatten().long()
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=ids.device)
    return order, inverse, torch.bincount(flat, minlength=experts)


def grouped_mm(x: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """F.grouped_mm (torch._grouped_mm) between sort and gather."""
    order, inverse, counts = _sorted(ids, len(w13))
    ends = counts.cumsum(0).to(torch.int32)
    gate, up = F.grouped_mm(x[order // ids.shape[1]], w13.transpose(1, 2), offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), offs=ends)
    return (y[inverse].view(*ids.shape, -1) * weights[..., None]).sum(1).to(x.dtype)


def padded_bmm(x: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Every expert's rows padded to the busiest's, then two batched products."""
    order, inverse, counts = _sorted(ids, len(w13))
    expert = torch.repeat_interleave(torch.arange(len(w13), device=x.device), counts)
    place = torch.arange(len(order), device=x.device) - (counts.cumsum(0) - counts)[expert]
    rows = x.new_zeros(len(w13), int(counts.max()), x.shape[1]).index_put((expert, place), x[order // ids.shape[1]])
    gate, up = torch.bmm(rows, w13.transpose(1, 2)).chunk(2, -1)
    y = torch.bmm(F.silu(gate) * up, w2.transpose(1, 2))[expert, place]
    return (y[inverse].view(*ids.shape, -1) * weights[..., None]).sum(1).to(x.dtype)


def of_transformers(name: str) -> Layer:
    """transformers' experts in one of its implementations."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    def layer(x: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        key = w13.data_ptr()
        if key not in made:
            config = Qwen3MoeConfig(num_experts=len(w13), hidden_size=w13.shape[2], moe_intermediate_size=w2.shape[2])
            config._experts_implementation = name
            with torch.device("meta"):
                made[key] = Qwen3MoeExperts(config)
            made[key].gate_up_proj, made[key].down_proj = w13, w2
        return made[key](x, ids.long(), weights.to(x.dtype))

    made: dict[int, Any] = {}
    return layer


def stock() -> dict[str, Layer]:
    """All implementations except ours; transformers' if installed."""
    layers: dict[str, Layer] = {"grouped_mm": grouped_mm, "padded_bmm": padded_bmm}
    try:
        layers |= {f"transformers {name}": of_transformers(name) for name in ("eager", "batched_mm", "grouped_mm")}
    except ImportError:
        print("transformers is not installed: its experts are left out")
    return layers


def clock(device: str, threads: int) -> Callable[[], float]:
    """Seconds: CPU time on one thread, wall time on several and on a GPU."""
    if device == "cpu":
        return time.thread_time if threads == 1 else time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def ceiling(dtype: torch.dtype, device: str, now: Callable[[], float]) -> float:
    """FLOP/s of the fastest square matmul here, in ``dtype`` or float32."""
    rates = []
    for kind in {dtype, torch.float32}:
        for n in (512, 1024) if device == "cpu" else (4096, 8192):
            a, b = torch.randn(n, n, device=device).to(kind), torch.randn(n, n, device=device).to(kind)
            for _ in range(3):
                began = now()
                a @ b
                rates.append(2 * n**3 / (now() - began))
    return max(rates)


def keep_memory() -> None:
    """Keep freed memory in the process (glibc), like a device's caching allocator.

    Otherwise every gradient of more than 32 MB is mapped again, and its page faults take longer than its
    sums: 55 ms for 100 MB on a virtual machine.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # not glibc
    mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped by itself
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> SimpleNamespace:
    """Normal x, matrices of unit gain, uniform routes; a gradient for the output."""
    experts, top_k, hidden, width, tokens = shape
    random = torch.Generator().manual_seed(0)
    made = lambda *size: torch.randn(*size, generator=random).to(device)  # noqa: E731
    ids = torch.rand(tokens, experts, generator=random).topk(top_k).indices.to(torch.int16).to(device)
    leaves = [made(tokens, hidden), made(experts, 2 * width, hidden) / hidden**0.5]
    leaves += [made(experts, hidden, width) / width**0.5]
    x, w13, w2 = (torch.nn.Parameter(leaf.to(dtype)) for leaf in leaves)
    weights = torch.nn.Parameter(torch.softmax(made(tokens, top_k), -1))
    return SimpleNamespace(
        args=(x, w13, w2, ids, weights), leaves=(x, w13, w2, weights), dout=made(tokens, hidden).to(dtype)
    )


def exact(data: SimpleNamespace, backward: bool) -> list[Tensor]:
    """Output and gradients in float64 from the reference."""
    x, w13, w2, ids, weights = (value.detach().cpu() for value in data.args)
    x, w13, w2, weights = (value.double() for value in (x, w13, w2, weights))
    plan = reference.dispatch(ids, torch.bincount(ids.flatten(), minlength=len(w13)).to(torch.int32))
    out, hidden = reference.expert_mlp_fwd(x, w13, w2, *plan, weights, None)
    if not backward:
        return [out]
    return [out, *reference.expert_mlp_bwd(data.dout.cpu().double(), x, w13, w2, hidden, *plan, weights)]


def results(layer: Layer, data: SimpleNamespace, backward: bool) -> tuple[list[Tensor], int]:
    """Output and gradients (x, w13, w2, weights), and the bytes that autograd kept beside the matrices."""
    for leaf in data.leaves:
        leaf.grad = None
    if not backward:
        with torch.no_grad():
            return [layer(*data.args)], 0
    matrices, kept = {data.args[1].data_ptr(), data.args[2].data_ptr()}, {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in matrices:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(*data.args)
    out.backward(data.dout)
    x, w13, w2, weights = (leaf.grad.clone() for leaf in data.leaves)
    return [out.detach(), x, w13, w2, weights], sum(kept.values())


def once(layer: Layer, data: SimpleNamespace, backward: bool, now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    for leaf in data.leaves:
        leaf.grad = None
    began = now()
    if not backward:
        with torch.no_grad():
            layer(*data.args)
        return now() - began, 0.0
    out = layer(*data.args)
    middle = now()
    out.backward(data.dout)
    return middle - began, now() - middle


def spread(values: list[float]) -> float:
    """Interquartile range over the median."""
    if len(values) < 3:
        return float("nan")
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / max(statistics.median(values), 1e-12)


def interleaved(runs: dict[str, Callable[[], tuple[float, float]]], budget: float, most: int) -> dict[str, list]:
    """Times of all, interleaved, until each has ``most`` or has used ``budget`` seconds (once at least)."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(most):
        for name, run in runs.items():
            if sum(map(sum, times[name])) < budget:
                times[name].append(run())
    return times


def measure(
    shape: tuple[int, ...], dtype: torch.dtype, options: argparse.Namespace, peak: float
) -> list[dict[str, Any]]:
    """Rows of all implementations for one shape."""
    experts, top_k, hidden, width, tokens = shape
    backward, now = tokens > 32, clock(options.device, options.threads)
    data = inputs(shape, dtype, options.device)
    layers = {"ours": ours} | stock()
    copies = tokens * top_k * 3 * hidden * width * dtype.itemsize
    if copies * (3 if backward else 1) > LARGEST or (options.quick and tokens > 32):
        layers.pop("transformers batched_mm", None)  # copies every assignment's matrices
    if (tokens * experts > 100_000 and hidden > 256) or (options.quick and tokens > 32):
        layers.pop("transformers eager", None)  # its backward pass takes experts² times the matrices
    truth, rows, flops = exact(data, backward), [], tokens * top_k * 6 * hidden * width * (3 if backward else 1)
    facts = {}
    for name, layer in layers.items():
        began = now()
        first, kept = results(layer, data, backward)
        slow = name != "ours" and now() - began > options.budget
        again = None if slow else results(layer, data, backward)[0]
        error = max(
            float((a.cpu().double() - b).abs().max() / b.abs().max()) for a, b in zip(first, truth, strict=True)
        )
        facts[name] = kept, error, again and all(map(torch.equal, first, again))
    del truth
    work = {n: (lambda layer=layer: once(layer, data, backward, now)) for n, layer in layers.items()}
    for name, times in interleaved(work, options.budget, options.runs).items():
        total = [a + b for a, b in times]
        rate = flops / statistics.median(total)
        kept, error, equal = facts[name]
        kind = "train" if backward else "decode"
        rows.append(
            row(f"{kind} E{experts} K{top_k} D{hidden} I{width} T{tokens}", dtype, options, name, times)
            | {"tflops": rate / 1e12, "fraction_of_ceiling": rate / peak}
            | {"kept_bytes": kept, "max_error": error, "bit_equal": equal}
        )
    return rows


def row(shape: str, dtype: torch.dtype, options: argparse.Namespace, impl: str, times: list) -> dict[str, Any]:
    """The columns that every row has; others are None unless set."""
    forward, backward = ([t[i] * 1e3 for t in times] for i in (0, 1))
    empty = dict.fromkeys(("tflops", "fraction_of_ceiling", "kept_bytes", "max_error", "bit_equal"))
    return {
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "device": options.device,
        "impl": impl,
        "forward_ms": statistics.median(forward),
        "backward_ms": statistics.median(backward),
        "spread": spread([a + b for a, b in times]),
        **empty,
    }


def chain(logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The router in plain torch."""
    scores = torch.sigmoid(logits)
    ids = (scores.detach() + bias).topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights, ids, torch.bincount(ids.flatten(), minlength=logits.shape[1])


def router_rows(experts: int, top_k: int, tokens: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Router and dispatch against chains of torch operators."""
    now = clock(options.device, options.threads)
    logits = torch.randn(tokens, experts, device=options.device).requires_grad_()
    bias, dweights = torch.zeros(experts, device=options.device), torch.randn(tokens, top_k, device=options.device)
    routing = ops.route(logits.detach(), bias, top_k=top_k)

    def route(call: Callable[[], Any]) -> tuple[float, float]:
        logits.grad = None
        began = now()
        weights = call()[0]
        middle = now()
        weights.backward(dweights)
        return middle - began, now() - middle

    def timed(call: Callable[[], Any]) -> tuple[float, float]:
        began = now()
        call()
        return now() - began, 0.0

    routers = {
        "ours": lambda: route(lambda: ops.route(logits, bias, top_k=top_k)),
        "torch chain": lambda: route(lambda: chain(logits, bias, top_k)),
    }
    sorts = {
        "ours": lambda: timed(lambda: ops.dispatch(routing.ids, routing.counts)),
        "torch argsort": lambda: timed(lambda: _sorted(routing.ids, experts)),
    }
    rows = []
    for kind, runs in (("route", routers), ("dispatch", sorts)):
        for name, times in interleaved(runs, options.budget, options.runs * 3).items():
            rows.append(row(f"{kind} E{experts} K{top_k} T{tokens}", torch.float32, options, name, times))
    exact_weights = reference.route_fwd(logits.detach().cpu().double(), bias.cpu(), None, top_k, 1, 1, True, 1.0)[1]
    same = torch.equal(routing.weights, ops.route(logits.detach(), bias, top_k=top_k).weights)
    error = float((routing.weights.cpu().double() - exact_weights).abs().max())
    rows[0] |= {"kept_bytes": tokens * top_k * 6, "max_error": error, "bit_equal": same}  # scores and ids
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """One shape's table."""
    total = {r["impl"]: r["forward_ms"] + r["backward_ms"] for r in rows}
    others = [t for name, t in total.items() if not name.startswith("ours")]
    title = " ".join(rows[0][key] for key in ("shape", "dtype", "device"))
    print(f"\n{title}   best other / ours: {min(others) / total['ours']:.2f}")
    for r in rows:
        cells = [f"{r['impl']:24} {r['forward_ms']:9.3f} + {r['backward_ms']:9.3f} ms  ±{r['spread']:4.0%}"]
        cells += [f"{total[r['impl']] / total['ours']:6.2f}x"]
        if r["tflops"] is not None:
            cells += [
                f"{r['tflops'] * 1e3:8.1f} GFLOP/s {r['fraction_of_ceiling']:4.0%}",
                f"kept {r['kept_bytes'] / 1e6:7.2f} MB",
            ]
        if r["max_error"] is not None:
            cells += [f"error {r['max_error']:.1e}", {None: "", True: "equal", False: "DIFFERS"}[r["bit_equal"]]]
        print("  ".join(cells), flush=True)


def shapes(options: argparse.Namespace) -> list[tuple[int, ...]]:
    """E, K, D, I, T of the measured shapes."""
    if options.quick:
        return [*QUICK, (64, 6, 256, 128, 8)]
    sizes = [tuple(map(int, options.only.split(",")))] if options.only else SIZES
    tokens = [options.tokens] if options.tokens else [*TRAINING, *DECODING]
    listed = [(e, k, d, d // 2, t) for e, k, d in sizes for t in tokens]
    return listed if options.only or options.tokens else [QUICKSTART, *listed]


def main() -> None:
    """Measure, print, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write all rows here")
    parser.add_argument("--only", help="E,K,D of one size")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, help="of each implementation (default 7, quick 3)")
    parser.add_argument("--budget", type=float, help="seconds after which an implementation is not run again (10, 1)")
    options = parser.parse_args()
    options.runs = options.runs or (3 if options.quick else 7)
    options.budget = options.budget or (1.0 if options.quick else 10.0)
    torch.set_num_threads(options.threads)
    keep_memory()
    now, rows = clock(options.device, options.threads), []
    for dtype in [getattr(torch, options.dtype)] if options.dtype else [torch.float32, torch.bfloat16]:
        peak = ceiling(dtype, options.device, now)
        print(f"matmul ceiling, {dtype}: {peak / 1e9:.0f} GFLOP/s")
        for shape in shapes(options):
            rows += (found := measure(shape, dtype, options, peak))
            show(found)
    if not options.only:
        for experts, top_k in ROUTERS:
            found = router_rows(experts, top_k, options.tokens or (1024 if options.quick else 4096), options)
            for kind in ("route", "dispatch"):
                show([r for r in found if r["shape"].startswith(kind)])
            rows += found
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
