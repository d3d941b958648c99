"""Rows, clocks and the page of ``benchmarks/gpu.py``."""

from __future__ import annotations

import datetime
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIELDS = ("what", "shape", "dtype", "value", "unit", "peer", "peer_value", "parity", "ok", "goal", "reason")
PEAK = 989e12  # FLOP/s of an H100's or H200's dense bfloat16 products, by the vendor's data sheet
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"


class Bench:
    """Where rows gather, and how things are timed on this device."""

    def __init__(self, device: str) -> None:
        self.device, self.small = torch.device(device), device == "cpu"
        self.rows: list[dict[str, Any]] = []
        self.judged = not self.small and "H200" in torch.cuda.get_device_name()  # goals are set for this card

    def add(self, what: str, value: float | None, unit: str, **columns: Any) -> None:
        """Add a row; ``ok`` is the given one, and for a card with goals also whether ``goal`` is met.

        ``goal`` is "<= 15" or ">= 550", in the value's unit.
        """
        row = dict.fromkeys(FIELDS) | {"what": what, "value": value, "unit": unit} | columns
        assert set(row) == set(FIELDS), set(row) ^ set(FIELDS)
        if self.judged and row["goal"] and value is not None:
            sign, bound = row["goal"].split()
            met = value <= float(bound) if sign == "<=" else value >= float(bound)
            row["ok"] = met and row["ok"] is not False
        self.rows.append(row)
        print(line(row), flush=True)

    def skip(self, what: str, reason: str, **columns: Any) -> None:
        """A row without a value, and why."""
        self.add(what, None, "", reason=reason, **columns)

    def wait(self) -> None:
        """Wait until the device is idle."""
        if not self.small:
            torch.cuda.synchronize()

    def times(self, calls: dict[str, Callable[[], Any]], runs: int = 7, at_once: int = 4) -> dict[str, float]:
        """Median seconds of each, interleaved so that a hot card slows all alike.

        On a GPU ``at_once`` calls are queued per measurement, so that the device does not wait for Python.
        """
        for call in calls.values():
            call()
        self.wait()
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(2 if self.small else runs):
            for name, call in calls.items():
                found[name].append(self._once(call, at_once))
        return {name: statistics.median(seconds) for name, seconds in found.items()}

    def _once(self, call: Callable[[], Any], at_once: int) -> float:
        if self.small:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(at_once):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / at_once

    def in_graph(self, call: Callable[[], Any], copies: int = 20) -> float:
        """Seconds of ``call`` within a CUDA graph of many, without launch overhead; on a CPU directly."""
        if self.small:
            return self.times({"call": call})["call"]
        graph = captured(call, copies)
        return self.times({"graph": graph.replay}, 15, at_once=1)["graph"] / copies


def captured(call: Callable[[], Any], copies: int = 1) -> torch.cuda.CUDAGraph:
    """A CUDA graph of ``copies`` calls, after two calls outside it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(copies):
            call()
    return graph


def deviation(given: Tensor, exact: Tensor) -> float:
    """‖given - exact‖ / ‖exact‖ in float64; infinite if ``given`` holds a NaN."""
    if not given.isfinite().all():
        return float("inf")
    off, size = (given.double() - exact.double()).norm().item(), exact.double().norm().item()
    return off / size if size else off


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    mark = {True: "ok", False: "NOT OK", None: "-"}[row["ok"]]
    named = (str(row[name]) for name in ("what", "shape", "dtype") if row[name])
    text = f"{mark:7}" + " | ".join([*named, f"{number(row['value'])} {row['unit']}".strip()])
    if row["peer"]:
        text += f" | {row['peer']} {number(row['peer_value'])}"
    for name in ("parity", "goal", "reason"):
        if row[name] is not None:
            text += f" | {name} {number(row[name]) if name == 'parity' else row[name]}"
    return text


def number(value: Any) -> str:
    """Three significant figures (four from 10 on), or the text."""
    if not isinstance(value, float) or isinstance(value, bool):
        return "" if value is None else str(value)
    if not value:
        return "0"
    if abs(value) < 1e-2:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def facts(device: torch.device) -> dict[str, str]:
    """Device, its clocks, versions and the date."""
    found = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "python": platform.python_version()}
    for package in ("torch", "triton", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["device"] = platform.processor() or platform.machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
        found["memory"] = f"{properties.total_memory / 2**30:.0f} GiB"
        found["cuda"] = str(torch.version.cuda)
        found |= _clocks()
    return found


def _clocks() -> dict[str, str]:
    """Driver, power limit and clocks from nvidia-smi during a bfloat16 product."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {"clocks": "nvidia-smi is not there to read them"}
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(700):  # about a second
        a @ a
    query = "driver_version,power.limit,clocks.max.sm,clocks.sm,clocks.mem"
    done = subprocess.run([tool, f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True)
    torch.cuda.synchronize()
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    if len(values) != 5:
        return {"clocks": f"nvidia-smi: {done.stdout}{done.stderr}".strip()[:200]}
    driver, power, largest, running, memory = values
    return {
        "driver": driver,
        "power limit": power,
        "clocks": f"SM {running} in a bfloat16 product (at most {largest}), memory {memory}",
    }


def _mark(row: dict[str, Any]) -> str:
    return {True: "✓", False: "✗", None: "–"}[row["ok"]]


def _cells(cells: list[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join("" if cell is None else str(cell).replace("|", "/") for cell in cells) + " |"


def write_page(path: Path, found: dict[str, str], rows: list[dict[str, Any]], seconds: float) -> None:
    """Write facts and table to ``path``: between the markers if it has them, else as a new page."""
    told = [f"- {name}: {value}" for name, value in found.items()] + [f"- seconds: {seconds:.0f}", ""]
    exact = [row for row in rows if row["value"] is not None and row["value"] == row["parity"]]
    told.append("| | what | shape | dtype | value | beside | its value | parity | goal |")
    told.append("|---|---|---|---|--:|---|--:|--:|--:|")
    for row in rows:
        if row not in exact:
            value = f"{number(row['value'])} {row['unit']}".strip() or row["reason"]
            beside = [row["peer"], number(row["peer_value"]), number(row["parity"]), row["goal"]]
            told.append(_cells([_mark(row), row["what"], row["shape"], row["dtype"], value, *beside]))
    told += ["", "| | parity | shape | dtype | value | |", "|---|---|---|---|--:|---|"]
    for row in exact:
        cells = [row["what"], row["shape"], row["dtype"], number(row["value"]), row["unit"]]
        told.append(_cells([_mark(row), *cells]))
    block = "\n".join([BEGIN, *told, END])
    text = path.read_text() if path.exists() else f"# Measured on a GPU\n\n{BEGIN}{END}\n"
    before, rest = text.split(BEGIN, 1)
    path.write_text(before + block + rest.split(END, 1)[1])
