"""Put the tables of benchmarks/science.py into docs/results.md, and draw the effect by activity group.

    python benchmarks/results_page.py results/ [--page docs/results.md]

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is the file OUT/NAME.md, or `favours`: tail minus head
of what the memory patch and the taught cloud model gain, logs down.
"""

import argparse
import json
import re
from pathlib import Path

import altair as alt
import polars as pl
import vl_convert
from figures import METRICS, cell
from study import DISTILLED

HERE = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLOURS = {"incremental cloud, at once": "#8a8a8a", "metapatch (paper)": "#d1841f", "memory patch": "#2364aa"}


def fill(page: str, out: Path) -> str:
    """The page with every table replaced by the newest one; tables that were not made stay as they are."""

    def newest(found: re.Match[str]) -> str:
        if found[2] == "favours":
            return f"{found[1]}\n{favours(out)}\n{found[3]}"
        source = out / f"{found[2]}.md"
        return f"{found[1]}\n{source.read_text()}\n{found[3]}" if source.exists() else found[0]

    return TABLE.sub(newest, page)


def favours(out: Path) -> str:
    """Gain of the tail minus that of the head, of the memory patch and of the taught cloud model, each over its control."""
    shown = {"memory": "memory patch", "clouds": DISTILLED}
    found: dict[str, dict[str, str]] = {}
    for chapter, model in shown.items():
        for path in sorted(out.glob(f"*.{chapter}.favours.json")):
            log = path.name.removesuffix(f".{chapter}.favours.json")
            own = {
                f"{chapter} {row['metric']}": cell(row) for row in json.loads(path.read_text()) if row["model"] == model
            }
            found.setdefault(log, {}).update(own)
    names = {"gauc": "GAUC", "hr@10": "HR@10", "ndcg@10": "NDCG@10"}
    title = [f"{model}, {names[metric]}" for model in ("memory patch", "taught cloud") for metric in METRICS]
    lines = ["| log | " + " | ".join(title) + " |", "|---" * (1 + len(title)) + "|"]
    for log, cells in found.items():
        row = [cells.get(f"{chapter} {metric}", "") for chapter in shown for metric in METRICS]
        lines.append(f"| {log} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def by_activity(out: Path) -> pl.DataFrame | None:
    """log, model, group from 1 (least active) to 20, Δ GAUC in points and its 95 % interval."""
    rows = []
    for path in sorted(out.glob("*.memory.activity.json")):
        log = path.name.removesuffix(".memory.activity.json")
        rows += [{"log": log, **record} for record in json.loads(path.read_text())]
    return pl.DataFrame(rows) if rows else None


def picture(table: pl.DataFrame) -> bytes:
    """One panel a log: difference to the fresh cloud by activity group, with intervals."""
    base = alt.Chart().encode(
        x=alt.X("group:Q", title="activity group, least to most active", scale=alt.Scale(domain=[1, 20])),
        color=alt.Color(
            "model:N",
            title=None,
            scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
            legend=alt.Legend(orient="top", labelLimit=300),
        ),
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title="Δ GAUC, points"), y2="high:Q")
    line = base.mark_line(point=True).encode(y="difference:Q")
    zero = alt.Chart().mark_rule(color="#444").encode(y=alt.datum(0))
    chart = (
        alt.layer(zero, band, line, data=table)
        .properties(width=330, height=190)
        .facet(
            facet=alt.Facet("log:N", title=None, header=alt.Header(labelFontSize=13, labelFontWeight="bold")), columns=2
        )
        .resolve_scale(y="independent")
        .properties(title="Who gains over the freshly trained cloud model? (test, 95 % intervals over users)")
    )
    return bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--page", type=Path, default=HERE / "docs" / "results.md")
    options = parser.parse_args()
    options.page.write_text(fill(options.page.read_text(), options.out))
    table = by_activity(options.out)
    if table is not None:
        (options.page.parent / "images" / "memory-by-activity.png").write_bytes(picture(table))


if __name__ == "__main__":
    main()
