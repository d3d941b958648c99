"""The contract of a model family: a shape, and how policies of that shape are made, kept, run and spoken to.

A family is one class, named in the configuration as ``model.family``. Its ``Shape`` is the pydantic section that
``model`` is validated with; the rest is methods. Nothing here imports torch: a family imports it where it needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from importlib import import_module
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from model.chat.base import ChatFormat, Vocabulary


class Shape(BaseModel):
    """The shape of a policy, as a section of the configuration. ``home``: ``module:Class`` of its family."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    home: ClassVar[str]


class Family(ABC):
    """A model family. It holds no state: what it needs of a policy stands in the policy's shape."""

    Shape: ClassVar[type[Shape]]

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if "Shape" in vars(cls):
            cls.Shape.home = f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def chat(self, tokenizer: Vocabulary | None = None, *, thinking: bool = False) -> ChatFormat:
        """The format of its conversations; without a tokenizer one that renders text only."""


def family_of(shape: Shape) -> Family:
    """The family of ``shape``."""
    return _family(type(shape).home)


@lru_cache(maxsize=16)
def _family(home: str) -> Family:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)()
