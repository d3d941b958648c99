"""The kernels' part of ``benchmarks/gpu.py``: parity with float64, times, graphs, the same bits.

Shapes: T tokens, E experts, K experts a token, D hidden, I expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_rows import Bench, captured, deviation
from model.kernels import ops, reference

Shape = tuple[int, int, int, int, int]
LAYERS: dict[str, Shape] = {  # T, E, K, D, I
    "Qwen3-30B-A3B": (16384, 128, 8, 2048, 768),
    "Moonlight": (16384, 64, 6, 2048, 1408),
    "K2.5, 48 of 384": (16384, 48, 8, 7168, 2048),
}
SMALL_LAYERS: dict[str, Shape] = {"small": (256, 16, 2, 64, 32)}
PARITY: list[Shape] = [(37, 3, 2, 40, 24), *((4096, *shape[1:]) for shape in LAYERS.values())]
SMALL_PARITY: list[Shape] = [(37, 3, 2, 40, 24), (64, 16, 2, 64, 32)]
ROUTERS = [(16384, 384, 8), (16384, 256, 8), (16384, 128, 8), (16384, 64, 6)]  # T, E, K
ROUTER_PARITY = [(4096, 384, 8, 1, 1), (4096, 256, 8, 8, 4), (4096, 128, 8, 1, 1), (4096, 64, 6, 1, 1)]
ROUTER_PARITY += [(1000, 24, 4, 3, 2), (37, 600, 8, 1, 1)]  # T, E, K, groups, open ones
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DECODING = (1, 8, 32, 128)
QUANTISED = (8, 4096, 7168)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def text(**sizes: int) -> str:
    """The column ``shape``."""
    return " ".join(f"{name}{size}" for name, size in sizes.items())


def shown(shape: Shape) -> str:
    """The column ``shape`` of a layer."""
    return text(**dict(zip("TEKDI", shape, strict=True)))


def kind(dtype: torch.dtype) -> str:
    """The column ``dtype``."""
    return str(dtype).removeprefix("torch.")


def random(bench: Bench, seed: int = 0) -> torch.Generator:
    """Where random numbers come from, on the device."""
    return torch.Generator(device=bench.device).manual_seed(seed)


class Layer:
    """Normal x, matrices of unit gain, distinct uniform routes, and a gradient for the output."""

    def __init__(self, bench: Bench, shape: Shape, dtype: torch.dtype) -> None:
        tokens, experts, top_k, hidden, width = shape
        g = random(bench, tokens + experts)
        normal = lambda *size: torch.randn(*size, generator=g, device=bench.device)  # noqa: E731
        self.x, self.dout = (normal(tokens, hidden).to(dtype) for _ in range(2))
        self.w13 = torch.empty(experts, 2 * width, hidden, device=bench.device, dtype=dtype)
        self.w2 = torch.empty(experts, hidden, width, device=bench.device, dtype=dtype)
        for expert in range(experts):  # one by one: float32 of all of them does not fit beside the rest
            self.w13[expert] = normal(2 * width, hidden) * hidden**-0.5
            self.w2[expert] = normal(hidden, width) * width**-0.5
        chosen = torch.rand(tokens, experts, generator=g, device=bench.device).topk(top_k)
        self.ids = chosen.indices.to(torch.int16)
        self.weights = torch.softmax(chosen.values * 8, -1)
        self.counts = torch.bincount(self.ids.flatten().int(), minlength=experts).to(torch.int32)

    def leaves(self) -> list[Tensor]:
        """x, w13, w2 and weights as leaves that gradients arrive at."""
        return [t.detach().requires_grad_() for t in (self.x, self.w13, self.w2, self.weights)]

    def ours(self, x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor) -> Tensor:
        """Our operators, dispatch included."""
        return ops.experts(x, w13, w2, self.ids, weights, None, self.counts)

    def torch_grouped(self) -> Callable[..., Tensor]:
        """``torch._grouped_mm`` with the sorting done beforehand, which is to its advantage."""
        order, inverse, offsets = reference.dispatch(self.ids, self.counts)
        token, back, ends = order.long() // self.ids.shape[1], inverse.long(), offsets[1:].contiguous()

        def layer(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor) -> Tensor:
            gate, up = torch._grouped_mm(x[token], w13.transpose(1, 2), offs=ends).chunk(2, -1)
            y = torch._grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), offs=ends)
            return (y[back] * weights[..., None]).sum(1).to(x.dtype)

        return layer

    def transformers(self) -> Callable[..., Tensor]:
        """transformers' experts, in its grouped implementation."""
        from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        sizes = {"hidden_size": self.x.shape[1], "moe_intermediate_size": self.w2.shape[2]}
        config = Qwen3MoeConfig(num_experts=len(self.w2), **sizes)
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            module = Qwen3MoeExperts(config)
        del module.gate_up_proj, module.down_proj
        ids = self.ids.long()

        def layer(x: Tensor, w13: Tensor, w2: Tensor, weights: Tensor) -> Tensor:
            module.gate_up_proj, module.down_proj = w13, w2
            return module(x, ids, weights.to(x.dtype))

        return layer


def both(layer: Callable[..., Tensor], leaves: list[Tensor], dout: Tensor) -> list[Tensor]:
    """Output, and the gradients of x, w13, w2 and weights."""
    out = layer(*leaves)
    return [out, *torch.autograd.grad(out, leaves, dout)]


def parity(bench: Bench) -> None:
    """Every kernel against the specification in float64."""
    for tokens, *rest in ROUTER_PARITY:
        _router_parity(bench, min(tokens, 100) if bench.small else tokens, *rest)
    for shape in SMALL_PARITY if bench.small else PARITY:
        for dtype in DTYPES:
            _expert_parity(bench, shape, dtype)
    for dtype in (torch.float32, torch.bfloat16):
        _int4_parity(bench, dtype)


def _router_parity(bench: Bench, tokens: int, experts: int, top_k: int, groups: int, opened: int) -> None:
    g, settings = random(bench), (top_k, groups, opened, True, 2.5)
    logits = torch.randn(tokens, experts, generator=g, device=bench.device)
    bias = torch.randn(experts, generator=g, device=bench.device) * 0.1
    module = ops.implementation(logits)
    ids, weights, scores, counts = module.route_fwd(logits, bias, None, *settings)
    wanted = reference.route_fwd(logits.double(), bias.double(), None, *settings)
    biased = torch.sigmoid(logits.double()) + bias.double()
    apart = (biased.gather(1, ids.long()) - biased.gather(1, wanted[0].long())).abs().max().item()
    forced = reference.route_fwd(logits.double(), bias.double(), ids, *settings)  # weights at our own choices
    error = (weights.double() - forced[1]).abs().max().item()
    replayed = module.route_fwd(logits, bias, ids, *settings)
    right = all(map(torch.equal, replayed, (ids, weights, scores, counts)))
    right &= torch.equal(counts.long(), torch.bincount(ids.flatten().long(), minlength=experts))
    columns = {"shape": text(T=tokens, E=experts, K=top_k, groups=groups), "dtype": "float32"}
    reason = "scores of the choices against the best K's; replay gives the same bits, counts are the ids'"
    bench.add("router", apart, "largest difference", parity=apart, ok=right and apart <= 1e-6, reason=reason, **columns)
    bench.add("router's weights", error, "largest error", parity=error, ok=error <= 2e-6, **columns)
    grad = torch.randn(tokens, top_k, generator=g, device=bench.device)
    exact = reference.route_bwd(grad.double(), forced[2], ids, experts, True, 2.5)
    off = deviation(module.route_bwd(grad, scores, ids, experts, True, 2.5), exact)
    bench.add("router's gradient", off, "‖Δ‖/‖exact‖", parity=off, ok=off <= 1e-5, **columns)
    plan = zip(module.dispatch(ids, counts), reference.dispatch(ids, counts), strict=True)
    equal = all(torch.equal(one, two) for one, two in plan)
    bench.add("dispatch", float(not equal), "wrong", parity=float(not equal), ok=equal, **columns)


def _expert_parity(bench: Bench, shape: Shape, dtype: torch.dtype) -> None:
    layer = Layer(bench, shape, dtype)
    given = both(layer.ours, layer.leaves(), layer.dout)
    wide = [t.double() for t in (layer.x, layer.w13, layer.w2)]
    plan, weights = reference.dispatch(layer.ids, layer.counts), layer.weights.double()
    out, hidden = reference.expert_mlp_fwd(*wide, *plan, weights, None)
    exact = [out, *reference.expert_mlp_bwd(layer.dout.double(), *wide, hidden, *plan, weights)]
    del wide, hidden
    for name, got, wanted in zip(("experts", "dx", "dW13", "dW2", "dweights"), given, exact, strict=True):
        off = deviation(got, wanted)
        columns = {"shape": shown(shape), "dtype": kind(dtype)}
        bench.add(name, off, "‖Δ‖/‖exact‖", parity=off, ok=off <= TOLERANCE[dtype], **columns)


def _int4_parity(bench: Bench, dtype: torch.dtype) -> None:
    from model.kimi import int4

    weight = torch.randn(3, 64, 96, generator=random(bench), device=bench.device).to(dtype)
    wanted = int4.dequantize(*int4.quantize(weight.cpu().flatten(0, -2))).view(weight.shape).to(dtype)
    wrong = (int4.fake_quant(weight).cpu() != wanted).double().mean().item()
    bench.add("INT4", wrong, "share of wrong bits", parity=wrong, ok=wrong == 0, shape="3x64x96", dtype=kind(dtype))


def ceilings(bench: Bench) -> None:
    """What the device does best: copies and large products."""
    size = 2**22 if bench.small else 2**30
    one = torch.ones(size, device=bench.device, dtype=torch.bfloat16)
    two = torch.empty_like(one)
    seconds = bench.times({"copy": lambda: two.copy_(one)})["copy"]
    bench.add("copy", 4 * size / seconds / 1e12, "TB/s read and written", shape=f"{2 * size} bytes", dtype="bfloat16")
    side = 256 if bench.small else 8192
    a = torch.randn(side, side, generator=random(bench), device=bench.device).bfloat16()
    seconds = bench.times({"product": lambda: a @ a}, 20)["product"]
    bench.add("product", 2 * side**3 / seconds / 1e12, "TFLOP/s", shape=f"{side} x {side} x {side}", dtype="bfloat16")


def chain(logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The router in torch's operators, countable without waiting for the device."""
    scores = torch.sigmoid(logits)
    ids = (scores + bias).topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5
    ones = torch.ones(ids.numel(), dtype=torch.int32, device=ids.device)
    counts = torch.zeros(logits.shape[1], dtype=torch.int32, device=ids.device).scatter_add_(0, ids.flatten(), ones)
    return weights, ids, counts


def router(bench: Bench) -> None:
    """Router, its gradient and dispatch in a CUDA graph, beside torch's operators and transformers' router."""
    for tokens, experts, top_k in ROUTERS:
        tokens = min(tokens, 256) if bench.small else tokens
        g = random(bench)
        logits = torch.randn(tokens, experts, generator=g, device=bench.device)
        bias = torch.randn(experts, generator=g, device=bench.device) * 0.1
        module = ops.implementation(logits)
        route = lambda: module.route_fwd(logits, bias, None, top_k, 1, 1, True, 2.5)  # noqa: B023, E731
        ids, weights, scores, counts = route()
        columns = {"shape": text(T=tokens, E=experts, K=top_k), "dtype": "float32"}
        goal = "<= 15" if (experts, top_k) == (384, 8) else None
        peer = bench.in_graph(lambda: chain(logits, bias, top_k)) * 1e6  # noqa: B023
        same = (chain(logits, bias, top_k)[0].sort(-1).values - weights.sort(-1).values).abs().max().item()
        bench.add("router, time", bench.in_graph(route) * 1e6, "µs", peer="torch operators", peer_value=peer,
                  parity=same, ok=same <= 1e-5, goal=goal, **columns)  # fmt: skip
        replay = lambda: module.route_fwd(logits, bias, ids, top_k, 1, 1, True, 2.5)  # noqa: B023, E731
        bench.add("router replaying, time", bench.in_graph(replay) * 1e6, "µs", **columns)
        back = lambda: module.route_bwd(weights, scores, ids, experts, True, 2.5)  # noqa: B023, E731
        bench.add("router's gradient, time", bench.in_graph(back) * 1e6, "µs", goal=goal, **columns)
        sort = lambda: module.dispatch(ids, counts)  # noqa: B023, E731
        peer = bench.in_graph(lambda: reference.dispatch(ids, counts)) * 1e6  # noqa: B023
        bench.add("dispatch, time", bench.in_graph(sort) * 1e6, "µs", peer="torch sort", peer_value=peer, goal=goal,
                  **columns)  # fmt: skip
        _gate(bench, tokens, experts, top_k)


def _gate(bench: Bench, tokens: int, experts: int, top_k: int) -> None:
    """The whole gate, product included, beside transformers' DeepSeek-V3 router."""
    hidden = 64 if bench.small else 2048
    columns = {"shape": text(T=tokens, E=experts, K=top_k, D=hidden), "dtype": "bfloat16, product in float32"}
    try:
        from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
    except ImportError as error:
        return bench.skip("gate, time", f"transformers' router cannot be had: {error}", **columns)
    sizes = {"hidden_size": hidden, "n_routed_experts": experts, "num_experts_per_tok": top_k, "n_group": 1}
    theirs = DeepseekV3TopkRouter(DeepseekV3Config(topk_group=1, **sizes)).to(bench.device)
    x = torch.randn(tokens, hidden, generator=random(bench), device=bench.device).bfloat16()
    with torch.no_grad():
        theirs.weight.normal_(std=hidden**-0.5)

        def ours() -> Any:
            logits = F.linear(x.float(), theirs.weight)
            return ops.route(logits, theirs.e_score_correction_bias, top_k=top_k, scale=2.5)

        weights = theirs(x)[1].sort(-1).values
        same = (weights - ours().weights.sort(-1).values).abs().max().item()
        product = bench.in_graph(lambda: F.linear(x.float(), theirs.weight)) * 1e6
        _gate_product(bench, x, theirs.weight, product)
        peer = bench.in_graph(lambda: theirs(x)) * 1e6
        bench.add("gate, time", bench.in_graph(ours) * 1e6, "µs", peer="transformers' DeepseekV3TopkRouter",
                  peer_value=peer, parity=same, ok=same <= 1e-5, reason=f"of both {product:.0f} µs the product",
                  **columns)  # fmt: skip


def _gate_product(bench: Bench, x: Tensor, weight: Tensor, widened: float) -> None:
    """The gate's product with inputs left in bfloat16 and sums in float32, beside inputs widened to float32."""
    columns = {"shape": text(T=len(x), E=len(weight), D=x.shape[1]), "dtype": "bfloat16, sums in float32"}
    if bench.small:
        return bench.skip("gate's product, time", "a CPU's mm has no out_dtype", **columns)
    narrow = weight.bfloat16()
    product = lambda: torch.mm(x, narrow.t(), out_dtype=torch.float32)  # noqa: E731
    off = deviation(product(), x.double() @ narrow.double().t())
    bench.add("gate's product, time", bench.in_graph(product) * 1e6, "µs", peer="inputs widened to float32",
              peer_value=widened, parity=off, ok=off <= 1e-5, **columns)  # fmt: skip


def experts(bench: Bench) -> None:
    """Experts forward, and forward + backward, beside torch._grouped_mm and transformers' experts."""
    for name, shape in (SMALL_LAYERS if bench.small else LAYERS).items():
        layer = Layer(bench, shape, torch.bfloat16)
        leaves, peers = layer.leaves(), {}
        for peer, make in (("torch._grouped_mm", layer.torch_grouped), ("transformers", layer.transformers)):
            try:
                made = make()
                both(made, leaves, layer.dout)
                peers[peer] = made
            except Exception as error:
                bench.skip("experts", f"{peer}: {error!r}"[:300], shape=f"{name}: {shown(shape)}", dtype="bfloat16")
        _expert_times(bench, name, shape, layer, {"ours": layer.ours, **peers})


def _expert_times(bench: Bench, name: str, shape: Shape, layer: Layer, layers: dict[str, Callable]) -> None:
    tokens, _, top_k, hidden, width = shape
    leaves, flops = layer.leaves(), tokens * top_k * 6 * hidden * width / 1e12
    with torch.no_grad():
        outs = {which: run(*leaves) for which, run in layers.items()}
        forward = bench.times({w: lambda run=run: run(*leaves) for w, run in layers.items()})
    whole = bench.times({w: lambda run=run: both(run, leaves, layer.dout) for w, run in layers.items()})
    columns = {"shape": f"{name}: {shown(shape)}", "dtype": "bfloat16", "unit": "TFLOP/s"}
    if not bench.small:
        from model.kernels.triton import settings

        with settings.using(exact_sums=True):
            exact = bench.times({"ours": lambda: both(layer.ours, leaves, layer.dout)})["ours"]
        bench.add("experts forward + backward, sums in float32", 3 * flops / exact, peer="sums' terms in bfloat16",
                  peer_value=3 * flops / whole["ours"], **columns)  # fmt: skip
    for what, seconds, work, goal in (
        ("experts forward", forward, flops, ">= 550"),
        ("experts forward + backward", whole, 3 * flops, ">= 470"),
    ):
        for peer in [p for p in layers if p != "ours"] or [None]:
            same = deviation(outs["ours"], outs[peer]) if peer else None
            value = None if peer is None else work / seconds[peer]
            judged = goal if name.startswith("K2.5") else None  # the goals are for this shape
            bench.add(what, work / seconds["ours"], peer=peer, peer_value=value, parity=same,
                      ok=None if same is None else same <= 2e-2, goal=judged, **columns)  # fmt: skip


def decoding(bench: Bench) -> None:
    """Experts of one decoding step in a CUDA graph, where reading the matrices is the floor."""
    for name, shape in (SMALL_LAYERS if bench.small else LAYERS).items():
        for tokens in DECODING:
            layer = Layer(bench, (tokens, *shape[1:]), torch.bfloat16)
            leaves = [layer.x, layer.w13, layer.w2, layer.weights]
            with torch.no_grad():
                value = bench.in_graph(lambda: layer.ours(*leaves)) * 1e6  # noqa: B023
                peer, theirs = layer.torch_grouped(), None
                try:
                    theirs = bench.in_graph(lambda: peer(*leaves)) * 1e6  # noqa: B023
                    same = deviation(layer.ours(*leaves), peer(*leaves))
                except Exception as error:
                    bench.skip("experts decoding, time", f"torch._grouped_mm: {error!r}"[:200])
                    same = None
            bench.add("experts decoding, time", value, "µs", peer="torch._grouped_mm", peer_value=theirs, parity=same,
                      ok=None if same is None else same <= 2e-2, shape=f"{name}: {shown((tokens, *shape[1:]))}",
                      dtype="bfloat16")  # fmt: skip


def quantisation(bench: Bench) -> None:
    """INT4 fake quantisation, beside the same in torch's operators."""
    from model.kimi import int4

    size = (2, 64, 96) if bench.small else QUANTISED
    weight = torch.randn(*size, generator=random(bench), device=bench.device).bfloat16()
    plain = lambda: int4.dequantize(*int4.quantize(weight.flatten(0, -2))).view_as(weight).bfloat16()  # noqa: E731
    seconds = bench.times({"ours": lambda: int4.fake_quant(weight), "torch": plain})
    wrong = (int4.fake_quant(weight) != plain()).double().mean().item()
    rate = {name: 4 * weight.numel() / s / 1e12 for name, s in seconds.items()}
    bench.add("INT4, time", rate["ours"], "TB/s read and written", peer="torch operators", peer_value=rate["torch"],
              parity=wrong, ok=wrong == 0, shape="x".join(map(str, size)), dtype="bfloat16")  # fmt: skip


def graphs(bench: Bench) -> None:
    """A layer captured once and replayed on other inputs gives an eager run's bits."""
    shape = (64, 16, 2, 64, 32) if bench.small else (2048, *LAYERS["Moonlight"][1:])
    what = "CUDA graph of router, dispatch, experts and gradients"
    columns = {"shape": shown(shape), "dtype": "bfloat16"}
    if bench.small:
        return bench.skip(what, "a CPU has no CUDA graphs", **columns)
    layer, g = Layer(bench, shape, torch.bfloat16), random(bench, 1)
    logits = torch.randn(shape[0], shape[1], generator=g, device=bench.device)
    bias = torch.zeros(shape[1], device=bench.device)
    leaves = [t.detach().requires_grad_() for t in (layer.x, layer.w13, layer.w2, logits)]
    kept: list[Tensor] = []

    def step() -> None:
        x, w13, w2, logits = leaves
        routing = ops.route(logits, bias, top_k=shape[2])
        out = ops.experts(x, w13, w2, routing.ids, routing.weights, x, routing.counts)
        kept[:] = [out, *torch.autograd.grad(out, leaves, layer.dout)]

    graph, captured_outs, equal = captured(step), list(kept), True
    for seed in (2, 3):
        with torch.no_grad():
            leaves[0].normal_(generator=g.manual_seed(seed))
            leaves[3].normal_(generator=g)
        graph.replay()
        replayed = [t.clone() for t in captured_outs]
        step()
        equal &= all(map(torch.equal, replayed, kept))
    bench.add(what, float(not equal), "wrong", parity=float(not equal), ok=equal, **columns)


def bits(bench: Bench) -> None:
    """Run again: the same bits. A token alone, in few and in all: the same bits."""
    for name, shape in (SMALL_LAYERS if bench.small else LAYERS).items():
        columns = {"shape": f"{name}: {shown(shape)}", "dtype": "bfloat16"}
        layer = Layer(bench, shape, torch.bfloat16)
        leaves = layer.leaves()
        first = both(layer.ours, leaves, layer.dout)
        again = [both(layer.ours, leaves, layer.dout) for _ in range(2)]
        equal = all(all(map(torch.equal, first, other)) for other in again)
        bench.add("runs repeat", float(not equal), "wrong", parity=float(not equal), ok=equal, **columns)
        equal = True
        with torch.no_grad():
            for begin, end in ((5, 6), (5, 12), (0, 200)):
                ids, weights = layer.ids[begin:end], layer.weights[begin:end]
                part = ops.experts(layer.x[begin:end], layer.w13, layer.w2, ids, weights)
                equal &= torch.equal(part, first[0][begin:end])
        bench.add("a token's neighbours change nothing", float(not equal), "wrong", parity=float(not equal), ok=equal,
                  **columns)  # fmt: skip


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "ceilings": ceilings,
    "parity": parity,
    "router": router,
    "experts": experts,
    "decoding": decoding,
    "quantisation": quantisation,
    "graphs": graphs,
    "bits": bits,
}


def warming(bench: Bench) -> list[Callable[[], Any]]:
    """Calls that have every kernel compiled; on few tokens, whose number kernels do not depend on."""
    jobs: list[Callable[[], Any]] = []
    for shape in PARITY:
        for dtype in DTYPES:
            jobs.append(lambda shape=shape, dtype=dtype: _warm_layer(bench, (64, *shape[1:]), dtype))
    for tokens, *rest in ROUTER_PARITY:
        jobs.append(lambda tokens=tokens, rest=rest: _router_parity(bench, tokens, *rest))
    jobs.append(lambda: [_int4_parity(bench, dtype) for dtype in (torch.float32, torch.bfloat16)])
    return jobs


def _warm_layer(bench: Bench, shape: Shape, dtype: torch.dtype) -> None:
    from model.kernels.triton import settings

    layer = Layer(bench, shape, dtype)
    for exact in (False, True):
        with settings.using(exact_sums=exact):
            both(layer.ours, layer.leaves(), layer.dout)
