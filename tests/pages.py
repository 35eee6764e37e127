"""Content of a report from an invented evaluation: three models, 200 users, one of them with an id that would act."""

from functools import cache

import numpy as np
import polars as pl

from dcclctl.evaluation.comparison import Comparison
from dcclctl.metrics.groups import aggregate, paired_differences
from dcclctl.report.page import EvaluationPart, Fit, Model, Page, Round, Step
from dcclctl.tables import ACTIVITY_GROUPS, GROUP_NAMES

USERS = 200
#: ids as a hostile log would have them: markup, a formula, rich markup, a terminal sequence, reversed text
HOSTILE = "<script>alert(1)</script>=cmd|'/c calc'![/red]\x1b[31m\u202eevil\"'"
BASELINE, BETTER, OPEN = "cloud@00000001", "patches@00000002", "cloud@00000003"
MODELS = [
    Model(BASELINE, "cloud@1", "din trained on cloud", 0, False, {"cloud": USERS}, 0.125, 0.5),
    Model(BETTER, "patches@1", "patches on cloud@1", 0, True, {"patch": USERS - 8, "cloud": 8}, 0.0625, 0.25),
    Model(OPEN, "cloud@2", "distilled, round 1", 1, False, {"cloud": USERS}, None, None),
]


def per_user(lift: float = 0.05) -> pl.DataFrame:
    """BETTER is better than BASELINE by about `lift`, user 0 alone by −0.5; OPEN differs by noise around zero."""
    draw = np.random.default_rng(0)
    base = draw.uniform(0.2, 0.4, USERS)
    noise = draw.normal(0, 0.01, USERS)
    open_noise = np.tile([0.01, -0.01], USERS // 2)
    tables = []
    for name, values in ((BASELINE, base), (BETTER, base + lift + noise), (OPEN, base + open_noise)):
        values = values.copy()
        values[0] = 0.6 if name != BETTER else 0.1
        tables.append(
            pl.DataFrame(
                {
                    "subject": [name] * USERS,
                    "user_index": pl.Series(range(USERS), dtype=pl.Int32),
                    "user_id": [HOSTILE, *(f"u{user}" for user in range(1, USERS))],
                    "group": ["head"] * 40 + ["tail"] * 152 + ["new"] * 8,
                    "activity_group": pl.Series(
                        [19 - user * 20 // 192 for user in range(192)] + [None] * 8, dtype=pl.Int8
                    ),
                    "ndcg@10": values,
                    "auc": np.clip(values + 0.3, 0, 1),
                }
            )
        )
    return pl.concat(tables)


def compared(scored: pl.DataFrame, models: int) -> dict[str, object]:
    """What an evaluation of the first `models` models says of them, and of their differences to the first."""
    chosen = MODELS[:models]
    scored = scored.filter(pl.col("subject").is_in([model.name for model in chosen]))
    nothing = pl.DataFrame()
    found: dict[str, object] = dict.fromkeys(("comparison", "by_activity", "harm", "worst", "tail_minus_head"), nothing)
    found |= {"aggregate": aggregate(scored.rename({"auc": "gauc"})), "gains": {}}
    if models > 1:
        against = Comparison(scored, BASELINE, seed=0, resamples=200)
        found["comparison"] = against.table()
        found["by_activity"] = against.of_metric("ndcg@10").table(GROUP_NAMES[-ACTIVITY_GROUPS:])
        found["harm"], worst = against.harm(), against.worst_users()
        found["worst"] = worst.filter(pl.col("metric") == "ndcg@10")
        found["tail_minus_head"] = against.tail_minus_head().filter(pl.col("metric") == "ndcg@10")
        found["gains"] = {
            model.name: paired_differences(scored, model.name, BASELINE)["ndcg@10"].to_list() for model in chosen[1:]
        }
    return found


@cache
def compared_as_invented(models: int) -> dict[str, object]:
    """`compared` of `per_user`, which takes a second: most tests look at the same."""
    return compared(per_user(), models)


def part(users: pl.DataFrame | None = None, models: int = 3, **changes: object) -> EvaluationPart:
    """An evaluation of the first `models` models, compared with the first."""
    chosen = MODELS[:models]
    bins = [
        (name, at / 4, (at + 1) / 4, 100 if at else 3, (at + 0.5) / 4, at / 4)
        for name in (m.name for m in chosen)
        for at in range(4)
    ]
    fields: dict[str, object] = {
        "ref": "evaluation@1",
        "id": "ef" * 32,
        "on": "test",
        "dataset": "dataset@1",
        "log": "clicks.csv, 2026-01-01 to 2026-02-01",
        "head_fraction": 0.2,
        "split": "global",
        "seed": 0,
        "events": 1234,
        "users": USERS,
        "users_without_auc": 0,
        "candidates": "all",
        "negatives": 100,
        "models": chosen,
        "baseline": chosen[0] if models > 1 else None,
        "control": False,
        "metrics": ["gauc", "ndcg@10"],
        "metric": "ndcg@10",
        "reliability": pl.DataFrame(
            bins, schema=["subject", "lower", "upper", "rows", "predicted", "observed"], orient="row"
        ),
    }
    fields |= compared_as_invented(models) if users is None else compared(users, models)
    return EvaluationPart(**(fields | changes))  # type: ignore[arg-type]


def page(*parts: EvaluationPart) -> Page:
    epochs = [{"epoch": at, "train_loss": 0.5 / at, "valid_loss": 0.25 + at / 8} for at in (1, 2, 3)]
    packages = {"python": "3.11.0"}
    steps = [
        Step(
            "dataset@1",
            "aa" * 32,
            "ingest",
            [("log:<b>.csv", "ab" * 32)],
            {"seed": 0, "label": HOSTILE},
            packages,
            f"dataset_1=$(dcclctl ingest '{HOSTILE}')",
        ),
        Step(
            "cloud@1",
            "ca" * 32,
            "train",
            [("dataset", "dataset@1")],
            {"seed": 0, "epochs": 3},
            packages,
            "cloud_1=$(dcclctl train)",
        ),
        Step(
            "evaluation@1",
            "ef" * 32,
            "evaluate",
            [("dataset", "dataset@1"), ("subject-00", "cloud@1")],
            {"k": [5, 10], "guard": False},
            packages,
            "evaluation_1=$(dcclctl evaluate)",
        ),
    ]
    return Page(
        evaluations=list(parts) or [part()],
        fits=[Fit("cloud@1", "din trained on cloud", epochs, 1, 0.375, 0.625)],
        rounds=[Round(1, "cloud@2", "patches@1", 192, 3000, 0.25)],
        steps=steps,
    )
