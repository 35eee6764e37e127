"""A gate's result for machines and reviewers: JUnit XML, and Markdown for a pull request or a step summary."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import polars as pl

from dcclctl.report.comparison import POINTS, allowed, gate_words, interval, metric_name, points, words
from dcclctl.report.text import plain

#: Characters with a meaning in Markdown, or in the HTML that it may contain.
_ACTIVE = frozenset("\\`*_{}[]<>#.!|~&:@^$")


def junit(gate: pl.DataFrame, names: Mapping[str, str], against: str) -> str:
    """JUnit XML: a test case for each rule and model. A failed rule is a failure, an inconclusive one is skipped.

    Args:
        gate: GATE table. names: subject → reference to show. against: name of the baseline.
    """
    verdicts = gate["verdict"].to_list()
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count("fail")),
        "skipped": str(verdicts.count("inconclusive")),
        "errors": "0",
    }
    root = ET.Element("testsuites", {"name": "dcclctl gate", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": f"gate against {plain(names[against])}", **counts})
    for row in gate.to_dicts():
        about = {
            "classname": plain(names[row["subject"]]),
            "name": plain(f"{row['group']}.{row['metric']} drops by at most {row['max_drop']}"),
        }
        case = ET.SubElement(suite, "testcase", about)
        said = plain(measured(row))
        if row["verdict"] == "fail":
            ET.SubElement(case, "failure", {"type": "drop", "message": said}).text = said
        elif row["verdict"] == "inconclusive":
            ET.SubElement(case, "skipped", {"message": f"{gate_words(row)} ({said})"})
        else:
            ET.SubElement(case, "system-out").text = said
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def measured(row: Mapping[str, Any]) -> str:
    """The figures of one row of a GATE table in one sentence."""
    if row["drop"] is None:
        return "the group has no users with a value"
    bounds = f", 95 % interval {interval(row['low'], row['high'])}" if row["low"] is not None else ""
    return (
        f"drop of {points(row['drop'])} points{bounds}, allowed {allowed(row)} points, "
        f"baseline {POINTS * row['baseline']:.2f}, {row['users']:,} users"
    )


def markdown(
    comparison: pl.DataFrame,
    harm: pl.DataFrame,
    worst: pl.DataFrame,
    gate: pl.DataFrame,
    names: Mapping[str, str],
    against: str,
    metrics: list[str],
    harm_metric: str,
    heading: str,
) -> str:
    """A summary for people: the gate's verdict, the differences, and the users who lose most.

    Args:
        comparison: COMPARISON table. harm: HARM table. worst: WORST_USERS table. gate: GATE table, empty without rules.
        names: subject → reference to show. against: name of the baseline. metrics: those to show.
        harm_metric: the metric of gains and losses. heading: what was scored, in one line.
    """
    parts = [f"## {_verdict_of(gate)}", "", heading, ""]
    if gate.height:
        rows = [
            (
                names[row["subject"]],
                f"{row['group']} {metric_name(row['metric'])}",
                allowed(row),
                points(row["drop"]),
                interval(row["low"], row["high"]),
                gate_words(row),
            )
            for row in gate.to_dicts()
        ]
        parts += [f"### Gate: drop against {names[against]}", ""]
        parts += _table(("model", "rule", "allowed", "drop", "95 % interval", "verdict"), rows)
    parts += [f"### Difference to {names[against]}", ""]
    parts += _table(
        ("model", "group", "users", "metric", "difference", "95 % interval", "verdict"),
        [
            (
                names[row["subject"]],
                row["group"],
                f"{row['users']:,}",
                metric_name(row["metric"]),
                points(row["difference"]),
                interval(row["low"], row["high"]),
                words(row),
            )
            for row in comparison.to_dicts()
            if row["metric"] in metrics and row["users"]
        ],
    )
    shares = ("better", "worse", "unchanged")
    parts += [f"### Users better and worse off by {metric_name(harm_metric)}", ""]
    parts += _table(
        ("model", "group", "users", *shares),
        [
            (names[row["subject"]], row["group"], f"{row['users']:,}", *(f"{row[share]:.1%}" for share in shares))
            for row in harm.filter(metric=harm_metric).to_dicts()
            if row["users"]
        ],
    )
    for (subject,), lost in worst.filter(metric=harm_metric).group_by("subject", maintain_order=True):
        users = ", ".join(f"{escape(row['user_id'])} ({points(row['difference'])})" for row in lost.head(5).to_dicts())
        parts += [f"Worst off with {names[str(subject)]}: {users}", ""]
    parts += [f"Differences and drops are in points: {POINTS} points are one unit of the metric.", ""]
    return "\n".join(parts)


def _verdict_of(gate: pl.DataFrame) -> str:
    verdicts = gate["verdict"].to_list()
    if not verdicts:
        return "Comparison"
    failed, open_ = verdicts.count("fail"), verdicts.count("inconclusive")
    if failed:
        return f"Gate failed: {failed} of {len(verdicts)} rules"
    return f"Gate passed, {open_} of {len(verdicts)} rules inconclusive" if open_ else "Gate passed"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, ""]


def escape(text: str) -> str:
    """Escape an id for Markdown: nothing in it becomes markup, a mention, a link or another cell."""
    # A character reference instead of a backslash: it also stops '@name', '#1' and bare links.
    return "".join(f"&#{ord(each)};" if each in _ACTIVE else each for each in plain(text))
