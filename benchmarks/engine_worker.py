"""One engine in a process of its own, for ``benchmarks/engine.py --model``: jobs as lines of JSON in, seconds out.

    python benchmarks/engine_worker.py (ours|transformers|vllm) FOLDER LENGTH SETTINGS

SETTINGS is an object as JSON, a job ``{"prompts": [[ids]], "new": N}``; the answer ``[wall, processor]`` seconds.
vLLM's interpreter runs it without parl's packages. Whatever is sampled (temperature 1), nothing stops early.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Generate = Callable[[list[list[int]], int], None]


def ours(folder: str, length: int, settings: dict[str, Any]) -> Generate:
    """The embedded engine; ``dtype``: float32, bfloat16, or int8 for int8 weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import asyncio

    from safetensors import safe_open

    from model.arrays import to_numpy
    from model.hf.decode.native import GqaDecoder
    from model.hf.family import Hf
    from rollouts.engine.base import Sampling, Update
    from rollouts.engine.embedded.engine import EmbeddedEngine

    int8 = settings["dtype"] == "int8"
    shape = Hf().read_shape(Path(folder)).model_copy(update={"dtype": "bfloat16" if int8 else settings["dtype"]})
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        weights = {name: to_numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    runner = asyncio.Runner()

    async def start() -> EmbeddedEngine:
        pages = 64 * (length // 16 + 2)
        engine = EmbeddedEngine(shape, pages=pages)
        if int8:
            engine._decoder = GqaDecoder(shape, pages, int8=True)
        await engine.update(Update(version=0, weights=weights))
        return engine

    engine = runner.run(start())

    async def all_of(prompts: list[list[int]], new: int) -> None:
        async def one(number: int) -> None:
            session, wanted = f"{engine.generated}-{number}", Sampling(seed=number, max_new_tokens=new)
            done = await engine.generate(prompts[number], wanted, session=session, deadline_s=600.0)
            assert len(done.tokens) == new
            await engine.release(session)

        await asyncio.gather(*(one(number) for number in range(len(prompts))))

    return lambda prompts, new: runner.run(all_of(prompts, new))


def transformers(folder: str, length: int, settings: dict[str, Any]) -> Generate:
    """``generate``; ``cache``: dynamic or static."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    cache = {} if settings["cache"] == "dynamic" else {"cache_implementation": settings["cache"]}

    @torch.no_grad()
    def generate(prompts: list[list[int]], new: int) -> None:
        tokens = torch.tensor(prompts)
        chosen = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": 0}
        whole = torch.ones_like(tokens)
        done = model.generate(tokens, attention_mask=whole, max_new_tokens=new, min_new_tokens=new, **chosen, **cache)
        assert done.shape[1] == tokens.shape[1] + new

    return generate


def vllm(folder: str, length: int, settings: dict[str, Any]) -> Generate:
    """``LLM.generate`` in this process, bfloat16; ``chunked`` prefill, ``eager`` or compiled. No prefix cache."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=folder, dtype="bfloat16", max_model_len=length, enforce_eager=settings["eager"], max_num_seqs=64,
        enable_chunked_prefill=settings["chunked"], max_num_batched_tokens=2048, enable_prefix_caching=False,
        disable_log_stats=True,
    )  # fmt: skip

    def generate(prompts: list[list[int]], new: int) -> None:
        wanted = SamplingParams(max_tokens=new, temperature=1.0, ignore_eos=True, logprobs=0)
        done = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], wanted, use_tqdm=False)
        assert all(len(one.outputs[0].token_ids) == new for one in done)

    return generate


def main() -> None:
    """Answer until the input ends."""
    name, folder, length, settings = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    generate = {"ours": ours, "transformers": transformers, "vllm": vllm}[name](
        folder, int(length), json.loads(settings)
    )
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began, used = time.perf_counter(), time.process_time()
        generate(job["prompts"], job["new"])
        print(json.dumps([time.perf_counter() - began, time.process_time() - used]), file=answers, flush=True)


if __name__ == "__main__":
    main()
