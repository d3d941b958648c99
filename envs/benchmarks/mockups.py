"""Visual coding: a mock-up picture in, a web page out, scored by how near the page comes to it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from envs.base import Role, Score, Task, ToolCall, ToolResult, ToolSpec
from envs.benchmarks.base import Ask, Benchmark, Limits, Row
from envs.benchmarks.scoring.pages import draw, picture_likeness, text_likeness
from envs.plugs.session import PlugSession

_LOOK = ToolSpec(
    name="mockup", description="The mock-up's picture.", parameters={"type": "object", "properties": {}, "required": []}
)
_DRAW = ToolSpec(
    name="draw",
    description="The picture of your page.",
    parameters={"type": "object", "properties": {"html": {"type": "string"}}, "required": ["html"]},
)
_PROMPT = """Write a web page that looks like a mock-up of {width} x {height} pixels. The tool mockup shows it, draw \
shows a page of yours. One HTML file, styles inside, no scripts, nothing loaded. Answer with the file alone."""
_FENCE = re.compile(r"```(?:html)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


class Mockups(Benchmark):
    """A folder of pairs: NAME.png, the mock-up, and NAME.html, a page that shows it."""

    name = "mockups"
    about = "a mock-up picture in, HTML out; drawn by headless Chromium, scored by picture and text"
    download = "a folder of NAME.png beside NAME.html, e.g. Design2Code's test set (huggingface.co/datasets/SALT-NLP)"
    limits = Limits(source="ours")
    blocked: ClassVar[tuple[str, ...]] = ()
    needs_tools = False

    def read(self, path: Path) -> Iterator[Row]:
        """One row a pair; ValueError for a picture without its page or one that cannot be opened."""
        from PIL import Image, UnidentifiedImageError

        for picture in sorted(path.glob("*.png")):
            page = picture.with_suffix(".html")
            if not page.exists():
                raise ValueError(f"{picture}: there is no {page.name} beside it, whose text the score needs")
            try:
                width, height = Image.open(picture).size
            except UnidentifiedImageError as error:
                raise ValueError(f"{picture}: {error}") from None
            shown = base64.b64encode(picture.read_bytes()).decode()
            html = page.read_text(encoding="utf-8", errors="replace")
            yield {"id": picture.stem, "width": width, "height": height, "png": shown, "html": html}

    def task(self, row: Row) -> Task:
        """What to write; the picture comes by a tool."""
        return self.problem(row, _PROMPT.format(width=row["width"], height=row["height"]))

    async def score(self, row: Row, answer: str, ask: Ask | None) -> Score:
        """Half the picture's likeness, half the text's; a reply without a page scores 0."""
        html = page_of(answer)
        if not html:
            return Score(value=0.0, parts={"picture": 0.0, "text": 0.0})
        drawn = await draw(html, row["width"], row["height"])
        picture = picture_likeness(drawn, base64.b64decode(row["png"]))
        text = text_likeness(html, row["html"])
        value = (picture + text) / 2
        return Score(value=value, success=value > 0.99, parts={"picture": picture, "text": text})

    def session(self, row: Row) -> MockupSession:
        """A look at the mock-up and at pages of one's own."""
        return MockupSession(row)


class MockupSession(PlugSession):
    """The tools of one episode."""

    def __init__(self, row: Row) -> None:
        super().__init__(dict.fromkeys(Role, (_LOOK, _DRAW)), result_chars=1000)
        self._row = row

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """A PNG file."""
        if call.name == "mockup":
            return ToolResult(text="", images=(base64.b64decode(self._row["png"]),))
        html = str(call.arguments.get("html", ""))
        drawn = await draw(html, self._row["width"], self._row["height"], deadline_s=deadline_s)
        return ToolResult(text="", images=(drawn,))


def page_of(answer: str) -> str:
    """The page in a reply: its last fence, else the reply itself if it has a tag."""
    fenced = _FENCE.findall(answer)
    html = fenced[-1] if fenced else answer
    return html.strip() if re.search(r"<\w", html) else ""
