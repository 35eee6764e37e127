"""Every table that crosses a stage: columns, types, meaning, units. The store checks each where it is written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import polars as pl

GROUPS: Final = ("head", "tail", "new")
ACTIVITY_GROUPS: Final = 20
MAIN_GROUPS: Final = ("all", *GROUPS)
#: Every group of users that a metric is given for.
GROUP_NAMES: Final = (*MAIN_GROUPS, *(f"activity-{number:02d}" for number in range(ACTIVITY_GROUPS)))
#: What serves a user: the user's patch, the memory on the device, the encoder's patch U(0, u), or the cloud model alone.
SERVED_BY: Final = ("patch", "memory", "encoder", "cloud")
#: Results of a comparison with the baseline.
VERDICTS: Final = ("better", "worse", "inconclusive")


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        type: name of the polars type, e.g. 'Int32' or 'List(Int32)'.
        meaning: what it holds, with its unit.
        nulls: whether values may be missing. NaN and infinity are never allowed.
        values: the allowed values; empty: any.
    """

    type: str
    meaning: str
    nulls: bool = False
    values: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Columns of a table: fixed ones in their order, then any number whose names match a pattern.

    Attributes:
        columns: name → column, all of them required.
        more: regular expression of the whole name → column; any number may follow.
    """

    columns: Mapping[str, Column]
    more: Mapping[str, Column] = field(default_factory=dict)

    def schema(self) -> "dict[str, pl.DataType | type[pl.DataType]]":
        """Polars schema of the fixed columns."""
        return {name: polars_type(column.type) for name, column in self.columns.items()}

    def check(self, name: str, table: "pl.DataFrame") -> None:
        """Refuse a frame that does not have these columns.

        Raises:
            ValueError: which column of `name` is wrong, and how. It is an error of the program, not of its user.
        """
        fixed = table.columns[: len(self.columns)]
        if fixed != list(self.columns):
            raise ValueError(f"{name} has the columns {table.columns}, but starts with {list(self.columns)}")
        for column in table.columns:
            known = self.columns.get(column) or next(
                (more for pattern, more in self.more.items() if re.fullmatch(pattern, column)), None
            )
            wrong = "is not in its schema" if known is None else _wrong(table[column], known)
            if wrong:
                raise ValueError(f"{name}: column {column!r} {wrong}")


def _wrong(values: "pl.Series", column: Column) -> str:
    """What is wrong with the values of a column; empty if nothing is."""
    if str(values.dtype) != column.type:
        return f"is {values.dtype}, not {column.type}"
    if values.null_count() and not column.nulls:
        return f"has {values.null_count()} nulls, but needs a value in every row"
    if column.type.startswith("Float") and not values.is_finite().all():
        return "has NaN or infinity"
    if column.values:
        unknown = [value for value in values.unique().drop_nulls().to_list() if value not in column.values]
        if unknown:
            return f"has {min(unknown)!r}, which is none of {', '.join(map(str, column.values))}"
    return ""


def polars_type(name: str) -> "pl.DataType | type[pl.DataType]":
    """The polars type of a name: 'Int32', 'List(Int32)'."""
    import polars as pl

    inner = name.removeprefix("List(").removesuffix(")")
    found: Any = getattr(pl, inner)
    return pl.List(found) if inner != name else found


def _float(meaning: str) -> Column:
    """A figure that may be missing."""
    return Column("Float64", meaning, nulls=True)


# Columns that several tables have.
_USER_INDEX: Final = Column("Int32", "dense user number, from 0")
_USER_ID: Final = Column("String", "the user's id as the log has it")
_GROUP: Final = Column("String", "head, tail, or new (no event before the test period)", values=GROUPS)
_ACTIVITY_GROUP: Final = Column(
    "Int8",
    "from 0 (least active) to 19 (most active), groups of equal size; null for new users",
    nulls=True,
    values=tuple(range(ACTIVITY_GROUPS)),
)
_SUBJECT: Final = Column("String", "name of the scored artifact, made of its id, e.g. patches@3fa9c2d1")
_MAIN_GROUP: Final = Column("String", "all, head, tail or new", values=MAIN_GROUPS)
_METRIC: Final = Column("String", "name of the metric, e.g. ndcg@10 or gauc")
_USERS: Final = Column("Int64", "users with a value from both models; every figure of the row is over them")
_HIGH: Final = _float("upper end of the interval")
_P_VALUE: Final = _float("two-sided p-value of this comparison alone")
_VERDICT: Final = Column("String", "better or worse where p_holm is at most 0.05, else inconclusive", values=VERDICTS)

#: One row an event that was kept, sorted by (user_index, time_us, order in the log).
EVENTS: Final = Table(
    {
        "user_index": Column("Int32", "dense user number, row of `users`"),
        "item_index": Column("Int32", "dense item number, row of `items`"),
        "time_us": Column("Int64", "microseconds since 1970 UTC; in an ordinal log the order number"),
        "label": Column("Int8", "1 positive, 0 negative; 1 everywhere in a log without labels", values=(0, 1)),
        "period": Column("Int8", "0 cloud, 1 device, 2 valid, 3 test", values=(0, 1, 2, 3)),
        "share": Column(
            "Float64",
            "share of the period's events at an earlier time, of all users in a global split, else of the same user",
        ),
    }
)

#: One row for each item and period in which it has an event, sorted by both: what one part of the users cannot tell.
ITEM_PERIODS: Final = Table(
    {
        "item_index": Column("Int32", "dense item number, from 0"),
        "period": Column("Int8", "0 cloud, 1 device, 2 valid, 3 test", values=(0, 1, 2, 3)),
        "first_share": Column("Float64", "smallest `share` of the item's events in the period"),
        "positives": Column("Int64", "positive events"),
    }
)

#: One row a user, sorted by user_index.
USERS: Final = Table(
    {
        "user_index": _USER_INDEX,
        "user_id": _USER_ID,
        "events": Column("Int32", "events in all periods"),
        "events_before_test": Column("Int32", "events in cloud, device and valid"),
        "group": _GROUP,
        "activity_group": _ACTIVITY_GROUP,
    },
    more={r"profile_.+": Column("Int32", "code in `vocabulary`; 0: missing")},
)

#: One row an item, sorted by item_index.
ITEMS: Final = Table(
    {
        "item_index": Column("Int32", "dense item number, from 0"),
        "item_id": Column("String", "the item's id as the log has it"),
        "name": Column("String", "the item's name for people; null where unknown", nulls=True),
        "category_indices": Column("List(Int32)", "codes in `vocabulary` (kind 'category') of all category columns"),
    }
)

#: What the codes mean. Codes of kind 'category' count from 0 over all columns, those of 'profile' from 1 in each column.
VOCABULARY: Final = Table(
    {
        "kind": Column("String", "'category' or 'profile'", values=("category", "profile")),
        "column": Column("String", "column of the side table or log that the value came from"),
        "code": Column("Int32", "code in `items.category_indices` or `users.profile_<column>`"),
        "value": Column("String", "the value as the file has it"),
    }
)

#: One row a rejected record of a log or side table.
REJECTS: Final = Table(
    {
        "source": Column("String", "file name"),
        "record": Column("Int64", "record number in the file, from 1; the header is not counted"),
        "byte_offset": Column("Int64", "where the record starts; null where the format has no offsets", nulls=True),
        "reason": Column("String", "one of logs.rules.REASONS"),
        "raw": Column("String", "the record's text, cut at 64 KiB"),
    }
)

#: One row per (subject, user): the metrics of one scored model for one user.
PER_USER: Final = Table(
    {
        "subject": _SUBJECT,
        "user_index": _USER_INDEX,
        "user_id": _USER_ID,
        "group": _GROUP,
        "activity_group": _ACTIVITY_GROUP,
        "events": Column("Int32", "scored events of the user in the period"),
        "served_by": Column("String", "what served the user at one event at least; cloud: at none", values=SERVED_BY),
    },
    more={r"[a-z_]+(@\d+)?(/\d+)?": _float("the user's value of the metric; null where the user has none")},
)

#: One row per (subject, group, metric).
AGGREGATE: Final = Table(
    {
        "subject": _SUBJECT,
        "group": Column("String", "all, head, tail, new, or activity-00 … activity-19", values=GROUP_NAMES),
        "metric": _METRIC,
        "value": _float("unweighted mean over the group's users; null where no user has a value"),
        "users": Column("Int64", "users with a value"),
    }
)

#: One row per (subject, group, metric, seed) of an evaluation over several seeds.
PER_SEED: Final = Table(
    {
        "subject": _SUBJECT,
        "group": _MAIN_GROUP,
        "metric": _METRIC,
        "seed": Column("Int64", "seed that the subject was trained with; a subject without seeds stands in every row"),
        "artifact": Column("String", "name of the artifact that was scored, e.g. patches@3fa9c2d1"),
        "value": _float("mean over the group's users"),
        "difference": _float(
            "value − baseline of the same seed, over the users whom both serve; null without a baseline"
        ),
    }
)

#: One row per (subject except the baseline, group, metric): the comparison paired by user. A positive difference is a
#: gain, except of log_loss, where lower is better.
COMPARISON: Final = Table(
    {
        "subject": _SUBJECT,
        "group": _MAIN_GROUP,
        "metric": _METRIC,
        "users": _USERS,
        "value": _float("mean of the subject; null without users"),
        "baseline": _float("mean of the baseline"),
        "difference": _float("value − baseline"),
        "low": _float(
            "lower end of the difference's 95 % bootstrap interval; null for too few users, see significance.compare"
        ),
        "high": _HIGH,
        "p_value": _P_VALUE,
        "p_holm": _float("p-value after Holm's correction for all metrics of the group"),
        "verdict": _VERDICT,
        "users_to_settle": Column(
            "Int64",
            "users that would settle an inconclusive row, if the difference is as large as measured",
            nulls=True,
        ),
    }
)

#: One row per (subject except the baseline, metric): does the subject do more for tail users than for head users?
TAIL_MINUS_HEAD: Final = Table(
    {
        "subject": _SUBJECT,
        "metric": _METRIC,
        "users": Column("Int64", "tail and head users with a value from both models"),
        "difference": _float("the tail's mean difference to the baseline − the head's; null if a group has no users"),
        "low": _float("lower end of its 95 % bootstrap interval; null if a group has fewer than 20 users"),
        "high": _HIGH,
        "p_value": _P_VALUE,
        "p_holm": _float("p-value after Holm's correction for all metrics"),
        "verdict": Column(
            "String",
            "the group that gains more or loses less, where p_holm is at most 0.05; else inconclusive",
            values=("tail", "head", "inconclusive"),
        ),
    }
)

#: One row per (subject except the baseline, group, metric): how many users the subject makes better and worse off.
HARM: Final = Table(
    {
        "subject": _SUBJECT,
        "group": _MAIN_GROUP,
        "metric": _METRIC,
        "users": _USERS,
        "better": _float("share of the users who gain"),
        "worse": _float("share of the users who lose"),
        "unchanged": _float("share of the users with the same value"),
        "harm_10": _float("of the users who lose, a tenth lose more than this (below 0); null without any"),
        "harm_50": _float("of the users who lose, half lose more than this (below 0)"),
    }
)

#: At most 20 rows per (subject except the baseline, metric): the users who lose most, the largest loss first.
WORST_USERS: Final = Table(
    {
        "subject": _SUBJECT,
        "metric": _METRIC,
        "user_index": _USER_INDEX,
        "user_id": _USER_ID,
        "group": _GROUP,
        "activity_group": _ACTIVITY_GROUP,
        "difference": Column("Float64", "the user's value − baseline"),
    }
)

#: One row per (rule of a gate, model it applies to). A drop is a change for the worse: of log_loss a rise.
GATE: Final = Table(
    {
        "subject": _SUBJECT,
        "group": Column("String", "the rule's group", values=GROUP_NAMES),
        "metric": Column("String", "the rule's metric, as it was measured"),
        "max_drop": Column("String", "the drop that the rule allows, as written: 1% (of the baseline) or 0.002"),
        "allowed": _float("the same in the metric's own units; null without users"),
        "users": _USERS,
        "baseline": _float("mean of the baseline over them"),
        "drop": _float("how much worse than the baseline; below 0: better"),
        "low": _float("lower end of the drop's 95 % interval; null for too few users"),
        "high": _HIGH,
        "verdict": Column("String", "see evaluation/gate.py", values=("fail", "pass", "inconclusive")),
        "users_to_settle": Column(
            "Int64", "users that would settle an inconclusive row, if the drop is as large as measured", nulls=True
        ),
    }
)

#: One row a patched user, sorted by user_index. The patch θ̂ is row `row` of `theta` in the shard's safetensors file.
PATCHED_USERS: Final = Table(
    {
        "user_index": _USER_INDEX,
        "user_id": _USER_ID,
        "shard": Column("Int32", "number of the shard file that holds θ̂"),
        "row": Column("Int32", "row of θ̂ within the shard"),
        "events": Column("Int32", "local events that the patch learned from"),
        "loss_before": _float("the cloud model's mean loss on the held-back events, nats; null without such events"),
        "loss_after": _float("mean loss on the same events with the patch that was learned without them, nats"),
        "kept": Column("Boolean", "false where the guard switched the patch off (θ̂ is zero)"),
    }
)

#: One row a user with a positive event so far, sorted by user_index: what the device remembers.
MEMORY: Final = Table(
    {
        "user_index": _USER_INDEX,
        "user_id": _USER_ID,
        "seen": Column("Int64", "positive events so far, including those that no longer fit into the memory"),
        "bytes": Column("Int32", "size of the memory on the device"),
        "items": Column("List(Int32)", "item numbers that the memory holds, newest first"),
    }
)

#: One row per (subject, bin of predicted probability): a reliability diagram.
RELIABILITY: Final = Table(
    {
        "subject": _SUBJECT,
        "lower": Column("Float64", "lower edge of the bin"),
        "upper": Column("Float64", "upper edge of the bin"),
        "rows": Column("Int64", "scored rows in the bin"),
        "predicted": _float("mean predicted probability of the rows; null without rows"),
        "observed": _float("share of positives among the rows; null without rows"),
    }
)

#: One row per trial of a tuning, in the order in which they were made.
TRIALS: Final = Table(
    {
        "variant": Column("String", "model or method"),
        "trial": Column("Int32", "number within the variant, from 0"),
        "state": Column(
            "String", "pruned: stopped early; diverged: a loss became NaN", values=("done", "pruned", "diverged")
        ),
        "value": _float("the metric on valid; null unless done"),
        "epochs": Column("Int32", "epochs trained; null where nothing is trained in epochs", nulls=True),
        "settings": Column("String", "the values that were tried, as JSON"),
        "artifact": Column("String", "what the trial made, e.g. cloud@3fa9c2d1; empty unless done"),
        "evaluation": Column("String", "its evaluation on valid; empty unless done"),
    }
)

#: One row per (user, rank): the items that a model would show, users in the order of the dataset, new ones last.
RECOMMENDATIONS: Final = Table(
    {
        "user_id": _USER_ID,
        "rank": Column(
            "Int32", "place in the user's list, from 1; of equal scores the smaller item number stands first"
        ),
        "item_id": Column("String", "the item's id as the log has it"),
        "name": Column("String", "the item's name for people; null where unknown", nulls=True),
        "score": Column("Float64", "the model's score; log-odds of a click where the model learned from clicks"),
        "served_by": Column("String", "what served the user", values=SERVED_BY),
    }
)

#: (kind of artifact, name of the file, * for a number) → its table. The store refuses every other table.
TABLES: Final[Mapping[tuple[str, str], Table]] = {
    ("dataset", "events.parquet"): EVENTS,
    ("dataset", "events-*.parquet"): EVENTS,
    ("dataset", "item_periods.parquet"): ITEM_PERIODS,
    ("dataset", "users.parquet"): USERS,
    ("dataset", "items.parquet"): ITEMS,
    ("dataset", "vocabulary.parquet"): VOCABULARY,
    ("dataset", "rejects.parquet"): REJECTS,
    ("memory", "memory.parquet"): MEMORY,
    ("patches", "users.parquet"): PATCHED_USERS,
    ("evaluation", "per_user.parquet"): PER_USER,
    ("evaluation", "scored-*.parquet"): PER_USER,
    ("evaluation", "aggregate.parquet"): AGGREGATE,
    ("evaluation", "reliability.parquet"): RELIABILITY,
    ("evaluation", "comparison.parquet"): COMPARISON,
    ("evaluation", "tail_minus_head.parquet"): TAIL_MINUS_HEAD,
    ("evaluation", "harm.parquet"): HARM,
    ("evaluation", "worst_users.parquet"): WORST_USERS,
    ("evaluation", "per_seed.parquet"): PER_SEED,
    ("tuning", "trials.parquet"): TRIALS,
    ("recommendations", "lists-*.parquet"): RECOMMENDATIONS,
    ("recommendations", "rejects.parquet"): REJECTS,
}


def is_known(kind: str, name: str) -> bool:
    """Is the file of an artifact a table that stands in `TABLES`?"""
    return (kind, re.sub(r"\d+", "*", name)) in TABLES


def check_table(kind: str, name: str, table: "pl.DataFrame") -> None:
    """Refuse a table that does not fit its description in `TABLES`.

    Args:
        kind: of the artifact, e.g. 'evaluation'. name: of the file, e.g. 'per_user.parquet'. table: its content.

    Raises:
        ValueError: there is no such table, or it does not fit. It is an error of the program, not of its user.
    """
    known = TABLES.get((kind, re.sub(r"\d+", "*", name)))
    if known is None:
        raise ValueError(f"{name} is no table of kind {kind}: describe it in tables.py first")
    known.check(f"{kind}'s {name}", table)
