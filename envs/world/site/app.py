"""The world's tools as an HTTP application: ``POST /{split}/{tool}`` takes JSON, returns ``{text, error}``.

Pictures are returned as ``{text, error, images}``, base64 of PNG files. Status 200 for a result, 404 for an
unknown page or path, 422 for arguments that do not fit the tool.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envs.base import ErrorKind, ToolSpec
from envs.world.site.index import PageIndex
from envs.world.site.pictures import OPEN_PICTURE, encoded
from envs.world.wording import NOT_FOUND, page_of

_STATUS = {None: 200, ErrorKind.NOT_FOUND: 404, ErrorKind.UNKNOWN_TOOL: 404, ErrorKind.BAD_ARGS: 422}
Answer = tuple[str, ErrorKind | None]
Pictures = Callable[[str, str], bytes | None]  # (split, url) -> PNG


def _spec(name: str, description: str, *arguments: str) -> ToolSpec:
    properties = {argument: {"type": "string"} for argument in arguments}
    schema = {"type": "object", "properties": properties, "required": list(arguments)}
    return ToolSpec(name=name, description=description, parameters=schema)


TOOLS = (  # short descriptions: every agent reads them
    _spec("search", "Search.", "query"),
    _spec("open_page", "Open a page.", "url"),
    _spec("find_in_page", "Find text in a page.", "url", "pattern"),  # several patterns: a|b
)


def build_app(
    index_of: Callable[[str], PageIndex],
    splits: tuple[str, ...],
    search_results: int,
    pictures: Pictures | None = None,
) -> Starlette:
    """The application over the index of each split; ``index_of`` and ``pictures`` only get known splits.

    Without ``pictures`` there is no open_picture.
    """
    tools = TOOLS if pictures is None else (*TOOLS, OPEN_PICTURE)

    async def endpoint(request: Request) -> Response:
        split, tool = request.path_params["split"], request.path_params["tool"]
        spec = next((spec for spec in tools if spec.name == tool), None)
        if split not in splits or spec is None:
            return _reply((f"error: unknown tool {tool}", ErrorKind.UNKNOWN_TOOL))
        arguments = _arguments(await request.body(), spec)
        if isinstance(arguments, str):
            return _reply((f"error: {arguments}", ErrorKind.BAD_ARGS))
        if pictures is not None and spec is OPEN_PICTURE:
            return _shown(pictures(split, arguments["url"].strip()))
        return _reply(_run(index_of(split), tool, arguments, search_results))

    return Starlette(routes=[Route("/{split}/{tool}", endpoint, methods=["POST"])])


def _arguments(body: bytes, spec: ToolSpec) -> dict[str, str] | str:
    """The arguments, or what is wrong with them in one phrase."""
    try:
        arguments: Any = json.loads(body)
    except ValueError:
        return "bad JSON"
    if not isinstance(arguments, dict):
        return "bad JSON"
    known = spec.parameters["required"]
    for name in known:
        if name not in arguments:
            return f"missing {name}"
    for name, value in arguments.items():
        if name not in known:
            return "unknown argument"
        if not isinstance(value, str):
            return f"{name} must be a string"
    return arguments


def _run(index: PageIndex, tool: str, arguments: dict[str, str], search_results: int) -> Answer:
    if tool == "search":
        return index.search(arguments["query"], search_results), None
    url = page_of(arguments["url"])
    text = index.page(url) if tool == "open_page" else index.found_in(url, arguments["pattern"])
    return (f"error: {NOT_FOUND}", ErrorKind.NOT_FOUND) if text is None else (text, None)


def _shown(png: bytes | None) -> Response:
    if png is None:
        return _reply((f"error: {NOT_FOUND}", ErrorKind.NOT_FOUND))
    return JSONResponse({"text": "", "error": None, "images": encoded([png])})


def _reply(answer: Answer) -> Response:
    text, error = answer
    body = json.dumps({"text": text, "error": error}, ensure_ascii=True)
    return Response(body, status_code=_STATUS[error], media_type="application/json")
