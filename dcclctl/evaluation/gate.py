"""The gate: how much a metric of a group of users may drop, and whether it really dropped by more.

A rule fails only if both hold: the drop is larger than allowed, and the 95 % interval of the drop lies above zero, so that
chance alone does not explain it. It passes if the whole interval is at most the allowed drop. Everything between is
inconclusive: it stops a release only under --strict, and it is never called a pass.
"""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import polars as pl

from dcclctl.artifacts import Evaluation
from dcclctl.devices.serving import Subject
from dcclctl.errors import UsageError, nearest
from dcclctl.evaluation.comparison import Comparison
from dcclctl.metrics.metric import lower_is_better, metric_names, own_name
from dcclctl.metrics.seeds import seeds_error, without_seeds
from dcclctl.metrics.significance import CONFIDENCE, users_to_settle
from dcclctl.store.store import Store
from dcclctl.tables import GATE, GROUP_NAMES, MAIN_GROUPS

#: Metrics agree to this between batch sizes and numbers of threads; a smaller drop is rounding, not a drop.
ROUNDING = 1e-6
KEYS = ("group", "metric", "max_drop", "subject")
_EXAMPLE = '[[rule]]\ngroup = "tail"\nmetric = "ndcg@10"\nmax_drop = "1%"'


@dataclass(frozen=True)
class Rule:
    """How much one metric of one group may drop.

    Args:
        group: all, head, tail, new, or activity-00 … activity-19.
        metric: e.g. ndcg@10 or gauc; without the number of sampled candidates it means the sampled column too. Rules may
            be written with recall@10 for hr@10 and map for mrr.
        amount: a share of the baseline's value if `relative`, else in the metric's own units; at least 0.
        relative: '1%' is relative, '0.002' is not.
        subject: the model that the rule is for; '' for every model but the baseline.
    """

    group: str
    metric: str
    amount: float
    relative: bool
    subject: str = ""

    @property
    def max_drop(self) -> str:
        """As a person writes it: '1%' or '0.002'."""
        return f"{100 * self.amount:.6g}%" if self.relative else f"{self.amount:.6g}"


@dataclass(frozen=True)
class GateResult:
    """What a gate says of an evaluation.

    Attributes:
        rules: GATE table, empty without rules. strict: whether an inconclusive rule fails the gate too. itself: the label of
            the model if there was no other than the baseline: no drop can be seen then.
    """

    rules: pl.DataFrame
    strict: bool = False
    itself: str = ""

    @property
    def verdict(self) -> str:
        """pass, inconclusive or fail; '' without rules."""
        if self._failing():
            return "fail"
        if not self.rules.height:
            return ""
        return "inconclusive" if self._of("inconclusive") else "pass"

    @property
    def headline(self) -> str:
        """The result in one line that names the rules that did not pass; '' without rules."""
        failed, undecided, total = self._of("fail"), self._of("inconclusive"), self.rules.height
        if not total:
            return ""
        but = f", but {self.itself} was compared with itself" if self.itself else ""
        if not failed and not undecided:
            return f"Gate passed: {total} of {total} rules{but}"
        told = [
            f"{len(rules)} of {total} rules {what} ({', '.join(rules)})"
            for rules, what in ((failed, "failed"), (undecided, "inconclusive"))
            if rules
        ]
        if self._failing():
            word = "failed" if failed else "failed, because --strict asks every rule to pass"
        else:
            word = "inconclusive, which does not fail without --strict"
        return f"Gate {word}: {'; '.join(told)}{but}"

    def _failing(self) -> list[str]:
        return self._of("fail") + (self._of("inconclusive") if self.strict else [])

    def _of(self, verdict: str) -> list[str]:
        return [
            f"{group}.{metric}" for group, metric in self.rules.filter(verdict=verdict).select("group", "metric").rows()
        ]


#: a GATE table without rules
NO_VERDICTS = pl.DataFrame(schema=GATE.schema())


def parse_max_drop(text: str) -> Rule:
    """Read a flag's value such as 'tail.ndcg@10=1%'.

    Raises:
        UsageError: another form, an unknown group, or an amount that cannot be.
    """
    name, equals, amount = text.partition("=")
    group, dot, metric = name.strip().partition(".")
    if not (equals and dot and metric):
        raise UsageError(f"--max-drop {text!r} is not GROUP.METRIC=DROP", "Write e.g. --max-drop tail.ndcg@10=1%")
    return _rule(f"--max-drop {text!r}", group, metric, amount)


def read_gate(path: Path) -> list[Rule]:
    """Read the rules of a gate file::

        [[rule]]
        group = "tail"
        metric = "ndcg@10"
        max_drop = "1%"        # of the baseline's value; 0.002 would be in the metric's own units
        subject = "patches"    # only this model; without it every model but the baseline

    Raises:
        UsageError: no such file, not TOML, no rule, an unknown key (with the nearest known one), or a bad value.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the gate {path}: {error.strerror}", "Check the path after --gate.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", f"A gate looks like this:\n{_EXAMPLE}") from error
    for key in document:
        if key != "rule":
            raise UsageError(f"{path}: unknown key {key!r}", nearest(key, ["rule"]))
    rules = document.get("rule")
    if not isinstance(rules, list) or not rules or not all(isinstance(rule, dict) for rule in rules):
        raise UsageError(f"{path} has no rule", f"A gate looks like this:\n{_EXAMPLE}")
    return [_read_rule(f"{path}: rule {number}", rule) for number, rule in enumerate(rules, 1)]


def _read_rule(where: str, rule: dict[str, Any]) -> Rule:
    for key in rule:
        if key not in KEYS:
            raise UsageError(f"{where}: unknown key {key!r}", nearest(key, list(KEYS)))
    for key in ("group", "metric", "max_drop"):
        if key not in rule:
            raise UsageError(f"{where}: {key} is missing", f"A gate looks like this:\n{_EXAMPLE}")
    for key in ("group", "metric", "subject"):
        if not isinstance(rule.get(key, ""), str):
            raise UsageError(f"{where}: {key} = {rule[key]!r} is not text", f"A gate looks like this:\n{_EXAMPLE}")
    return _rule(where, rule["group"], rule["metric"], rule["max_drop"], rule.get("subject", ""))


def _rule(where: str, group: str, metric: str, amount: object, subject: str = "") -> Rule:
    if group not in GROUP_NAMES:
        raise UsageError(f"{where}: there is no group {group!r}", nearest(group, list(GROUP_NAMES)))
    text = str(amount).strip()
    relative = text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / (100 if relative else 1)
    except ValueError:
        number = math.nan
    if isinstance(amount, bool) or not 0 <= number < math.inf:
        raise UsageError(
            f"{where}: the allowed drop {text!r} is not a number from 0 up", "Write 1% (of the baseline) or 0.002."
        )
    return Rule(group, own_name(metric), number, relative, subject)


def check_metrics(rules: Iterable[Rule], cuts: Iterable[int], candidates: str = "auto") -> None:
    """Refuse a metric that the evaluation will not have, before hours are spent on it.

    Args:
        rules: of the gate.
        cuts: the k of HR@k and NDCG@k. candidates: what is ranked, as `--candidates` says it.

    Raises:
        UsageError: with the nearest metric.
    """
    cuts = list(cuts)
    known = metric_names(cuts)
    for rule in rules:
        name, _, sampled = rule.metric.partition("/")
        if sampled and candidates not in ("auto", sampled):
            raise UsageError(
                f"the gate names {rule.group}.{rule.metric}, which is ranked among {sampled} items, but this evaluation "
                f"has --candidates {candidates}",
                f"Name {name}, or evaluate with --candidates {sampled}.",
            )
        if name not in known:
            cut = name.partition("@")[2]
            add = cut.isdecimal() and int(cut) > 0 and name in metric_names([int(cut)])
            hint = f" Or add the cut-off: -k {','.join(map(str, cuts))},{cut}." if add else ""
            raise UsageError(
                f"the gate names {rule.group}.{rule.metric}, but this evaluation has no {rule.metric}",
                nearest(rule.metric, known) + hint,
            )


def gate_rules(
    gate: Path | None, max_drop: list[str], cuts: Iterable[int], store: Store, candidates: str = "auto"
) -> list[Rule]:
    """The rules of a file, then those of flags, checked; their models by the names that the tables use.

    Args:
        gate: rule file, or None. max_drop: values of --max-drop. cuts: the k of HR@k and NDCG@k. store: where models are.
        candidates: what is ranked, as `--candidates` says it.

    Raises:
        UsageError: see `read_gate`, `parse_max_drop` and `check_metrics`.
    """
    rules = (read_gate(gate) if gate else []) + [parse_max_drop(text) for text in max_drop]
    check_metrics(rules, cuts, candidates)
    return [replace(rule, subject=Subject.of(rule.subject, store).name) if rule.subject else rule for rule in rules]


def verdicts_of(evaluation: Evaluation, rules: list[Rule]) -> pl.DataFrame:
    """Hold every rule against an evaluation's comparison, which is made for other groups where rules ask for them.

    Returns:
        A GATE table, see tables.py.
    """
    others = {rule.group for rule in rules} - set(MAIN_GROUPS)
    per_seed = evaluation.per_seed if evaluation.seeds else None
    if not others:
        return judge(evaluation.comparison, rules, per_seed)
    compared = Comparison.of(evaluation, evaluation.against).table((*MAIN_GROUPS, *sorted(others)))
    return judge(compared, rules, per_seed)


def judge(comparison: pl.DataFrame, rules: list[Rule], per_seed: pl.DataFrame | None = None) -> pl.DataFrame:
    """Hold every rule against every model that it is for.

    Args:
        comparison: a COMPARISON table that has the groups of the rules.
        rules: with `subject` as in the table, or ''.
        per_seed: PER_SEED table of an evaluation over several seeds; only the users that would settle a rule need it.

    Returns:
        A GATE table, see tables.py, in the order of the rules.

    Raises:
        UsageError: a subject or metric that the comparison does not have.
    """
    metrics = comparison["metric"].unique(maintain_order=True).to_list()
    compared = comparison["subject"].unique(maintain_order=True).to_list()
    facts = {(row["subject"], row["group"], row["metric"]): row for row in comparison.to_dicts()}
    of_seeds: dict[tuple[str, str, str], list[float]] = {}
    if per_seed is not None:
        for subject, group, metric, difference in (
            per_seed.drop_nulls("difference").select("subject", "group", "metric", "difference").iter_rows()
        ):
            of_seeds.setdefault((subject, group, metric), []).append(difference)
    rows = []
    for rule in rules:
        if rule.subject and rule.subject not in compared:
            raise UsageError(
                f"the gate has a rule for {rule.subject}, which is not compared here",
                f"Compared with the baseline are {', '.join(compared)}: name it in dcclctl evaluate.",
            )
        metric = _column(rule.metric, metrics)
        for subject in [rule.subject] if rule.subject else compared:
            key = (subject, rule.group, metric)
            rows.append(_verdict(rule, facts[key], of_seeds.get(key, [])))
    return pl.DataFrame(rows, schema=GATE.schema(), orient="row")


def _column(metric: str, metrics: list[str]) -> str:
    """'ndcg@10' means 'ndcg@10/1000' where only the sampled one was measured."""
    for name in metrics:
        if metric in (name, name.partition("/")[0]):
            return name
    raise UsageError(f"the gate names {metric}, which was not measured", nearest(metric, metrics))


def _verdict(rule: Rule, row: dict[str, Any], of_seeds: list[float]) -> tuple[object, ...]:
    where = (row["subject"], row["group"], row["metric"], rule.max_drop)
    if row["baseline"] is None:
        return (*where, None, 0, None, None, None, None, "inconclusive", None)
    allowed = rule.amount * (abs(row["baseline"]) if rule.relative else 1.0)
    sign = 1.0 if lower_is_better(row["metric"]) else -1.0
    drop = sign * row["difference"]
    if row["low"] is None:
        return (*where, allowed, row["users"], row["baseline"], drop, None, None, "inconclusive", None)
    low, high = sorted((sign * row["low"], sign * row["high"]))
    settle = None
    if drop > allowed + ROUNDING and low > 0:
        verdict = "fail"
    elif high <= allowed + ROUNDING:
        verdict = "pass"
    else:
        verdict = "inconclusive"
        # The users' standard deviation, read off the width of the interval of their mean without the seeds' part.
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        of_users = max(0.0, ((high - low) / (2 * z)) ** 2 - seeds_error(of_seeds) ** 2)
        distance = drop - (0.0 if drop > allowed else allowed)
        settle = users_to_settle(without_seeds(distance, of_seeds, CONFIDENCE), math.sqrt(of_users * row["users"]))
    return (*where, allowed, row["users"], row["baseline"], drop, low, high, verdict, settle)
