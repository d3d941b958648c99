"""The learner's part of ``benchmarks/gpu.py``: a step of our model beside transformers' model of the same shape.

A step is forward and backward over micro-batches of rows, log-probs of a quarter of their tokens (what agents wrote;
the rest are prompts and tools' answers), clipping, and torch's fused AdamW on float32 copies of bfloat16 weights. Both
models begin with the same random weights, take the same tokens and route live. Neither recomputes activations.

FLOP of a step: 3 (forward, 2 in backward) times the sum over tokens of 2 · parameters that a token passes, the head for
trained tokens only, + layers · heads · (query + value width) · T² for each row of T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_rows import PEAK, Bench

SIZES: dict[str, Any] = {  # Moonlight-16B-A3B's, with fewer layers
    "vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264, "moe_intermediate_size": 1408,
    "num_attention_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
    "num_hidden_layers": 4, "first_k_dense_replace": 1, "routed_scaling_factor": 2.446, "rope_theta": 50000.0,
    "max_position_embeddings": 8192, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "rms_norm_eps": 1e-5,
}  # fmt: skip
SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32,
    "num_attention_heads": 2, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "max_position_embeddings": 256,
}  # fmt: skip
QWEN: dict[str, Any] = {  # Qwen3-8B's, with fewer layers
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
}  # fmt: skip
SMALL_QWEN = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "max_position_embeddings": 256,
}  # fmt: skip
MICRO, ROWS, LENGTH = 8, 4, 4096  # micro-batches of rows of tokens
STEPS = 4

Step = Callable[[Tensor, Tensor], Tensor]  # tokens [B, T], mask of trained tokens [B, T] -> log-probs [M]


def same_weights(module: nn.Module, given: dict[str, Tensor]) -> None:
    """Load our weights into transformers' model, with its prefixes and fused gate and up."""
    for name, parameter in module.named_parameters():
        key, half = name if name in given else name.removeprefix("model."), None
        for part, old in enumerate(("gate_proj.weight", "up_proj.weight")):
            if key.endswith("." + old) and key not in given:
                key, half = key.removesuffix(old) + "gate_up_proj.weight", part
        source = given[key] if half is None else given[key].chunk(2)[half]
        parameter.data.copy_(source)


def ours(sizes: dict[str, Any]) -> tuple[nn.Module, Step]:
    """Our model, made on the default device."""
    from model.kimi.config import ModelConfig
    from model.kimi.transformer import Transformer

    start = {"look_back": False, "embedding_range": 0.02, "embedding_mean": 0.0, "initializer_range": 0.02}
    model = Transformer(ModelConfig(**sizes, **start, latent_norm_eps=1e-6))  # transformers' epsilon
    nn.init.normal_(model.lm_head.weight, std=0.02)  # log-probs that differ
    return model, lambda tokens, mask: model(tokens, mask)[0]


def ours_qwen(sizes: dict[str, Any]) -> tuple[nn.Module, Step]:
    """transformers' Qwen3 as our policy: our attention over packed rows, our log-probs."""
    from model.hf.family import Hf
    from model.hf.shape import HfShape

    model = Hf().policy(HfShape.model_validate({"transformers": sizes}))

    def step(tokens: Tensor, mask: Tensor) -> Tensor:
        rows = [tokens.shape[1]] * len(tokens)
        return model(tokens.view(1, -1), mask.view(1, -1), lengths=rows)[0]

    return model, step


def theirs_qwen(sizes: dict[str, Any]) -> tuple[nn.Module, Step]:
    """transformers' own Qwen3, with torch's attention."""
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

    config = Qwen3Config(**{name: size for name, size in sizes.items() if name != "model_type"}, use_cache=False)
    config._attn_implementation = "sdpa"
    return _with_step(Qwen3ForCausalLM(config))


def theirs(sizes: dict[str, Any]) -> tuple[nn.Module, Step]:
    """transformers' DeepSeek-V3 of the same shape, made on the default device."""
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM

    sizes = {name: size for name, size in sizes.items() if name != "rope_theta"} | {
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes["rope_theta"]}
    }
    config = DeepseekV3Config(**sizes, num_key_value_heads=sizes["num_attention_heads"], use_cache=False)
    config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
    return _with_step(DeepseekV3ForCausalLM(config))


def _with_step(model: Any) -> tuple[nn.Module, Step]:
    def step(tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = model.model(input_ids=tokens).last_hidden_state.flatten(0, 1)
        chosen = hidden[:-1][mask.flatten()[1:]]
        logprobs = torch.log_softmax(model.lm_head(chosen).float(), -1)
        return logprobs.gather(1, tokens.flatten()[mask.flatten()][:, None]).squeeze(1)

    return model, step


class Trainer:
    """A model in bfloat16, and AdamW on float32 copies of its weights."""

    def __init__(self, make: Callable[[dict[str, Any]], tuple[nn.Module, Step]], sizes: dict[str, Any], bench: Bench,
                 weights: dict[str, Tensor] | None = None) -> None:  # fmt: skip
        with bench.device:
            self.model, self._forward = make(sizes)
        if weights is not None:
            same_weights(self.model, weights)
        self.model.train()
        for parameter in self.model.parameters():  # not the buffers: positions stay in float32
            parameter.data = parameter.data.bfloat16()
        self._parameters = list(self.model.parameters())
        self._masters = [parameter.detach().float() for parameter in self._parameters]
        self._optimizer = torch.optim.AdamW(self._masters, lr=1e-5, fused=True)

    @torch.no_grad()
    def logprobs(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Of the trained tokens [M], in float32."""
        return self._forward(tokens, mask).float().clone()

    def step(self, batches: list[Tensor], mask: Tensor) -> None:
        """Forward and backward of each micro-batch, clipping, update."""
        for tokens in batches:
            (-self._forward(tokens, mask).mean() / len(batches)).backward()
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0, foreach=True)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._masters)
        self._optimizer.zero_grad(set_to_none=True)


def flops(sizes: dict[str, Any], rows: int, length: int, trained: int) -> float:
    """FLOP of a micro-batch, as the module's docstring counts them."""
    s = sizes
    if "model_type" in s:
        width, layers = s["head_dim"], s["num_hidden_layers"]
        attention = s["hidden_size"] * width * 2 * (s["num_attention_heads"] + s["num_key_value_heads"])
        each = layers * (attention + 3 * s["hidden_size"] * s["intermediate_size"])
        looking = layers * s["num_attention_heads"] * 2 * width * length**2 * rows
        return 3 * (2 * (each * rows * length + s["hidden_size"] * s["vocab_size"] * trained) + looking)
    hidden, heads, layers = s["hidden_size"], s["num_attention_heads"], s["num_hidden_layers"]
    query, latent = s["qk_nope_head_dim"] + s["qk_rope_head_dim"], s["kv_lora_rank"]
    attention = hidden * heads * query + hidden * (latent + s["qk_rope_head_dim"])
    attention += latent * heads * (s["qk_nope_head_dim"] + s["v_head_dim"]) + heads * s["v_head_dim"] * hidden
    dense = 3 * hidden * s["intermediate_size"]
    sparse = 3 * hidden * s["moe_intermediate_size"] * (s["num_experts_per_tok"] + s["n_shared_experts"])
    sparse += hidden * s["n_routed_experts"]
    first = s["first_k_dense_replace"]
    each = layers * attention + first * dense + (layers - first) * sparse
    looking = layers * heads * (query + s["v_head_dim"]) * length**2 * rows  # causal: half of 2 · 2 · T²
    return 3 * (2 * (each * rows * length + hidden * s["vocab_size"] * trained) + looking)


def learner(bench: Bench) -> None:
    """A step of each model in ours and in transformers' form: tokens/s, share of the peak, memory."""
    moonlight, qwen = (SIZES | SMALL, QWEN | SMALL_QWEN) if bench.small else (SIZES, QWEN)
    experts = f"E{moonlight['n_routed_experts']} K{moonlight['num_experts_per_tok']} D{moonlight['hidden_size']}"
    compare(bench, f"{moonlight['num_hidden_layers']} layers of Moonlight's, {experts}", moonlight, ours, theirs)
    dense = f"{qwen['num_hidden_layers']} layers of Qwen3-8B's, D{qwen['hidden_size']}"
    compare(bench, dense, qwen, ours_qwen, theirs_qwen)


def compare(bench: Bench, named: str, sizes: dict[str, Any], our: Callable, their: Callable) -> None:
    """The rows of one model."""
    length, micro = (64, 1) if bench.small else (LENGTH, MICRO)
    g = torch.Generator().manual_seed(0)
    shape = micro, ROWS, length
    tokens = list(torch.randint(0, sizes["vocab_size"], shape, generator=g).to(bench.device))
    mask = torch.zeros(ROWS, length, dtype=torch.bool)
    mask[:, length // 2 : length * 3 // 4] = True
    mask, trained = mask.to(bench.device), ROWS * (length // 4)
    found: dict[str, dict[str, Any]] = {}
    for name, make in (("ours", our), ("transformers", their)):
        try:
            weights = found["ours"].pop("weights") if name == "transformers" else None
            found[name] = _measured(bench, make, sizes, tokens, mask, weights)
        except Exception as error:
            bench.skip("learner step", f"{name}: {error!r}"[:300], shape=named, dtype="bfloat16")
        if not bench.small:
            torch.cuda.empty_cache()
    if "ours" not in found:
        return
    shape = f"{named}, {micro} x {ROWS} rows of {length} tokens"
    work, peer = micro * flops(sizes, ROWS, length, trained), found.get("transformers", {})
    columns = {"shape": shape, "dtype": "bfloat16", "peer": "transformers + torch" if peer else None}
    same = None
    if peer:
        one, two = found["ours"]["logprobs"], peer["logprobs"]
        same = ((one - two).norm() / (one - one.mean()).norm()).item()
    rate = {name: micro * ROWS * length / f["seconds"] for name, f in found.items()}
    bench.add("learner step", rate["ours"], "tokens/s", peer_value=rate.get("transformers"), parity=same,
              ok=None if same is None else same < 0.1, reason="parity: difference of log-probs over their spread",
              **columns)  # fmt: skip
    if bench.small:
        return bench.skip("learner step, share of the peak", "no peak is known for this processor", shape=shape)
    share = {name: work / f["seconds"] / PEAK for name, f in found.items()}
    bench.add("learner step, share of the peak", share["ours"] * 100, "%", goal=">= 45",
              peer_value=share.get("transformers", 0) * 100 or None, **columns)  # fmt: skip
    bench.add("learner step, memory at most", found["ours"]["gib"], "GiB", peer_value=peer.get("gib"), **columns)


def _measured(
    bench: Bench,
    make: Callable,
    sizes: dict[str, Any],
    tokens: list[Tensor],
    mask: Tensor,
    weights: dict[str, Tensor] | None,
) -> dict[str, Any]:
    trainer = Trainer(make, sizes, bench, weights)
    found: dict[str, Any] = {"logprobs": trainer.logprobs(tokens[0], mask)}
    if weights is None:
        found["weights"] = {name: parameter.cpu() for name, parameter in trainer.model.named_parameters()}
    if not bench.small:
        torch.cuda.reset_peak_memory_stats()
    found["seconds"] = bench.times({"step": lambda: trainer.step(tokens, mask)}, STEPS, at_once=1)["step"]
    found["gib"] = 0.0 if bench.small else torch.cuda.max_memory_allocated() / 2**30
    return found


def offload(bench: Bench) -> None:
    """A step of our Moonlight layers under ZeRO 2 with masters and AdamW's moments in host memory."""
    what, sizes = "learner step, ZeRO 2 with offload", SIZES | SMALL if bench.small else SIZES
    try:
        import deepspeed
    except ImportError as error:
        return bench.skip(what, f"deepspeed cannot be imported: {error}")
    length, micro = (64, 1) if bench.small else (LENGTH, MICRO)
    engine = _offloaded(bench, sizes, micro, deepspeed)
    tokens = list(torch.randint(0, sizes["vocab_size"], (micro, ROWS, length)).to(bench.device))
    mask = torch.zeros(ROWS, length, dtype=torch.bool, device=bench.device)
    mask[:, length // 2 : length * 3 // 4] = True

    def step() -> None:
        for batch in tokens:
            engine.backward(-engine(batch, mask)[0].mean())
            engine.step()

    if not bench.small:
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.times({"step": step}, 2, at_once=1)["step"]
    shape = f"{sizes['num_hidden_layers']} layers of Moonlight's, {micro} x {ROWS} rows of {length} tokens"
    bench.add(what, micro * ROWS * length / seconds, "tokens/s", shape=shape, dtype="bfloat16")
    if not bench.small:
        gib = torch.cuda.max_memory_allocated() / 2**30
        bench.add(f"{what}, memory at most", gib, "GiB", shape=shape, dtype="bfloat16")


def _offloaded(bench: Bench, sizes: dict[str, Any], micro: int, deepspeed: Any) -> Any:
    """A DeepSpeed engine over our model, on this process alone."""
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    os.environ.update(given)
    if bench.small:
        os.environ["DS_ACCELERATOR"] = "cpu"
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    deepspeed.init_distributed(dist_backend="gloo" if bench.small else "nccl", verbose=False)
    with bench.device:
        model = ours(sizes)[0].train()
    settings = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": micro,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": not bench.small}},
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW: DeepSpeed's own is compiled at its first use
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def not_yet(bench: Bench) -> None:
    """What the issue asks for and this code cannot do."""
    bench.skip("decode of the embedded engine", "the engine's decoder is C++ on a CPU, with NumPy arrays between")


SECTIONS = {"learner": learner, "offload": offload, "not yet": not_yet}
