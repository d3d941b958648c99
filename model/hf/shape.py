"""The shape of a policy of transformers: its ``config.json``, and what parl has to know of it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from model.chat.base import FormatName
from model.family import Routes, Shape
from model.json_file import read_json

LARGEST = {"vocab_size": 2**24, "max_position_embeddings": 2**28}  # a file that says more is damaged or hostile
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")  # names of one number in different models
_DENSE = ("dense", "mlp")  # kinds of feed-forward parts in `mlp_layer_types`
_OWN = ("vocab_size", "max_position_embeddings")  # what the model's own configuration says as well


class HfShape(Shape):
    """A decoder of transformers. With ``model.init`` all of it is read from that folder."""

    home = "model.hf.family:Hf"
    chosen: ClassVar[tuple[str, ...]] = ("chat", "dtype", "max_position_embeddings")

    transformers: dict[str, Any] = Field(
        description="the model's own `config.json` as transformers writes it; `model_type` names the architecture"
    )
    vocab_size: int = Field(gt=0, le=LARGEST["vocab_size"], description="rows of the embedding")
    max_position_embeddings: int = Field(
        gt=0, le=LARGEST["max_position_embeddings"], description="longest trace in tokens; may be less than the model's"
    )
    chat: FormatName = Field(
        default="auto",
        description="how conversations are written: `auto` (what fits vocabulary and chat template), `kimi`, `hermes`,"
        " `hermes-short`, `template` or `renderers:NAME`; see docs/chat_formats.md",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the weights and of computing")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        own = given.get("transformers") if isinstance(given, dict) else None
        return {key: own[key] for key in _OWN if key in own} | given if isinstance(own, dict) else given

    @model_validator(mode="after")
    def _check(self) -> HfShape:
        if not isinstance(self.transformers.get("model_type"), str):
            raise ValueError("transformers has no model_type: give the object of the model's config.json")
        for key in _OWN:
            theirs = self.transformers.get(key)
            if isinstance(theirs, int) and getattr(self, key) > theirs:
                raise ValueError(f"{key}={getattr(self, key)} exceeds the model's own {theirs}")
        if self.transformers.get("vocab_size", self.vocab_size) != self.vocab_size:
            raise ValueError(f"vocab_size={self.vocab_size} is not the model's {self.transformers['vocab_size']}")
        return self

    @property
    def weights_dtype(self) -> str:
        """``dtype``."""
        return self.dtype

    @property
    def routes(self) -> Routes | None:
        """The experts of each token, as the configuration says; a policy is compared with it when it is made."""
        own = self.transformers
        experts = next((own[key] for key in _EXPERTS if own.get(key)), None)
        routed = [layer for layer in range(own.get("num_hidden_layers", 0)) if self._routes(layer)]
        if experts is None or not own.get("num_experts_per_tok") or not routed:
            return None
        return Routes(layers=len(routed), chosen=own["num_experts_per_tok"], experts=experts, first=routed[0])

    def _routes(self, layer: int) -> bool:
        own = self.transformers
        if own.get("mlp_layer_types"):
            return own["mlp_layer_types"][layer] not in _DENSE
        if layer < (own.get("first_k_dense_replace") or 0) or layer in (own.get("mlp_only_layers") or ()):
            return False
        return (layer + 1) % (own.get("decoder_sparse_step") or 1) == 0


def read_shape(folder: Path) -> HfShape:
    """Of a Hugging Face folder or of a run's policy; FileNotFoundError and ValueError name the file and the key."""
    file = folder / "config.json"
    tree = read_json(file, finite=False)
    try:
        if "model_type" not in tree:
            return HfShape.model_validate(tree, strict=True)
        return HfShape(transformers=tree, **_told(tree))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _told(tree: dict[str, Any]) -> dict[str, Any]:
    """What the file leaves to the class's defaults, asked of transformers."""
    missing = [key for key in _OWN if key not in tree]
    if not missing:
        return {}
    from model.hf.build import check_config, own_config

    config = own_config(tree)
    check_config(config)
    return {key: getattr(config, key) for key in missing if getattr(config, key, None) is not None}
