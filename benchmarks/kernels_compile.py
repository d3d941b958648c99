"""Compiles every Triton kernel for a GPU, without one, and prints the resources that it uses.

    python benchmarks/kernels_compile.py [--arch 90] [--shape k25 | small] [--bf16] [--json FILE]

The wrappers of ``model.kernels.triton`` run on tensors without data; each launch is compiled for the
architecture down to machine code instead of being started (``ptxas`` comes with Triton). Printed: registers
per thread, bytes of its stack (spills), shared memory, and whether Hopper's matrix instruction (``wgmma``)
and copy engine are used.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHAPES = {"k25": (4096, 384, 8, 7168, 2048), "small": (64, 64, 6, 2048, 1408)}  # T, E, K, D, I
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int16: "i16",
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg")


def _signature(kernel: JITFunction, arguments: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Types, compile-time values and alignments of a launch, as the launcher would find them."""
    types, constants, alignments = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[parameter.name] = "*" + _TYPES[value.dtype]
            alignments[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        elif isinstance(value, int):
            types[parameter.name] = "i32"
        else:  # a tensor descriptor
            types[parameter.name] = f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
    return types, constants, alignments


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, bytes of its stack) from cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", run.stdout)
    assert found, run.stdout
    return int(found[1]), int(found[2])


@contextmanager
def compiling(arch: int) -> Iterator[list[dict[str, Any]]]:
    """Launches inside are compiled for ``arch`` and recorded in the yielded list; nothing runs."""
    rows: list[dict[str, Any]] = []

    def compile_instead(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        names = [parameter.name for parameter in kernel.params]
        arguments = {p.name: p.default for p in kernel.params if p.has_default}
        arguments |= dict(zip(names, args, strict=False)) | kwargs
        types, constants, alignments = _signature(kernel, arguments)
        source = ASTSource(kernel, types, constants, alignments)
        built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        registers, stack = _resources(built.asm["cubin"])
        ptx = built.asm["ptx"]
        rows.append(
            {
                "kernel": f"{kernel.fn.__module__.rsplit('.', 1)[-1]}.{kernel.fn.__name__}",
                "dtype": next((t for t in types.values() if "bf16" in t or "fp16" in t), "fp32").strip("*")[:14],
                "warps": built.metadata.num_warps,
                "stages": built.metadata.num_stages,
                "registers": registers,
                "stack_bytes": stack,
                "shared_bytes": built.metadata.shared,
                "wgmma": "wgmma.mma_async" in ptx,
                "tensor_copies": "cp.async.bulk.tensor" in ptx,
            }
        )

    with mock.patch.object(JITFunction, "run", compile_instead):
        yield rows


def launch_all(shape: tuple[int, int, int, int, int], dtypes: tuple[torch.dtype, ...]) -> None:
    """Call every operation once on tensors without data; those of experts for each dtype."""
    from model.kernels import triton as kernels
    from model.kernels.triton import settings

    tokens, experts, top_k, hidden, width = shape
    meta = {"device": "meta"}
    logits, bias = torch.empty(tokens, experts, **meta), torch.empty(experts, **meta)
    forced = torch.empty(tokens, top_k, dtype=torch.int16, **meta)
    groups = (1, 1) if experts % 8 else (8, 4)
    for args in ((None, top_k, 1, 1), (forced, top_k, 1, 1), (None, top_k, *groups)):
        ids, weights, scores, counts = kernels.route_fwd(logits, bias, *args, True, 2.5)
    kernels.route_bwd(weights, scores, ids, experts, True, 2.5)
    plan = kernels.dispatch(ids, counts)
    for dtype in dtypes:
        x = torch.empty(tokens, hidden, dtype=dtype, **meta)
        w13 = torch.empty(experts, 2 * width, hidden, dtype=dtype, **meta)
        w2 = torch.empty(experts, hidden, width, dtype=dtype, **meta)
        for copies, exact in ((False, False), (True, False), (True, True))[: 3 if dtype.itemsize == 2 else 1]:
            with settings.using(descriptors=copies, exact_sums=exact):  # descriptors with 16 bits only
                _, kept = kernels.expert_mlp_fwd(x, w13, w2, *plan, weights, x)
                kernels.expert_mlp_bwd(x, x, w13, w2, kept, *plan, weights)
        kernels.fake_quant_int4_g32(torch.empty(64, 4096, dtype=dtype, **meta))


def main() -> None:
    """Compile, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability without the dot: 80, 90, 100")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="k25")
    parser.add_argument("--bf16", action="store_true", help="only this dtype")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with compiling(args.arch) as rows:
        launch_all(SHAPES[args.shape], (torch.bfloat16,) if args.bf16 else (torch.bfloat16, torch.float32))
    print(f"triton {triton.__version__}, sm_{args.arch}, shape {args.shape}")
    print(f"{'kernel':34} {'dtype':14} warps stages regs stack shared wgmma copies")
    for r in rows:
        flags = " ".join(f"{'yes' if r[name] else '-':6}" for name in ("wgmma", "tensor_copies"))
        numbers = f"{r['warps']:5} {r['stages']:6} {r['registers']:4} {r['stack_bytes']:5} {r['shared_bytes']:6}"
        print(f"{r['kernel']:34} {r['dtype']:14} {numbers} {flags}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
