"""The table of groups: every figure where it belongs, the best of a column bold."""

import io

import polars as pl
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcclctl.report.comparison import comparison_table, gate_table, harm_table
from dcclctl.report.terminal import activity_sparklines, group_table, heading


def aggregate(values: dict[tuple[str, str, str], tuple[float | None, int]]) -> pl.DataFrame:
    rows = [(subject, group, metric, *given) for (subject, group, metric), given in values.items()]
    return pl.DataFrame(rows, schema=["subject", "group", "metric", "value", "users"], orient="row")


VALUES: dict[tuple[str, str, str], tuple[float | None, int]] = {
    ("a", "head", "ndcg@10"): (0.30001, 2),
    ("b", "head", "ndcg@10"): (0.30004, 2),
    ("c", "head", "ndcg@10"): (0.2, 2),
    ("a", "head", "log_loss"): (0.5, 2),
    ("b", "head", "log_loss"): (0.4, 2),
    ("c", "head", "log_loss"): (0.6, 2),
    ("a", "tail", "ndcg@10"): (0.1, 1200),
    ("b", "tail", "ndcg@10"): (0.2, 1200),
    ("c", "tail", "ndcg@10"): (None, 0),
    ("a", "tail", "log_loss"): (0.1, 1200),
    ("b", "tail", "log_loss"): (0.2, 1200),
    ("c", "tail", "log_loss"): (0.3, 1200),
    **{(s, "new", m): (None, 0) for s in "abc" for m in ("ndcg@10", "log_loss")},
    **{(s, "all", m): (0.5, 1202) for s in "abc" for m in ("ndcg@10", "log_loss")},
}
NAMES = {"a": "cloud@1", "b": "patches@1", "c": "cloud@2"}


def cells(table: Table) -> list[list[str]]:
    columns = [[str(getattr(cell, "renderable", cell)) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def bold(table: Table) -> set[tuple[int, int]]:
    return {
        (row, column)
        for column, each in enumerate(table.columns)
        for row, cell in enumerate(each.cells)
        if isinstance(cell, Text) and cell.style == "bold"
    }


def test_rows() -> None:
    table = group_table(aggregate(VALUES), NAMES)
    assert cells(table) == [
        ["head, users", "2", "2"],
        ["cloud@1", "0.3000", "0.5000"],
        ["patches@1", "0.3000", "0.4000"],
        ["cloud@2", "0.2000", "0.6000"],
        ["", "", ""],
        ["tail, users", "1,200", "1,200"],
        ["cloud@1", "0.1000", "0.1000"],
        ["patches@1", "0.2000", "0.2000"],
        ["cloud@2", "–", "0.3000"],
        ["", "", ""],
        ["all, users", "1,202", "1,202"],
        ["cloud@1", "0.5000", "0.5000"],
        ["patches@1", "0.5000", "0.5000"],
        ["cloud@2", "0.5000", "0.5000"],
    ]


def test_each_mean_stands_below_the_number_of_its_users() -> None:
    fewer = VALUES | {(subject, "all", "ndcg@10"): (0.5, 990) for subject in "abc"}
    assert ["all, users", "990", "1,202"] in cells(group_table(aggregate(fewer), NAMES))


@pytest.mark.parametrize("name", ["cloud@1", "memory patches on fresh-of-tuesday (patches@12+shuffled)"])
def test_tables_fit_into_80_columns_with_long_names(name: str) -> None:
    metrics = ["hr@5", "hr@10", "hr@20", "ndcg@10/1000", "mrr", "gauc", "log_loss"]
    values = {(s, g, m): (0.12345, 123456) for s in "ab" for g in ("head", "tail", "new", "all") for m in metrics}
    names = {"a": name, "b": "a-name-of-thirty-one-characters (cloud@7)"}
    row = {"subject": "a", "users": 123456, "verdict": "inconclusive", "users_to_settle": 1234567}
    row |= {"difference": -0.12345, "low": -0.2, "high": 0.2, "better": 0.5, "worse": 0.4, "unchanged": 0.1}
    row |= {"harm_10": -0.9, "harm_50": -0.5, "drop": 0.1, "max_drop": "12.5%", "allowed": 0.02, "baseline": 0.4}
    whole = pl.DataFrame([row | {"group": g, "metric": m} for g in ("tail", "all") for m in metrics])
    shown = [
        group_table(aggregate(values), names),
        comparison_table(whole, names, "b", metrics, "5 seeds and users"),
        harm_table(whole, whole, names, "b", "mrr"),
        gate_table(whole, names, "b", "5 seeds and users"),
    ]
    for table in shown:
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        text = console.export_text()
        assert "…" not in text and max(map(len, text.splitlines())) <= 80
        figures = [column for column in table.columns if column.justify == "right"]
        assert figures
        for column in figures:
            for cell in (column.header, *column.cells):
                for line in str(cell).split("\n"):
                    assert line in text


def test_models_without_any_difference_are_one_line() -> None:
    row = {"users": 150, "verdict": "inconclusive", "users_to_settle": None, "difference": 0.0, "low": 0.0, "high": 0.0}
    rows = [row | {"subject": "b", "group": g, "metric": m} for g in ("tail", "all") for m in ("mrr", "gauc")]
    few = {"low": None, "high": None, "users": 30}
    rows += [row | few | {"subject": "b", "group": "head", "metric": m} for m in ("mrr", "gauc")]
    moved = row | {"subject": "c", "group": "all", "metric": "mrr", "difference": 0.1, "low": 0.05, "high": 0.2}
    rows += [moved | {"verdict": "better"}, moved | {"metric": "gauc", "difference": 0.0, "low": 0.0, "high": 0.0}]
    shown = cells(comparison_table(pl.DataFrame(rows, infer_schema_length=None), NAMES, "a", ["mrr", "gauc"], "users"))
    assert [line[0] for line in shown] == ["all", "cloud@2", "MRR", "GAUC", "", "patches@1"]
    assert shown[-1][-1] == "no difference at all, for any user"
    assert [line[-1] for line in shown[2:4]] == ["better", "inconclusive: no difference at all"]


def test_the_best_is_bold_and_what_looks_equal_is_equal() -> None:
    table = group_table(aggregate(VALUES), NAMES)
    head_and_tail = {(row, column) for row, column in bold(table) if row < 9}
    # columns 1 and 2: ndcg, where more is better, and log loss, where less is
    assert head_and_tail == {(1, 1), (2, 1), (2, 2), (7, 1), (6, 2)}


def test_nothing_is_bold_with_one_model() -> None:
    one = {key: value for key, value in VALUES.items() if key[0] == "a"}
    assert bold(group_table(aggregate(one), {"a": "cloud@1"})) == set()


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("ndcg@10", "NDCG@10"),
        ("hr@5/1000", "HR@5\nsampled"),
        ("mrr", "MRR"),
        ("mrr/100", "MRR\nsampled"),
        ("gauc", "GAUC"),
        ("log_loss", "log\nloss"),
    ],
)
def test_headings(metric: str, shown: str) -> None:
    assert heading(metric) == shown


def test_names_are_not_markup() -> None:
    one = {key: value for key, value in VALUES.items() if key[0] == "a"}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(group_table(aggregate(one), {"a": "[red]x[/red]"}))
    assert "[red]x[/red]" in console.export_text()


def activity(values: dict[str, list[float | None]], metric: str = "ndcg@10") -> pl.DataFrame:
    return aggregate(
        {
            (subject, f"activity-{group:02d}", metric): (value, 0 if value is None else 3)
            for subject, row in values.items()
            for group, value in enumerate(row)
        }
    )


def test_sparklines_share_one_scale() -> None:
    rising = [at / 19 for at in range(20)]
    table = activity_sparklines(activity({"a": rising, "b": [0.0] * 19 + [None]}), {"a": "cloud@1", "b": "patches@1"})
    assert cells(table) == [
        ["cloud@1", "▁▁▂▂▂▃▃▄▄▄▅▅▅▆▆▇▇▇██", "0.0000", "1.0000"],
        ["patches@1", "▁" * 19 + "·", "0.0000", "0.0000"],
    ]


def test_sparklines_show_the_middle_ndcg() -> None:
    table = pl.concat(activity({"a": [value] * 20}, f"ndcg@{k}") for k, value in ((5, 0.1), (10, 0.2), (20, 0.3)))
    shown = activity_sparklines(table, {"a": "cloud@1"})
    assert shown.columns[1].header == "NDCG@10, least to most active users"
    assert cells(shown) == [["cloud@1", "▁" * 20, "0.2000", "0.2000"]]


def test_sparklines_without_any_value() -> None:
    assert cells(activity_sparklines(activity({"a": [None] * 20}), {"a": "x"})) == [["x", "·" * 20, "–", "–"]]
