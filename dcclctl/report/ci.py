"""A gate's result for machines and reviewers: JUnit XML, and Markdown for a pull request or a step summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import polars as pl

from dcclctl.evaluation.comparison import harm_metric, main_metrics, with_what_is_worse
from dcclctl.evaluation.gate import GateResult
from dcclctl.report.comparison import POINTS, allowed, gate_words, interval, metric_name, points, words
from dcclctl.report.text import plain

#: Characters with a meaning in Markdown, or in the HTML that it may contain.
_ACTIVE = frozenset("\\`*_{}[]<>#.!|~&:@^$")


@dataclass(frozen=True)
class Summary:
    """What a gate's files are written from.

    Attributes:
        comparison: COMPARISON table. harm: HARM table. worst: WORST_USERS table. gate: what the gate says.
        names: subject → name to show. against: name of the baseline. scored: what was scored, in one line.
    """

    comparison: pl.DataFrame
    harm: pl.DataFrame
    worst: pl.DataFrame
    gate: GateResult
    names: Mapping[str, str]
    against: str
    scored: str


def junit(summary: Summary) -> str:
    """JUnit XML: a test case for each rule and model.

    A failed rule is a failure, an inconclusive one is skipped, or a failure too if the gate is strict.
    """
    rules, strict, names = summary.gate.rules, summary.gate.strict, summary.names
    verdicts = rules["verdict"].to_list()
    failed, undecided = verdicts.count("fail"), verdicts.count("inconclusive")
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(failed + undecided if strict else failed),
        "skipped": str(0 if strict else undecided),
        "errors": "0",
    }
    root = ET.Element("testsuites", {"name": summary.gate.headline, **counts})
    suite = ET.SubElement(root, "testsuite", {"name": f"gate against {plain(names[summary.against])}", **counts})
    for row in rules.to_dicts():
        about = {
            "classname": plain(names[row["subject"]]),
            "name": plain(f"{row['group']}.{row['metric']} drops by at most {row['max_drop']}"),
        }
        case = ET.SubElement(suite, "testcase", about)
        said = plain(measured(row))
        undecided_as = f"{gate_words(row)} ({said})"
        if row["verdict"] == "fail":
            ET.SubElement(case, "failure", {"type": "drop", "message": said}).text = said
        elif row["verdict"] == "inconclusive" and strict:
            ET.SubElement(case, "failure", {"type": "inconclusive", "message": undecided_as}).text = undecided_as
        elif row["verdict"] == "inconclusive":
            ET.SubElement(case, "skipped", {"message": undecided_as})
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


def markdown(summary: Summary) -> str:
    """A summary for people: the gate's verdict, the differences, and the users who lose most."""
    comparison, gate = summary.comparison, summary.gate.rules
    names, against = summary.names, summary.names[summary.against]
    measured_here = comparison["metric"].unique(maintain_order=True).to_list()
    shown, harmed_by = with_what_is_worse(main_metrics(measured_here), comparison), harm_metric(measured_here)
    parts = [f"## {summary.gate.headline or 'Comparison'}", "", escape(summary.scored), ""]
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
        parts += [f"### Gate: drop against {against}", ""]
        parts += _table(("model", "rule", "allowed", "drop", "95 % interval", "verdict"), rows)
    parts += [f"### Difference to {against}", ""]
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
            for row in comparison.filter(pl.col("metric").is_in(shown)).to_dicts()
            if row["users"]
        ],
    )
    shares = ("better", "worse", "unchanged")
    parts += [f"### Users better and worse off by {metric_name(harmed_by)}", ""]
    parts += _table(
        ("model", "group", "users", *shares),
        [
            (names[row["subject"]], row["group"], f"{row['users']:,}", *(f"{row[share]:.1%}" for share in shares))
            for row in summary.harm.filter(metric=harmed_by).to_dicts()
            if row["users"]
        ],
    )
    for (subject,), lost in summary.worst.filter(metric=harmed_by).group_by("subject", maintain_order=True):
        users = ", ".join(f"{escape(row['user_id'])} ({points(row['difference'])})" for row in lost.head(5).to_dicts())
        parts += [f"Worst off with {names[str(subject)]}: {users}", ""]
    parts += [f"Differences and drops are in points: {POINTS} points are one unit of the metric.", ""]
    return "\n".join(parts)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, ""]


def escape(text: str) -> str:
    """Escape an id for Markdown: nothing in it becomes markup, a mention, a link or another cell."""
    # A character reference instead of a backslash: it also stops '@name', '#1' and bare links.
    return "".join(f"&#{ord(each)};" if each in _ACTIVE else each for each in plain(text))
