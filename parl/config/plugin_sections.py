"""Sections chosen by a name, and the class of a whole configuration with them.

``objective.name``, ``envs.name`` and the like are resolved before validation, and the sections of their
classes become fields of a subclass of :class:`Config`. So a plug-in's section is read, checked and explained
like a built-in one. The result is a plain :class:`Config` again, with instances of those sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from parl.config.plugin import Kind, PluginError
from parl.config.plugin_kinds import ENGINES, ENVIRONMENTS, FAMILIES, OBJECTIVES, REWARDS
from parl.config.schema import Config, ConfigFields, policy_section


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """``section``.``key`` names a class of ``kind``, by default ``default``.

    Its own keys are in ``section``, or below ``section``.``inner``.
    """

    section: str
    key: str
    kind: Kind
    default: str
    inner: str = ""

    @property
    def at(self) -> str:
        """The dotted key."""
        return f"{self.section}.{self.key}"

    @property
    def place(self) -> str:
        """The dotted key of the section that the class brings."""
        return f"{self.section}.{self.inner}" if self.inner else self.section

    def own_section(self, name: str) -> type[BaseModel]:
        """The section of the class behind ``name``; PluginError."""
        found: Any = self.kind.resolve(name)
        if self.kind is FAMILIES:
            return policy_section(name)
        return found.Config if self.inner else found


CHOICES = (
    Choice(section="envs", key="name", kind=ENVIRONMENTS, default="world", inner="config"),
    Choice(section="model", key="family", kind=FAMILIES, default="kimi"),
    Choice(section="objective", key="name", kind=OBJECTIVES, default="k25"),
    Choice(section="rewards", key="name", kind=REWARDS, default="parl"),
    Choice(section="rollouts", key="engine", kind=ENGINES, default="embedded", inner="engine_config"),
)


def choose(tree: dict[str, Any], overrides: Mapping[str, Any]) -> tuple[type[ConfigFields], dict[str, tuple[Any, str]]]:
    """The class for ``tree`` with ``overrides``, and invalid names by dotted key with what is wrong.

    A section with an invalid name is the default's.
    """
    names, problems = [], {}
    for choice in CHOICES:
        section = tree.get(choice.section)
        given = section.get(choice.key, choice.default) if isinstance(section, dict) else choice.default
        given = overrides.get(choice.at, given)
        try:
            choice.kind.resolve(given)
            names.append(given)
        except PluginError as error:
            problems[choice.at] = (given, str(error))
            names.append(choice.default)
    return config_class(tuple(names)), problems


@lru_cache
def config_class(names: tuple[str, ...]) -> type[ConfigFields]:
    """:class:`Config` with the sections of these names, one per entry of ``CHOICES``."""
    fields: dict[str, Any] = {}
    for choice, name in zip(CHOICES, names, strict=True):
        own = choice.own_section(name)
        if not choice.inner:
            fields[choice.section] = _field(own)
            continue
        outer = ConfigFields.model_fields[choice.section].annotation
        assert isinstance(outer, type)
        parts: dict[str, Any] = {choice.inner: _field(own)}
        fields[choice.section] = _field(create_model(outer.__name__, __base__=outer, **parts))
    return create_model("Config", __base__=ConfigFields, **fields)


def _field(section: type[BaseModel]) -> tuple[type[BaseModel], Any]:
    """A field of that section; optional if all its keys are."""
    needed = any(field.is_required() for field in section.model_fields.values())
    return (section, ... if needed else FieldInfo(default_factory=section))


def plain(chosen: ConfigFields) -> Config:
    """A plain :class:`Config` with the values of one from :func:`config_class`."""
    values = {name: getattr(chosen, name) for name in Config.model_fields}
    for choice in CHOICES:
        outer = Config.model_fields[choice.section].annotation
        if choice.inner and isinstance(outer, type) and issubclass(outer, BaseModel):
            made = values[choice.section]
            parts = {name: getattr(made, name) for name in outer.model_fields}
            values[choice.section] = outer.model_construct(made.model_fields_set, **parts)
    return Config.model_construct(chosen.model_fields_set, **values)


def built_in_sections(place: str) -> dict[str, type[BaseModel]]:
    """The possible sections at the dotted key ``place``, by built-in name; else empty."""
    return {
        name: choice.own_section(name) for choice in CHOICES if choice.place == place for name in choice.kind.built_in
    }
