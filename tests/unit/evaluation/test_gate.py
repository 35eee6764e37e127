"""Rules, and what they make of a comparison."""

import math
from pathlib import Path

import polars as pl
import pytest

from dcclctl.errors import UsageError
from dcclctl.evaluation.gate import Rule, check_metrics, judge, parse_max_drop, read_gate
from dcclctl.metrics.significance import users_to_settle
from dcclctl.tables import COMPARISON, GATE


def compared(difference: float | None, low: float | None, high: float | None, **changes: object) -> pl.DataFrame:
    row = {
        "subject": "patches@b",
        "group": "tail",
        "metric": "ndcg@10",
        "users": 400,
        "value": None,
        "baseline": 0.2,
        "difference": difference,
        "low": low,
        "high": high,
        "p_value": None,
        "p_holm": None,
        "verdict": "inconclusive",
        "users_to_settle": None,
    }
    return pl.DataFrame([row | changes], schema=COMPARISON.schema())


def verdict(rule: str, *interval: float | None, **changes: object) -> dict:
    return judge(compared(*interval, **changes), [parse_max_drop(rule)]).row(0, named=True)


@pytest.mark.parametrize(
    ("difference", "low", "high", "expected"),
    [
        # a drop of 1 % of 0.2 is allowed: 0.002
        (-0.010, -0.015, -0.005, "fail"),
        (-0.003, -0.0055, -0.0005, "fail"),
        (-0.010, -0.021, 0.001, "inconclusive"),
        (-0.0015, -0.0019, -0.0011, "pass"),
        (-0.0015, -0.0035, 0.0005, "inconclusive"),
        (0.0, 0.0, 0.0, "pass"),
        (0.01, 0.005, 0.015, "pass"),
        (0.01, -0.005, 0.025, "inconclusive"),
        (-0.002, -0.002, -0.002, "pass"),
    ],
)
def test_a_rule_fails_only_on_a_real_drop_that_is_larger_than_allowed(difference, low, high, expected):
    row = verdict("tail.ndcg@10=1%", difference, low, high)
    assert row["verdict"] == expected
    assert (row["allowed"], row["max_drop"]) == (pytest.approx(0.002), "1%")
    assert (row["drop"], row["low"], row["high"]) == (-difference, -high, -low)
    assert (row["users_to_settle"] is None) == (expected != "inconclusive")


def test_of_a_loss_a_rise_is_a_drop():
    row = verdict("tail.log_loss=0.001", 0.01, 0.005, 0.015, metric="log_loss")
    assert (row["verdict"], row["drop"], row["low"], row["high"]) == ("fail", 0.01, 0.005, 0.015)
    assert verdict("tail.log_loss=0.001", -0.01, -0.015, -0.005, metric="log_loss")["verdict"] == "pass"


def test_absolute_and_relative_allowances():
    assert verdict("tail.ndcg@10=0.02", -0.01, -0.015, -0.005)["verdict"] == "pass"
    assert verdict("tail.ndcg@10=10%", -0.01, -0.015, -0.005)["allowed"] == pytest.approx(0.02)
    assert verdict("tail.ndcg@10=0", -0.01, -0.015, -0.005)["verdict"] == "fail"


def test_rounding_is_no_drop():
    assert verdict("tail.ndcg@10=0", -1e-8, -2e-8, -1e-9)["verdict"] == "pass"


def test_how_many_users_would_settle_it():
    deviation = 0.01 / 1.959964 * math.sqrt(400)
    # the drop is larger than allowed: is there one at all?
    assert verdict("tail.ndcg@10=1%", -0.008, -0.018, 0.002)["users_to_settle"] == pytest.approx(
        users_to_settle(0.008, deviation), rel=1e-3
    )
    # the drop is smaller than allowed: might it be larger?
    assert verdict("tail.ndcg@10=0.005", 0.002, -0.008, 0.012)["users_to_settle"] == pytest.approx(
        users_to_settle(-0.002, deviation, threshold=0.005), rel=1e-3
    )


def test_too_few_users_and_nobody_are_inconclusive():
    assert verdict("tail.ndcg@10=0", -0.5, None, None, users=3)["verdict"] == "inconclusive"
    nobody = verdict("tail.ndcg@10=1%", None, None, None, users=0, baseline=None)
    assert (nobody["verdict"], nobody["allowed"], nobody["drop"]) == ("inconclusive", None, None)


def test_every_model_unless_the_rule_names_one():
    table = pl.concat([compared(-0.1, -0.2, -0.05, subject=name) for name in ("a", "b")])
    rules = [Rule("tail", "ndcg@10", 0.0, False), Rule("tail", "ndcg@10", 0.0, False, "b")]
    found = judge(table, rules)
    assert found["subject"].to_list() == ["a", "b", "b"]
    GATE.check("gate", found)
    with pytest.raises(UsageError, match="not compared here"):
        judge(table, [Rule("tail", "ndcg@10", 0.0, False, "c")])
    assert judge(table, []).is_empty()


def test_the_sampled_column_is_found():
    row = verdict("tail.ndcg@10=1%", -0.01, -0.015, -0.005, metric="ndcg@10/1000")
    assert (row["metric"], row["verdict"]) == ("ndcg@10/1000", "fail")
    with pytest.raises(UsageError, match="was not measured"):
        verdict("tail.ndcg@1=1%", -0.01, -0.015, -0.005, metric="ndcg@10/1000")


@pytest.mark.parametrize(
    ("text", "rule", "shown"),
    [
        ("tail.ndcg@10=1%", Rule("tail", "ndcg@10", 0.01, True), "1%"),
        (" all.gauc = 0.002", Rule("all", "gauc", 0.002, False), "0.002"),
        ("activity-07.mrr=0.5 %", Rule("activity-07", "mrr", 0.005, True), "0.5%"),
        ("new.hr@5=0", Rule("new", "hr@5", 0.0, False), "0"),
        ("all.recall@10=0", Rule("all", "hr@10", 0.0, False), "0"),
        ("all.map=0", Rule("all", "mrr", 0.0, False), "0"),
    ],
)
def test_rules_of_flags(text, rule, shown):
    assert parse_max_drop(text) == rule
    assert parse_max_drop(text).max_drop == shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tail.ndcg@10", "Write e.g."),
        ("ndcg@10=1%", "Write e.g."),
        ("tails.ndcg@10=1%", "Did you mean 'tail'"),
        ("tail.ndcg@10=-1%", "not a number from 0 up"),
        ("tail.ndcg@10=nan", "not a number from 0 up"),
        ("tail.ndcg@10=inf", "not a number from 0 up"),
        ("tail.ndcg@10=one", "not a number from 0 up"),
    ],
)
def test_flags_that_are_no_rules(text, said):
    with pytest.raises(UsageError) as caught:
        parse_max_drop(text)
    assert said in str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "gate.toml"
    path.write_text(text)
    return path


def test_a_gate_file(tmp_path):
    path = write(
        tmp_path,
        '[[rule]]\ngroup = "tail"\nmetric = "ndcg@10"\nmax_drop = "1%"\n'
        '[[rule]]\ngroup = "all"\nmetric = "gauc"\nmax_drop = 0.002\nsubject = "patches"\n',
    )
    assert read_gate(path) == [Rule("tail", "ndcg@10", 0.01, True), Rule("all", "gauc", 0.002, False, "patches")]


RULE = '[[rule]]\ngroup = "tail"\nmetric = "mrr"\nmax_drop = 1\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rule"),
        ("rule = 3", "has no rule"),
        ("[[rules]]\ngroup = 1", "Did you mean 'rule'"),
        (RULE + 'max_dorp = "1%"', "rule 1: unknown key 'max_dorp'\n  Did you mean 'max_drop'?"),
        (RULE + '[[rule]]\ngroup = "tail"\nmetric = "mrr"', "rule 2: max_drop is missing"),
        (RULE.replace('"tail"', "3"), "group = 3 is not text"),
        (RULE.replace("= 1", "= true"), "not a number from 0 up"),
        (RULE.replace("= 1", "= [1]"), "not a number from 0 up"),
        ("[[rule", "is not valid TOML"),
    ],
)
def test_gate_files_that_cannot_be_used(tmp_path, text, said):
    with pytest.raises(UsageError) as caught:
        read_gate(write(tmp_path, text))
    assert said in str(caught.value)


def test_metrics_are_checked_before_anything_is_scored():
    check_metrics([parse_max_drop("tail.ndcg@10=1%"), parse_max_drop("all.gauc=0")], [5, 10])
    with pytest.raises(UsageError, match="Did you mean 'gauc'"):
        check_metrics([parse_max_drop("all.auc=0")], [10])
    check_metrics([parse_max_drop("tail.ndcg@10/1000=1%")], [10], "1000")
    for candidates in ("all", "300"):
        with pytest.raises(UsageError, match="ranked among 1000 items"):
            check_metrics([parse_max_drop("tail.ndcg@10/1000=1%")], [10], candidates)
    with pytest.raises(UsageError, match="add the cut-off: -k 10,7"):
        check_metrics([parse_max_drop("all.hr@7=0")], [10])
