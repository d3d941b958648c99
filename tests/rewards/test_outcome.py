"""Item-F1 against a slow version of the official rule, exact match, and attempts to exploit them."""

import io
import random

import pandas
import pytest

from envs.base import Gold, Task
from rewards.outcome import ANSWERS, score_answer
from rewards.outcome.exact import exact_match, final_answer, normalise_answer
from rewards.outcome.item_f1 import ItemF1, extract_table, item_f1
from rewards.outcome.reach import ideal_answer, unreachable

GOLD = Gold(
    kind="table",
    columns=("Name", "Founded in", "City"),
    unique_columns=("Name",),
    rows=(("Alba", "1901", "Oslo"), ("Brix", "1902", "Bern"), ("Cora", "1903", "Rome"), ("Dune", "1904", "Lima")),
)


def markdown(rows, columns=GOLD.columns, fence=True):
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Here it is.\n```markdown\n{table}\n```\nDone." if fence else f"Here it is.\n\n{table}\n\nDone."


def official(answer, gold):
    """The published rule, step by step over data frames: (item P, R, F1, row F1)."""

    def frame(columns, rows):
        table = pandas.DataFrame(rows, columns=[c.replace(" ", "").lower() for c in columns]).astype(str)
        return table.map(lambda cell: " ".join(cell.casefold().split()))

    block = answer.split("```markdown")[1].split("```")[0].strip().split("\n")
    block = [line for line in block if "|" in line and set(line) - set("|-: ")]
    text = "\n".join([block[0].replace(" ", ""), *block[1:]])
    read = pandas.read_csv(io.StringIO(text), sep="|", dtype=str, keep_default_na=False)
    read = read.loc[:, [c for c in read.columns if not c.startswith("Unnamed")]]
    response, target = frame(list(read.columns), read.values.tolist()), frame(gold.columns, gold.rows)
    keys = [c.replace(" ", "").lower() for c in gold.unique_columns]
    if set(response.columns) != set(target.columns):
        return 0.0, 0.0, 0.0, 0.0
    response, target = response.drop_duplicates(keys), target.drop_duplicates(keys)
    merged = target.merge(response, on=keys, suffixes=("_gold", "_answer"))
    scores = pandas.DataFrame({k: [1.0] * len(merged) for k in keys}, index=merged.index)
    for column in target.columns:
        if column not in keys:
            scores[column] = (merged[f"{column}_gold"] == merged[f"{column}_answer"]).astype(float)
    tp_item, tp_row, width = scores.values.sum(), scores.min(axis=1).sum(), len(target.columns)

    def f1(p, r):
        return 2 * p * r / (p + r) if p + r > 1e-9 else 0.0

    p, r = tp_item / (len(response) * width), tp_item / (len(target) * width)
    return p, r, f1(p, r), f1(tp_row / len(response), tp_row / len(target))


def test_a_perfect_table_scores_one_whatever_the_order_of_rows_and_columns():
    whole = dict.fromkeys(("precision", "recall", "f1", "row_f1", "values_f1", "found_f1"), 1.0)
    assert item_f1(markdown(GOLD.rows), GOLD) == ItemF1(**whole, success=True)
    shuffled = [(city.upper(), f" {name.lower()}  ", year) for name, year, city in reversed(GOLD.rows)]
    assert item_f1(markdown(shuffled, ("CITY", "name", "FoundedIn")), GOLD).success


def test_item_f1_by_hand():
    # 3 rows answered, one of them not asked for; Alba all right (3 cells), Brix with a wrong city (2 cells)
    rows = [("Alba", "1901", "Oslo"), ("Brix", "1902", "Paris"), ("Ezra", "1905", "Baku")]
    score = item_f1(markdown(rows), GOLD)
    assert score.precision == pytest.approx(5 / 9)
    assert score.recall == pytest.approx(5 / 12)
    assert score.f1 == pytest.approx(10 / 21)
    assert score.row_f1 == pytest.approx(2 / 7)  # P 1/3, R 1/4
    assert not score.success


def test_random_tables_score_as_the_official_rule():
    rng = random.Random(0)
    for _ in range(150):
        rows = [list(row) for row in GOLD.rows for _ in range(rng.choice([0, 1, 1, 1, 2]))] + [["Ezra", "1", "x"]] * 2
        rng.shuffle(rows)
        for row in rows[: rng.randrange(len(rows))]:
            row[rng.choice([1, 1, 2, 0])] = rng.choice(["wrong", "1902", "a b"])
        columns = GOLD.columns if rng.random() < 0.9 else ("Name", "Founded in", "Town")
        answer = markdown(rows, columns)
        score = item_f1(answer, GOLD)
        assert (score.precision, score.recall, score.f1, score.row_f1) == pytest.approx(official(answer, GOLD))


@pytest.mark.parametrize(
    "columns", [("Name", "Founded in"), ("Name", "Founded in", "City", "Extra"), ("Name", "City", "City")]
)
def test_missing_extra_or_repeated_columns_score_zero(columns):
    rows = [(row * 2)[: len(columns)] for row in GOLD.rows]
    assert item_f1(markdown(rows, columns), GOLD) == ItemF1()


@pytest.mark.parametrize(
    "answer", ["", "no table", "a | b", "```markdown\n```", markdown([]), "||||", "|-|-|-|\n|-|-|-|"]
)
def test_answers_without_a_usable_table_score_zero(answer):
    assert item_f1(answer, GOLD) == ItemF1()


def test_the_first_fence_counts_and_pipes_without_a_fence_are_read():
    assert item_f1(markdown(GOLD.rows[:2]) + markdown(GOLD.rows), GOLD).recall == pytest.approx(0.5)
    assert item_f1(markdown(GOLD.rows, fence=False), GOLD).success
    assert item_f1("```markdown\nName|Founded in|City\nAlba|1901|Oslo\n```", GOLD).recall == pytest.approx(0.25)


def test_a_key_repeated_as_written_is_dropped_and_its_first_row_counts():
    rows = [("Alba", "1901", "Oslo"), ("Alba", "9", "9"), ("Alba", "1901", "Oslo"), *GOLD.rows[1:]]
    assert item_f1(markdown(rows), GOLD).success
    assert item_f1(markdown([("Alba", "9", "9"), *GOLD.rows]), GOLD).recall == pytest.approx(10 / 12)


def test_two_spellings_of_one_key_are_refused_and_never_push_recall_above_one():
    gold = Gold(
        kind="table",
        columns=GOLD.columns,
        unique_columns=GOLD.unique_columns,
        rows=GOLD.rows,
        aliases={"A. Alba": "Alba"},
    )
    once = item_f1(markdown([("A. alba", "1901", "Oslo"), *GOLD.rows[1:]]), gold)
    assert once.success
    twice = item_f1(markdown([("A. Alba", "1901", "Oslo"), ("ALBA", "1901", "Oslo"), *GOLD.rows]), gold)
    assert (twice.precision, twice.recall) == pytest.approx((12 / 18, 1.0))
    assert not twice.success
    assert twice.row_f1 < 1 and twice.f1 < 1


def test_a_row_with_too_many_cells_is_one_wrong_row_and_a_short_one_lacks_its_last_cells():
    rows = [*GOLD.rows[:2], ("Cora", "1903", "Rome", "1904"), ("Dune", "1904")]
    score = item_f1(markdown(rows), GOLD)
    assert (score.precision, score.recall) == pytest.approx((8 / 12, 8 / 12))


def test_extracted_tables_keep_the_cells_as_written():
    table = extract_table(markdown([('A "b"', "", "C d")]))
    assert table.columns == ["name", "foundedin", "city"]
    assert table.rows == [['A "b"', "", "C d"]]


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("mass | Karona | 47\nAnswer: 47", "47"),
        ("Explanation: because.\nExact Answer: The Red Tower", "The Red Tower"),
        ("answer: 1\nFinal answer: 2", "2"),
        ("the answer: of all", "the answer: of all"),
        ("47", "47"),
    ],
)
def test_what_follows_the_marker_is_the_answer(answer: str, final: str):
    assert final_answer(answer).strip() == final
    assert exact_match(answer, Gold(kind="exact", answers=(final,)))


def test_exact_match_ignores_case_articles_punctuation_and_takes_aliases():
    gold = Gold(kind="exact", answers=("The Red Tower",), aliases={"Torre Rossa": "The Red Tower", "X": "another"})
    assert normalise_answer("  The  Red-Tower! ") == "redtower"
    assert exact_match("red tower.", gold)
    assert exact_match("torre rossa", gold)
    assert not exact_match("x", gold)
    assert not exact_match("the red towers", gold)
    assert not exact_match("", Gold(kind="exact", answers=("the",)))


def test_score_answer_picks_the_rule_by_the_kind_of_gold():
    def task(gold):
        return Task(key="k", family="wide", split="test", prompt="p", gold=gold)

    table = score_answer(task(GOLD), markdown(GOLD.rows[:2]))
    assert table.value == table.parts["item_f1"] == pytest.approx(2 / 3)
    exact = score_answer(task(Gold(kind="exact", answers=("a b",))), "A b")
    assert (exact.value, exact.success, exact.parts) == (1.0, True, dict.fromkeys(ANSWERS, 1.0))
    with pytest.raises(ValueError, match="gold of kind 'poem' is not scored"):
        score_answer(task(Gold(kind="poem")), "")


@pytest.mark.parametrize(
    "gold",
    [
        Gold(kind="exact", answers=("Paris", "42")),
        Gold(kind="exact", answers=("Answer: Paris",), aliases={"Lutetia": "Answer: Paris"}),
        Gold(kind="exact", answers=("two\nlines",)),
        Gold(kind="table", columns=("Name", "land area"), rows=(("Rome", ""), ("Isle\nof Man", "-"))),
        Gold(kind="table", columns=("name", "year"), unique_columns=("year", "name"), rows=(("A", "1"), ("A", "2"))),
        Gold(kind="table", columns=("name",), rows=(("Rome",),), aliases={"Roma": "rome"}),
    ],
)
def test_gold_that_can_be_reached_is_by_its_ideal_answer(gold: Gold):
    assert unreachable(gold) is None
    assert score_answer(task_of(gold), ideal_answer(gold)).value == 1.0


@pytest.mark.parametrize(
    ("gold", "field"),
    [
        (Gold(kind="exact", answers=("Paris", "...")), "answers[1]"),
        (Gold(kind="exact", answers=("the",)), "answers[0]"),
        (Gold(kind="exact", answers=("x\nAnswer: y",)), "answers[0]"),
        (Gold(kind="exact", answers=("x",), aliases={"y": "z"}), "aliases.y"),
        (Gold(kind="exact", answers=("x",), aliases={"?": "x"}), "aliases.?"),
        (Gold(kind="table", columns=("name", "NAME"), rows=(("a", "b"),)), "rows"),
        (Gold(kind="table", columns=("name", "x"), rows=(("-", "---"),)), "rows"),
        (Gold(kind="table", columns=("name", "x"), rows=(("a", "b|c"),)), "rows"),
        (Gold(kind="table", columns=("name", "x"), rows=()), "rows"),
        (Gold(kind="table", columns=("name", "x"), rows=(("a", "1"), ("A", "2"))), "rows"),
        (Gold(kind="table", columns=("name", "x"), rows=(("a", "1"),), aliases={"b": "c"}), "aliases.b"),
    ],
)
def test_gold_that_no_answer_reaches_is_named_by_its_field(gold: Gold, field: str):
    assert f"gold.{field}" in (unreachable(gold) or "")


def task_of(gold: Gold) -> Task:
    return Task(key="k", family="user", split="test", prompt="q", gold=gold)


MASSES = Gold(
    kind="table",
    columns=("name", "mass", "color"),
    rows=(("Ann", "1", "red"), ("Bob", "2", "red"), ("Cleo", "3", "blue")),
)


def found(rows, question):
    score = item_f1(markdown(rows, MASSES.columns), MASSES, question)
    return score.found_f1, score.values_f1


def test_cells_of_the_question_earn_nothing_and_names_that_were_searched_do():
    asked, listed = "Give mass and color of Ann, Bob and Cleo.", "Give mass and color of all in the club."
    blank = [(name, "", "") for name, _, _ in MASSES.rows]
    assert found(blank, asked) == (0.0, 0.0)
    assert found(blank, listed) == (pytest.approx(1 / 3), 0.0)
    assert found(MASSES.rows, asked) == found(MASSES.rows, listed) == (1.0, 1.0)
    assert found([("Ann", "1", "blue")], asked)[0] == pytest.approx(2 * (1 / 2) * (1 / 6) / (1 / 2 + 1 / 6))


def test_a_name_counts_where_only_another_row_is_named_in_the_question():
    blank = [(name, "", "") for name, _, _ in MASSES.rows]
    # Cleo's name counts; six values are wrong: 1 of 7 cells
    assert found(blank, "Ann, Bob and who else?")[0] == pytest.approx(1 / 7)
    assert found(blank, "Annabel, Bobby and who else?")[0] == pytest.approx(1 / 3)  # whole words alone


def test_a_column_counts_unless_the_question_holds_all_of_it():
    colors = [("Ann", "", "red"), ("Bob", "", "red"), ("Cleo", "", "blue")]
    assert found(colors, "Ann, Bob, Cleo: mass? They are red or blue.")[0] == 0.0
    assert found(colors, "Ann, Bob, Cleo: mass? Some are red.")[0] == pytest.approx(0.5)


def test_rows_of_nonsense_cost_as_much_as_a_whole_row():
    asked = "Give mass and color of Ann, Bob and Cleo."
    padded = [*MASSES.rows, ("Dan", "4", "red"), ("Eve", "5", "red"), ("Fay", "6", "red")]
    assert found(padded, asked) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_where_no_cell_would_count_the_item_f1_does():
    names = Gold(kind="table", columns=("name",), rows=(("Ann",), ("Bob",)))
    score = item_f1("| name |\n| --- |\n| Ann |\n| x |", names, "Which of Ann and Bob?")
    assert score.values_f1 == score.found_f1 == score.f1 == 0.5


def test_the_official_score_does_not_depend_on_the_question():
    rows = [("Ann", "1", ""), ("Bob", "", "red")]
    plain, asked = (
        item_f1(markdown(rows, MASSES.columns), MASSES),
        item_f1(markdown(rows, MASSES.columns), MASSES, "Ann"),
    )
    assert (plain.f1, plain.row_f1, plain.success) == (asked.f1, asked.row_f1, asked.success)
