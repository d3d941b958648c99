"""transformers' own configuration and model of a shape, and the reasons why some are refused.

What a model cannot do is asked of its class and of its numbers, not of a list of names: see :func:`check_class` and
:func:`check_numbers`.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from model.hf.shape import HfShape

NEEDED = "model.family=hf needs transformers: pip install 'parl-swarm[hf]'"
ATTENTION = EXPERTS = "parl"  # names under which model.hf.attention and model.hf.experts are registered
_OURS = {"attn_implementation": ATTENTION, "experts_implementation": EXPERTS}
_TRIED = (5, 11)  # lengths of the rows on which a model is tried
_STATES = ("linear", "mamba", "conv", "recurrent", "delta")  # kinds of layers that carry a state along the row


def library() -> Any:
    """The module transformers; ModuleNotFoundError says how to install it."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(NEEDED) from None
    return transformers


def own_config(tree: dict[str, Any]) -> Any:
    """transformers' configuration object of a ``config.json``; ValueError for an architecture that it does not have."""
    auto = library().AutoConfig
    kind = tree.get("model_type")
    if "auto_map" in tree and kind not in library().CONFIG_MAPPING:
        raise ValueError(f"model_type={kind!r} brings its own code, which is never run: transformers must have it")
    try:
        return auto.for_model(**{key: value for key, value in tree.items() if key != "transformers_version"})
    except Exception as error:  # whatever its class makes of a damaged file
        raise ValueError(f"model_type={kind!r}: {error}") from None


def dtype_of(shape: HfShape) -> torch.dtype:
    """Of the weights."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[shape.dtype]


def new_model(shape: HfShape, *, drawn: bool = True) -> Any:
    """A causal language model on the current device, its weights ``drawn`` from torch's generator or anything."""
    config, auto = own_config(shape.transformers), library().AutoModelForCausalLM
    check_config(config)
    from transformers.initialization import no_init_weights

    try:
        with nullcontext() if drawn else no_init_weights():
            model = auto.from_config(config, dtype=dtype_of(shape), **_OURS)
        model.tie_weights()
        return model
    except (KeyError, ImportError) as error:
        raise refused(config, f"transformers cannot build it with our attention function ({error})") from error


def stored_model(shape: HfShape, folder: Path) -> Any:
    """The model in a Hugging Face folder, read shard by shard; ValueError where a tensor is missing or misshapen."""
    from safetensors import SafetensorError

    check_config(own_config(shape.transformers))
    library().logging.disable_progress_bar()  # of weights, on the user's terminal
    try:
        model, found = library().AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype_of(shape),
            **_OURS,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{folder} cannot be read: {error}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in found[what]):
            raise ValueError(f"{folder}: {what.replace('_', ' ')}: {', '.join(names[:3])}")
    return model


# ---------------------------------------------------------------- what is refused


def refused(config: Any, reason: str) -> ValueError:
    """The error that names the model and says why it cannot be a policy."""
    return ValueError(f"model_type={config.model_type!r} cannot be a policy: {reason}")


def check_config(config: Any) -> None:
    """ValueError with the reason where a model of this configuration cannot be served correctly."""
    if getattr(config, "is_encoder_decoder", False):
        raise refused(config, "it is an encoder-decoder, whose prompt is no prefix of its answer")
    if config.get_text_config() is not config:
        raise refused(config, "it has parts that see or hear; take the configuration and weights of its text model")
    if type(config) not in library().AutoModelForCausalLM._model_mapping:
        raise refused(config, "transformers has no causal language model of that type")
    if getattr(config, "quantization_config", None):
        raise refused(config, "its weights are quantised: convert the checkpoint to bfloat16 first")
    states = [kind for kind in getattr(config, "layer_types", None) or () if any(name in kind for name in _STATES)]
    if states:
        raise refused(config, f"layers of type {states[0]} carry a state, in which packed rows would mix")


def check_class(causal: Any) -> None:
    """The same for what the class itself tells."""
    config = causal.config
    if getattr(causal, "_is_stateful", False):
        raise refused(config, "its layers carry a state along the row, in which packed rows would mix")
    if not causal._supports_attention_backend:
        raise refused(
            config, f"{type(causal).__name__} has no attention interface, so packed rows cannot be kept apart"
        )
    head: nn.Module | None = causal.get_output_embeddings()
    if head is None or head is not getattr(causal, "lm_head", None):
        raise refused(config, "its head is not called lm_head")
    if getattr(head, "bias", None) is not None:
        raise refused(config, "its head has a bias")


def check_numbers(causal: Any, hidden: Any) -> None:
    """ValueError where ``hidden`` (of packed rows) through the head is not what ``causal`` itself says of single rows.

    Two short rows, by transformers' plain attention and experts against ours. What a model does to its logits behind
    the head (a cap, a factor) shows because the head's output is made large. In bfloat16 the second pass replays the
    experts of the first: rounding may decide between two that score alike.
    """
    import torch

    head = causal.lm_head.weight
    tokens = torch.arange(sum(_TRIED), device=head.device)[None] * 7919 % causal.config.vocab_size
    training, chosen = causal.training, []
    causal.eval()
    routers = [module for module in causal.modules() if hasattr(module, "routes_TK")]
    hooks = [router.register_forward_hook(lambda _, __, choice: chosen.append(choice.ids)) for router in routers]
    hooks.append(causal.lm_head.register_forward_hook(lambda _, __, out: out * 1e3))
    try:
        with torch.no_grad():
            ours: Tensor = causal.lm_head(hidden(tokens, lengths=_TRIED))
            for name in ("set_attn_implementation", "set_experts_implementation"):
                getattr(causal, name)("eager")
            theirs, start = [], 0
            for row in tokens.split(_TRIED, 1):
                for router, ids in zip(routers, chosen, strict=False):
                    part = ids[start : start + row.shape[1]]
                    router.routes_TK = None if head.dtype == torch.float32 else part
                theirs.append(causal(row, use_cache=False).logits)
                start += row.shape[1]
    except (TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise refused(causal.config, f"its forward pass does not take packed rows ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
        causal.set_attn_implementation(ATTENTION)
        causal.set_experts_implementation(EXPERTS)
        causal.train(training)
    wanted = torch.cat(theirs, dim=1).float()
    gap = float((ours.float() - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not gap < (1e-4 if head.dtype == torch.float32 else 5e-2):
        raise refused(
            causal.config,
            f"its logits of rows laid end to end differ by {gap:.1e} of their size from those that it says alone: its"
            " layers look across rows, or it changes its logits behind the head",
        )
