"""HotpotQA, 2WikiMultihopQA and MuSiQue: questions over several pages, exact match and F1 of the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from envs.base import ErrorKind, Role, Score, Task, ToolCall, ToolResult, ToolSpec
from envs.benchmarks.base import Ask, Benchmark, Limits, Row, json_lines
from envs.benchmarks.scoring.short_answers import exact, final_answer, word_f1
from envs.plugs.session import PlugSession, Refused

_READ = ToolSpec(
    name="read",
    description="The text of pages, several at once.",
    parameters={
        "type": "object",
        "properties": {"titles": {"type": "array", "items": {"type": "string"}}},
        "required": ["titles"],
    },
)
_PROMPT = """{question}

These pages may help; the tool read shows them:
{titles}

End with one line, as short as it can be: Answer: ..."""


class _MultiHop(Benchmark):
    closed: ClassVar[bool] = True  # the rule for yes and no
    limits = Limits()
    needs_tools = False

    def task(self, row: Row) -> Task:
        """The question with the titles of its pages."""
        titles = "\n".join(dict.fromkeys(f"- {title}" for title, _ in row["pages"]))
        return self.problem(row, _PROMPT.format(question=row["question"], titles=titles))

    async def score(self, row: Row, answer: str, ask: Ask | None) -> Score:
        """F1, with the exact match beside it."""
        given = final_answer(answer)
        em, f1 = exact(given, row["answers"]), word_f1(given, row["answers"], closed=self.closed)
        return Score(value=f1, success=bool(em), parts={"em": em, "f1": f1})

    def session(self, row: Row) -> PagesSession:
        """The row's own pages (the distractor setting)."""
        return PagesSession(row)


class HotpotQA(_MultiHop):
    """HotpotQA in its distractor setting; its answers in the full-wiki one with ``envs.config.tools``."""

    name = "hotpotqa"
    about = "two-hop questions over ten pages each; exact match and F1 (CC BY-SA 4.0)"
    download = "hotpot_dev_distractor_v1.json from https://hotpotqa.github.io"

    def read(self, path: Path) -> Iterator[Row]:
        """Rows of the distractor file."""
        for row in json_lines(path):
            pages = [[title, "".join(lines)] for title, lines in row["context"]]
            yield {"id": row["_id"], "question": row["question"], "answers": [row["answer"]], "pages": pages}


class TwoWiki(HotpotQA):
    """2WikiMultihopQA, with the aliases of answers if ``id_aliases.json`` is beside the file."""

    name = "2wiki"
    about = "two- to four-hop questions over ten pages each; exact match and F1, best alias (Apache-2.0)"
    download = "dev.json (and id_aliases.json beside it) from https://github.com/Alab-NII/2wikimultihop"

    def read(self, path: Path) -> Iterator[Row]:
        """Rows of the file, their answers with aliases."""
        names: dict[str, list[str]] = {}
        if (beside := path.with_name("id_aliases.json")).exists():
            names = {one["Q_id"]: one["aliases"] + one["demonyms"] for one in json_lines(beside)}
        for row, full in zip(super().read(path), json_lines(path), strict=True):
            aliases = names.get(full.get("answer_id") or "", [])
            yield row | {"answers": list(dict.fromkeys([*row["answers"], *aliases]))}


class MuSiQue(_MultiHop):
    """MuSiQue, its answerable questions."""

    name = "musique"
    about = "two- to four-hop questions over twenty pages each; exact match and F1, best alias (CC BY 4.0)"
    download = "musique_ans_v1.0_dev.jsonl from https://github.com/StonyBrookNLP/musique"
    closed = False

    def read(self, path: Path) -> Iterator[Row]:
        """Rows of the file; questions that cannot be answered are left out, as the official answer score does."""
        for row in json_lines(path):
            if row.get("answerable", True):
                pages = [[page["title"], page["paragraph_text"]] for page in row["paragraphs"]]
                answers = [row["answer"], *row.get("answer_aliases", ())]
                yield {"id": row["id"], "question": row["question"], "answers": answers, "pages": pages}


class PagesSession(PlugSession):
    """One tool over the pages of one row."""

    def __init__(self, row: Row) -> None:
        super().__init__(dict.fromkeys(Role, (_READ,)), result_chars=20_000)
        self._pages: dict[str, str] = {}
        for title, text in row["pages"]:
            self._pages[title] = f"{self._pages[title]}\n{text}" if title in self._pages else text

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """The pages' texts."""
        titles: Any = call.arguments.get("titles")
        titles = [titles] if isinstance(titles, str) else titles
        if not isinstance(titles, list) or not titles:
            raise Refused(ErrorKind.BAD_ARGS, f"titles: a list of titles, not {json.dumps(titles)}")
        missing = [str(title) for title in titles if title not in self._pages]
        if missing:
            raise Refused(ErrorKind.NOT_FOUND, f"no page {missing[0]!r}")
        return ToolResult(text="\n\n".join(f"{title}\n{self._pages[title]}" for title in titles))
