"""Renders a report as one offline page: no script, no request, the same bytes for the same content."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcclctl.metrics.metric import lower_is_better
from dcclctl.report import charts
from dcclctl.report.bundle import AGES, age_rows, cost_rows
from dcclctl.report.comparison import (
    chance_in_words,
    favoured,
    groups_in_words,
    interval,
    metric_name,
    points,
    unchanged,
    why_open,
    words,
)
from dcclctl.report.page import EvaluationPart, Model, Page
from dcclctl.report.text import plain
from dcclctl.tables import ACTIVITY_GROUPS, GROUPS, SERVED_BY

TEMPLATE = "page.html.jinja"
#: the groups of the tables, in the order in which they are shown
SHOWN_GROUPS = ("tail", "head", "new", "all")
#: number of users in the list of the largest losses
WORST_SHOWN = 5


def render(page: Page) -> str:
    """Render the page as HTML.

    Args:
        page: from `stages.report.load_page`. Text from a log is escaped here, and its control characters are made visible.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Everything except our own drawings goes through `plain`, then through jinja's escaping.
    environment.finalize = lambda value: value if isinstance(value, Markup) else plain_lines(value)
    return environment.get_template(TEMPLATE).render(
        title=f"Did it help, and whom? {', '.join(dict.fromkeys(part.log for part in page.evaluations))}",
        evaluations=[_evaluation(part, at, Markup) for at, part in enumerate(page.evaluations, 1)],
        fits=[
            {"fit": fit, "drawing": Markup(charts.learning(fit, f"fit{at}"))}
            for at, fit in enumerate(page.fits, 1)
            if fit.epochs
        ],
        learning_legend=charts.entries(charts.LEARNING),
        rounds_legend=charts.entries(charts.ROUNDS),
        page=page,
        setting=_setting,
        age_columns=AGES,
        costs=cost_rows(page.bundle.measured) if page.bundle else [],
        ages=age_rows(page.bundle.measured.staleness) if page.bundle else [],
    )


def plain_lines(value: object) -> str:
    """`plain` for text of several lines: line ends stay."""
    return "\n".join(plain(line) for line in str(value).split("\n"))


def _setting(value: Any) -> str:
    """A configuration value as a person would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(str(each) for each in value) if isinstance(value, list) else str(value)


def _evaluation(part: EvaluationPart, at: int, markup: Any) -> dict[str, Any]:
    """The template's values for one evaluation: sentences, rows and drawings."""
    others = _others(part)
    rounds = charts.rounds(part, f"e{at}-rounds")
    return {
        "part": part,
        "anchor": f"evaluation-{at}",
        "period": period_name(part.on),
        "headline": headline(part),
        "notes": notes(part),
        "verdicts": [_verdict(part, model) for model in others],
        "metric": metric_name(part.metric),
        "columns": [metric_name(metric) for metric in part.metrics],
        "groups": list(_group_rows(part)),
        "every": _every(part),
        "activity": [
            {
                "width": width,
                "drawing": markup(charts.activity(part, f"e{at}-activity-{width}", width == "narrow")),
                "lift": markup(charts.lift(part, f"e{at}-lift-{width}", width == "narrow")),
            }
            for width in ("wide", "narrow")
        ],
        "tail": f"tail users (least active {100 * (1 - part.head_fraction):.4g} %)",
        "groups_in_words": groups_in_words(part.head_fraction),
        "activity_rows": list(_activity_rows(part)),
        "gains": [
            {"model": model, "drawing": markup(charts.gains(part, model, f"e{at}-gains-{number}"))}
            for number, model in enumerate(others)
        ],
        "legend": charts.legend(part),
        "limit": points(charts.gain_limit(part)).lstrip("+") if others else "",
        "harm": list(_harm_rows(part)),
        "worst": [{"model": model, "users": _worst(part, model)} for model in others],
        "rounds": markup(rounds) if rounds else "",
        "served_by": [by for by in SERVED_BY if any(model.served_by.get(by) for model in part.models)],
        "calibration": markup(charts.calibration(part, f"e{at}-calibration")),
    }


def _others(part: EvaluationPart) -> list[Model]:
    """The models that are compared with the baseline; [] without one."""
    return [model for model in part.models if model is not part.baseline] if part.baseline else []


def period_name(on: str) -> str:
    """The scored period for people: 'valid' → 'the validation period', 'device:2/3, …' → 'part 2/3 of the device period, …'."""
    block, comma, restriction = on.partition(",")
    period, _, share = block.partition(":")
    name = f"the {'validation' if period == 'valid' else period} period"
    return (f"part {share} of {name}" if share else name) + comma + restriction


def _row(part: EvaluationPart, subject: str, group: str, metric: str) -> dict[str, Any]:
    return part.comparison.filter(subject=subject, group=group, metric=metric).row(0, named=True)


def _relative(row: dict[str, Any]) -> str:
    """The difference relative to the baseline, ' (+3.4 %)'; '' where the baseline is 0."""
    return f" ({row['difference'] / row['baseline']:+.1%})".replace("%", " %") if row["baseline"] else ""


def _measured(row: dict[str, Any]) -> str:
    """'+0.17 points (+1.2 %), 95 % interval −0.05 to +0.39'."""
    text = f"{points(row['difference'])} points{_relative(row)}"
    return text if row["low"] is None else f"{text}, 95 % interval {points(row['low'])} to {points(row['high'])}"


def headline(part: EvaluationPart) -> list[str]:
    """A few sentences: first what to do, then the figures. They claim a difference only where the comparison shows it."""
    if part.baseline is None:
        return [f"Only {part.models[0].ref} was scored, so there is nothing to compare it with."]
    others = _others(part)
    metric, against = metric_name(part.metric), part.baseline.ref
    rows = {model.name: _row(part, model.name, "all", part.metric) for model in others}
    same = [model for model in others if unchanged(rows[model.name])]
    better, worse, open_ = (
        [model for model in others if rows[model.name]["verdict"] == verdict and model not in same]
        for verdict in ("better", "worse", "inconclusive")
    )
    sign = -1 if lower_is_better(part.metric) else 1
    if better:
        best = max(better, key=lambda model: sign * rows[model.name]["difference"])
        name, gain = f"{best.ref} ({best.role})", f"{metric} {_gain(rows[best.name])}"
        sentences = [
            f"Deploy {name}: it is better than {against}, the same model trained further ({gain})."
            if part.control
            else f"{name} is better than {against} ({gain}); before you deploy it, compare it with the same model trained further.",
            *_but_worse(part, best),
        ]
    elif worse and not open_:
        sentences = [f"Keep {against}: {_listed([model.ref for model in worse])} {_is(worse)} worse by {metric}."]
    elif len(same) == len(others):
        return [
            f"Nothing to decide: {_listed([model.ref for model in others])} and {against} rank alike for every user."
        ]
    else:
        named = _listed([model.ref for model in open_])
        sentences = [f"Keep {against} for now: it is open whether {named} {_is(open_)} better or worse by {metric}."]
    if len(others) == 1:
        sentences.append(f"{metric} over all users: {_measured(rows[others[0].name])}; {words(rows[others[0].name])}.")
        tail = _row(part, others[0].name, "tail", part.metric)
        if tail["users"]:
            sentences.append(f"Tail users: {_measured(tail)}; {words(tail)}.")
        return sentences
    for models, word in (
        (better, "Better over all users"),
        (worse, "Worse over all users"),
        (open_, "Inconclusive over all users"),
        (same, "No difference for any user"),
    ):
        if models:
            sentences.append(f"{word}: {_listed([model.ref for model in models])}.")
    tails = [model.ref for model in others if _row(part, model.name, "tail", part.metric)["verdict"] == "better"]
    sentences.append(f"Tail users gain with {_listed(tails)}." if tails else "No gain of tail users is shown.")
    return sentences


def _but_worse(part: EvaluationPart, model: Model) -> list[str]:
    """A sentence on what a better model is worse by, for all users or for the tail alone."""
    lost = {
        group: part.comparison.filter(subject=model.name, verdict="worse", group=group)["metric"].to_list()
        for group in ("all", "tail")
    }
    told = {
        "over all users": lost["all"],
        "for tail users": [metric for metric in lost["tail"] if metric not in lost["all"]],
    }
    parts = [f"by {_listed(list(map(metric_name, metrics)))} {where}" for where, metrics in told.items() if metrics]
    if not parts:
        return []
    means = ": do not read its scores as probabilities" if {*lost["all"], *lost["tail"]} == {"log_loss"} else ""
    return [f"But {model.ref} is worse {', and '.join(parts)}{means}."]


def _gain(row: dict[str, Any]) -> str:
    """'+0.17 points, +1.2 %'."""
    return f"{points(row['difference'])} points" + _relative(row).replace(" (", ", ").rstrip(")")


def _is(models: list[Model]) -> str:
    return "is" if len(models) == 1 else "are"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def notes(part: EvaluationPart) -> list[str]:
    """What the figures do not show, one sentence or two for each point."""
    found = []
    if part.baseline is not None and not part.control:
        found.append(
            f"The baseline {part.baseline.ref} is not the strong control (the same cloud model trained further on the same "
            "events). A gain is worth deploying only if it also holds against that control: dcclctl train --continue REF "
            "--on device, then dcclctl evaluate … --against it."
        )
    placebos = any(model.placebo for model in part.models)
    if part.baseline is not None and any(model.patched for model in part.models) and not placebos:
        found.append(
            "A gain of patches is personal only if it disappears with another user's patch or memory, which was not scored "
            "here: dcclctl evaluate … patches@N patches@N+shuffled."
        )
    if part.baseline is not None:
        found.append(
            "Verdicts are corrected (Holm) for all metrics of a group, not for the number of models. "
            + (
                f"The intervals cover the choice of users and the randomness of training ({len(part.seeds)} seeds)."
                if part.seeds
                else "One seed: the intervals cover the choice of users, not the randomness of training. Repeat with "
                "--seeds 0..4 before you rely on a small gain."
            )
        )
    if part.candidates != "all":
        found.append(f"Ranked among {part.candidates:,} sampled items: not comparable with rankings of all items.")
    if part.split != "global":
        found.append(f"Split {part.split}: users' periods overlap in time, so trends leak between users.")
    for model in part.models:
        if model.name in part.at_chance:
            found.append(f"{model.ref}: {chance_in_words(*part.at_chance[model.name])}.")
    if part.users_without_auc:
        found.append(f"{part.users_without_auc:,} users have events of one label only and no AUC.")
    return found


def _verdict(part: EvaluationPart, model: Model) -> dict[str, Any]:
    cells = []
    for group in ("all", "tail"):
        row = _row(part, model.name, group, part.metric)
        if unchanged(row):
            cells.append({"difference": "no difference", "interval": "", "verdict": "", "words": "for any user"})
            continue
        cells.append(
            {
                "difference": points(row["difference"]) + _relative(row) if row["users"] else "–",
                "interval": interval(row["low"], row["high"]),
                "verdict": row["verdict"],
                "words": words(row).removeprefix(row["verdict"]).removeprefix(":").strip(),
            }
        )
    who = part.tail_minus_head.filter(subject=model.name).row(0, named=True)
    cells.append(
        {
            "difference": points(who["difference"]),
            "interval": interval(who["low"], who["high"]),
            "verdict": favoured(who),
            "words": why_open(who),
        }
    )
    worse = part.harm.filter(subject=model.name, group="all", metric=part.metric)["worse"].item()
    return {"model": model, "cells": cells, "worse": "–" if worse is None else f"{worse:.0%}"}


def _values(part: EvaluationPart) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["group"], row["subject"], row["metric"]): row for row in part.aggregate.to_dicts()}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _group_rows(part: EvaluationPart) -> Iterable[dict[str, Any]]:
    """A block for each group that has users: every model's metrics, and their differences to the baseline."""
    values = _values(part)
    for group in SHOWN_GROUPS:
        counts = {
            metric: max(values[group, model.name, metric]["users"] for model in part.models) for metric in part.metrics
        }
        users = max(counts.values())
        if not users:
            continue
        rows = []
        for model in part.models:
            cells = []
            for metric in part.metrics:
                cell = {"value": _number(values[group, model.name, metric]["value"]), "difference": "", "verdict": ""}
                if part.baseline is not None and model is not part.baseline:
                    row = _row(part, model.name, group, metric)
                    cell["difference"] = f"{points(row['difference'])} {interval(row['low'], row['high'])}".rstrip()
                    cell["verdict"] = row["verdict"]
                    if unchanged(row):
                        cell["difference"], cell["verdict"] = "no difference", ""
                cells.append(cell)
            rows.append({"model": model, "baseline": model is part.baseline, "cells": cells})
        fewer = [f"{metric_name(metric)} of {count:,}" for metric, count in counts.items() if count < users]
        yield {"group": group, "users": users, "fewer": ", ".join(fewer), "rows": rows}


def _every(part: EvaluationPart) -> dict[str, Any]:
    """All metrics of all groups."""
    values = _values(part)
    metrics = part.aggregate["metric"].unique(maintain_order=True).to_list()
    rows = [
        {
            "group": group,
            "model": model,
            "cells": [_number(values[group, model.name, metric]["value"]) for metric in metrics],
        }
        for group in (*GROUPS, "all")
        if any(values[group, model.name, metric]["users"] for model in part.models for metric in metrics)
        for model in part.models
    ]
    return {"columns": [metric_name(metric) for metric in metrics], "rows": rows}


def _activity_rows(part: EvaluationPart) -> Iterable[dict[str, Any]]:
    values = _values(part)
    for number in range(ACTIVITY_GROUPS):
        found = [values[f"activity-{number:02d}", model.name, part.metric] for model in part.models]
        users = max(row["users"] for row in found)
        yield {"group": number + 1, "users": users, "cells": [_number(row["value"]) for row in found]}


def _harm_rows(part: EvaluationPart) -> Iterable[dict[str, Any]]:
    if part.baseline is None:
        return
    models = {model.name: model for model in part.models}
    for group in SHOWN_GROUPS:
        for row in part.harm.filter(group=group, metric=part.metric).to_dicts():
            if row["users"]:
                shares = [f"{row[share]:.0%}" for share in ("better", "worse", "unchanged")]
                sizes = [points(row[size] and -row[size]).lstrip("+") for size in ("harm_50", "harm_10")]
                yield {"group": group, "users": row["users"], "model": models[row["subject"]], "cells": shares + sizes}


def _worst(part: EvaluationPart, model: Model) -> list[dict[str, str]]:
    return [
        {"id": row["user_id"], "group": row["group"], "lost": points(row["difference"])}
        for row in part.worst.filter(subject=model.name).head(WORST_SHOWN).to_dicts()
    ]
