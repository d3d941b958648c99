"""The learner itself (``parl/learn/learner.py``) on a GPU, for ``benchmarks/gpu.py``: as a rank of a run, without Ray.

First the same steps on the GPU as on the CPU, for both families, in float32: losses, gradient norms, weights after
three optimiser steps, log-probs. Then whole steps in bfloat16 under ZeRO 2, packing, statistics, clipping and the
optimiser included, and how often a pass over the micro-batches waits for the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_learner import QWEN, SIZES, SMALL, SMALL_QWEN, flops
from benchmarks.gpu_rows import PEAK, Bench

ROOT = Path(__file__).resolve().parents[1]
_TINY_MOE = SMALL_QWEN | {
    "model_type": "qwen3_moe", "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
}  # fmt: skip
_TOLERANCE = 2e-4  # relative, float32 without TF32, after three steps of Muon or AdamW
_LENGTH, _MICRO, _ROWS = 4096, 8192, 32


def shape_of(sizes: dict[str, Any], dtype: str = "float32") -> Any:
    """A policy of ours, or of transformers' where ``sizes`` name a model type, in ``dtype``."""
    if "model_type" in sizes:
        from model.hf.shape import HfShape

        return HfShape.model_validate({"transformers": sizes, "dtype": dtype})
    from model.kimi.config import ModelConfig

    start = {"look_back": False, "embedding_range": 0.02, "embedding_mean": 0.0, "initializer_range": 0.02}
    return ModelConfig(**sizes, **start)


def as_transformers(sizes: dict[str, Any]) -> dict[str, Any]:
    """Moonlight's ``sizes`` for transformers' DeepSeek-V3."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": sizes["rope_theta"]}}
    heads = {"num_key_value_heads": sizes["num_attention_heads"], "tie_word_embeddings": False}
    return (
        {name: size for name, size in sizes.items() if name != "rope_theta"}
        | rope
        | heads
        | {"model_type": "deepseek_v3"}
    )


def rows_of(shape: Any, lengths: list[int]) -> list[Any]:
    """Rows of random tokens whose second half is trained, with recorded routes where the policy has experts."""
    from parl.learn.rows import Row

    rng, rows = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        mask = np.arange(length) >= length // 2
        routes = None
        if (said := shape.routes) is not None:
            drawn = rng.random((length, said.layers, said.experts)).argsort(-1)[..., : said.chosen]
            routes = drawn.astype(np.int16)
        values = {"logprobs": np.float32(-5.0), "advantages": np.float32(rng.normal())}
        fields: Any = {name: np.where(mask, value, np.float32(0)) for name, value in values.items()}
        tokens = rng.integers(0, shape.vocab_size, length).astype(np.int32)
        rows.append(Row(key=(str(number), 0, "0"), tokens=tokens, mask=mask, routes=routes, **fields))
    return rows


def parity(bench: Bench) -> None:
    """The same steps on this device, and on the CPU in a process of its own (DeepSpeed knows one device)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cpu.npz"
        command = [sys.executable, "-m", "benchmarks.gpu_steps", str(out)]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True, timeout=300)
        with np.load(out) as there:
            exact = dict(there)
    for name, given in _all_trained(bench.device.type).items():
        model, _, what = name.partition("/")
        off = _apart(given, exact[name])
        columns = {"shape": model, "dtype": "float32", "parity": off, "ok": off <= _TOLERANCE}
        bench.add(f"learner on this device against the CPU: {what}", off, "apart", **columns)


def _all_trained(device: Any) -> dict[str, np.ndarray]:
    from parl.learn.config import OptimizerConfig
    from parl.learn.learner import Learner

    found = {}
    for name, sizes in {"our own": SIZES | SMALL, "qwen3": QWEN | SMALL_QWEN, "qwen3_moe": _TINY_MOE}.items():
        shape, optimizer = shape_of(sizes), OptimizerConfig(lr=1e-3, muon_lr=1e-3)
        learner = Learner(shape, optimizer, seed=0, threads=2, device=device)
        rows = rows_of(shape, [96, 40, 64, 128, 17])
        found |= {f"{name}/{what}": values for what, values in _trained(learner, rows).items()}
    return found


def _trained(learner: Any, rows: list[Any]) -> dict[str, np.ndarray]:
    from parl.learn.objective.grpo import Grpo
    from parl.learn.rows import denominator

    settings = {"denominator": float(denominator(rows)), "temperature": 0.9, "micro_tokens": 256}
    steps = [learner.policy_step(rows, Grpo(clip_low=0.9, clip_high=9.0), **settings) for _ in range(3)]
    names = ("loss", "grad_norm", "entropy", "mismatch_kl")
    out = {name: np.array([step[name] for step in steps]) for name in names}
    out["log-probs"] = np.concatenate(learner.logprobs(rows, temperature=0.9, micro_tokens=256))
    out["weights"] = np.concatenate([array.ravel() for _, array in sorted(learner.weights().items())])
    return out


def _apart(given: np.ndarray, exact: np.ndarray) -> float:
    size = float(np.linalg.norm(exact.astype(np.float64)))
    return float(np.linalg.norm(given.astype(np.float64) - exact)) / max(size, 1e-12)


def whole_steps(bench: Bench) -> None:
    """Steps of the learner in bfloat16 under ZeRO 2 on one rank."""
    for name, sizes in {"Moonlight": SIZES, "Qwen3-8B": QWEN}.items():
        small = SMALL if name == "Moonlight" else SMALL_QWEN
        _whole_step(bench, name, sizes | small if bench.small else sizes)
        if not bench.small:
            torch.cuda.empty_cache()


def _whole_step(bench: Bench, name: str, sizes: dict[str, Any]) -> None:
    from parl.learn.config import OptimizerConfig, ParallelConfig
    from parl.learn.learner import Learner
    from parl.learn.objective.grpo import Grpo
    from parl.learn.rows import denominator

    length, micro, count = (64, 128, 4) if bench.small else (_LENGTH, _MICRO, _ROWS)
    shape = shape_of(sizes if "model_type" in sizes else as_transformers(sizes), "bfloat16")
    rows, device = rows_of(shape, [length] * count), bench.device.type
    optimizer, parallel = OptimizerConfig(lr=1e-5, muon_lr=None), ParallelConfig(zero=2)
    learner = Learner(shape, optimizer, seed=0, threads=8, parallel=parallel, device=device)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"denominator": float(denominator(rows)), "temperature": 1.0}
    step = partial(learner.policy_step, rows, Grpo(), micro_tokens=micro, **settings)
    step()
    if not bench.small:
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.times({"step": step}, 3, at_once=1)["step"]
    said = f"{sizes['num_hidden_layers']} layers of {name}'s, {count} rows of {length} tokens"
    columns: dict[str, Any] = {"shape": said, "dtype": "bfloat16"}
    bench.add("whole step of the learner, ZeRO 2, AdamW", count * length / seconds, "tokens/s", **columns)
    if bench.small:
        return
    work = flops(sizes, count, length, count * length // 2)
    bench.add("of the card's peak", 100 * work / seconds / PEAK, "%", **columns)
    bench.add("memory of a whole step at most", torch.cuda.max_memory_allocated() / 2**30, "GiB", **columns)
    batches = count * length // micro
    with _waits() as seen:
        learner._accumulate(rows, partial(_loss, learner, settings), micro, mask=_mask)
    columns |= {"ok": seen[0] < batches, "reason": "; ".join(sorted(seen[1:]))[:400] or None}
    bench.add("waits for the device in a pass over the micro-batches", seen[0], f"of {batches}", **columns)


def _loss(learner: Any, settings: dict[str, Any], batch: Any) -> Any:
    from parl.learn.objective.grpo import Grpo
    from parl.learn.terms import policy_terms

    return policy_terms(learner.engine, batch, Grpo(), **settings)[0]


def _mask(row: Any) -> np.ndarray:
    return row.mask


@contextmanager
def _waits() -> Iterator[list[Any]]:
    """[number, where...] of the synchronisations that torch reports inside the block, the last one (a sum) left out."""
    seen: list[Any] = [0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found = [w for w in caught if "synchroniz" in str(w.message)]
            seen[0] = max(len(found) - 2, 0)  # the loss is asked for in the end: is it finite, what is it
            seen += {f"{w.filename.rpartition('/')[2]}:{w.lineno} x{_count(found, w)}" for w in found}


def _count(found: list[Any], one: Any) -> int:
    return sum(w.filename == one.filename and w.lineno == one.lineno for w in found)


SECTIONS = {"parity of steps": parity, "whole steps": whole_steps}

if __name__ == "__main__":
    results: Any = _all_trained("cpu")
    np.savez(sys.argv[1], **results)
