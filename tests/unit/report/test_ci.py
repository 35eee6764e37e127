"""What a gate writes for machines and for reviewers."""

from html import unescape
from xml.etree import ElementTree as ET

import polars as pl
import pytest

from dcclctl.evaluation.gate import NO_VERDICTS, GateResult
from dcclctl.report.ci import Summary, escape, junit, markdown
from dcclctl.report.comparison import gate_words, metric_name, tail_minus_head_line, words

HOSTILE = "<script>alert(1)</script> [/red] | `x` @here ![i](//evil.example/#1) \x1b[31m\u202e &amp; *b* _u_ ~s~ $m$"
NAMES = {"cloud@aaaaaaaa": "cloud@1", "patches@bbbbbbbb": "patches@1"}
AGAINST = "cloud@aaaaaaaa"


def gate(**changes: object) -> pl.DataFrame:
    row = {
        "subject": "patches@bbbbbbbb",
        "group": "tail",
        "metric": "ndcg@10/1000",
        "max_drop": "1%",
        "allowed": 0.002,
        "users": 1500,
        "baseline": 0.2,
        "drop": 0.01,
        "low": 0.005,
        "high": 0.015,
        "verdict": "fail",
        "users_to_settle": None,
    }
    return pl.DataFrame([row | changes], schema_overrides={"users_to_settle": pl.Int64})


def compared(**changes: object) -> dict[str, object]:
    row = {"verdict": "inconclusive", "users": 100, "difference": 0.01, "low": -0.01, "high": 0.03}
    return row | {"users_to_settle": 1234} | changes


def summary(rules: pl.DataFrame, user_id: str = "u1", strict: bool = False, names: dict = NAMES) -> Summary:
    return Summary(*tables(user_id), GateResult(rules, strict), names, AGAINST, "test, 5 events")


def test_junit_of_each_verdict():
    table = pl.concat(
        [gate(), gate(verdict="pass", drop=-0.01), gate(verdict="inconclusive", users_to_settle=9000, low=-0.001)]
    )
    root = ET.fromstring(junit(summary(table)).encode())
    assert {name: root.attrib[name] for name in ("tests", "failures", "skipped", "errors")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
        "errors": "0",
    }
    failed, passed, skipped = root.iter("testcase")
    assert failed.attrib == {"classname": "patches@1", "name": "tail.ndcg@10/1000 drops by at most 1%"}
    said = "drop of +1.00 points, 95 % interval [+0.50, +1.50], allowed 1% = 0.20 points, baseline 20.00, 1,500 users"
    assert failed.find("failure").attrib["message"] == said
    assert passed.find("failure") is None
    assert skipped.find("skipped").attrib["message"].startswith("inconclusive: 9,000 users would settle it (drop of")


def test_junit_holds_names_that_are_no_xml():
    names = NAMES | {"patches@bbbbbbbb": "a<b>&\"'\x00\x1b"}
    case = next(ET.fromstring(junit(summary(gate(), names=names)).encode()).iter("testcase"))
    assert case.attrib["classname"] == "a<b>&\"'\\x00\\x1b"


def test_a_group_without_users():
    nobody = gate(verdict="inconclusive", users=0, drop=None, low=None, high=None, allowed=None, baseline=None)
    assert "the group has no users with a value" in junit(summary(nobody))
    assert gate_words(nobody.row(0, named=True)) == "inconclusive: no such users"


@pytest.mark.parametrize(
    "text", [HOSTILE, "=cmd|' /C calc'!A0", "http://evil.example", "www.evil.example", "plain-id_7"]
)
def test_markdown_shows_an_id_as_it_is(text):
    shown = escape(text)
    assert not set(shown.replace("&#", "").replace(";", "")) & set("<>|`*_[]!@~$")
    assert "http:" not in shown
    assert "www." not in shown
    assert unescape(shown) == text.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")


def tables(user_id: str) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    where = {"subject": "patches@bbbbbbbb", "group": "tail", "metric": "ndcg@10"}
    return (
        pl.DataFrame([where | compared()]),
        pl.DataFrame([where | {"users": 100, "better": 0.3, "worse": 0.2, "unchanged": 0.5}]),
        pl.DataFrame([{"subject": "patches@bbbbbbbb", "metric": "ndcg@10", "user_id": user_id, "difference": -0.25}]),
    )


RULE = "tail.ndcg@10/1000"


@pytest.mark.parametrize(
    ("verdicts", "strict", "result", "heading"),
    [
        ([], False, "", ""),
        (["pass"], False, "pass", "Gate passed: 1 of 1 rules"),
        (["pass"], True, "pass", "Gate passed: 1 of 1 rules"),
        (
            ["pass", "inconclusive"],
            False,
            "inconclusive",
            f"Gate inconclusive, which does not fail without --strict: 1 of 2 rules inconclusive ({RULE})",
        ),
        (
            ["pass", "inconclusive"],
            True,
            "fail",
            f"Gate failed, because --strict asks every rule to pass: 1 of 2 rules inconclusive ({RULE})",
        ),
        (
            ["inconclusive", "fail", "fail"],
            False,
            "fail",
            f"Gate failed: 2 of 3 rules failed ({RULE}, {RULE}); 1 of 3 rules inconclusive ({RULE})",
        ),
    ],
)
def test_every_output_starts_with_the_same_verdict(verdicts, strict, result, heading):
    rules = pl.concat([gate(verdict=verdict) for verdict in verdicts] or [NO_VERDICTS])
    given = summary(rules, strict=strict)
    assert (given.gate.verdict, given.gate.headline) == (result, heading)
    page = markdown(given)
    assert page.splitlines()[0] == f"## {heading or 'Comparison'}"
    root = ET.fromstring(junit(given).encode())
    assert root.attrib["name"] == heading
    assert (root.attrib["failures"] != "0") == (result == "fail")
    assert len(list(root.iter("failure"))) == int(root.attrib["failures"])
    assert len(list(root.iter("skipped"))) == int(root.attrib["skipped"])
    assert ("### Gate: drop against cloud@1" in page) == bool(verdicts)
    assert "| patches@1 | tail | 100 | NDCG@10 | +1.00 | [-1.00, +3.00] | inconclusive: 1,234 users" in page
    assert "| patches@1 | tail | 100 | 30.0% | 20.0% | 50.0% |" in page
    assert "Worst off with patches@1: u1 (-25.00)" in page


def test_a_hostile_id_adds_no_markup_to_the_page():
    page, tame = markdown(summary(gate(), HOSTILE)), markdown(summary(gate()))
    assert [line.count("|") for line in page.splitlines()] == [line.count("|") for line in tame.splitlines()]
    assert "<" not in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": "better"}, "better"),
        ({}, "inconclusive: 1,234 users would settle it"),
        ({"low": 0.001}, "inconclusive after Holm's correction: 1,234 users would settle it"),
        ({"low": None, "high": None}, "inconclusive: too few users to tell"),
        ({"low": 0.0, "high": 0.0, "difference": 0.0, "users_to_settle": None}, "inconclusive: no difference at all"),
        ({"users_to_settle": None}, "inconclusive: no number of users would settle it"),
    ],
)
def test_verdicts_in_words(changes, said):
    assert words(compared(**changes)) == said


def test_sampled_metrics_are_called_so():
    assert metric_name("ndcg@10/1000") == "NDCG@10 sampled"
    assert [metric_name(name) for name in ("mrr", "gauc", "log_loss", "hr@5")] == ["MRR", "GAUC", "log loss", "HR@5"]


def who(metric: str, verdict: str, **changes: object) -> dict[str, object]:
    return {"metric": metric, "difference": 0.0125, "low": 0.005, "high": 0.02, "verdict": verdict} | changes


def test_who_gains_more_in_one_line():
    rows = [
        who("gauc", "tail"),
        who("hr@10/300", "inconclusive", low=-0.001),
        who("ndcg@10", "head", difference=-0.01, low=-0.02, high=-0.001),
        who("mrr", "inconclusive"),
        who("hr@5", "tail"),  # not asked for
    ]
    assert tail_minus_head_line(rows, "patches@1", ["gauc", "hr@10/300", "ndcg@10", "mrr"]) == (
        "patches@1, gain of tail users minus gain of head users: favours the tail (GAUC +1.25 [+0.50, +2.00]); "
        "favours the head (NDCG@10 -1.00 [-2.00, -0.10]); inconclusive (HR@10 sampled +1.25 [-0.10, +2.00]); "
        "inconclusive after Holm's correction (MRR +1.25 [+0.50, +2.00])"
    )


def test_who_gains_more_where_there_are_few_or_none():
    few, none = who("gauc", "inconclusive", low=None, high=None), who("gauc", "inconclusive", difference=None)
    assert tail_minus_head_line([few], "patches@1", ["gauc"]).endswith(": too few users to tell (GAUC +1.25)")
    assert tail_minus_head_line([none], "patches@1", ["gauc"]) == ""
