"""Python functions with type hints and docstrings as tools.

``tools`` names functions, modules (what their ``__all__`` lists), or classes: of a class there is one object an
episode, and its public methods are tools that share its state.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ArgsKwargs

from envs.base import Environment, ErrorKind, Role, Score, Task, ToolCall, ToolResult, ToolSpec
from envs.named import named
from envs.plugs.session import PlugEnvironment, PlugSection, PlugSession, Refused, offered, result_of
from envs.plugs.threads import OwnThread, in_thread

_KEY = "envs.config.tools"
_OWN = ("close", "score")  # methods of a class that are no tools


class FunctionsConfig(PlugSection):
    """Functions as tools."""

    tools: tuple[str, ...] = Field(
        min_length=1,
        description="package.module:function, package.module:Class, or package.module for what its __all__ lists",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A tool: what agents are told, and ``arguments`` that checks what they give (pydantic)."""

    spec: ToolSpec
    call: Callable[..., Any]
    owner: type | None  # the class of a method
    arguments: TypeAdapter[Any]
    static: bool = False  # a method that takes no self

    def of(self, made: Any) -> Callable[..., Any]:
        """The method of the object ``made``."""
        return self.call if self.static else self.call.__get__(made)

    def checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with the types of the function; Refused names each that does not fit."""
        try:
            return self.arguments.validate_python(ArgsKwargs((), arguments))
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
            raise Refused(ErrorKind.BAD_ARGS, f"bad arguments: {'; '.join(faults)}") from None


_UNNAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


def function_tool(call: Callable[..., Any], owner: type | None = None) -> Function:
    """``call``, a function or a method of ``owner``, as a tool. ValueError if agents could not call it."""
    name = call.__name__
    static = owner is not None and isinstance(inspect.getattr_static(owner, name, None), staticmethod)
    bound = call if static or owner is None else call.__get__(object())  # without self

    @wraps(bound)
    def given(*args: Any, **kwargs: Any) -> Any:
        return kwargs

    signature = inspect.signature(bound)
    for parameter in signature.parameters.values():
        if parameter.kind in _UNNAMED:
            raise ValueError(f"{_KEY}: {name}: the parameter {parameter.name} has no name that an agent could give")
    vars(given)["__signature__"] = signature
    checked: Any = given
    try:
        adapter = TypeAdapter(checked)
        schema = _plain(adapter.json_schema())
    except (PydanticUserError, NameError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{_KEY}: {name}: its type hints make no JSON schema: {why}") from error
    about = inspect.cleandoc(call.__doc__ or name.replace("_", " "))
    spec = ToolSpec(name=name, description=about, parameters=schema)
    return Function(spec=spec, call=call, owner=owner, arguments=adapter, static=static)


def _plain(schema: Any) -> Any:
    """``schema`` without pydantic's titles, which repeat the names."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    return {key: _plain(value) for key, value in kept.items()}


class FunctionsEnvironment(PlugEnvironment):
    """Tools of a user's module."""

    Config = FunctionsConfig
    config: FunctionsConfig

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}  # functions are found by name again

    @cached_property
    def functions(self) -> dict[str, Function]:
        """All tools by name, in order; ValueError for what cannot be one."""
        found: dict[str, Function] = {}
        for name in self.config.tools:
            for function in _functions(name):
                if function.spec.name in found:
                    raise ValueError(f"{_KEY}: two tools are called {function.spec.name}: rename one")
                found[function.spec.name] = function
        return found

    @property
    def stateless(self) -> bool:  # type: ignore[override]
        """Functions are; the objects of classes have state."""
        return not any(function.owner for function in self.functions.values())

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        """The same."""
        return self.stateless

    def tools(self) -> tuple[ToolSpec, ...]:
        """See :class:`envs.base.Environment`."""
        return tuple(function.spec for function in self.functions.values())

    def digest(self) -> dict[str, str]:
        """The names and the text of their modules."""
        modules = {name.partition(":")[0] for name in self.config.tools}
        files = [file for name in sorted(modules) if (file := named(name, _KEY).__file__)]
        text = b"\0".join([repr(self.config.tools).encode(), *(Path(file).read_bytes() for file in files)])
        return {"tools": hashlib.sha256(text).hexdigest()}

    def notes(self) -> Iterator[str]:
        """ValueError for bad tools; a note on those that agents are told nothing about."""
        offered(self.config, self.tools())
        for function in self.functions.values():
            if not function.call.__doc__:
                yield f"{_KEY}: {function.spec.name} has no docstring: agents see only its name and parameters"

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> FunctionsSession:
        """A session, with an object of each class (made with those of task, seed, attempt that it takes)."""
        given = {"task": task, "seed": seed, "attempt": attempt}
        owners = dict.fromkeys(function.owner for function in self.functions.values() if function.owner)
        thread = OwnThread()
        made: dict[type, Any] = {}
        for owner in owners:
            taken = inspect.signature(owner).parameters
            made[owner] = await thread.run(owner, **{name: given[name] for name in given if name in taken})
        tools = offered(self.config, self.tools())
        scores = any(hasattr(owner, "score") for owner in owners)
        session = ScoringSession if scores else FunctionsSession
        return session(tools, self.config.result_chars, self.functions, made, thread)


class FunctionsSession(PlugSession):
    """One episode's tools. Blocking functions run in threads of their own, methods, async ones too, one by one."""

    def __init__(
        self,
        offered: dict[Role, tuple[ToolSpec, ...]],
        result_chars: int,
        functions: dict[str, Function],
        made: dict[type, Any],
        thread: OwnThread,
    ) -> None:
        super().__init__(offered, result_chars)
        self._functions, self._made, self._thread = functions, made, thread
        self._lock = asyncio.Lock()

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """See :class:`PlugSession`."""
        function = self._functions[call.name]
        arguments = function.checked(call.arguments)
        if function.owner is not None:
            return result_of(await self.alone(function.of(self._made[function.owner]), **arguments))
        if inspect.iscoroutinefunction(function.call):
            return result_of(await function.call(**arguments))
        return result_of(await in_thread(function.call, **arguments))

    async def alone(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a ``method`` of an object returns, while no other runs: async ones run in the event loop."""
        async with self._lock:
            if inspect.iscoroutinefunction(method):
                await self._thread.run(lambda: None)  # a blocking method may have outlived its deadline
                return await method(*args, **kwargs)
            value = await self._thread.run(method, *args, **kwargs)
            return await value if inspect.isawaitable(value) else value

    async def close(self) -> None:
        """Also closes the objects that have a method ``close``."""
        if self.closed:
            return
        self.closed = True
        for made in self._made.values():
            if close := getattr(made, "close", None):
                await self.alone(close)
        self._thread.end()


class ScoringSession(FunctionsSession):
    """One whose object scores the episode: a number, from 0 to 1, or a Score."""

    async def score(self, episode: Any) -> Score:
        """What the method ``score`` of the first object that has one says."""
        found = next(made.score for made in self._made.values() if hasattr(made, "score"))
        value = await self.alone(found, episode)
        return value if isinstance(value, Score) else Score(value=float(value))


def _functions(name: str) -> Iterator[Function]:
    found = named(name, _KEY)
    if isinstance(found, ModuleType):
        if not hasattr(found, "__all__"):  # it may hold the tasks and their answers, too
            there = [key for key, value in vars(found).items() if inspect.isfunction(value) and key[0] != "_"]
            hint = f"write package.module:function for each ({', '.join(there)}), or list them in its __all__"
            raise ValueError(f'{_KEY} = "{name}": which of its functions? {hint}')
        for public in found.__all__:
            yield from _functions(f"{name}:{public}")
    elif inspect.isclass(found):
        if issubclass(found, Environment):
            raise ValueError(f'{_KEY} = "{name}": is an environment of its own: name it in envs.name')
        methods = [value for key, value in inspect.getmembers(found, inspect.isfunction) if key[0] != "_"]
        methods = [method for method in methods if method.__name__ not in _OWN]
        if not methods:
            raise ValueError(f'{_KEY} = "{name}": the class has no public method')
        yield from (function_tool(method, found) for method in methods)
    elif inspect.isfunction(found):
        yield function_tool(found)
    else:
        raise ValueError(f'{_KEY} = "{name}": is {type(found).__name__}, not a function, a module or a class')
