"""Training text of the world for a tokenizer. Names are fresh in every sample, so merges stop at syllables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from envs.world.knowledge import DOSSIERS, KINDS, NOTES, Entity, Group, draw_value
from envs.world.lexicon import names_of_split
from envs.world.reference import CREATE, WORKER
from envs.world.site.documents import group_text, page_ids, profile_lines
from envs.world.wording import (
    ARCHIVE,
    answer_table,
    asking,
    choice_query,
    conclusion,
    fact_line,
    hit_line,
    items,
    numbered,
    path_words,
    question,
)


def corpus_texts(seed: int, count: int, *, deep: bool = False) -> Iterator[str]:
    """``count`` samples: questions, arguments, hits, pages, delegated prompts, returned lines, answer tables.

    Only train wordings and names; no chat markup. ``deep``: also of dossiers.
    """
    rng = Random(f"corpus:{seed}")
    kinds = (_question, _question, _hits, _page, _page, _calls, _returned, _table, _table, _group)
    kinds += (_dossier, _dossier, _dossier, _chosen) if deep else ()
    for i in range(count):
        yield kinds[i % len(kinds)](rng)


def _names(rng: Random, count: int) -> list[str]:
    return rng.sample(names_of_split("train"), count)


def _entity(rng: Random, kind: str | None = None) -> Entity:
    name, *others = _names(rng, 5)
    kind = kind or rng.choice(list(KINDS))
    attributes, relations = KINDS[kind]
    return Entity(
        name=name,
        kind=kind,
        values={a: draw_value(a, rng) for a in attributes},
        relations=dict(zip(relations, others, strict=False)),
        next=rng.choice((None, None, others[2], "none")),
        alias=rng.choice((None, None, None, others[3])),
    )


def _attributes(rng: Random) -> list[str]:
    attributes = KINDS[rng.choice(list(KINDS))][0]
    return rng.sample(attributes, rng.choice((1, 1, 1, 2)))


def _question(rng: Random) -> str:
    family = rng.choice(_ASKED)
    if family == "wide":
        what = numbered(_names(rng, rng.randint(2, 12)))
    elif family == "chain":
        relations = [r for _, pair in KINDS.values() for r in pair]
        what = path_words(_names(rng, 1)[0], [rng.choice(relations) for _ in range(rng.randint(2, 4))])
    else:
        what = _names(rng, 1)[0]
    return question(family, "train", _attributes(rng)[: None if family == "wide" else 1], what, rng)


def _dossier(rng: Random) -> str:
    """A question, a link, a page, a call or an answer about a fact that lies in a dossier."""
    names = _names(rng, 12)
    kind = rng.choice(list(DOSSIERS))
    label, page = rng.choice(DOSSIERS[kind]), page_ids(1, rng, kind[0])[0]
    item = rng.choice(items(names))
    patterned = {"url": rng.choice((page, page, page_ids(1, rng)[0])), "pattern": f"{label}|{kind}"}
    fact = fact_line(names[0], label, str(rng.randint(10, 99)))
    lines = [fact_line(name, label, str(rng.randint(10, 99))) for name in names[:6]]
    texts = (
        question("deep", "train", [label], numbered(names[: rng.randint(2, 12)]), rng),
        fact_line(names[0], kind, page),
        json.dumps(patterned if kind == "file" else {"url": page}),
        json.dumps(patterned),
        json.dumps({"agent": WORKER, "prompt": asking([label], item)}),
        json.dumps({"query": asking([label], item)}),
        fact,
        "\n".join(
            lines if kind == "scan" else [fact, fact_line(names[0], rng.choice(NOTES), str(rng.randint(10, 99)))]
        ),
        answer_table(("name", label), [(row, str(rng.randint(10, 99))) for row in items(names[: rng.randint(2, 12)])]),
    )
    return rng.choice(texts)


def _chosen(rng: Random) -> str:
    """A question about the group of one of several, the query for it, or the line that names it."""
    names = _names(rng, 7)
    known, label = rng.sample(DOSSIERS["file"], 2)
    value = str(rng.randint(10, 99))
    what = f"{known} {value} among {numbered(names[:6])}"
    asked = question("two_phase", "train", [label], what, rng)
    listed = [(item, str(rng.randint(10, 99))) for item in items(names[: rng.randint(1, 6)])]
    query = json.dumps({"query": choice_query(listed)})
    return rng.choice((asked, query, fact_line(names[0], "group", names[6])))


def _hits(rng: Random) -> str:
    name, other = _names(rng, 2)
    titles = rng.choice(([name], [name, name + ARCHIVE], [name + ARCHIVE, name], [name, other]))
    return "\n".join(hit_line(title, page) for title, page in zip(titles, page_ids(len(titles), rng), strict=True))


def _page(rng: Random) -> str:
    lines = profile_lines(_entity(rng))
    rng.shuffle(lines)
    return "\n".join(lines)


def _group(rng: Random) -> str:
    name, *members = _names(rng, rng.randint(3, 11))
    return group_text(Group(name=name, kind="city", members=tuple(members), chained=rng.random() < 0.3))


def _calls(rng: Random) -> str:
    names = _names(rng, 12)
    name = names[0]
    prompt = asking(_attributes(rng), rng.choice((name, rng.choice(items(names)))))
    arguments = rng.choice(
        (
            {"query": name},
            {"query": prompt},
            {"url": page_ids(1, rng)[0]},
            {
                "url": page_ids(1, rng)[0],
                "pattern": "|".join((*_attributes(rng)[:1], *rng.choice(((), (), ("next",))))),
            },
            {"url": hit_line(rng.choice(items(names)), page_ids(1, rng)[0])},
            {"agent": WORKER, "prompt": prompt},
            {"agent": WORKER, "prompt": prompt},
            CREATE[1],
        )
    )
    return rng.choice((json.dumps(arguments), json.dumps(arguments), prompt))


def _returned(rng: Random) -> str:
    name = _names(rng, 1)[0]
    facts = [(fact_line(name, a, value), value) for a in _attributes(rng) for value in [draw_value(a, rng)]]
    return rng.choice(("\n".join(fact for fact, _ in facts), conclusion(*facts[0])))


def _table(rng: Random) -> str:
    attributes = _attributes(rng)
    names = _names(rng, rng.randint(2, 12))
    shown = rng.choice((names, items(names)))
    rows = [[name, *(draw_value(a, rng) for a in attributes)] for name in shown]
    return answer_table(("name", *attributes), rows)


_ASKED = ("wide", "list", "swap", "chain", "single_fact")
Piece = tuple[str, float]  # text, and its loss weight
_FORM = 0.3  # punctuation around names and values: easy to learn


def reading_pieces(rng: Random, count: int, longest: int) -> list[Piece]:
    """A reading exercise: ``count`` facts of one kind, then tables and single values asked from them.

    Every fact is read about twice. List numbers are at most ``longest``. The lists follow one order, so that
    no earlier question contradicts the next name; tables and lists start anywhere, so that nothing can be
    found by counting.
    """
    kind = rng.choice(list(KINDS))
    label = rng.choice(KINDS[kind][0])
    entities = [_entity(rng, kind) for _ in range(count)]
    pieces: list[Piece] = [("\n".join(fact_line(e.name, label, e.values[label]) for e in entities) + "\n", 0.0)]
    order = rng.sample(entities, count)
    for _ in range(rng.randint(2, 4)):
        if rng.random() < 0.2:
            one = rng.choice(entities)
            pieces += [(question("single_fact", "train", [label], one.name, rng), 0.0), (f"{label} | ", _FORM)]
            pieces += [(one.name, _FORM), (" | ", _FORM), (one.values[label], 1.0)]
            pieces += [("\nAnswer: ", _FORM), (one.values[label], 1.0), ("\n", 0.0)]
            continue
        length = rng.randint(2, count)
        start, first = rng.randint(0, count - length), rng.randint(1, max(longest - length, 0) + 1)
        rows = order[start : start + length]
        listed = list(zip(items((e.name for e in rows), first), rows, strict=True))
        pieces.append((question("wide", "train", [label], numbered((e.name for e in rows), first), rng), 0.0))
        head = f"| name | {label} |\n|---|---|\n| "
        for i, (item, entity) in enumerate(listed[rng.randrange(len(rows) - 1) :]):
            pieces += [(head if i == 0 else " |\n| ", _FORM), (item, float(i > 0))]
            pieces += [(" | ", _FORM), (entity.values[label], 1.0)]
        pieces += [(" |", _FORM), ("\n", 0.0)]
    return pieces


def agenda(rng: Random, count: int, longest: int) -> tuple[str, str, list[tuple[str, str, str]]]:
    """A question about ``count`` names: its text, the label asked for, and each item with name and value.

    The list is a part of one of ``longest`` items, so that short lists show large numbers too.
    """
    names, first = _names(rng, count), rng.randint(1, max(longest - count, 0) + 1)
    label = rng.choice(_attributes(rng))
    rows = [(item, name, draw_value(label, rng)) for item, name in zip(items(names, first), names, strict=True)]
    return question("wide", "train", [label], numbered(names, first), rng), label, rows
