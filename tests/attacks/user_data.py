"""Mistakes in a user's data: refused by file, line and field, or read as intended.

Each case writes one small file and runs ``parl train configs/quickstart.yaml ... --dry-run``.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack

AREA = "user data"
CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
EXACT = {"kind": "exact", "answers": ["42"]}
RAW = '{"prompt": "x", "gold": {"kind": "exact", "answers": [%s]}}'
GOOD = json.dumps({"prompt": "How old?", "gold": EXACT})
Content = bytes | str | Callable[[Path], None]


def cases() -> list[Attack]:
    """All cases of this area."""
    refused = [case_of("tasks refused", refused_with, "envs.tasks", *row) for row in _bad_rows() + _bad_files()]
    read = [case_of("tasks read", read_as, "envs.tasks", *row) for row in _good_rows() + _good_files()]
    return [*refused, *read]


def case_of(
    kind: str, run: Callable[..., None], key: str, name: str, file: str, content: Content, wanted: Any
) -> Attack:
    """One case: ``run`` gets the setting ``key``, the file's name and content, and the expected result."""
    return Attack(area=AREA, name=f"{kind}: {name}", run=partial(run, key, file, content, wanted))


def _row(**fields: Any) -> str:
    return json.dumps({"prompt": "How old?", "gold": EXACT} | fields)


def _gold(**fields: Any) -> str:
    return _row(gold=EXACT | fields)


def _table(**fields: Any) -> str:
    table = {"kind": "table", "columns": ["name", "age"], "unique_columns": ["name"], "rows": [["Rome", "12"]]}
    return _row(gold=table | fields)


def _bad_rows() -> list[tuple[str, str, Content, list[str]]]:
    """Each is the second line of a file: its name, the line, and texts that the message must contain."""
    rows = {
        "no prompt": (json.dumps({"gold": EXACT}), ["prompt"]),
        "a blank prompt": (_row(prompt="  \n "), ["prompt"]),
        "a prompt that is a number": (_row(prompt=42), ["prompt = 42", "text"]),
        "no gold": ('{"prompt": "x"}', ["gold"]),
        "gold null": (_row(gold=None), ["gold"]),
        "gold as bare text": (_row(gold="Paris"), ['gold = "Paris"', "answers"]),
        "gold as broken JSON": (_row(gold='{"kind": "exact"'), ["gold", "JSON"]),
        "gold as a list": (_row(gold=["Paris"]), ["gold", "object"]),
        "gold without a kind": (_row(gold={"answers": ["42"]}), ["gold.kind", '"kind": "exact"']),
        "an unknown kind": (_gold(kind="exact_match"), ["gold.kind", "did you mean exact"]),
        "a kind of another case": (_gold(kind="Table"), ["gold.kind", "did you mean table"]),
        "a slip in gold's keys": (
            _row(gold={"kind": "exact", "answer": ["42"]}),
            ["gold.answer", "did you mean answers"],
        ),
        "no answers": (_row(gold={"kind": "exact"}), ["gold.answers", "missing"]),
        "answers empty": (_gold(answers=[]), ["gold.answers", "empty"]),
        "an empty answer": (_gold(answers=["42", ""]), ["gold.answers[1]", "empty"]),
        "an answer of punctuation": (_gold(answers=["..."]), ["gold.answers[0]", "no answer can match"]),
        "an answer of an article": (_gold(answers="The"), ["gold.answers[0]", "articles"]),
        "an answer null": (_gold(answers=[None]), ["gold.answers[0]", "null"]),
        "an answer that is an object": (_gold(answers=[{"text": "42"}]), ["gold.answers[0]", "object"]),
        "an answer in two lists": (_gold(answers=[["42"]]), ["gold.answers[0]", "list"]),
        "rows in an exact gold": (_gold(rows=[["a"]]), ["gold.rows", "kind exact"]),
        "aliases as a list": (_gold(aliases=["forty-two"]), ["gold.aliases", "object"]),
        "aliases the wrong way round": (_gold(aliases={"42": ["forty-two"]}), ["gold.aliases.42", "other spelling"]),
        "an alias of nothing": (_gold(aliases={"forty-one": "41"}), ["gold.aliases.forty-one", "none of the answers"]),
        "an alias that is empty": (_gold(aliases={"": "42"}), ["gold.aliases", "empty"]),
        "a key column that is none": (_table(unique_columns=["id"]), ["gold.unique_columns[0]", '"id"']),
        "a slip in a key column": (_table(unique_columns=["nmae"]), ["gold.unique_columns[0]", "did you mean name"]),
        "columns missing": (_row(gold={"kind": "table", "rows": [["a"]]}), ["gold.columns", "missing"]),
        "columns twice": (_table(columns=["name", "Name"]), ["gold.columns[1]", "twice"]),
        "an empty column": (_table(columns=["name", ""]), ["gold.columns[1]", "empty"]),
        "a pipe in a column": (_table(columns=["name", "a|b"]), ["gold.columns[1]", "|"]),
        "a table without rows": (_table(rows=[]), ["gold.rows", "empty"]),
        "ragged rows": (_table(rows=[["Rome", "12"], ["Oslo"]]), ["gold.rows[1]", "1 cells", "2 columns"]),
        "a row that is flat": (_table(rows=["Rome", "12"]), ["gold.rows[0]", "list of cells"]),
        "rows as objects": (_table(rows=[{"name": "Rome", "age": 12}]), ["gold.rows[0]", "list of cells"]),
        "an object in a cell": (_table(rows=[["Rome", {"v": 1}]]), ["gold.rows[0].age", "object"]),
        "null in a cell": (_table(rows=[["Rome", None]]), ["gold.rows[0].age", "null"]),
        "a pipe in a cell": (_table(rows=[["Rome", "1|2"]]), ["gold.rows[0].age", "|"]),
        "an empty key cell": (_table(rows=[["", "12"]]), ["gold.rows[0]", "key column"]),
        "two rows of one key": (_table(rows=[["Rome", "1"], ["rome ", "2"]]), ["gold.rows[1]", "key of rows[0]"]),
        "two rows of one key by an alias": (
            _table(rows=[["Rome", "1"], ["Roma", "2"]], aliases={"Roma": "Rome"}),
            ["gold.rows[1]", "key of rows[0]"],
        ),
        "a row of dashes": (_table(rows=[["-", "--"]]), ["gold.rows"]),
        "an alias of no cell": (_table(aliases={"Roma": "Paris"}), ["gold.aliases.Roma"]),
        "NaN": (RAW % "NaN", ["NaN"]),
        "Infinity": (RAW % "-Infinity", ["Infinity"]),
        "a number beyond all floats": (RAW % "1e999", ["1e999"]),
        "a JSON key twice": ('{"prompt": "x", "prompt": "y", "gold": {}}', ["prompt", "twice"]),
        "a JSON key twice inside": (
            '{"prompt": "x", "gold": {"kind": "exact", "answers": ["1"], "answers": ["2"]}}',
            ["answers", "twice"],
        ),
        "half a character": (_row(prompt="x \ud83d y"), ["prompt", "ud83d"]),
        "half a character in an answer": (_gold(answers=["\udc00"]), ["gold.answers[0]", "udc00"]),
        "U+0000": (_row(prompt="a\0b"), ["prompt", "U+0000"]),
        "a slip in prompt": (json.dumps({"promt": "x", "gold": EXACT}), ["prompt", "promt"]),
        "another case of prompt": (json.dumps({"Prompt": "x", "gold": EXACT}), ["prompt", "Prompt"]),
        "question for prompt": (json.dumps({"question": "x", "gold": EXACT}), ["prompt", "question"]),
        "golds for gold": (json.dumps({"prompt": "x", "golds": EXACT}), ["gold", "golds"]),
        "label for gold": (json.dumps({"prompt": "x", "label": "42"}), ["gold", "label"]),
        "a slip in split": (_row(splt="test"), ["splt", "did you mean split"]),
        "a slip in width": (_row(widht=3), ["widht", "did you mean width"]),
        "an unknown split": (_row(split="validation"), ["split", "did you mean val"]),
        "a width of nothing": (_row(width=0), ["width = 0"]),
        "a width in words": (_row(width="three"), ["width", "whole number"]),
        "a width that is true": (_row(width=True), ["width = true"]),
        "a width and a half": (_row(width=1.5), ["width = 1.5"]),
        "half an oracle": (_row(oracle={"serial_steps": 3}), ["oracle.parallel_steps", "missing"]),
        "an oracle that gains the wrong way": (
            _row(oracle={"serial_steps": 3, "parallel_steps": 5, "width": 0}),
            ["oracle.parallel_steps"],
        ),
        "an oracle of text": (_row(oracle="fast"), ["oracle"]),
        "a family in two lines": (_row(family="a\nb"), ["family"]),
        "a key without end": (_row(key="k" * 5000), ["key"]),
        "messages without a user": (_row(prompt=[{"role": "system", "content": "x"}]), ["prompt", "user"]),
        "messages of an unknown role": (_row(prompt=[{"role": "human", "content": "x"}]), ["prompt[0].role", "human"]),
        "messages without text": (_row(prompt=[{"role": "user"}]), ["prompt[0].content"]),
        "messages of several turns": (
            _row(prompt=[{"role": role, "content": "x"} for role in ("user", "assistant", "user")]),
            ["prompt[2].role", "one question"],
        ),
        "a prompt of texts": (_row(prompt=["a", "b"]), ["prompt[0]", "message"]),
        "a picture in a message": (
            _row(prompt=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
            ["prompt[0].content[0]", "pictures"],
        ),
        "verl's row without a ground truth": (
            json.dumps({"prompt": [{"role": "user", "content": "x"}], "reward_model": {"style": "rule"}}),
            ["gold"],
        ),
        "not an object": ("[1]", ["list"]),
        "a bare number": ("7", ["int"]),
        "broken JSON": ("{oops", ["not JSON"]),
        "JSON cut off": ('{"prompt": "x", "gold": {"kind": "exact", "answ', ["not JSON"]),
        "single quotes": ("{'prompt': 'x'}", ["not JSON"]),
        "a trailing comma": (GOOD + ",", ["not JSON", "one object a line"]),
        "two objects in a line": (GOOD + " " + GOOD, ["not JSON", "one object a line"]),
        "nested without end": ('{"prompt": ' + "[" * 100_000, ["nested"]),
        "an integer of ten thousand digits": (RAW % ("9" * 10_000), ["digits"]),
    }  # fmt: skip
    found = [(name, "tasks.jsonl", f"{GOOD}\n{line}\n", ["line 2", *wanted]) for name, (line, wanted) in rows.items()]
    keyed = "\n".join(_row(key="k1", prompt=prompt) for prompt in "ab")
    many = "\n".join(_row(prompt=f"{number}", width=0) for number in range(50))
    return [
        *found,
        ("one key for two rows", "tasks.jsonl", keyed, ["line 2", "key", "line 1"]),
        ("fifty mistakes", "tasks.jsonl", many, ["50 problems", "line 1: width", "line 20: width", "and 30 more"]),
        ("rows of a split that is not used", "t.jsonl", f"{GOOD}\n{_row(split='val', width=0)}\n", ["line 2", "width"]),
        ("only rows to train on", "t.jsonl", _row(split="train"), ["split 'test'", "1 of train"]),
        ("prompts that no context holds", "t.jsonl", _row(prompt="word " * 9000), ["1 of 1 prompts", "line 1", "1024"]),
        ("a gold that no context holds", "t.jsonl", _table(rows=[[str(i), "1"] for i in range(900)]), ["1 of 1"]),
    ]  # fmt: skip


def _bad_files() -> list[tuple[str, str, Content, list[str]]]:
    latin = '{"prompt": "Größe?", "gold": {"kind": "exact", "answers": ["42"]}}'
    return [
        ("an empty file", "t.jsonl", "", ["empty"]),
        ("blank lines", "t.jsonl", "\n \n", ["empty"]),
        ("an empty list", "t.json", "[]", ["list is empty"]),
        ("Latin-1", "t.jsonl", (GOOD + "\n" + latin).encode("latin-1"), ["line 2", "UTF-8", "iconv"]),
        ("Windows-1252 as CSV", "t.csv", "prompt,answer\nPreis in €?,42\n".encode("cp1252"), ["line 2", "UTF-8", "€"]),
        ("UTF-16 without its mark", "t.jsonl", GOOD.encode("utf-16-le"), ["NUL"]),
        ("UTF-16 cut off", "t.jsonl", codecs.BOM_UTF16_LE + GOOD.encode("utf-16-le")[:-1], ["UTF-16", "cut off"]),
        ("NUL bytes", "t.jsonl", GOOD + "\n\0\0\0\n", ["line 2", "NUL"]),
        ("gzip", "t.jsonl", b"\x1f\x8b\x08\0" + b"x" * 30, ["gzip", "unpack"]),
        ("an Excel sheet", "t.csv", b"PK\x03\x04" + b"x" * 30, ["Excel", "CSV"]),
        ("Parquet under another name", "t.jsonl", b"PAR1" + b"\0" * 30, ["Parquet"]),
        ("a Parquet file of noise", "t.parquet", b"PAR1" + b"\7" * 64, ["Parquet"]),
        ("a folder", "folder.jsonl", lambda path: path.mkdir(), ["folder"]),
        ("a folder without a suffix", "folder", lambda path: path.mkdir(), ["folder"]),
        ("no file", "absent.jsonl", lambda path: None, ["no such file"]),
        ("an unknown suffix", "t.xlsx", GOOD, ["suffix"]),
        ("a header alone", "t.csv", "prompt,gold\n", ["no rows"]),
        ("CSV without gold", "t.csv", "prompt,split\nx,test\n", ["line 2", "gold"]),
        ("CSV with a slip in its header", "t.csv", "promt,answer\nx,42\n", ["promt"]),
        ("CSV with ragged rows", "t.csv", "prompt,answer\nx,42\ny\nz,1,2\n", ["2 problems", "line 3", "line 4"]),
        ("CSV with a quote left open", "t.csv", 'prompt,answer\n"x,42\ny,1\n', ["line 2", "never closed"]),
        ("CSV with a column twice", "t.csv", "prompt,answer,Answer\nx,1,2\n", ["twice"]),
        ("CSV with broken gold", "t.csv", "prompt;gold\nx;{oops\n", ["line 2", "gold"]),
        ("JSON with a comma too many", "t.json", f"[{GOOD}\n,\n]", ["line 3", "not JSON"]),
        ("JSON without a comma", "t.json", f"[{GOOD}\n{GOOD}]", ["comma"]),
        ("bad rows in a list", "t.json", f"[{GOOD},\n{_row(width=0)},\n{_row(width=-1)}]", ["line 2", "line 3: width"]),
        ("a list with NaN", "t.json", f'[{GOOD},\n{{"prompt": NaN}},\n{_row(width=0)}]', ["line 2", "NaN", "line 3"]),
        ("Parquet with NaN", "t.parquet", partial(parquet, {"prompt": ["x"], "answer": [float("nan")]}), ["row 1"]),
        ("Parquet with a bad row", "t.parquet", partial(parquet, {"prompt": ["x", ""], "answer": [1, 2]}), ["row 2"]),
    ]  # fmt: skip


def parquet(columns: dict[str, list[Any]], path: Path) -> None:
    """Write ``columns`` as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def _good_rows() -> list[tuple[str, str, Content, dict[str, Any]]]:
    """A row, and the expected task."""
    verl = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "How old?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "42"},
        "extra_info": {"split": "train", "index": 0},
    }
    user, assistant = {"role": "user", "content": "How old?"}, {"role": "assistant", "content": "42"}
    parts = {"role": "user", "content": [{"type": "text", "text": "How old?"}]}
    rows = {
        "a text for a list": (_gold(answers="Paris"), {"answers": ("Paris",)}),
        "a number for a list": (_gold(answers=42), {"answers": ("42",)}),
        "numbers": (_gold(answers=[42, -7]), {"answers": ("42", "-7")}),
        "a number as it is written": (_gold(answers=["x"]).replace('"x"', "12.50"), {"answers": ("12.50",)}),
        "truth values": (_gold(answers=[True, False]), {"answers": ("true", "false")}),
        "gold as JSON": (_row(gold=json.dumps(EXACT)), {"answers": ("42",)}),
        "numbers in a table": (_table(rows=[["Rome", 12], ["Oslo", 0.5]]), {"rows": (("Rome", "12"), ("Oslo", "0.5"))}),
        "an empty cell in a table": (_table(rows=[["Rome", ""]]), {"rows": (("Rome", ""),)}),
        "no key columns": (_table(unique_columns=[]), {"unique_columns": ()}),
        "two key columns": (
            _table(unique_columns=["name", "age"], rows=[["Rome", 1], ["Rome", 2]]),
            {"rows": (("Rome", "1"), ("Rome", "2"))},
        ),
        "aliases": (_gold(aliases={"forty-two": "42"}), {"aliases": {"forty-two": "42"}}),
        "columns of others": (_row(difficulty=3, source="me", meta={"a": [1]}), {"answers": ("42",)}),
        "verl's row": (json.dumps(verl), {"prompt": "How old?", "answers": ("42",)}),
        "verl's row with targets": (
            json.dumps(verl | {"reward_model": {"ground_truth": {"target": ["42", "forty-two"]}}}),
            {"answers": ("42", "forty-two")},
        ),
        "TRL's prompt and answer": (json.dumps({"prompt": [user], "answer": 42}), {"answers": ("42",)}),
        "TRL's prompt and solution": (json.dumps({"prompt": [user], "solution": "42"}), {"answers": ("42",)}),
        "TRL's prompt and completion": (
            json.dumps({"prompt": [user], "completion": [assistant]}),
            {"prompt": "How old?", "answers": ("42",)},
        ),
        "TRL's messages": (json.dumps({"messages": [user, assistant]}), {"prompt": "How old?", "answers": ("42",)}),
        "a system message": (
            json.dumps({"prompt": [{"role": "system", "content": "Be brief."}, user], "answer": "42"}),
            {"prompt": "Be brief.\n\nHow old?"},
        ),
        "a message in parts": (json.dumps({"prompt": [parts], "answer": "42"}), {"prompt": "How old?"}),
        "a number for a key": (_row(key=7), {"key": "7"}),
        "an escaped pair": (_row(prompt="x \U0001f600"), {"prompt": "x \U0001f600"}),
        "line separators of Unicode": (_row(prompt="a\u2028b\u0085c"), {"prompt": "a\u2028b\u0085c"}),
        "optional fields that are null": (_row(split=None, width=None, oracle=None, family=""), {"width": 1}),
    }  # fmt: skip
    return [(name, "t.jsonl", line, wanted) for name, (line, wanted) in rows.items()]


def _good_files() -> list[tuple[str, str, Content, dict[str, Any]]]:
    wanted = {"prompt": "How old?", "answers": ("42",)}
    lines = f"{GOOD}\n{_row(prompt='q2')}\n"
    crlf, pretty = lines.replace("\n", "\r\n"), json.dumps(json.loads(GOOD), indent=2)
    accents = {"prompt": "Größe von München?"}
    text = json.dumps({"prompt": "Größe von München?", "gold": EXACT}, ensure_ascii=False)
    quoted = 'prompt,gold\nHow old?,"{""kind"": ""exact"", ""answers"": [""42""]}"\n'
    return [
        ("a byte-order mark", "t.jsonl", codecs.BOM_UTF8 + lines.encode(), wanted),
        ("UTF-16, little-endian", "t.jsonl", codecs.BOM_UTF16_LE + text.encode("utf-16-le"), accents),
        ("UTF-16, big-endian", "t.jsonl", codecs.BOM_UTF16_BE + text.encode("utf-16-be"), accents),
        ("UTF-32", "t.jsonl", text.encode("utf-32"), accents),
        ("UTF-8 without a mark", "t.jsonl", text.encode(), accents),
        ("CRLF", "t.jsonl", crlf, wanted),
        ("CR alone", "t.jsonl", lines.replace("\n", "\r"), wanted),
        ("no newline at the end", "t.jsonl", GOOD, wanted),
        ("blank lines between", "t.jsonl", f"\n{GOOD}\n\n\n", wanted),
        ("JSON as JSON Lines", "t.jsonl", f"[{GOOD}]", wanted),
        ("JSON Lines as JSON", "t.json", lines, wanted),
        ("JSON over several lines", "t.jsonl", f"{pretty}\n{_row(prompt='q2')}\n", wanted),
        ("a list", "t.json", f"[\n{GOOD},\n{_row(prompt='q2')}\n]", wanted),
        ("an object of tasks", "t.json", f'{{"version": 1, "tasks": [{GOOD}]}}', wanted),
        ("an object of data", "t.json", f'{{"data": [{GOOD}], "of": "me"}}', wanted),
        ("one object", "t.json", pretty, wanted),
        ("the suffix in capitals", "T.JSONL", lines, wanted),
        ("ndjson", "t.ndjson", lines, wanted),
        ("CSV", "t.csv", "prompt,answer\nHow old?,42\n", wanted),
        ("CSV with JSON in it", "t.csv", quoted, wanted),
        ("CSV with semicolons", "t.csv", "prompt;answer;width\nHow old?;42;3\n", wanted | {"width": 3}),
        ("CSV with pandas' gaps", "t.csv", "prompt,answer,width\nHow old?,42,3.0\nq2,7,\n", wanted | {"width": 3}),
        ("CSV with tabs", "t.csv", "prompt\tanswer\nHow old?\t42\n", wanted),
        ("TSV", "t.tsv", "prompt\tanswer\nHow old?\t42\n", wanted),
        ("CSV with a mark and CRLF", "t.csv", codecs.BOM_UTF8 + b"prompt,answer\r\nHow old?,42\r\n", wanted),
        ("CSV with pandas' index", "t.csv", ",prompt,answer\n0,How old?,42\n1,q2,7\n", wanted),
        ("CSV with a quoted newline", "t.csv", 'prompt,answer\n"How\nold?",42\n', {"prompt": "How\nold?"}),
        ("CSV with commas at the ends", "t.csv", "prompt,answer,,\nHow old?,42,,\n", wanted),
        ("rows twice", "t.jsonl", f"{GOOD}\n{GOOD}\n", wanted | {"said": "line 2"}),
        (
            "some prompts too long",
            "t.jsonl",
            f"{GOOD}\n{_row(prompt='a b ' * 9000)}\n",
            wanted | {"said": "1 of 2 prompts"},
        ),
        ("fewer tasks than eval.tasks", "t.jsonl", GOOD, wanted | {"said": "eval.tasks = 160"}),
        ("real words and a tiny policy", "t.jsonl", GOOD, wanted | {"said": "model.init"}),
        ("Parquet", "t.parquet", partial(parquet, {"prompt": ["How old?"], "answer": [42.0]}), wanted),
        (
            "verl's Parquet",
            "t.parquet",
            partial(
                parquet,
                {
                    "prompt": [[{"role": "user", "content": "How old?"}]],
                    "reward_model": [{"style": "rule", "ground_truth": "42"}],
                    "extra_info": [{"index": 0}],
                },
            ),
            wanted,
        ),
    ]


def write(path: Path, content: Content) -> None:
    """Write the file: bytes, text in UTF-8, or by a function."""
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def dry_run(key: str, path: Path) -> tuple[int, str]:
    """Exit code and standard error of the dry run over ``path``."""
    from typer.testing import CliRunner

    from parl.cli.main import app

    settings = [f"{key}={json.dumps(str(path))}", f"root={path.parent / 'runs'}", "envs.config.widths=[2,4]"]
    settings = settings if key == "envs.config.source" else settings[:2]
    done = CliRunner().invoke(app, ["train", str(CONFIG), *settings, "--dry-run"])
    assert "Traceback" not in done.output, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr


def refused_with(key: str, file: str, content: Content, wanted: list[str], folder: Path) -> None:
    """Exit code 2 and a short message with the file and all of ``wanted``."""
    path = folder / file
    write(path, content)
    code, said = dry_run(key, path)
    assert code == 2, (code, said)
    assert file in said, said
    missing = [part for part in wanted if part not in said]
    assert not missing, (missing, said)
    assert len(said.splitlines()) <= 30 and len(said) < 20_000, said


def read_as(key: str, file: str, content: Content, wanted: dict[str, Any], folder: Path) -> None:
    from envs.tasks_io import load_tasks
    from rewards.outcome import score_answer
    from rewards.outcome.reach import ideal_answer

    path = folder / file
    write(path, content)
    code, said = dry_run(key, path)
    assert code == 0, said
    task = load_tasks(str(path), "test")[0]
    assert score_answer(task, ideal_answer(task.gold)).success
    for name, value in wanted.items():
        if name == "said":
            assert value in said, said
        else:
            found = getattr(task, name) if hasattr(task, name) else getattr(task.gold, name)
            assert found == value, (name, found)
