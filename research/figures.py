"""From per-user metrics to tables: differences paired by user, activity groups, harm, new users by number of events."""

import math

import numpy as np
import polars as pl
from study import DISTILLED, LONGER, ON_FURTHER, STRONG, STRONG_FROZEN, TWICE

from dcclctl.metrics.groups import paired_differences
from dcclctl.metrics.seeds import compare_seeds
from dcclctl.metrics.significance import compare, contrast, holm
from dcclctl.report.comparison import metric_name

METRICS = ("gauc", "hr@10", "ndcg@10")
#: with as many seeds an interval is over seeds and users; a claim needs five. The tables of the weak model are older: theirs
#: are over users alone where they have three seeds
SEVERAL_SEEDS = 2
#: rows of a table
Records = list[dict[str, object]]


def numbered_together(tables: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Tables of different data sets of one log, with one number for each user of any of them."""
    ids = pl.concat([table.select("user_id") for table in tables]).unique().sort("user_id")
    ids = ids.with_row_index("user_index").cast({"user_index": pl.Int32})
    width = tables[0].columns
    return [
        table.drop("user_index").join(ids, on="user_id", how="left", maintain_order="left").select(width)
        for table in tables
    ]


def mean_over_seeds(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Each user's metrics averaged over seeds; the group is tail for the less active half, head for the other, or new."""
    keys = ["subject", "user_index", "user_id", "group", "activity_group"]
    table = pl.concat(tables).group_by(keys, maintain_order=True).agg(pl.col(*METRICS).mean())
    half = pl.when(pl.col("activity_group") < 10).then(pl.lit("tail")).otherwise(pl.lit("head"))
    return table.with_columns(pl.when(pl.col("group") == "new").then(pl.lit("new")).otherwise(half).alias("group"))


def figures_of(tables: list[pl.DataFrame], against: str = "") -> Records:
    """One record per model, group and metric: value, spread over seeds, difference to the first model (or to another one),
    interval, p, users."""
    joint, each = mean_over_seeds(tables), [mean_over_seeds([table]) for table in tables]
    subjects = joint["subject"].unique(maintain_order=True).to_list()
    subjects.sort(key=lambda name: name != against)  # stable: the reference first
    records: Records = []
    # where all users are new, "all" says what "new" says: a family of comparisons has each of them once
    repeated = "all" if joint["group"].unique().to_list() == ["new"] else ""

    def values(table: pl.DataFrame, subject: str, group: str, metric: str) -> float | None:
        own = table.filter((pl.col("subject") == subject) & ((pl.col("group") == group) | (group == "all")))
        return own[metric].mean()  # type: ignore[return-value]

    for subject in subjects:
        found = None
        if subject != subjects[0] and len(tables) >= SEVERAL_SEEDS and not repeated:
            found = compare_seeds([paired_differences(one, subject, subjects[0]) for one in each], seed=0)
        elif subject != subjects[0]:
            found = compare(paired_differences(joint, subject, subjects[0]), seed=0)
        # where every seed has users of its own, hardly anyone is judged under more than one
        worse = None if found is None or repeated else harmed(tables, subject, subjects[0])
        for group in ("all", "tail", "head", "new"):
            for metric in METRICS:
                value = values(joint, subject, group, metric)
                if value is None:
                    continue
                of_seeds = [values(table, subject, group, metric) for table in each]
                known = [of_seed for of_seed in of_seeds if of_seed is not None]
                record = {"model": subject, "group": group, "metric": metric, "value": value}
                record |= {"spread": (max(known) - min(known)) / 2, "seeds": len(tables)}
                if found is not None:
                    row = found.filter((pl.col("group") == group) & (pl.col("metric") == metric)).row(0, named=True)
                    record |= {name: row[name] for name in ("users", "difference", "low", "high", "p_value")}
                    record["harmed"] = worse[group] if worse and metric == "gauc" else None
                records.append(record)
    asked = [None if record["group"] == repeated else record.get("p_value") for record in records]
    p_values = pl.Series(asked, dtype=pl.Float64).fill_null(float("nan"))
    for record, corrected in zip(records, holm(p_values.to_numpy().copy()), strict=True):
        record["p_holm"] = None if corrected != corrected else float(corrected)
    return records


def tail_minus_head(tables: list[pl.DataFrame]) -> Records:
    """Gain of the less active half over the first model minus that of the other half, with its interval: whom it favours."""
    joint = mean_over_seeds(tables)
    subjects = joint["subject"].unique(maintain_order=True)
    records: Records = []
    for subject in subjects[1:]:
        found = contrast(paired_differences(joint, subject, subjects[0]), seed=0)
        records += [{"model": subject, **row} for row in found.to_dicts()]
    return records


def favour_table(records: Records) -> str:
    """Rows of `tail_minus_head`: models down, metrics across."""
    by = {(r["model"], r["metric"]): r for r in records}
    models = dict.fromkeys(str(r["model"]) for r in records)
    rows = [[model, *(cell(by[(model, metric)]) for metric in METRICS)] for model in models]
    return table(["model, tail minus head", "GAUC", "HR@10", "NDCG@10"], rows)


def activity_of(tables: list[pl.DataFrame]) -> Records:
    """Difference in GAUC to the strong model trained further by activity group, 1 the least active of 20, in points with its interval."""
    joint = mean_over_seeds(tables)
    names = tuple(f"activity-{number:02d}" for number in range(20))
    records: Records = []
    for subject in [
        name for name in joint["subject"].unique(maintain_order=True) if name in (STRONG_FROZEN, ON_FURTHER)
    ]:
        found = compare(paired_differences(joint, subject, STRONG), names, seed=0).filter(pl.col("metric") == "gauc")
        for number, row in enumerate(found.iter_rows(named=True), 1):
            if row["low"] is not None:
                points = {name: 100 * row[name] for name in ("difference", "low", "high")}
                records.append({"model": subject, "group": number, "users": row["users"], **points})
    return records


def lasting_harm(blocks: list[dict[str, pl.DataFrame]], resamples: int = 1000) -> Records:
    """How many users are worse off for more than a block: against the control in two steps, the distilled cloud against its own.

    A user's difference on a block is d = δ_u + noise. The noises of two blocks share no test event, so the covariance
    of the two differences over the users is the variance σ² of the lasting δ_u, and their mean is its mean μ. If δ is
    about normal, Φ(−μ/σ) of the users have δ_u < 0. Beside it, free of that assumption: how many are worse off under every
    seed on valid, on test, on both, and on both if the two had nothing to do with each other. Intervals by bootstrap over users.
    """
    records: Records = []
    for subject in [
        name for name in blocks[0]["test"]["subject"].unique(maintain_order=True) if name not in (TWICE, LONGER)
    ]:
        control = LONGER if subject == DISTILLED else TWICE
        parts = {}
        for period in ("valid", "test"):
            joint = mean_over_seeds([seed[period] for seed in blocks])
            mean = paired_differences(joint, subject, control).select("user_index", "group", "gauc")
            signs = [
                paired_differences(mean_over_seeds([seed[period]]), subject, control).select("user_index", worse="gauc")
                for seed in blocks
            ]
            every = pl.concat(signs).group_by("user_index").agg((pl.col("worse") < 0).all())
            parts[period] = mean.join(every, on="user_index").drop_nulls()
        both = parts["valid"].join(parts["test"].drop("group"), on="user_index", suffix="_test").sort("user_index")
        for group in ("all", "tail", "head"):
            own = both if group == "all" else both.filter(pl.col("group") == group)
            first, second = (100 * own[name].to_numpy() for name in ("gauc", "gauc_test"))
            worse, worse_test = own["worse"].to_numpy(), own["worse_test"].to_numpy()
            draws = np.random.default_rng(0).integers(0, own.height, (resamples, own.height))
            estimates = [below_zero(first[at], second[at]) for at in (np.arange(own.height), *draws)]
            low, high = np.quantile(estimates[1:], [0.025, 0.975])
            found = {"valid": worse.mean(), "test": worse_test.mean(), "both": (worse & worse_test).mean()}
            found |= {"by chance": worse.mean() * worse_test.mean(), "estimate": estimates[0], "low": low, "high": high}
            sizes = {
                "users": own.height,
                "mean": (first.mean() + second.mean()) / 2,
                "spread": spread_of(first, second),
            }
            records.append(
                {
                    "model": subject,
                    "control": control,
                    "group": group,
                    **sizes,
                    **{k: float(v) for k, v in found.items()},
                }
            )
    return records


def spread_of(first: np.ndarray, second: np.ndarray) -> float:
    """σ: standard deviation over the users of what the two blocks have in common."""
    return math.sqrt(max(float(np.mean((first - first.mean()) * (second - second.mean()))), 0.0))


def below_zero(first: np.ndarray, second: np.ndarray) -> float:
    """Φ(−μ/σ): the share of users whose lasting difference is below zero; all or nothing where σ is 0."""
    mean, spread = (first.mean() + second.mean()) / 2, spread_of(first, second)
    return 0.5 * math.erfc(mean / (spread * math.sqrt(2))) if spread else float(mean < 0)


def harm_table(records: Records) -> str:
    """Shares of users, in per cent."""
    title = [
        "model",
        "against",
        "users",
        "worse on valid",
        "on test",
        "on both",
        "both, by chance",
        "lasting harm, estimated",
    ]
    rows = []
    for r in records:
        shares = [f"{100 * r[name]:.1f}" for name in ("valid", "test", "both", "by chance")]  # type: ignore[operator]
        rows.append([f"{r['model']}, {r['group']}", str(r["control"]), f"{r['users']:,}", *shares, harm_share(r)])
    return table(title, rows)


def harm_share(record: dict[str, object]) -> str:
    """12.3 [10.1, 14.5]: the estimated share of users with lasting harm, in per cent."""
    estimate, low, high = (100 * record[name] for name in ("estimate", "low", "high"))  # type: ignore[operator]
    return f"{estimate:.1f} [{low:.1f}, {high:.1f}]"


def harmed(tables: list[pl.DataFrame], subject: str, control: str) -> dict[str, float]:
    """Share of users that are worse off in GAUC under every seed.

    A user with few test events is worse off in one seed by chance as often as not. What holds under all seeds still
    counts the noise of the test events themselves, which the seeds share: read it as an upper bound.
    """
    signs = []
    for table in tables:
        own = mean_over_seeds([table])
        difference = paired_differences(own, subject, control)
        signs.append(difference.select("user_index", "group", (pl.col("gauc") < 0).cast(pl.Int8).alias("worse")))
    joined = (
        pl.concat(signs)
        .drop_nulls("worse")
        .group_by("user_index", "group", maintain_order=True)
        .agg(pl.col("worse").min())
    )
    shares = {"all": float(joined["worse"].mean() or 0.0)}  # type: ignore[arg-type]
    for group in ("tail", "head", "new"):
        mine = joined.filter(pl.col("group") == group)
        shares[group] = float(mine["worse"].mean() or 0.0) if mine.height else 0.0  # type: ignore[arg-type]
    return shares


def markdown(records: Records) -> str:
    """A table: models down; value and difference of GAUC and HR@10 for all and tail, and GAUC of the head."""
    by = {(r["model"], r["group"], r["metric"]): r for r in records}
    models = list(dict.fromkeys(r["model"] for r in records))
    groups = [g for g in ("all", "tail", "head", "new") if any(r["group"] == g for r in records)]
    title = ["model", "GAUC", "HR@10", "NDCG@10"]
    title += [f"{g}, {name}" for g in groups for name in ("Δ GAUC", "Δ HR@10")]
    rows = []
    for model in models:
        first = [by[(model, "all", metric)] for metric in METRICS if (model, "all", metric) in by]
        cells = [f"{100 * r['value']:.2f} ±{100 * r['spread']:.2f}" for r in first]  # type: ignore[operator]
        for group in groups:
            for metric in ("gauc", "hr@10"):
                record = by.get((model, group, metric), {})
                cells.append(cell(record))
        rows.append([str(model), *cells])
    return table(title, rows)


def against_the_best(tables: list[pl.DataFrame], controls: list[str]) -> Records:
    """Every other model against the control that it gains least over, group by group and metric by metric.

    The control is chosen on the period that is reported, so against the patch.

    Returns:
        Records of `figures_of` with the control's name and value.
    """
    by = {other: {(r["model"], r["group"], r["metric"]): r for r in figures_of(tables, other)} for other in controls}
    found: Records = []
    for key in dict.fromkeys(key for records in by.values() for key in records):
        differences = [(records[key].get("difference"), other) for other, records in by.items()]
        least = min(((d, other) for d, other in differences if d is not None), default=None)
        if key[0] not in controls and least is not None:
            records = by[least[1]]
            found.append(records[key] | {"control": least[1], "control_value": records[(least[1], *key[1:])]["value"]})
    return found


def best_table(records: Records) -> str:
    """Rows of `against_the_best`: GAUC and HR@10."""
    rows = []
    for r in records:
        if r["metric"] in ("gauc", "hr@10"):
            value = 100 * r["control_value"]  # type: ignore[operator]
            name = metric_name(str(r["metric"]))
            rows.append([str(r["model"]), str(r["group"]), name, str(r["control"]), f"{value:.2f}", cell(r)])
    return table(["model", "group", "metric", "best control", "its value", "difference"], rows)


def cold_table(found: dict[str, Records]) -> str:
    """New users: every number of first events down; the first model's values and the others' differences to it across.

    Args:
        found: "….K" → records of `figures_of`.
    """
    title: list[str] = []
    rows: list[list[str]] = []
    for part, records in found.items():
        by = {(r["model"], r["metric"]): r for r in records if r["group"] == "new"}
        models = list(dict.fromkeys(model for model, _ in by))
        if not title:
            title = ["K", "users", *(f"{models[0]}, {name}" for name in ("GAUC", "HR@10"))]
            title += [f"{model}, {name}" for model in models[1:] for name in ("Δ GAUC", "Δ HR@10")]
        base = [by[(models[0], metric)] for metric in ("gauc", "hr@10")]
        cells = [part.rpartition(".")[2], str(by[(models[1], "gauc")]["users"])]
        cells += [f"{100 * r['value']:.2f}" for r in base]  # type: ignore[operator]
        cells += [cell(by[(model, metric)]) for model in models[1:] for metric in ("gauc", "hr@10")]
        rows.append(cells)
    return table(title, rows)


def table(title: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(title) + " |", "|---" * len(title) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def cell(record: dict[str, object]) -> str:
    """+1.23 [0.90, 1.50], bold where the interval leaves out zero."""
    if record.get("difference") is None:
        return ""
    text = f"{100 * record['difference']:+z.2f}"  # type: ignore[operator]
    if record.get("low") is None:
        return text
    low, high = 100 * record["low"], 100 * record["high"]  # type: ignore[operator]
    return f"**{text}** [{low:+.2f}, {high:+.2f}]" if low > 0 or high < 0 else f"{text} [{low:+.2f}, {high:+.2f}]"
