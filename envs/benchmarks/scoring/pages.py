"""How near a web page comes to a mock-up, and the browser that draws it.

    score   = (picture + text) / 2
    picture = max(0, 1 - D(answer, mock-up) / D(blank, mock-up))
    text    = 2 M / (T_answer + T_gold)

D is the mean absolute difference of two pictures, both cut or filled with white to the mock-up's size and averaged
over blocks of 8 x 8 pixels; ``blank`` is a white page, so an empty answer scores 0. M counts the words that both
pages show in the same order (``difflib.SequenceMatcher``), T all words; two pages without words score 1.
"""

from __future__ import annotations

import asyncio
import difflib
import io
import os
import re
import shutil
import signal
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

_BLOCK = 8
_FLAGS = (
    "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>", "--force-device-scale-factor=1",
)  # fmt: skip
# Nothing is loaded: no files of this machine, no network, no frames, no scripts. A page's own policies and
# redirects are disarmed by their attribute's name, since a redirect could show this machine's files.
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';"
    ' img-src data:; font-src data:">'
)
_ARMED = re.compile("http-equiv", re.IGNORECASE)
_UNSEEN = ("script", "style", "head", "title", "template", "noscript")
_OF_HEAD = ("html", "base", "basefont", "bgsound", "link", "meta", "noframes", *_UNSEEN)  # any other tag ends it


class NoBrowser(RuntimeError):
    """There is no Chromium, or it does not answer: the machine's fault."""


def chromium() -> str | None:
    """A Chromium: the program that CHROMIUM names, or one on PATH."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


async def draw(html: str, width: int, height: int, *, deadline_s: float = 30.0) -> bytes:
    """A PNG of ``html`` in a window of ``width`` x ``height`` pixels, drawn without scripts and without loading."""
    program = chromium()
    if program is None:
        raise NoBrowser("no Chromium on PATH: install chromium-headless-shell, or name one in CHROMIUM")
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as room:
        page, picture = Path(room) / "page.html", Path(room) / "page.png"
        page.write_text("<!DOCTYPE html>" + _POLICY + _ARMED.sub("x-equiv", html), encoding="utf-8")
        line = [program, *_FLAGS, *(["--no-sandbox"] if os.getuid() == 0 else []), f"--user-data-dir={room}/profile"]
        line += [f"--screenshot={picture}", f"--window-size={width},{height}", page.as_uri()]
        nothing = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*line, stdout=nothing, stderr=nothing, start_new_session=True)
        try:
            async with asyncio.timeout(deadline_s):
                await process.wait()
        except TimeoutError:
            raise NoBrowser(f"{program} drew nothing within {deadline_s} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if not picture.exists():
            raise NoBrowser(f"{program} ended with code {process.returncode} and drew nothing")
        return picture.read_bytes()


def picture_likeness(answer: bytes, gold: bytes) -> float:
    """1 for the same picture, 0 for one that is no nearer to ``gold`` than a white page. PNG files."""
    wanted = _blocks(gold, None)
    blank = np.abs(wanted - 255.0).mean()
    apart = np.abs(_blocks(answer, _size(gold)) - wanted).mean()
    return float(max(0.0, 1.0 - apart / blank)) if blank else float(apart == 0.0)


def text_likeness(answer: str, gold: str) -> float:
    """How many words two pages show in the same order. HTML."""
    words, wanted = visible_text(answer).split(), visible_text(gold).split()
    return difflib.SequenceMatcher(None, words, wanted, autojunk=False).ratio()


def visible_text(html: str) -> str:
    """The text that a page shows."""
    reader = _Text()
    reader.feed(html)
    reader.close()
    return " ".join(" ".join(reader.parts).split())


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._inside: list[str] = []
        self._head_over = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in _OF_HEAD and set(self._inside) <= {"head"}:
            self._end_head()
        if tag in _UNSEEN and not (tag == "head" and self._head_over):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "head":
            self._end_head()
        elif tag in self._inside:
            self._inside.remove(tag)

    def _end_head(self) -> None:  # its end tag may be left out
        self._head_over = True
        self._inside = [tag for tag in self._inside if tag != "head"]

    def handle_data(self, data: str) -> None:
        if self._inside == ["head"] and data.strip():
            self._end_head()
        if not self._inside:
            self.parts.append(data)


def _size(picture: bytes) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(picture)).size


def _blocks(picture: bytes, size: tuple[int, int] | None) -> np.ndarray:
    """Mean colours of blocks, [rows, columns, 3], over a white sheet of ``size`` (width, height)."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    width, height = size or image.size
    sheet = Image.new("RGB", (-(-width // _BLOCK) * _BLOCK, -(-height // _BLOCK) * _BLOCK), "white")
    sheet.paste(image.crop((0, 0, min(width, image.width), min(height, image.height))))
    pixels = np.asarray(sheet, dtype=np.float64)
    return pixels.reshape(sheet.height // _BLOCK, _BLOCK, sheet.width // _BLOCK, _BLOCK, 3).mean(axis=(1, 3))
