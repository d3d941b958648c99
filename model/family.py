"""The contract of a model family: a shape, and how its policies are built, stored, run and prompted.

A family is one class, named by ``model.family``. Its ``Shape`` is the pydantic section that validates
``model``. A minimal family implements :meth:`Family.chat` and :meth:`Family.policy`. Nothing here imports
torch; families import it lazily.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from model.chat.base import ChatFormat, Vocabulary
from model.costs import Costs
from model.decoder import Decoder, Weights

if TYPE_CHECKING:
    from model.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Routes of a mixture-of-experts policy: ``chosen`` of ``experts`` in each of ``layers``.

    ``first``: number of layers without experts before them.
    """

    layers: int
    chosen: int
    experts: int
    first: int = 0


class Pictures(Protocol):
    """How pictures are cut for a policy with vision."""

    def tokens(self, png: bytes) -> int:
        """Number of tokens of the picture. ValueError if it is not a PNG."""
        ...

    def batch(self, pngs: Sequence[bytes], places_BT: Any) -> Any:
        """The pictures as the policy's input, their rows at ``places_BT`` (bool)."""
        ...


class PictureEncoder(Protocol):
    """The vision tower of a policy, for an engine."""

    def load(self, weights: Weights) -> None:
        """Take a policy's weights."""
        ...

    def rows(self, png: bytes) -> Any:
        """Features of one picture, float32 [tokens, D]."""
        ...


class Shape(BaseModel):
    """The shape of a policy, as a section of the configuration. ``home``: ``module:Class`` of its family.

    ``optional``: fields left out of dumps at their defaults, so that hashes and files of policies without them do
    not change. ``chosen``: fields that a configuration may set beside ``model.init``; ``left_out``: those that it
    may set to null there, to take the policy without that part.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    home: ClassVar[str]
    optional: ClassVar[tuple[str, ...]] = ()
    chosen: ClassVar[tuple[str, ...]] = ()
    left_out: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # fields of every shape
        vocab_size: int
        max_position_embeddings: int

    @property
    def weights_dtype(self) -> str:
        """The dtype of parameters on disk, in transfers and in engines: "float32" or "bfloat16"."""
        return "float32"

    @property
    def routes(self) -> Routes | None:
        """Which routes are recorded per token; None without routed layers."""
        return None

    @property
    def pictures(self) -> Pictures | None:
        """How pictures are cut; None for a policy without vision."""
        return None

    @property
    def picture_id(self) -> int | None:
        """The placeholder token for one row of a picture."""
        return None

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        spared = [name for name in self.optional if getattr(self, name) == fields[name].default and self._spares(name)]
        return {name: value for name, value in handler(self).items() if name not in spared}

    def _spares(self, name: str) -> bool:
        """Whether a dump may leave out the optional field ``name`` at its default."""
        return True


class Family(ABC):
    """A model family. It holds no state: everything it needs is in the policy's shape."""

    Shape: ClassVar[type[Shape]]
    reads: ClassVar[tuple[str, ...]] = ()  # `model_type` values of Hugging Face folders that it reads

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if "Shape" in vars(cls):
            cls.Shape.home = f"{cls.__module__}:{cls.__qualname__}"

    # ---------------------------------------------------------------- required

    @abstractmethod
    def chat(self, shape: Any, tokenizer: Vocabulary | None = None, *, thinking: bool = False) -> ChatFormat:
        """The chat format of policies of ``shape``; without a tokenizer it renders text only."""

    @abstractmethod
    def policy(self, shape: Any) -> Policy:
        """A policy of ``shape`` with its initial weights, drawn from torch's generator."""

    # ---------------------------------------------------------------- optional

    def blank(self, shape: Any) -> Policy:
        """A policy of ``shape`` that weights are loaded into; until then they hold anything, in untouched memory."""
        from model.blocks.undrawn import Undrawn

        with Undrawn():
            return self.policy(shape)

    def outline(self, shape: Any) -> Policy:
        """:meth:`blank` with parameters that have no memory (device ``meta``), for ranks that each hold a part of them.

        ValueError where the model cannot be built so; override it with :meth:`blank` then.
        """
        from model.blocks.undrawn import outlined

        with outlined():
            policy = self.blank(shape)
        if lost := [name for name, buffer in policy.named_buffers() if buffer.is_meta]:
            raise ValueError(
                f"{type(self).__name__}: the buffer {lost[0]} is computed from parameters, which have no values yet:"
                " let the family's outline return its blank policy, or set trainer.parallel.zero below 3"
            )
        return policy

    def decoder(self, shape: Any, pages: int) -> Decoder:
        """The embedded engine's decoder, with ``pages`` cache pages. By default the policy itself (slow)."""
        from model.forward_decoder import ForwardDecoder

        return ForwardDecoder(self.blank(shape), pages)

    def check_int8(self, shape: Any) -> None:
        """ValueError with the reason where :meth:`int8_decoder` cannot serve ``shape``; reads no heavy module."""
        raise ValueError(f"the family {type(self).__name__} has no decoder with int8 weights")

    def int8_decoder(self, shape: Any, pages: int) -> Decoder:
        """:meth:`decoder` with matrices in int8. ValueError where there is none."""
        self.check_int8(shape)
        raise NotImplementedError(f"{type(self).__name__} checks int8 weights, but has no decoder with them")

    def costs(self, shape: Any) -> Costs | None:
        """Costs of a policy of ``shape``, for ``parl plan``; None if unknown."""
        return None

    def picture_encoder(self, shape: Any) -> PictureEncoder:
        """The vision tower of a shape that has ``pictures``."""
        raise ValueError(f"{type(self).__name__} has no encoder of pictures")

    def read_shape(self, folder: Path) -> Shape:
        """The shape of the policy in ``folder``. FileNotFoundError and ValueError name the file and the key."""
        from model.policy_read import read_shape

        return read_shape(folder, self.Shape)

    def load(self, folder: Path) -> Policy:
        """The policy in ``folder``, a run's or published. FileNotFoundError, ValueError: what is wrong."""
        from model.policy_read import load

        return load(folder, self)

    def load_parts(self, folder: Path, shape: Any) -> Policy:
        """:meth:`load`, without the parts that ``shape`` leaves out (``Shape.left_out``)."""
        return self.load(folder)

    def export(self, policy: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
        """Write the policy to the empty ``folder`` for other libraries; changes ``policy`` on the way."""
        raise ValueError(f"{type(self).__name__} says no layout that other libraries read: its policies stay in parl's")

    def parameters(self, shape: Any) -> int:
        """Number of weights of a policy."""
        import torch

        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.policy(shape).parameters())


def family_of(shape: Shape) -> Family:
    """The family of ``shape``."""
    return _family(type(shape).home)


def either_chat(shape: Shape, tokenizer: Vocabulary) -> ChatFormat:
    """The chat format of ``shape`` with thinking off, or on for a model that always reasons.

    For what does not depend on thinking: stop ids, whether a format exists. ValueError as in
    :meth:`Family.chat`.
    """
    try:
        return family_of(shape).chat(shape, tokenizer)
    except ValueError as error:
        try:
            return family_of(shape).chat(shape, tokenizer, thinking=True)
        except ValueError:
            raise error from None


@lru_cache(maxsize=16)
def _family(home: str) -> Family:
    module, _, name = home.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found()


def check_family(found: type) -> None:
    """ValueError unless ``found`` is a family that a run can use."""
    if not issubclass(found, Family):
        raise ValueError("it must derive from model.family.Family")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ValueError(f"it lacks {_listed(missing)}")
    shape = getattr(found, "Shape", None)
    if not (isinstance(shape, type) and issubclass(shape, Shape)):
        raise ValueError("its Shape must derive from model.family.Shape")
    if missing := [name for name in ("vocab_size", "max_position_embeddings") if name not in shape.model_fields]:
        raise ValueError(f"its Shape lacks {_listed(missing)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
