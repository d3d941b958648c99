"""GPUs known to ``parl plan``: memory, speed and links, and how to give another one. No torch.

Numbers are from data sheets unless ``source`` says measured: dense bfloat16 (not the doubled figure of
structured sparsity) with float32 sums where the sheet distinguishes them; links one way. Networks between
nodes are those of the usual machine with eight such cards; a card without one has a plain network.

Units: bytes, seconds, FLOP; GB is 10^9 bytes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from parl.errors import UserError

GB = 10**9
_PLAIN = 5e9  # bytes a second between nodes: a network of 40 Gb/s
_PCIE_4, _PCIE_5 = 32e9, 64e9  # 16 lanes, one way


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Memory and peak rates of one GPU; ``source`` of the numbers."""

    memory: int
    copy: float  # bytes a second
    flops: float  # bfloat16 a second
    inside: float  # bytes a second between GPUs of a node
    tokens: float  # ... all-to-all between nodes
    outside: float  # ... anything else between nodes
    source: str


def _sheet(gb: float, tbs: float, tflops: float, inside: float, outside: float, source: str) -> Gpu:
    """A card by its data sheet; all-to-all between nodes is limited by the network."""
    memory, source = round(gb * GB), f"not measured: {source}"
    return Gpu(
        memory=memory, copy=tbs * 1e12, flops=tflops * 1e12, inside=inside, tokens=outside, outside=outside,
        source=source,
    )  # fmt: skip


GPUS = {
    "h200": Gpu(
        memory=141 * GB, copy=4.3e12, flops=790e12, inside=450e9, tokens=61e9, outside=50e9,
        source="4.3 TB/s copy and 790 TFLOP/s bf16 measured on one H200; NVLink 450 GB/s and 400 Gb/s network a GPU by "
        "data sheet; all-to-all between nodes 61 GB/s, as DeepEP publishes for 4 x 8 GPUs",
    ),
    "h100": Gpu(
        memory=80 * GB, copy=3.0e12, flops=790e12, inside=450e9, tokens=61e9, outside=50e9,
        source="not measured: the H200's 790 TFLOP/s (the same matrix units), its share of the data sheet's memory "
        "bandwidth; links as for h200",
    ),
    # NVIDIA H100 data sheet, PCIe column
    "h100-pcie": _sheet(80, 2.0, 756, _PCIE_5, _PLAIN, "H100 data sheet, PCIe; a plain network"),
    # NVIDIA H20: not on a public sheet of NVIDIA's; figures of server makers
    "h20": _sheet(96, 4.0, 148, 450e9, 50e9, "server makers' sheets: 4.0 TB/s, 148 TFLOP/s; links as for h200"),
    # NVIDIA A100 data sheet (SXM): NVLink 600 GB/s both ways; DGX A100: 200 Gb/s a GPU
    "a100-80": _sheet(80, 2.039, 312, 300e9, 25e9, "A100 80GB SXM data sheet; NVLink 300 GB/s one way, 200 Gb/s a GPU"),
    "a100-40": _sheet(40, 1.555, 312, 300e9, 25e9, "A100 40GB SXM data sheet; NVLink 300 GB/s one way, 200 Gb/s a GPU"),
    "a100-pcie": _sheet(80, 1.935, 312, _PCIE_4, _PLAIN, "A100 80GB PCIe data sheet; PCIe 4 and a plain network"),
    # NVIDIA HGX B200 data sheet, an eighth of the board: 1.4 TB, 64 TB/s, 36 PFLOP/s sparse; NVLink 1.8 TB/s both ways
    "b200": _sheet(180, 8.0, 2250, 900e9, 50e9, "HGX B200 data sheet, an eighth; NVLink 900 GB/s one way, 400 Gb/s"),
    # NVIDIA GB200 NVL72 data sheet, a 72nd: 13.4 TB, 576 TB/s, 360 PFLOP/s sparse; eight are a node here
    "gb200": _sheet(186, 8.0, 2500, 900e9, 50e9, "GB200 NVL72 data sheet, a 72nd; NVLink 900 GB/s one way, 400 Gb/s"),
    # NVIDIA L40S, L4, A10 and A40 data sheets
    "l40s": _sheet(48, 0.864, 362, _PCIE_4, _PLAIN, "L40S data sheet; PCIe 4 and a plain network"),
    "l4": _sheet(24, 0.300, 121, _PCIE_4, _PLAIN, "L4 data sheet; PCIe 4 and a plain network"),
    "a10": _sheet(24, 0.600, 125, _PCIE_4, _PLAIN, "A10 data sheet; PCIe 4 and a plain network"),
    "a40": _sheet(48, 0.696, 149.7, _PCIE_4, _PLAIN, "A40 data sheet; PCIe 4 and a plain network"),
    # NVIDIA RTX A6000 and RTX 6000 Ada data sheets, half of the sparse figures
    "a6000": _sheet(48, 0.768, 154.8, _PCIE_4, _PLAIN, "RTX A6000 data sheet; PCIe 4 and a plain network"),
    "rtx6000ada": _sheet(48, 0.960, 364.2, _PCIE_4, _PLAIN, "RTX 6000 Ada data sheet; PCIe 4 and a plain network"),
    # NVIDIA's architecture papers of GA102, AD102 and Blackwell (RTX): bf16 with float32 sums, dense
    "rtx3090": _sheet(24, 0.936, 71, _PCIE_4, _PLAIN, "GA102 paper: bf16, float32 sums; PCIe 4 and a plain network"),
    "rtx4090": Gpu(
        memory=24 * GB, copy=1.0e12, flops=165e12, inside=16e9, tokens=5e9, outside=5e9,
        source="not measured: 1,008 GB/s, 165 TFLOP/s (bf16, float32 sums) by data sheet; PCIe and a plain network",
    ),
    "rtx5090": _sheet(32, 1.792, 209.5, _PCIE_5, _PLAIN, "RTX Blackwell paper: bf16, float32 sums; PCIe 5"),
    # AMD Instinct data sheets: MI250X, MI300X (7 links of 64 GB/s one way), MI325X, MI355X (7 of 76.8 GB/s)
    "mi250x": _sheet(128, 3.2, 383, 200e9, 25e9, "MI250X data sheet, both dies; links 200 GB/s one way, 200 Gb/s"),
    "mi300x": _sheet(192, 5.3, 1307, 448e9, 50e9, "MI300X data sheet; seven links of 64 GB/s one way, 400 Gb/s"),
    "mi325x": _sheet(256, 6.0, 1307, 448e9, 50e9, "MI325X data sheet; seven links of 64 GB/s one way, 400 Gb/s"),
    "mi355x": _sheet(288, 8.0, 2500, 537e9, 50e9, "MI355X data sheet; seven links of 76.8 GB/s one way, 400 Gb/s"),
}  # fmt: skip
_SAME = {"a100": "a100-80", "rtxa6000": "a6000", "6000ada": "rtx6000ada"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Values of a card on the command line; None: not given."""

    gb: float | None = None
    tflops: float | None = None
    tbs: float | None = None
    link_gbs: float | None = None
    net_gbs: float | None = None


def find_gpu(name: str, given: Given) -> Gpu:
    """The card called ``name``, with ``given`` values replacing the table's; UserError for missing ones."""
    for option, value in (("gb", given.gb), ("tflops", given.tflops), ("tbs", given.tbs)):
        if value is not None and not 0 < value < 1e6:
            raise UserError(f"--gpu-{option} {value:g}: must be a number above 0")
    for option, value in (("link", given.link_gbs), ("net", given.net_gbs)):
        if value is not None and not 0 < value < 1e6:
            raise UserError(f"--{option}-gbs {value:g}: must be a number above 0")
    known = {_plain(key): key for key in GPUS} | {_plain(key): other for key, other in _SAME.items()}
    found = GPUS.get(known.get(_plain(name), ""))
    if found is None:
        return _own(name, given, list(known), list(GPUS))
    return _changed(found, given)


def _own(name: str, given: Given, known: list[str], shown: list[str]) -> Gpu:
    if given.gb is None or given.tflops is None:
        close = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0.65)
        meant = f"; did you mean {next(key for key in [*GPUS, *_SAME] if _plain(key) == close[0])}?" if close else ""
        raise UserError(
            f"--gpu {name}: must be one of {', '.join(shown)}{meant}. Another card: also give its memory and its dense"
            f" bfloat16 speed, --gpu {name} --gpu-gb N --gpu-tflops N"
        )
    assumed = _sheet(given.gb, 1.0, given.tflops, _PCIE_4, _PLAIN, "as given; what was not given is assumed:"
                     " memory 1 TB/s, links 32 GB/s, network 5 GB/s")  # fmt: skip
    return _changed(assumed, given)


def _changed(gpu: Gpu, given: Given) -> Gpu:
    changes: dict[str, float] = {}
    if given.gb is not None:
        changes["memory"] = round(given.gb * GB)
    if given.tflops is not None:
        changes["flops"] = given.tflops * 1e12
    if given.tbs is not None:
        changes["copy"] = given.tbs * 1e12
    if given.link_gbs is not None:
        changes["inside"] = given.link_gbs * 1e9
    if given.net_gbs is not None:
        changes |= {"tokens": given.net_gbs * 1e9, "outside": given.net_gbs * 1e9}
    if not changes:
        return gpu
    source = gpu.source if "as given" in gpu.source else f"{gpu.source}; in their place what was given"
    return replace(gpu, **changes, source=source)  # type: ignore[arg-type]


def _plain(name: str) -> str:
    """``name`` without maker, dashes, GB, SXM."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    text = re.sub(r"^(nvidia|amd|instinct|geforce|tesla)+", "", text)
    text = re.sub(r"(gb|sxm\d?|hbm\de?)+$", "", text)
    return re.sub(r"^(rtx)?(3090|4090|5090)$", r"rtx\2", text)
