"""Mistakes in a user's tables: refused by file, line and column, or read."""

from __future__ import annotations

import codecs
from functools import partial
from pathlib import Path

from attacks.base import Attack
from attacks.user_data import Content, case_of, dry_run, parquet, refused_with, write

KEY = "envs.config.source"


def cases() -> list[Attack]:
    """All tables."""
    refused = [case_of("table refused", refused_with, KEY, *row) for row in _bad_tables()]
    return [*refused, *(case_of("table read", _read_table, KEY, *row) for row in _good_tables())]


def _bad_tables() -> list[tuple[str, str, Content, list[str]]]:
    return [
        ("an empty file", "t.csv", "", ["line 1", "empty"]),
        ("a header alone", "t.csv", "name,age\n", ["no rows"]),
        ("no header", "t.csv", "Rome,12\nOslo,7\n", ["line 1", "no header"]),
        ("one column", "t.csv", "name\nRome\n", ["one column"]),
        ("a column without a name", "t.csv", "name,,age\nRome,x,1\n", ["column 2"]),
        ("a column twice", "t.csv", "name,age,AGE\nRome,1,2\n", ["'age'", "twice"]),
        ("columns that differ by a blank", "t.csv", "name,land area,landarea\nRome,1,2\n", ["twice", "blanks"]),
        ("a second column 'name'", "t.csv", "city,Name\nRome,R\n", ["'Name'", "first"]),
        (
            "all rows' mistakes",
            "t.csv",
            "name,age\n,1\nRome,2\nrome,3\nOslo\nX,1,2\n",
            ["4 problems", "line 2", "line 4", "line 5", "line 6"],
        ),
        ("a name that cannot be searched for", "t.csv", "name,age\n***,1\nRome,2\n", ["line 2", "name"]),
        ("a name that reads as two", "t.csv", 'name,age\n"Rome, 2. Oslo",1\nBern,2\n', ["line 2", "numbered list"]),
        ("no value", "t.csv", "name,age\nRome,\n", ["value"]),
        ("only dashes", "t.csv", "name,age\nRome,-\nOslo,--\n", ["value"]),
        ("a value that scoring drops", "t.csv", "name,grade\nRome,A\nOslo,B\n", ["line 2", "grade", "articles"]),
        ("a quote left open", "t.csv", 'name,age\n"Rome,1\n', ["line 2", "never closed"]),
        ("Latin-1", "t.csv", "name,age\nZürich,1\n".encode("latin-1"), ["line 2", "UTF-8", "Zürich"]),
        ("NUL bytes", "t.csv", "name,age\nRome,1\0\n", ["line 2", "NUL"]),
        ("a folder", "folder.csv", lambda path: path.mkdir(), ["folder"]),
        ("no file", "absent.csv", lambda path: None, ["no such file"]),
        ("an Excel sheet", "t.xlsx", b"PK\x03\x04" + b"x" * 30, ["Excel"]),
        ("an unknown suffix", "t.dat", "name,age\nRome,1\n", ["suffix"]),
        ("an object in a cell", "t.json", '[{"name": "Rome", "age": {"v": 1}}]', ["line 1", "age", "object"]),
        ("a JSON key twice", "t.jsonl", '{"name": "Rome", "age": 1, "age": 2}', ["line 1", "age", "twice"]),
        ("lists in Parquet", "t.parquet", partial(parquet, {"name": ["Rome"], "ages": [[1]]}), ["row 1", "ages"]),
        (
            "long cells",
            "t.csv",
            "name,story\n" + "".join(f"Town {i},{'word ' * 250}\n" for i in range(3)),
            ["demonstrations"],
        ),
        (
            "cells that no context holds",
            "t.csv",
            "name,story\n" + "".join(f"Town {i},{'word ' * 3000}\n" for i in range(3)),
            ["3 of 3 rows", "1024"],
        ),
    ]


def _good_tables() -> list[tuple[str, str, Content, dict[str, dict[str, str]]]]:
    ages = {"Rome": {"age": "1"}, "Oslo": {"age": "2"}}
    years = {"Rome": {"2019": "5", "2020": "6"}}
    return [
        ("three rows", "t.csv", "name,age\nRome,1\nOslo,2\nBern,3\n", ages),
        ("years as columns", "t.csv", "name,2019,2020\nRome,5,6\n", years),
        ("commas at the ends", "t.csv", "name,age,,\nRome,1,,\nOslo,2,,\n", ages),
        ("commas at the ends of rows", "t.csv", "name,age\nRome,1,\nOslo,2,\n", ages),
        ("pandas' index", "t.csv", ",name,age\n0,Rome,1\n1,Oslo,2\n", ages),
        ("pandas' index, saved twice", "t.csv", "Unnamed: 0,name,age\n0,Rome,1\n1,Oslo,2\n", ages),
        ("pandas' index, sorted and thinned", "t.csv", ",name,age\n7,Rome,1\n3,Oslo,2\n", ages),
        ("an index of names", "t.csv", ",age\nRome,1\nOslo,2\n", ages),
        ("semicolons and decimal commas", "t.csv", "name;size\nRome;1,5\n", {"Rome": {"size": "1,5"}}),
        ("values of symbols", "t.csv", "name,flag\nRome,😀\n", {"Rome": {"flag": "😀"}}),
        ("tabs", "t.tsv", "name\tage\nRome\t1\nOslo\t2\n", ages),
        ("Excel's separator line", "t.csv", "sep=;\nname;age\nRome;1\nOslo;2\n", ages),
        ("UTF-16", "t.csv", "name,age\nRome,1\nOslo,2\n".encode("utf-16"), ages),
        ("CRLF and a mark", "t.csv", codecs.BOM_UTF8 + b"name,age\r\nRome,1\r\nOslo,2\r\n", ages),
        ("CR alone", "t.csv", "name,age\rRome,1\rOslo,2\r", ages),
        (
            "percent, units and blanks",
            "t.csv",
            "name,a,b,c\nRome,12%,3 km²,\nOslo,,,-\n",
            {"Rome": {"a": "12%", "b": "3 km²"}, "Oslo": {}},
        ),
        ("a newline in quotes", "t.csv", 'name,motto\n"Isle\nof Man","a, b"\n', {"Isle of Man": {"motto": "a, b"}}),
        ("a quote inside a cell", "t.csv", 'name,size\nPipe 5",5\n', {'Pipe 5"': {"size": "5"}}),
        ("a field of 140 kB", "t.csv", "name,age,x\nRome,1,\nOslo,2," + "y" * 140_000 + "\n", {"Rome": {"age": "1"}}),
        ("JSON", "t.json", '[{"name": "Rome", "age": 1}, {"name": "Oslo", "age": 2}]', ages),
        (
            "JSON Lines with a key missing",
            "t.jsonl",
            '{"name": "Rome", "age": 1}\n{"name": "Oslo", "size": null, "age": 2}\n',
            ages,
        ),
        ("Parquet", "t.parquet", partial(parquet, {"name": ["Rome", "Oslo"], "age": [1.0, 2.0]}), ages),
        (
            "Parquet with missing values",
            "t.parquet",
            partial(parquet, {"name": ["Rome", "Oslo"], "age": [1.0, None]}),
            {"Rome": {"age": "1"}, "Oslo": {}},
        ),
    ]


def _read_table(key: str, file: str, content: Content, wanted: dict[str, dict[str, str]], folder: Path) -> None:
    from envs.world.table import read_table

    path = folder / file
    write(path, content)
    code, said = dry_run(key, path)
    assert code == 0, said
    assert "share them all" in said, said
    found = {entity.name: entity.values for entity in read_table(path)}
    assert {name: found[name] for name in wanted} == wanted, found
