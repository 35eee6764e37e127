"""Charts as SVG text for the page, described with altair and drawn by vl-convert; nothing runs in the reader's browser.

Colours are the page's own variables (`currentColor`, `--s0` …), so one drawing suits light and dark pages.
"""

import html
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclctl.compute import address_space
from dcclctl.errors import DataError
from dcclctl.report.comparison import POINTS, metric_name
from dcclctl.report.page import EvaluationPart, Fit, Model
from dcclctl.report.text import plain
from dcclctl.tables import ACTIVITY_GROUPS

if TYPE_CHECKING:
    import altair as alt

#: number of line colours in the page's style sheet; colour 0 is the baseline's
SERIES = 8
_DASHES = ([1, 0], [7, 3], [2, 2], [8, 3, 2, 3], [1, 0], [7, 3], [2, 2], [8, 3, 2, 3])
#: widths of the plots, in pixels
WIDE, NARROW, SMALL = 860, 255, 245
#: line → colour and dashes, in a learning curve and in a chart of rounds
LEARNING = {"training": ("var(--s0)", [5, 3]), "valid": ("var(--s1)", [1, 0])}
ROUNDS = {
    "cloud model, all users": ("var(--s1)", [5, 3]),
    "with patches, all users": ("var(--s1)", [1, 0]),
    "cloud model, tail": ("var(--s2)", [5, 3]),
    "with patches, tail": ("var(--s2)", [1, 0]),
}
#: bins of the reliability diagram with fewer rows are not drawn
MIN_ROWS = 20
#: bins of a histogram on each side of zero
_BINS = 16


def label(model: Model) -> str:
    """A model's name in charts."""
    return f"{model.ref} · {model.role}"


#: address space that V8, inside vl-convert, reserves; it was seen to end the process under limits up to 16 GB
_ADDRESS_SPACE = 32 * 2**30


def _svg(chart: "alt.Chart | alt.LayerChart | alt.FacetChart", name: str, about: str) -> str:
    """Draw one chart.

    Args:
        chart: what to draw. name: unique on the page; ids inside the drawing start with it.
        about: description for people who do not see the chart.
    """
    import vl_convert

    _check_address_space()
    axis: dict[str, Any] = {f"{part}Color": "currentColor" for part in ("label", "title", "grid", "domain", "tick")}
    axis |= {"gridOpacity": 0.13, "domainOpacity": 0.5, "tickOpacity": 0.5}
    axis |= {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    themed = (
        chart.configure(aria=False, background="transparent", font="system-ui, sans-serif", padding=4)
        .configure_view(stroke=None)
        .configure_axis(**axis)
        # The reader's font is not known: leave room for wide figures.
        .configure_axisY(minExtent=46, titlePadding=6)
    )
    drawn = vl_convert.vegalite_to_svg(themed.to_dict())
    for link in ('id="', "url(#", 'href="#'):
        drawn = re.sub(rf"\b{re.escape(link)}", f"{link}{name}-", drawn)
    size = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', drawn)
    assert size is not None  # every drawing of vl-convert has one
    head = f'<svg role="img" aria-label="{html.escape(plain(about))}" style="width:{size[1]}px" viewBox'
    return re.sub(r"^<svg .*?viewBox", lambda found: head, drawn, count=1)


def _check_address_space() -> None:
    """Refuse a limit of memory under which the drawing library would end the process without a word.

    Raises:
        DataError: there is such a limit (ulimit -v).
    """
    limit = address_space()
    if limit < _ADDRESS_SPACE:
        raise DataError(
            f"charts cannot be drawn: this process may use {limit / 2**30:.1f} GiB of address space (ulimit -v)",
            "Lift the limit for this command: ulimit -v unlimited. The figures: dcclctl evaluate shows them too.",
        )


def _styles(part: EvaluationPart) -> dict[str, tuple[str, list[int]]]:
    """label → colour and dashes of its line. The baseline is grey; the others differ in colour and in dashes."""
    baseline = part.baseline or part.models[0]
    others = [model.name for model in part.models if model.name != baseline.name]
    colours = {name: f"var(--s{1 + at % (SERIES - 1)})" for at, name in enumerate(others)}
    return {
        label(model): (colours.get(model.name, "var(--s0)"), _DASHES[at % SERIES])
        for at, model in enumerate(part.models)
    }


def legend(part: EvaluationPart) -> list[dict[str, str]]:
    """The page's legend for the charts of an evaluation: text, colour and dashes of every model."""
    return entries(_styles(part))


def entries(styles: dict[str, tuple[str, list[int]]]) -> list[dict[str, str]]:
    """Lines of a legend: text, colour, and dashes in the form of SVG."""
    return [
        {"text": text, "colour": colour, "dashes": " ".join(map(str, dashes))}
        for text, (colour, dashes) in styles.items()
    ]


def _chart(rows: list[dict[str, Any]]) -> "alt.Chart":
    import altair as alt

    return alt.Chart(alt.InlineData(values=rows))


def _y(column: str, ticks: int) -> "alt.Y":
    """A vertical axis without a title that need not start at zero."""
    import altair as alt

    return alt.Y(column, title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=ticks))


def _lines(styles: dict[str, tuple[str, list[int]]], column: str) -> dict[str, Any]:
    """Colours and dashes of lines; their legend is the page's, where text can wrap."""
    import altair as alt

    names = list(styles)
    colours, dashes = ([style[part] for style in styles.values()] for part in (0, 1))
    return {
        "color": alt.Color(column, sort=None, legend=None, scale=alt.Scale(domain=names, range=colours)),
        "strokeDash": alt.StrokeDash(column, sort=None, legend=None, scale=alt.Scale(domain=names, range=dashes)),
    }


def activity(part: EvaluationPart, name: str, narrow: bool) -> str:
    """Draw a line for each model over the 20 activity groups, least active first.

    Args:
        part: the evaluation. name: unique on the page. narrow: for a screen of 400 pixels.
    """
    import altair as alt

    shown = {model.name: label(model) for model in part.models}
    rows = [
        {"group": int(row["group"][-2:]) + 1, "value": row["value"], "model": shown[row["subject"]]}
        for row in part.aggregate.filter(metric=part.metric).to_dicts()
        if row["group"].startswith("activity-") and row["value"] is not None
    ]
    chart = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=28 if narrow else 40), strokeWidth=1.75)
        .encode(
            x=alt.X(
                "group:Q",
                title="activity group (1 = least active users)",
                scale=alt.Scale(domain=[0.5, ACTIVITY_GROUPS + 0.5], nice=False),
                axis=alt.Axis(values=[1, *range(5, ACTIVITY_GROUPS + 1, 5)], grid=False),
            ),
            y=_y("value:Q", 5),
            **_lines(_styles(part), "model:N"),
        )
        .properties(width=NARROW if narrow else WIDE, height=230 if narrow else 280)
    )
    ends = []
    for model in part.models:
        values = {row["group"]: row["value"] for row in rows if row["model"] == shown[model.name]}
        if values:
            low, high = min(values), max(values)
            ends.append(f"{shown[model.name]}: {values[low]:.4f} in group {low}, {values[high]:.4f} in group {high}")
    title = f"Line chart of {metric_name(part.metric)} by activity group"
    return _svg(chart, name, f"{title}. {'; '.join(ends)}. The table below has every value.")


def lift(part: EvaluationPart, name: str, narrow: bool) -> str:
    """Draw each model's difference to the baseline over the 20 activity groups, with 95 % intervals; '' without a baseline.

    Args:
        part: the evaluation. name: unique on the page. narrow: for a screen of 400 pixels.
    """
    import altair as alt

    if part.baseline is None:
        return ""
    others = [model for model in part.models if model is not part.baseline]
    # Bars of several models stand beside each other.
    apart = {model.name: 0.14 * (at - (len(others) - 1) / 2) for at, model in enumerate(others)}
    shown = {model.name: label(model) for model in others}
    rows: list[dict[str, Any]] = [
        {
            "group": int(row["group"][-2:]) + 1 + apart[row["subject"]],
            "model": shown[row["subject"]],
            **{end: None if row[end] is None else POINTS * row[end] for end in ("difference", "low", "high")},
        }
        for row in part.by_activity.to_dicts()
        if row["difference"] is not None
    ]
    styles = _lines({text: style for text, style in _styles(part).items() if text in shown.values()}, "model:N")
    x = alt.X(
        "group:Q",
        title="activity group (1 = least active users)",
        scale=alt.Scale(domain=[0.5, ACTIVITY_GROUPS + 0.5], nice=False),
        axis=alt.Axis(values=[1, *range(5, ACTIVITY_GROUPS + 1, 5)], grid=False),
    )
    values = alt.Y("difference:Q", title=None, axis=alt.Axis(tickCount=5, format="+.3~g"))
    zero = _chart([{"zero": 0}]).mark_rule(color="currentColor", opacity=0.7).encode(y="zero:Q")
    bars = (
        _chart([row for row in rows if row["low"] is not None])
        .mark_rule(strokeWidth=1.5, opacity=0.55)
        .encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=styles["color"])
    )
    lines = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=28 if narrow else 40), strokeWidth=1.75)
        .encode(x=x, y=values, **styles)
    )
    chart = alt.layer(zero, bars, lines).properties(width=NARROW if narrow else WIDE, height=230 if narrow else 280)
    told = []
    for model in others:
        own = [row for row in rows if row["model"] == shown[model.name]]
        above, below = (
            sum(row["low"] is not None and sign * row[end] > 0 for row in own)
            for sign, end in ((1, "low"), (-1, "high"))
        )
        told.append(
            f"{shown[model.name]}: the interval is above zero in {above} of {len(own)} groups, below in {below}"
        )
    about = f"Chart of the difference to {part.baseline.ref} in {metric_name(part.metric)}, points, by activity group"
    return _svg(chart, name, f"{about}, with 95 % intervals. {'; '.join(told)}.")


def gain_limit(part: EvaluationPart) -> float:
    """The limit of an evaluation's histograms on both sides of zero; users beyond it count in the outermost bins."""
    sizes = np.abs([gain for gains in part.gains.values() for gain in gains if gain])
    return float(np.quantile(sizes, 0.95)) if len(sizes) else 1.0


def gains(part: EvaluationPart, model: Model, name: str) -> str:
    """Draw a histogram of users by their gain or loss against the baseline; the side of the losses is shaded.

    Users without a change are not drawn, because they would dwarf the rest, but the description counts them.
    """
    import altair as alt

    assert part.baseline is not None  # gains need one
    limit = gain_limit(part)
    values = np.array(part.gains[model.name], dtype=np.float64)
    moved = values[values != 0]
    edges = np.linspace(-limit, limit, 2 * _BINS + 1)
    counts, _ = np.histogram(np.clip(moved, -limit, limit), edges)
    rows = [
        {
            "from": POINTS * float(edges[at]),
            "to": POINTS * float(edges[at + 1]),
            "users": int(count),
            "side": "worse off" if at < _BINS else "better off",
        }
        for at, count in enumerate(counts)
    ]
    worse, better = int((moved < 0).sum()), int((moved > 0).sum())
    top = max(1, int(counts.max(initial=0)))
    bars = (
        _chart(rows)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X(
                "from:Q",
                bin="binned",
                title=f"gain in {metric_name(part.metric)}, points",
                scale=alt.Scale(domain=[-POINTS * limit, POINTS * limit], nice=False),
                axis=alt.Axis(
                    grid=False, tickCount=5, labelExpr="datum.value == 0 ? '0' : format(datum.value, '+.3~g')"
                ),
            ),
            x2="to:Q",
            y=alt.Y("users:Q", title="users", scale=alt.Scale(domain=[0, top * 1.18]), axis=alt.Axis(tickCount=4)),
            color=alt.Color(
                "side:N",
                scale=alt.Scale(domain=["worse off", "better off"], range=["var(--bad)", "var(--good)"]),
                legend=None,
            ),
        )
    )
    shade = (
        _chart([{"from": -POINTS * limit, "to": 0}])
        .mark_rect(fill="var(--bad)", opacity=0.09)
        .encode(x="from:Q", x2="to:Q")
    )
    total = max(1, len(values))
    texts = [
        {"at": -POINTS * limit / 2, "text": f"{worse / total:.0%} worse off"},
        {"at": POINTS * limit / 2, "text": f"{better / total:.0%} better off"},
    ]
    words = (
        _chart(texts)
        .mark_text(color="currentColor", fontSize=13, fontWeight=600, baseline="top")
        .encode(x="at:Q", y=alt.value(2), text="text:N")
    )
    about = (
        f"Histogram of users by their gain in {metric_name(part.metric)} with {label(model)} against {part.baseline.ref}: "
        f"{worse} of {len(values)} users are worse off, {better} better off, {len(values) - worse - better} unchanged."
    )
    chart = alt.layer(shade, bars, words).properties(width=SMALL, height=150)
    return _svg(chart, name, about)


def learning(fit: Fit, name: str) -> str:
    """Draw the loss of one cloud model by epoch, with the epoch that was kept."""
    import altair as alt

    kinds = {"train_loss": "training", "valid_loss": "valid"}
    rows = [
        {"epoch": epoch["epoch"], "loss": epoch[key], "on": kinds[key]}
        for epoch in fit.epochs
        for key in kinds
        if key in epoch
    ]
    last = int(fit.epochs[-1]["epoch"])
    first = 0 if fit.best_epoch == 0 or last == 1 else 1
    ticks = list(range(first, last + 1, max(1, (last - first) // 5)))
    lines = (
        _chart(rows)
        .mark_line(point=True, strokeWidth=1.75)
        .encode(
            x=alt.X(
                "epoch:Q",
                title="epoch",
                scale=alt.Scale(domain=[first, last], nice=False, zero=False),
                axis=alt.Axis(grid=False, values=ticks, format="d"),
            ),
            y=_y("loss:Q", 4),
            **_lines(LEARNING, "on:N"),
        )
    )
    kept = (
        _chart([{"epoch": fit.best_epoch}])
        .mark_rule(color="currentColor", strokeDash=[2, 3], opacity=0.7)
        .encode(x=alt.X("epoch:Q", scale=alt.Scale(zero=False)))
    )
    ndcg = fit.best_valid_ndcg
    highest = f"AUC, {fit.best_valid_auc:.4f}" if ndcg is None else f"NDCG@10, {ndcg:.4f}"
    about = (
        f"Loss of {fit.ref} ({fit.role}) over {last} epochs: "
        f"training {fit.epochs[0]['train_loss']:.4f} to {fit.epochs[-1]['train_loss']:.4f}, "
        f"valid {fit.epochs[0]['valid_loss']:.4f} to {fit.epochs[-1]['valid_loss']:.4f}; "
        f"the weights after epoch {fit.best_epoch} were kept, which has the highest valid {highest} "
        f"(valid loss {fit.best_valid_loss:.4f})."
    )
    chart = alt.layer(kept, lines).properties(width=SMALL, height=150)
    return _svg(chart, name, about)


def rounds(part: EvaluationPart, name: str) -> str:
    """Draw the metric by round of distillation, with and without patches; '' for fewer than two rounds."""
    import altair as alt

    trained_further = {part.baseline.name} if part.baseline and part.control else set()
    shown_metric = part.aggregate.filter(metric=part.metric).select("subject", "group", "value")
    values = {(subject, group): value for subject, group, value in shown_metric.iter_rows()}
    rows = [
        {
            "round": model.round,
            "value": values[model.name, group],
            "series": f"{'with patches' if model.patched else 'cloud model'}, {shown}",
        }
        for model in part.models
        for group, shown in (("all", "all users"), ("tail", "tail"))
        if model.name not in trained_further and values[model.name, group] is not None
    ]
    numbers = sorted({int(row["round"]) for row in rows})
    if len(numbers) < 2:
        return ""
    chart = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=45), strokeWidth=1.75)
        .encode(
            x=alt.X("round:O", title="rounds of distillation behind it", axis=alt.Axis(labelAngle=0)),
            y=_y("value:Q", 5),
            **_lines(ROUNDS, "series:N"),
        )
        .properties(width=SMALL, height=190)
    )
    said = "; ".join(f"round {row['round']}, {row['series']}: {row['value']:.4f}" for row in rows)
    return _svg(chart, name, f"Line chart of {metric_name(part.metric)} by round. {said}.")


def calibration(part: EvaluationPart, name: str) -> str:
    """Draw predicted against observed frequency, a line for each model; the diagonal is perfect calibration."""
    import altair as alt

    shown = {model.name: label(model) for model in part.models}
    rows = [
        {"predicted": row["predicted"], "observed": row["observed"], "model": shown[row["subject"]]}
        for row in part.reliability.to_dicts()
        if row["rows"] >= MIN_ROWS
    ]
    unit, quarters = alt.Scale(domain=[0, 1], nice=False), alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format="%")
    diagonal = (
        _chart([{"x": 0, "y": 0}, {"x": 1, "y": 1}])
        .mark_line(color="currentColor", opacity=0.5, strokeDash=[3, 3])
        .encode(x=alt.X("x:Q", scale=unit, title="predicted"), y=alt.Y("y:Q", scale=unit, title="observed"))
    )
    lines = (
        _chart(rows)
        .mark_line(point=True, strokeWidth=1.75)
        .encode(
            x=alt.X("predicted:Q", axis=quarters),
            y=alt.Y("observed:Q", axis=quarters),
            **_lines(_styles(part), "model:N"),
        )
    )
    errors = "; ".join(
        f"{label(model)}: calibration error {model.ece:.4f}" for model in part.models if model.ece is not None
    )
    chart = alt.layer(diagonal, lines).properties(width=SMALL, height=SMALL)
    return _svg(chart, name, f"Reliability diagram, predicted against observed share of positives. {errors}.")
