"""Put the tables of research/science.py and real_logs.py on their pages, and draw the effect by activity group.

    python research/results_page.py results/ [--page docs/results.md]

The pages are README.md, docs/results.md and research/results/*.md; one without a table stays as it is. A table stands
between `<!-- table NAME -->` and `<!-- end -->`; NAME is the file OUT/NAME.md, or one of the tables over all logs:
`front`, what the memory patch gains over the strong cloud model trained further, all items ranked;
`front-best`, over the better of that one and one from scratch (`front-best-short`: the tail's), and
`front-best-scratch`, what a patch on the one from scratch gains over the better of them; `strong-harm`, whom it harms for good; `strong-taught`,
what devices teach the strong model (`strong-taught-short`: all users); and of the weak model before it `gains`, what the memory patch gains over the better of two controls; `taught`, what the taught cloud model gains over
its control; `favours`, tail minus head of both; `loop`, what the paper's way gains; `beyond`, what the memory patch has
over a cloud model with a long window, and over SASRec (`beyond-all`: all users alone); `habit`, what it has over counting what a user had;
`newcomers`, what new users gain by it on what comes right after their first events; `lasting`, whom both harm for good.
"""

import argparse
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert
from figures import METRICS, cell, harm_share, table
from PIL import Image
from study import (
    DISTILLED,
    FROM_METAPATCH,
    FROM_UNPATCHED,
    ON_DIN,
    ON_FURTHER,
    ON_SCRATCH,
    ONCE,
    PROTOCOLS,
    STRONG,
    STRONG_FROZEN,
    STRONG_SCRATCH,
    STRONG_TAUGHT,
    TEACHERS,
)

from dcclctl.report.comparison import metric_name

HERE = Path(__file__).resolve().parent.parent
PAGES = (HERE / "README.md", HERE / "docs" / "results.md", *sorted((HERE / "research" / "results").glob("*.md")))
TABLE = re.compile(r"(?P<begin><!-- table (?P<name>\S+) -->\n)(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL)
#: as tables and pictures call them, in their order
LOGS = {
    "ml-100k": "MovieLens-100k",
    "grocery": "Amazon Grocery",
    "amazon-beauty": "Amazon Beauty",
    "journey-first": "Complete Journey, first purchases",
    "journey-repeats": "Complete Journey, with repeats",
    "sample-repeats": "Complete Journey, bundled sample with repeats",
}
#: title and rows; no rows if no log has the figures
Table = tuple[list[str], list[list[str]]]
COLOURS = {STRONG_FROZEN: "#8a8a8a", ON_FURTHER: "#2364aa"}


def fill(page: str, out: Path) -> str:
    """The page with every table replaced by the newest one; tables that were not made stay as they are.

    So do the rows of logs that have no figures here, in tables over all logs.
    """

    def newest(found: re.Match[str]) -> str:
        made = made_table(found["name"], out, found["body"])
        return f"{found['begin']}\n{made}\n{found['end']}" if made else found[0]

    return TABLE.sub(newest, page)


def made_table(name: str, out: Path, before: str) -> str:
    """Markdown of a table; empty if it was not made.

    Args:
        before: the table as it stands on the page.
    """
    if name in SUMMARIES:
        title, rows = SUMMARIES[name](out)
        return table(title, with_rows_of_before(rows, len(title), before)) if rows else ""
    source = out / f"{name}.md"
    return source.read_text() if source.exists() else ""


def with_rows_of_before(rows: list[list[str]], width: int, before: str) -> list[list[str]]:
    """Rows, and those of other logs that stood in the table before, in the order of LOGS."""
    lines = [line[2:-2].split(" | ") for line in before.splitlines() if line.startswith("| ")]
    by_log: dict[str, list[str]] = {}
    for row in [*(line for line in lines[1:] if len(line) == width), *rows]:
        by_log[re.sub(r" \(\d+ seeds?\)$", "", row[0])] = row
    return [by_log[name] for name in LOGS.values() if name in by_log]


class Across:
    """One chapter's figures of all logs that have it: what the tables over logs are made of."""

    def __init__(self, out: Path, chapter: str) -> None:
        self.by = {
            log: {
                (row["model"], row.get("group"), row["metric"]): row
                for row in json.loads((out / f"{log}.{chapter}.json").read_text())
            }
            for log in LOGS
            if (out / f"{log}.{chapter}.json").exists()
        }

    def cell(self, log: str, model: str, metric: str, group: str | None = None) -> str:
        found = self.by.get(log, {}).get((model, group, metric))
        return cell(found) if found else ""

    def seeds(self, log: str, usual: int = 3) -> str:
        """How a log is called in a table; says so if it has another number of seeds than usual."""
        seeds = {row["seeds"] for row in self.by[log].values() if "seeds" in row} - {usual}
        return LOGS[log] + "".join(f" ({count} seed{'s' * (count != 1)})" for count in seeds)


def gains(out: Path) -> Table:
    """The memory patch over the better of two controls, for each figure by itself."""
    best = Across(out, "memory.best")
    shown = [("memory patch", "tail", "gauc"), ("memory patch", "tail", "hr@10"), ("memory patch", "all", "gauc")]
    shown += [("memory patch of the last 20 events", "tail", "gauc")]
    title = ["log", "GAUC, tail", "HR@10 of 300 sampled, tail", "GAUC, all"]
    title += ["with only the 20 events that the cloud sees too: GAUC, tail"]
    rows = [[best.seeds(log), *(best.cell(log, model, m, g) for model, g, m in shown)] for log in best.by]
    return title, rows


#: logs whose split lets models learn trends of the test period from other users
LEAKING = {"ml-100k": "per user: leaks", "amazon-beauty": "leave-one-out: leaks"}


def front(out: Path) -> Table:
    """The memory patch over the strong cloud model trained further, every item ranked."""
    strong = Across(out, "strong.further")
    title = ["log", "split", "tail: Δ GAUC", "tail: HR@10 of the cloud", "tail: Δ HR@10", "relative", "all: Δ GAUC"]
    title += ["all: Δ HR@10"]
    rows = []
    for log, by in strong.by.items():
        tail = by[("memory patch", "tail", "hr@10")]
        before = tail["value"] - tail["difference"]
        cells = {(g, m): strong.cell(log, "memory patch", m, g) for g in ("tail", "all") for m in ("gauc", "hr@10")}
        rows.append(
            [
                strong.seeds(log, usual=5),
                LEAKING.get(log, "one timeline"),
                cells[("tail", "gauc")],
                f"{100 * before:.2f}",
                cells[("tail", "hr@10")],
                f"{100 * tail['difference'] / before:+.0f} %",
                cells[("all", "gauc")],
                cells[("all", "hr@10")],
            ]
        )
    return title, rows


def front_best(out: Path, patch: str = ON_FURTHER) -> Table:
    """A memory patch over the better of two strong cloud models, every item ranked.

    Which of the two is better is asked for each figure by itself, on test, so against the patch.
    """
    best = Across(out, "strong.best")
    title = ["log", "split", "better on valid", "tail: Δ GAUC", "tail: HR@10 of the better control", "tail: Δ HR@10"]
    title += ["relative", "all: Δ GAUC", "all: Δ HR@10", "relative"]
    rows = []
    for log, by in best.by.items():
        clouds = json.loads((out / f"{log}.strong.clouds.json").read_text())
        scratch = sum(clouds[STRONG_SCRATCH]) > sum(clouds[STRONG])
        cells = {(g, m): cell(by[(patch, g, m)]) for g in ("tail", "all") for m in ("gauc", "hr@10")}
        tail = by[(patch, "tail", "hr@10")]
        rows.append(
            [
                best.seeds(log, usual=5),
                LEAKING.get(log, "one timeline"),
                "from scratch" if scratch else "trained further",
                cells[("tail", "gauc")],
                f"{100 * tail['control_value']:.2f}, {str(tail['control']).removeprefix('SASRec, ')}",
                cells[("tail", "hr@10")],
                relative(tail),
                cells[("all", "gauc")],
                cells[("all", "hr@10")],
                relative(by[(patch, "all", "hr@10")]),
            ]
        )
    return title, rows


def front_best_short(out: Path) -> Table:
    """The same for the tail alone: three columns of `front_best`."""
    _, rows = front_best(out)
    return ["log", "GAUC", "HR@10", "relative"], [[row[0], row[3], row[5], row[6]] for row in rows]


def relative(record: dict[str, Any]) -> str:
    """A difference in per cent of the control's value."""
    return f"{100 * record['difference'] / record['control_value']:+.0f} %"


def strong_taught(out: Path) -> Table:
    """The strong model taught by memories, over the best of its controls, for each figure by itself, on test."""
    found = Across(out, "strong_taught.best")
    shown = [(g, m) for g in ("all", "tail") for m in ("gauc", "hr@10", "ndcg@10")]
    title = ["log", *(f"{g}: Δ {metric_name(m)}" for g, m in shown), "the teachers, all: Δ GAUC", "Δ NDCG@10", "kept"]
    rows = []
    for log, by in found.by.items():
        own, theirs = (by[(model, "all", "ndcg@10")]["difference"] for model in (STRONG_TAUGHT, TEACHERS))
        cells = [found.cell(log, STRONG_TAUGHT, m, g) for g, m in shown]
        cells += [found.cell(log, TEACHERS, m, "all") for m in ("gauc", "ndcg@10")]
        rows.append([found.seeds(log, usual=5), *cells, f"{100 * own / theirs:.0f} %"])
    return title, rows


def strong_taught_short(out: Path) -> Table:
    """The same for all users: five columns of `strong_taught`."""
    _, rows = strong_taught(out)
    return ["log", "Δ GAUC", "Δ HR@10", "Δ NDCG@10", "kept"], [[*row[:4], row[-1]] for row in rows]


def strong_harm(out: Path) -> Table:
    """Estimated share of users that are worse off for good with the patch on the strong model, without and with a gate, per cent."""
    rows = []
    for log, name in LOGS.items():
        path = out / f"{log}.gate.json"
        if path.exists():
            by = {(r["gate"], r["group"]): r for r in json.loads(path.read_text())}
            row = [name]
            for gate in ("everybody", "size", "record", "learned"):
                found = by[(gate, "all")]
                row.append(harm_share({"estimate": found["harm"], "low": found["low"], "high": found["high"]}))
                if gate != "everybody":
                    row.append(f"{100 * (1 - found['gain'] / found['gain_without']):z.0f} %")
            rows.append(row)
    title = ["log", "no gate", *(x for g in ("size", "record", "learned") for x in (f"gate: {g}", "gain lost"))]
    return title, rows


def taught(out: Path) -> Table:
    """The taught cloud model over the same model trained further, and what another user's memory teaches."""
    clouds = Across(out, "clouds")
    other = "distilled from shuffled memories (placebo)"
    shown = [
        (DISTILLED, "all", "gauc"),
        (DISTILLED, "tail", "gauc"),
        (DISTILLED, "tail", "hr@10"),
        (other, "all", "gauc"),
    ]
    title = [
        "log",
        "GAUC, all",
        "GAUC, tail",
        "HR@10 of 300 sampled, tail",
        "taught with another user's memory: GAUC, all",
    ]
    rows = [[clouds.seeds(log), *(clouds.cell(log, model, m, g) for model, g, m in shown)] for log in clouds.by]
    return title, rows


def favours(out: Path) -> Table:
    """Gain of the tail minus that of the head, of the memory patch and of the taught cloud model, each over its control."""
    shown = {"memory patch": Across(out, "memory.favours"), DISTILLED: Across(out, "clouds.favours")}
    title = [f"{model}, {metric_name(metric)}" for model in ("memory patch", "taught cloud") for metric in METRICS]
    rows = [
        [LOGS[log], *(found.cell(log, model, metric) for model, found in shown.items() for metric in METRICS)]
        for log in shown["memory patch"].by
    ]
    return ["log", *title], rows


def loop(out: Path) -> Table:
    """The paper's patch on the frozen cloud model, that model trained further, and the paper's way of teaching over the
    strictest control, from patched and from unpatched teachers."""
    paper, clouds = Across(out, "paper"), Across(out, "clouds")
    title = ["log", "patched − frozen: GAUC, tail", "GAUC, all", "trained further − frozen: GAUC, all"]
    title += ["taught the paper's way − the strictest control: GAUC, all", "the same from unpatched teachers"]
    rows = [
        [
            paper.seeds(log),
            *(paper.cell(log, "metapatch", "gauc", group) for group in ("tail", "all")),
            paper.cell(log, ONCE, "gauc", "all"),
            *(clouds.cell(log, student, "gauc", "all") for student in (FROM_METAPATCH, FROM_UNPATCHED)),
        ]
        for log in paper.by
    ]
    return title, rows


def beyond(out: Path, groups: tuple[str, ...] = ("all", "tail")) -> Table:
    """The memory patch on DIN over the cloud model that sees 100 events, and over SASRec trained on everything."""
    wide = Across(out, "baselines.wide")
    found = {"DIN, L = 100": wide, "SASRec": Across(out, "baselines.sasrec")}
    shown = [(metric, group) for metric in ("gauc", "hr@10") for group in groups]
    title = ["log", *(f"over {other}: {metric_name(metric)}, {group}" for other in found for metric, group in shown)]
    rows = [
        [wide.seeds(log), *(by.cell(log, ON_DIN, metric, group) for by in found.values() for metric, group in shown)]
        for log in wide.by
    ]
    return title, rows


def habit(out: Path) -> Table:
    """The memory patch over the count of what a user had, where users come back: on all events, and on the two kinds apart."""
    parts = {"all events": "counted", "had before": "counted-repeat", "new to the user": "counted-explore"}
    found = {events: Across(out, f"{part}.habit") for events, part in parts.items()}
    shown = [("all events", "gauc", "all"), ("all events", "hr@10", "all"), ("all events", "hr@10", "tail")]
    shown += [(events, "hr@10", "all") for events in ("had before", "new to the user")]
    title = ["log", *(f"{events}: {metric_name(metric)}, {group}" for events, metric, group in shown)]
    every = found["all events"]
    rows = [[every.seeds(log), *(found[e].cell(log, ON_DIN, m, g) for e, m, g in shown)] for log in every.by]
    return title, rows


def newcomers(out: Path) -> Table:
    """What new users gain by a memory on what comes right after their first K events, over the cloud model at the same K."""
    found = {k: Across(out, f"{PROTOCOLS['newcomers'][1]}.{k}") for k in (1, 5)}
    title = ["log", *(f"K = {k}: {metric_name(metric)}" for k in found for metric in ("gauc", "hr@10"))]
    rows = [
        [
            found[1].seeds(log),
            *(found[k].cell(log, "memory patch", metric, "new") for k in found for metric in ("gauc", "hr@10")),
        ]
        for log in found[1].by
    ]
    return title, rows


def lasting(out: Path) -> Table:
    """Estimated share of users that are worse off for good, per cent."""
    shown = [("memory patch", "all"), ("memory patch", "tail"), (DISTILLED, "all"), (DISTILLED, "tail")]
    rows = []
    for log, name in LOGS.items():
        path = out / f"{log}.harm.json"
        if path.exists():
            by = {(r["model"], r["group"]): r for r in json.loads(path.read_text())}
            rows.append([name, *(harm_share(by[key]) for key in shown)])
    title = [f"{model}, {group}" for model in ("memory patch", "taught cloud") for group in ("all", "tail")]
    return ["log", *title], rows


SUMMARIES = {
    "gains": gains,
    "front": front,
    "front-best": front_best,
    "front-best-scratch": partial(front_best, patch=ON_SCRATCH),
    "front-best-short": front_best_short,
    "strong-taught": strong_taught,
    "strong-taught-short": strong_taught_short,
    "strong-harm": strong_harm,
    "taught": taught,
    "favours": favours,
    "loop": loop,
    "beyond": beyond,
    "beyond-all": partial(beyond, groups=("all",)),
    "habit": habit,
    "newcomers": newcomers,
    "lasting": lasting,
}


def by_activity(out: Path) -> pl.DataFrame | None:
    """log, model, group from 1 (least active) to 20, Δ GAUC in points and its 95 % interval."""
    rows = []
    for log, name in LOGS.items():
        path = out / f"{log}.strong.activity.json"
        rows += [{"log": name, **record} for record in json.loads(path.read_text())] if path.exists() else []
    return pl.DataFrame(rows) if rows else None


def picture(table: pl.DataFrame) -> bytes:
    """One panel a log: difference to the fresh cloud by activity group, with intervals."""
    base = alt.Chart().encode(
        x=alt.X("group:Q", title="activity group, least to most active", scale=alt.Scale(domain=[1, 20])),
        color=alt.Color(
            "model:N",
            title=None,
            scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
            legend=alt.Legend(orient="top", labelLimit=300, symbolOpacity=1),
        ),
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title="Δ GAUC, points"), y2="high:Q")
    line = base.mark_line(point=True).encode(y="difference:Q")
    zero = alt.Chart().mark_rule(color="#444").encode(y=alt.datum(0))
    chart = (
        alt.layer(zero, band, line, data=table)
        .properties(width=330, height=190)
        .facet(
            facet=alt.Facet(
                "log:N",
                title=None,
                sort=list(LOGS.values()),
                header=alt.Header(labelFontSize=13, labelFontWeight="bold"),
            ),
            columns=2,
        )
        .resolve_scale(y="independent")
        .properties(title="Who gains over the freshly trained cloud model? (SASRec, test, 95 % intervals over users)")
    )
    drawn = Image.open(io.BytesIO(vl_convert.vegalite_to_png(chart.to_json(), scale=2)))
    few = io.BytesIO()  # in as many colours as the eye tells apart here: a seventh of the bytes
    drawn.convert("RGB").quantize(64).save(few, "png", optimize=True)
    return few.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, action="append", help="default: all pages")
    options = parser.parse_args()
    for page in options.page or PAGES:
        if (filled := fill(before := page.read_text(), options.out)) != before:
            page.write_text(filled)
    table = by_activity(options.out)
    if table is not None:
        (HERE / "docs" / "images" / "memory-by-activity.png").write_bytes(picture(table))


if __name__ == "__main__":
    main()
