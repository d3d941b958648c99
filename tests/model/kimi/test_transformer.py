"""The training forward: causal, replays routes, and computes DeepSeek-V3's equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import ODD_SHAPE, SHAPE, random_policy, tiny_model
from torch import Tensor

from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer

SHAPES = [pytest.param(SHAPE, id="tiny"), pytest.param(ODD_SHAPE, id="odd")]


@pytest.fixture(scope="module")
def policy() -> Transformer:
    return random_policy(tiny_model())


def random_tokens(rows: int, length: int, vocab: int, seed: int = 0) -> Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def all_but_first(tokens: Tensor) -> Tensor:
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    return mask


def logprobs(policy: Transformer, tokens: Tensor, routes: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return policy(tokens, all_but_first(tokens), routes)[0].view(len(tokens), -1)


def recorded_routes(policy: Transformer, tokens: Tensor) -> Tensor:
    """The experts that a live forward chooses, int16 [B, T, L, K]."""
    chosen: list[Tensor] = []
    hooks = [
        router.register_forward_hook(lambda _, __, out: chosen.append(out.ids.view(*tokens.shape, -1)))
        for router in policy.routers()
    ]
    with torch.no_grad():
        policy.hidden(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(chosen, dim=2).to(torch.int16)


class Reference:
    """One token after the other, one head after the other: the equations of the DeepSeek-V2 and V3 reports."""

    def __init__(self, model: Transformer) -> None:
        self.c: ModelConfig = model.config
        self.w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / math.sqrt(float(np.mean(x * x)) + self.c.rms_norm_eps) * self.w[name]

    def rotated(self, x: np.ndarray, position: int) -> np.ndarray:
        out = np.empty_like(x)
        for pair in range(len(x) // 2):
            angle = position * self.c.rope_theta ** (-2 * pair / len(x))
            number = complex(x[2 * pair], x[2 * pair + 1]) * complex(math.cos(angle), math.sin(angle))
            out[2 * pair], out[2 * pair + 1] = number.real, number.imag
        return out

    def attention(self, xs: list[np.ndarray], layer: str) -> list[np.ndarray]:
        c, w = self.c, {n.removeprefix(layer): v for n, v in self.w.items()}
        latents, rope_keys, out = [], [], []
        up = w["kv_b_proj.weight"].reshape(c.num_attention_heads, -1, c.kv_lora_rank)
        for position, x in enumerate(xs):
            compressed = w["kv_a_proj_with_mqa.weight"] @ x
            latents.append(self.norm(compressed[: c.kv_lora_rank], layer + "kv_a_layernorm.weight"))
            rope_keys.append(self.rotated(compressed[c.kv_lora_rank :], position))
            query = w["q_b_proj.weight"] @ self.norm(w["q_a_proj.weight"] @ x, layer + "q_a_layernorm.weight")
            heads = []
            for head, q in enumerate(query.reshape(c.num_attention_heads, -1)):
                plain, turned = q[: c.qk_nope_head_dim], self.rotated(q[c.qk_nope_head_dim :], position)
                keys = [up[head, : c.qk_nope_head_dim] @ latent for latent in latents]
                values = [up[head, c.qk_nope_head_dim :] @ latent for latent in latents]
                scores = [
                    (plain @ k + turned @ r) / math.sqrt(c.qk_nope_head_dim + c.qk_rope_head_dim)
                    for k, r in zip(keys, rope_keys, strict=True)
                ]
                weights = [math.exp(s - max(scores)) for s in scores]
                heads.append(sum(a * v for a, v in zip(weights, values, strict=True)) / sum(weights))
            out.append(w["o_proj.weight"] @ np.concatenate(heads))
        return out

    @staticmethod
    def swiglu(x: np.ndarray, gate_up: np.ndarray, down: np.ndarray) -> np.ndarray:
        gate, up = np.split(gate_up @ x, 2)
        return down @ (gate / (1 + np.exp(-gate)) * up)

    def experts(self, x: np.ndarray, mlp: str) -> tuple[np.ndarray, list[int]]:
        c, w = self.c, {n.removeprefix(mlp): v for n, v in self.w.items()}
        scores = 1 / (1 + np.exp(-(w["gate.weight"] @ x)))
        order = np.argsort(-(scores + w["gate.e_score_correction_bias"]), kind="stable")
        chosen = [int(e) for e in order[: c.num_experts_per_tok]]
        total = sum(scores[e] for e in chosen) if c.norm_topk_prob else 1.0
        out = self.swiglu(x, w["shared_experts.gate_up_proj.weight"], w["shared_experts.down_proj.weight"])
        for e in chosen:
            expert = self.swiglu(x, w["experts.gate_up_proj"][e], w["experts.down_proj"][e])
            out = out + c.routed_scaling_factor * scores[e] / total * expert
        return out, chosen

    def logits(self, tokens: list[int]) -> tuple[np.ndarray, list[list[list[int]]]]:
        """Logits [T, V] and the chosen experts by token and layer."""
        xs = [self.w["embed_tokens.weight"][token] for token in tokens]
        routes: list[list[list[int]]] = [[] for _ in tokens]
        for layer in range(self.c.num_hidden_layers):
            name = f"layers.{layer}."
            attended = self.attention([self.norm(x, name + "input_layernorm.weight") for x in xs], name + "self_attn.")
            xs = [x + a for x, a in zip(xs, attended, strict=True)]
            for t, x in enumerate(xs):
                h = self.norm(x, name + "post_attention_layernorm.weight")
                if layer < self.c.first_k_dense_replace:
                    mlp = [self.w[f"{name}mlp.{part}_proj.weight"] for part in ("gate_up", "down")]
                    xs[t] = x + self.swiglu(h, *mlp)
                else:
                    out, chosen = self.experts(h, name + "mlp.")
                    xs[t] = x + out
                    routes[t].append(chosen)
        return np.stack([self.w["lm_head.weight"] @ self.norm(x, "norm.weight") for x in xs]), routes


@pytest.mark.parametrize("shape", SHAPES)
def test_the_forward_is_the_one_of_the_equations(shape):
    policy = random_policy(ModelConfig(**shape), seed=3)
    tokens = random_tokens(1, 11, policy.config.vocab_size, seed=1)
    wanted, routes = Reference(policy).logits(tokens[0].tolist())
    with torch.no_grad():
        logits = policy.lm_head(policy.hidden(tokens))[0]
    np.testing.assert_allclose(logits.numpy(), wanted, atol=2e-4, rtol=1e-4)
    assert sorted_choices(recorded_routes(policy, tokens)[0].tolist()) == sorted_choices(routes)
    normal = wanted - np.log(np.exp(wanted).sum(-1, keepdims=True))
    picked = [normal[t, tokens[0, t + 1]] for t in range(tokens.shape[1] - 1)]
    np.testing.assert_allclose(logprobs(policy, tokens)[0].numpy(), picked, atol=2e-4)


def sorted_choices(routes: list) -> list:
    return [[sorted(layer) for layer in token] for token in routes]


def test_log_probs_and_entropy_under_a_temperature(policy: Transformer):
    tokens = random_tokens(2, 6, policy.config.vocab_size)
    with torch.no_grad():
        logits = policy.lm_head(policy.hidden(tokens))[:, :-1].double() / 0.7
        values, entropy = policy(tokens, all_but_first(tokens), temperature=0.7)
    wanted = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(values.double(), wanted.log_prob(tokens[:, 1:]).flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), wanted.entropy().flatten(), atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad


def test_later_tokens_and_padding_change_nothing(policy: Transformer):
    tokens = random_tokens(2, 40, policy.config.vocab_size)
    whole = logprobs(policy, tokens)
    other = tokens.clone()
    other[:, 23:] = random_tokens(2, 17, policy.config.vocab_size, seed=9)
    torch.testing.assert_close(logprobs(policy, other)[:, :22], whole[:, :22], atol=1e-5, rtol=0)
    torch.testing.assert_close(logprobs(policy, tokens[:, :23]), whole[:, :22], atol=1e-5, rtol=0)
    padded = torch.nn.functional.pad(tokens[:1], (0, 30))
    torch.testing.assert_close(logprobs(policy, padded)[:, :39], whole[:1], atol=1e-5, rtol=0)


def test_rows_do_not_see_each_other(policy: Transformer):
    tokens = random_tokens(3, 20, policy.config.vocab_size)
    alone = torch.cat([logprobs(policy, row[None]) for row in tokens])
    torch.testing.assert_close(logprobs(policy, tokens), alone, atol=1e-5, rtol=0)


def test_position_0_may_not_be_under_the_mask(policy: Transformer):
    tokens = random_tokens(1, 5, policy.config.vocab_size)
    with pytest.raises(ValueError, match="position 0"):
        policy(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_a_row_beyond_the_context_is_refused(policy: Transformer):
    tokens = random_tokens(1, policy.config.max_position_embeddings + 1, policy.config.vocab_size)
    with pytest.raises(ValueError, match="exceeds max_position_embeddings=1024"):
        policy(tokens, all_but_first(tokens))


def test_recorded_routes_reproduce_the_live_forward_exactly(policy: Transformer):
    tokens = random_tokens(2, 30, policy.config.vocab_size)
    routes = recorded_routes(policy, tokens)
    assert routes.shape == (2, 30, 2, 2)
    assert torch.equal(logprobs(policy, tokens, routes), logprobs(policy, tokens))
    live = torch.full_like(routes, -1)
    assert torch.equal(logprobs(policy, tokens, live), logprobs(policy, tokens))


def test_other_routes_change_the_forward_from_their_position_on(policy: Transformer):
    tokens = random_tokens(1, 30, policy.config.vocab_size)
    routes = recorded_routes(policy, tokens)
    forced = torch.full_like(routes, -1)  # live everywhere but at one position of one layer
    forced[0, 12, 1] = torch.tensor([e for e in range(4) if e not in routes[0, 12, 1].tolist()])
    live, replayed = logprobs(policy, tokens), logprobs(policy, tokens, forced)
    assert torch.equal(replayed[0, :12], live[0, :12])  # predictions of tokens 1 to 12
    assert (replayed[0, 12] - live[0, 12]).abs() > 1e-4


def test_the_router_learns_through_replayed_choices():
    policy = random_policy(tiny_model())
    tokens = random_tokens(1, 8, policy.config.vocab_size)
    routes = torch.zeros(1, 8, 2, 2, dtype=torch.int16)
    routes[..., 1] = 2  # experts 0 and 2, whatever the router would choose
    policy(tokens, all_but_first(tokens), routes)[0].sum().backward()
    for router in policy.routers():
        assert router.weight.grad is not None
        size = router.weight.grad.norm(dim=1)
        assert size[0] > 1e-4 and size[2] > 1e-4
        assert size[1] == size[3] == 0
    experts = policy.blocks()[1].mlp.experts
    used = experts.down_proj.grad.flatten(1).norm(dim=1)
    assert used[0] > 0 and used[2] > 0 and used[1] == used[3] == 0


def test_balancing_moves_the_bias_against_the_load():
    router = random_policy(tiny_model()).routers()[0]
    router.e_score_correction_bias.zero_()
    router.load_E = torch.tensor([9.0, 1.0, 5.0, 5.0])
    router.balance(0.01)
    torch.testing.assert_close(router.e_score_correction_bias, torch.tensor([-0.01, 0.01, 0.0, 0.0]))
    assert not router.load_E.any()


def test_every_parameter_has_one_optimiser_and_embeddings_head_router_and_gains_are_not_orthogonalised(
    policy: Transformer,
):
    names = {id(p): name for name, p in policy.named_parameters()}
    matrices, rest = ({names[id(p)] for p in group} for group in policy.muon_parameters())
    assert matrices | rest == set(names.values()) and not matrices & rest
    assert {name for name in rest if "norm" not in name} == {
        "embed_tokens.weight",
        "lm_head.weight",
        "layers.1.mlp.gate.weight",
        "layers.2.mlp.gate.weight",
    }
    assert {"layers.1.mlp.experts.gate_up_proj", "layers.0.mlp.down_proj.weight"} < matrices
