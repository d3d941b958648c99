"""A tiny exported policy in vLLM against transformers: greedy tokens and log-probs in bfloat16.

    python benchmarks/serve_vllm.py --python VLLM_ENVIRONMENT/bin/python

benchmarks/vllm_server.py says how to install vLLM's CPU build, and which of its kernels to avoid. Without its
form of the rotary embedding, positions from the second on are off by 0.2 and more. Exit code 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table
from vllm_server import command, environment

from model.decoder import export_weights
from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer
from model.policy_files import save_policy
from model.tokenizer.bpe import train_tokenizer
from parl.serve.export import export

TOLERANCE = 1e-2
VOCAB = 512
CONFIG = ModelConfig(
    vocab_size=VOCAB, hidden_size=256, num_hidden_layers=3, intermediate_size=512, num_attention_heads=4,
    q_lora_rank=192, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=8,
    num_experts_per_tok=2, moe_intermediate_size=128, max_position_embeddings=1024, rope_theta=10_000.0,
    rms_norm_eps=1e-6, latent_norm_eps=1e-6,
)  # fmt: skip


def policy(seed: int = 0) -> Transformer:
    """Random, but well-conditioned: one clear successor of each token, small logits, few ties of experts.

    From 2 up bfloat16 itself is coarser than the tolerance; without a clear successor greedy tokens depend on
    rounding, and so do routes (vLLM scores experts in bfloat16) for tied experts. Attention and experts
    change the hidden state as much as in any random model, so mistakes in them show: without rotation
    log-probs are off by 0.03.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size, spread: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * spread

    model = Transformer(CONFIG)
    width = CONFIG.hidden_size
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(normal(parameter.shape, parameter.shape[-1] ** -0.5))
        embedding = model.embed_tokens.weight
        embedding.copy_(normal(embedding.shape, 1.5))
        successors = torch.randperm(VOCAB, generator=generator)
        model.lm_head.weight.copy_(normal(embedding.shape, 0.024 * width**-0.5))
        model.lm_head.weight[successors] += embedding * (0.26 / width)
        for router in model.routers():
            router.weight *= 0.5
            router.e_score_correction_bias.copy_(0.2 * torch.randperm(CONFIG.n_routed_experts, generator=generator))
    return model.eval()


@contextmanager
def server(
    python: str, folder: Path, log: Path, start_s: float, *, dtype: str = "bfloat16", longest: int = 256, **extra: str
) -> Iterator[httpx.Client]:
    """vLLM with the checkpoint in ``folder``, up and healthy; stopped at the end. SystemExit past ``start_s``.

    ``extra``: more environment variables for it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = command(python, folder, port, dtype=dtype, length=longest, transfer=False)
    settings = environment(dtype, transfer=False) | extra
    with log.open("w") as out, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as client:
        process = subprocess.Popen(
            line, stdout=out, stderr=subprocess.STDOUT, env=settings, cwd=log.parent, start_new_session=True
        )
        try:
            _wait_until_healthy(client, process, log, time.monotonic() + start_s)
            yield client
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):  # its engine's processes outlive it where it is stopped early
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_healthy(client: httpx.Client, process: subprocess.Popen, log: Path, deadline: float) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit("vLLM ended:\n" + "\n".join(log.read_text().splitlines()[-20:]))
        with suppress(httpx.TransportError):
            if client.get("/health").status_code == 200:
                return
        time.sleep(1.0)
    raise SystemExit("vLLM did not come up in time: raise --start-s")


def served(client: httpx.Client, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens after ``prompt``, and the log-probs of all tokens except the first."""
    body = {
        "model": "policy", "prompt": prompt, "max_tokens": count, "temperature": 0, "logprobs": 0, "ignore_eos": True,
        "prompt_logprobs": 0, "return_token_ids": True,
    }  # fmt: skip
    answer = client.post("/v1/completions", json=body)
    answer.raise_for_status()
    [choice] = answer.json()["choices"]
    positions = zip(prompt, choice["prompt_logprobs"], strict=True)
    before = [position[str(token)]["logprob"] for token, position in positions if position]  # the first has none
    return choice["token_ids"], before + choice["logprobs"]["token_logprobs"]


def reference(model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The same from transformers."""
    with torch.no_grad():
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
        logprobs = torch.log_softmax(model(whole).logits.float(), -1)[0, :-1]
    return whole[0, len(prompt) :].tolist(), logprobs.gather(1, whole[0, 1:, None]).squeeze(1).tolist()


def main() -> None:
    """Export, serve, compare, print; exit code 1 if tokens or log-probs differ."""
    parser = argparse.ArgumentParser(description="an exported policy served by vLLM against transformers")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has vllm")
    parser.add_argument("--tokens", type=int, default=16, help="greedy tokens a prompt")
    parser.add_argument("--start-s", type=float, default=300.0, help="deadline for the server to come up")
    arguments = parser.parse_args()
    import transformers

    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        tokenizer = train_tokenizer(["Report the age of each."] * 2, VOCAB)
        save_policy(run / "policy", CONFIG, export_weights(policy()), tokenizer, {})
        folder = export(run, dtype="bfloat16")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        model.generation_config.eos_token_id = None  # all tokens that were asked for
        generator = torch.Generator().manual_seed(1)
        prompts = [torch.randint(340, (size,), generator=generator).tolist() for size in (1, 6, 24, 80)]
        with server(arguments.python, folder, run / "vllm.log", arguments.start_s) as client:
            answers = [served(client, prompt, arguments.tokens) for prompt in prompts]
        wanted = [reference(model, prompt, arguments.tokens) for prompt in prompts]
    table = Table("prompt", "greedy tokens equal", "largest log-prob difference", "mean")
    worst, equal = 0.0, True
    for prompt, (tokens, logprobs), (their_tokens, their_logprobs) in zip(prompts, answers, wanted, strict=True):
        gaps = (torch.tensor(logprobs) - torch.tensor(their_logprobs)).abs()
        worst, equal = max(worst, float(gaps.max())), equal and tokens == their_tokens
        table.add_row(f"{len(prompt)} tokens", str(tokens == their_tokens), f"{gaps.max():.4f}", f"{gaps.mean():.4f}")
    Console().print(table)
    if not equal or worst > TOLERANCE:
        raise SystemExit(f"vLLM and transformers differ: tokens equal {equal}, log-probs by {worst:.4f}")
    print(f"tokens equal, log-probs within {worst:.4f} (allowed {TOLERANCE})")


if __name__ == "__main__":
    main()
