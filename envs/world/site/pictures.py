"""Pictures of small tables, a tool that shows them, and tasks about them.

A picture has two to four rows, each a row's number and a two-digit number, one character per square of 28
pixels (a token of the vision tower at its usual sizes). Ink, paper and the place in the square vary.
Everything is a function of (world seed, split, url); no page states what a picture shows.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from random import Random
from typing import Any

from envs.base import Gold, Oracle, Task, ToolSpec, task_key
from envs.world.config import PICTURE
from envs.world.wording import conclusion, fact_line, question

OPEN_PICTURE = ToolSpec(
    name="open_picture",
    description="Look at a picture.",
    parameters={"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
)
COUNT = 5000  # pictures per split
SQUARE = 28  # pixels of one character's square
ROWS = (2, 4)

_SCALE = 3  # pixels per dot of the font
_FONT = {  # 5 x 7 dots, one number per row of dots
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
}


def picture_table(world_seed: int, split: str, url: str) -> list[str] | None:
    """The numbers in the rows of picture ``url`` (``i0`` to ``i4999``), None if there is none."""
    number = url[1:]
    if url[:1] != "i" or not (number.isascii() and number.isdigit()) or number != str(int(number)):
        return None
    if int(number) >= COUNT:
        return None
    rng = Random(f"picture:{world_seed}:{split}:{url}")
    return [str(rng.randint(10, 99)) for _ in range(rng.randint(*ROWS))]


def draw_picture(world_seed: int, split: str, url: str) -> bytes | None:
    """Picture ``url`` as PNG, 84 pixels wide and 28 per row high; None if there is none."""
    table = picture_table(world_seed, split, url)
    if table is None:
        return None
    return draw_table(table, Random(f"ink:{world_seed}:{split}:{url}"))


def draw_table(table: Sequence[str], rng: Random) -> bytes:
    """The rows of ``table`` with their numbers, as PNG. ImportError names the fix if Pillow is missing."""
    image = _pillow().new("L", (3 * SQUARE, len(table) * SQUARE), rng.randint(190, 255))
    dots = image.load()
    assert dots is not None
    ink = rng.randint(0, 80)
    for row, value in enumerate(table):
        for column, character in enumerate(f"{row + 1}{value}"):
            left, top = (rng.randint(2, SQUARE - 2 - _SCALE * side) for side in (5, 7))
            for y, line in enumerate(_FONT[character]):
                for x in range(5):
                    if line >> (4 - x) & 1:
                        _dot(dots, column * SQUARE + left + x * _SCALE, row * SQUARE + top + y * _SCALE, ink)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _dot(dots: Any, left: int, top: int, ink: int) -> None:
    for y in range(top, top + _SCALE):
        for x in range(left, left + _SCALE):
            dots[x, y] = ink


def read_table(png: bytes) -> list[str]:
    """Inverse of :func:`draw_table`, for scripted policies. ValueError for other pictures."""
    image = _pillow().open(io.BytesIO(png)).convert("L")
    threshold = 135  # between the darkest paper and the lightest ink
    rows = []
    for top in range(0, image.height, SQUARE):
        squares = [image.crop((left, top, left + SQUARE, top + SQUARE)) for left in (SQUARE, 2 * SQUARE)]
        rows.append("".join(_character(square.point(lambda grey: 255 * (grey < threshold))) for square in squares))
    return rows


def _character(square: Any) -> str:
    """The character whose dots are white in ``square``."""
    box = square.getbbox()
    if box is None:
        raise ValueError("a square of the picture is empty")
    for character, lines in _FONT.items():
        columns = [x for x in range(5) if any(line >> (4 - x) & 1 for line in lines)]
        if (box[2] - box[0], box[3] - box[1]) != ((columns[-1] - columns[0] + 1) * _SCALE, 7 * _SCALE):
            continue
        found = [
            [square.getpixel((box[0] + (x - columns[0]) * _SCALE + 1, box[1] + y * _SCALE + 1)) > 0 for x in columns]
            for y in range(7)
        ]
        if found == [[bool(line >> (4 - x) & 1) for x in columns] for line in lines]:
            return character
    raise ValueError("a square of the picture holds no digit of the font")


# ---------------------------------------------------------------- tasks


def picture_task(world_seed: int, split: str, rng: Random) -> Task:
    """A task about one row of one picture: look, answer. Nothing is faster, so delegating does not pay."""
    url = f"i{rng.randrange(COUNT)}"
    table = picture_table(world_seed, split, url)
    assert table is not None
    row = rng.randrange(len(table))
    prompt = question("single_fact", split, [_label(row)], f"picture {url}", rng)
    gold = Gold(kind="exact", answers=(table[row],))
    return Task(
        key=task_key(prompt, [gold.kind, gold.answers]),
        family=PICTURE,
        split=split,
        prompt=prompt,
        gold=gold,
        oracle=Oracle(serial_steps=2, parallel_steps=2, width=0),
        plan={"picture": url, "row": row},
    )


def picture_act(task: Task, seen: Sequence[tuple[int, bytes]]) -> list[tuple[str, dict[str, Any]]] | str:
    """The scripted policy of a picture task: open it, then answer from the pictures ``seen``.

    ``seen`` as in a trace: (position, PNG).
    """
    url, row = task.plan["picture"], task.plan["row"]
    if not seen:
        return [(OPEN_PICTURE.name, {"url": url})]
    value = read_table(seen[-1][1])[row]
    return conclusion(fact_line(url, _label(row), value), value)


def picture_texts(rng: Random, count: int) -> list[str]:
    """Texts about pictures, for the tokenizer: questions, answers, and the word that the template writes."""
    texts = ["image"] * count
    for _ in range(count):
        task = picture_task(0, "train", rng)
        texts += [task.prompt, conclusion(fact_line(task.plan["picture"], _label(task.plan["row"]), "10"), "10")]
    return texts


def _label(row: int) -> str:
    return f"number {row + 1}"


# ---------------------------------------------------------------- pictures in JSON


def encoded(images: Sequence[bytes]) -> list[str]:
    """Pictures as text for JSON."""
    return [base64.b64encode(image).decode() for image in images]


def decoded(texts: Sequence[str]) -> tuple[bytes, ...]:
    """Inverse of :func:`encoded`; ValueError for invalid base64."""
    return tuple(base64.b64decode(text, validate=True) for text in texts)


def check_pillow() -> None:
    """ValueError with the fix if Pillow is missing."""
    try:
        _pillow()
    except ImportError as error:
        raise ValueError(str(error)) from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are drawn with Pillow: pip install pillow") from error
    return Image
