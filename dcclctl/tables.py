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
#: What serves a user: the own patch, what the device remembers, the patch U(0, u), or the cloud model alone.
SERVED_BY: Final = ("patch", "memory", "encoder", "cloud")
#: What a comparison with the baseline can say.
VERDICTS: Final = ("better", "worse", "inconclusive")
_ACTIVITY: Final = tuple(range(ACTIVITY_GROUPS))


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        type: name of the polars type, e.g. 'Int32' or 'List(Int32)'.
        meaning: what it holds, with its unit.
        nulls: whether values may be missing. NaN and infinities never are a value.
        values: the only values that it may have; empty if it is open.
    """

    type: str
    meaning: str
    nulls: bool = False
    values: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Columns of a table, in their order, and after them those that are only known by a pattern.

    Attributes:
        columns: name → column; the table has all of them.
        more: regular expression of the whole name → column; the table may have any number of these.
    """

    columns: Mapping[str, Column]
    more: Mapping[str, Column] = field(default_factory=dict)

    def schema(self) -> "dict[str, pl.DataType | type[pl.DataType]]":
        """The fixed columns as polars takes them to make a frame."""
        return {name: polars_type(column.type) for name, column in self.columns.items()}

    def check(self, name: str, table: "pl.DataFrame") -> None:
        """Refuse a frame that does not fit.

        Args:
            name: the table's name, for the message.
            table: the frame.

        Raises:
            ValueError: which column is wrong, and how. It is a fault of the program, not of its user.
        """
        fixed = table.columns[: len(self.columns)]
        if fixed != list(self.columns):
            raise ValueError(f"{name} has the columns {table.columns}, but starts with {list(self.columns)}")
        for column in table.columns:
            known = self.columns.get(column) or self._by_pattern(column)
            wrong = "is not in its schema" if known is None else _wrong(table[column], known)
            if wrong:
                raise ValueError(f"{name}: column {column!r} {wrong}")

    def _by_pattern(self, name: str) -> Column | None:
        return next((column for pattern, column in self.more.items() if re.fullmatch(pattern, name)), None)


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


#: One row an event that was kept, sorted by (user_index, time_us, order in the log).
EVENTS: Final = Table(
    {
        "user_index": Column("Int32", "dense user number, row of `users`"),
        "item_index": Column("Int32", "dense item number, row of `items`"),
        "time_us": Column("Int64", "microseconds since 1970 UTC; in an ordinal log the order number"),
        "label": Column(
            "Int8", "1 positive, 0 negative (observed labels only; an implicit log has 1 everywhere)", values=(0, 1)
        ),
        "period": Column("Int8", "0 cloud, 1 device, 2 valid, 3 test", values=(0, 1, 2, 3)),
    }
)

#: One row a user, sorted by user_index.
USERS: Final = Table(
    {
        "user_index": Column("Int32", "dense user number"),
        "user_id": Column("String", "the id in the outside log, verbatim"),
        "events": Column("Int32", "events in all periods"),
        "events_before_test": Column("Int32", "events in cloud, device and valid"),
        "group": Column("String", "head, tail, or new (no event before the test period)", values=GROUPS),
        "activity_group": Column(
            "Int8", "0 least active … 19 most active, equal sizes; null for new users", nulls=True, values=_ACTIVITY
        ),
    },
    more={r"profile_.+": Column("Int32", "code in `vocabulary`; 0 = missing")},
)

#: One row an item, sorted by item_index.
ITEMS: Final = Table(
    {
        "item_index": Column("Int32", "dense item number"),
        "item_id": Column("String", "the id in the outside log, verbatim"),
        "name": Column("String", "a person's name for it; null where unknown", nulls=True),
        "category_indices": Column(
            "List(Int32)", "codes in `vocabulary` (kind 'category'), all category columns together, from 0"
        ),
    }
)

#: What the codes stand for. kind 'category': codes from 0 over all columns. kind 'profile': codes from 1 within a column.
VOCABULARY: Final = Table(
    {
        "kind": Column("String", "'category' or 'profile'", values=("category", "profile")),
        "column": Column("String", "column of the side table or log that the value came from"),
        "code": Column("Int32", "code used in `items.category_indices` or `users.profile_<column>`"),
        "value": Column("String", "the value, verbatim"),
    }
)

#: Rows that were not kept.
REJECTS: Final = Table(
    {
        "source": Column("String", "file name"),
        "record": Column("Int64", "record number in the file, from 1, the header not counted"),
        "byte_offset": Column("Int64", "where the record starts; null where the format has no offsets", nulls=True),
        "reason": Column("String", "one of logs.rules.REASONS"),
        "raw": Column("String", "the record's text, cut at 64 KiB"),
    }
)

#: One row per (subject, user): the metrics of one scored model for one user.
PER_USER: Final = Table(
    {
        "subject": Column("String", "reference of the scored artifact, e.g. cloud@3 or patches@1"),
        "user_index": Column("Int32", "dense user number"),
        "user_id": Column("String", "the id in the outside log"),
        "group": Column("String", "head, tail or new", values=GROUPS),
        "activity_group": Column("Int8", "0 … 19; null for new users", nulls=True, values=_ACTIVITY),
        "events": Column("Int32", "scored events of the user in the period"),
        "served_by": Column("String", "by what the user was served", values=SERVED_BY),
    },
    more={
        r"[a-z_]+(@\d+)?(/\d+)?": Column(
            "Float64", "the user's value of the metric; null where there is none", nulls=True
        )
    },
)

#: One row per (subject, group, metric).
AGGREGATE: Final = Table(
    {
        "subject": Column("String", "reference of the scored artifact"),
        "group": Column("String", "all, head, tail, new, or activity-00 … activity-19", values=GROUP_NAMES),
        "metric": Column("String", "name of the metric, e.g. ndcg@10, gauc"),
        "value": Column(
            "Float64", "unweighted mean over the group's users; null where no user has a value", nulls=True
        ),
        "users": Column("Int64", "users that the mean is over"),
    }
)

#: One row per (subject but the baseline, group, metric): the paired comparison. Positive differences are not always good:
#: of log_loss less is better.
COMPARISON: Final = Table(
    {
        "subject": Column("String", "id-based name of the scored artifact, e.g. patches@3fa9c2d1"),
        "group": Column("String", "all, head, tail or new", values=MAIN_GROUPS),
        "metric": Column("String", "name of the metric"),
        "users": Column("Int64", "users with a value on both sides; all figures of the row are over them"),
        "value": Column("Float64", "mean of the subject; null without users", nulls=True),
        "baseline": Column("Float64", "mean of the baseline", nulls=True),
        "difference": Column("Float64", "value − baseline", nulls=True),
        "low": Column(
            "Float64",
            "lower end of the 95 % bootstrap interval of the difference; null for fewer than 20 users",
            nulls=True,
        ),
        "high": Column("Float64", "its upper end", nulls=True),
        "p_value": Column("Float64", "two-sided, of this comparison alone", nulls=True),
        "p_holm": Column("Float64", "the same, corrected (Holm) for all metrics of the group", nulls=True),
        "verdict": Column("String", "better or worse where p_holm is at most 0.05, else inconclusive", values=VERDICTS),
        "users_to_settle": Column(
            "Int64", "users that would settle an inconclusive row, if the difference is as it looks now", nulls=True
        ),
    }
)

#: One row per (subject but the baseline, metric): does it do more for tail users than for head users? Of log_loss less
#: is better here too.
TAIL_MINUS_HEAD: Final = Table(
    {
        "subject": Column("String", "id-based name of the scored artifact"),
        "metric": Column("String", "name of the metric"),
        "users": Column("Int64", "tail and head users with a value on both sides"),
        "difference": Column(
            "Float64",
            "mean difference of the tail to the baseline − that of the head; null if either has no user",
            nulls=True,
        ),
        "low": Column(
            "Float64",
            "lower end of its 95 % bootstrap interval; null where either group has fewer than 20 users",
            nulls=True,
        ),
        "high": Column("Float64", "its upper end", nulls=True),
        "p_value": Column("Float64", "two-sided, of this comparison alone", nulls=True),
        "p_holm": Column("Float64", "the same, corrected (Holm) for all metrics", nulls=True),
        "verdict": Column(
            "String",
            "tail or head: whom it favours (more gain, less loss), where p_holm is at most 0.05; else inconclusive",
            values=("tail", "head", "inconclusive"),
        ),
    }
)

#: One row per (K of --first-events, subject, metric): new users served with their first K events.
FIRST_EVENTS: Final = Table(
    {
        "first_events": Column("Int32", "K: events in every history"),
        "subject": Column("String", "id-based name of the scored artifact"),
        "metric": Column("String", "name of the metric"),
        "value": Column("Float64", "unweighted mean over the new users", nulls=True),
        "users": Column("Int64", "users that the mean is over"),
        "difference": Column(
            "Float64", "value − the baseline's at the same K, paired by user; null of the baseline itself", nulls=True
        ),
        "low": Column("Float64", "lower end of its 95 % bootstrap interval", nulls=True),
        "high": Column("Float64", "its upper end", nulls=True),
        "verdict": Column("String", "better, worse or inconclusive, see COMPARISON", nulls=True, values=VERDICTS),
    }
)

#: One row per (subject but the baseline, group, metric): whom the subject makes worse than the baseline.
HARM: Final = Table(
    {
        "subject": Column("String", "id-based name of the scored artifact"),
        "group": Column("String", "all, head, tail or new", values=MAIN_GROUPS),
        "metric": Column("String", "name of the metric"),
        "users": Column("Int64", "users with a value on both sides"),
        "better": Column("Float64", "share of them who gain", nulls=True),
        "worse": Column("Float64", "share of them who lose", nulls=True),
        "unchanged": Column("Float64", "share of them with the same value", nulls=True),
        "harm_10": Column(
            "Float64", "of the users made worse, a tenth lose more than this (below 0); null without any", nulls=True
        ),
        "harm_50": Column("Float64", "of the users made worse, half lose more than this (below 0)", nulls=True),
    }
)

#: At most 20 rows per (subject but the baseline, metric): the users who lose most, the hardest hit first.
WORST_USERS: Final = Table(
    {
        "subject": Column("String", "id-based name of the scored artifact"),
        "metric": Column("String", "name of the metric"),
        "user_index": Column("Int32", "dense user number"),
        "user_id": Column("String", "the id in the outside log"),
        "group": Column("String", "head, tail or new", values=GROUPS),
        "activity_group": Column("Int8", "0 … 19; null for new users", nulls=True, values=_ACTIVITY),
        "difference": Column("Float64", "the user's value − baseline"),
    }
)

#: One row per (rule of a gate, model that it is for). A drop is a change for the worse: of log_loss a rise.
GATE: Final = Table(
    {
        "subject": Column("String", "id-based name of the scored artifact"),
        "group": Column("String", "the rule's group", values=GROUP_NAMES),
        "metric": Column("String", "the rule's metric, as it was measured"),
        "max_drop": Column("String", "what the rule allows, as written: 1% (of the baseline) or 0.002"),
        "allowed": Column("Float64", "the same in the metric's own units; null without users", nulls=True),
        "users": Column("Int64", "users with a value on both sides"),
        "baseline": Column("Float64", "mean of the baseline over them", nulls=True),
        "drop": Column("Float64", "how much worse than the baseline; below 0: better", nulls=True),
        "low": Column(
            "Float64", "lower end of the 95 % interval of the drop; null for fewer than 20 users", nulls=True
        ),
        "high": Column("Float64", "its upper end", nulls=True),
        "verdict": Column(
            "String", "fail, pass or inconclusive; see stages/gate.py", values=("fail", "pass", "inconclusive")
        ),
        "users_to_settle": Column(
            "Int64", "users that would settle an inconclusive row, if the drop is as it looks now", nulls=True
        ),
    }
)

#: One row a patched user, sorted by user_index. θ̂ itself is row `row` of `theta` in the shard's safetensors file.
PATCHED_USERS: Final = Table(
    {
        "user_index": Column("Int32", "dense user number"),
        "user_id": Column("String", "the id in the outside log"),
        "shard": Column("Int32", "number of the shard file that holds θ̂"),
        "row": Column("Int32", "row of θ̂ within the shard"),
        "events": Column("Int32", "local events that the patch learned from"),
        "loss_before": Column(
            "Float64",
            "mean loss of the cloud model on the held-back events, nats; null without held-back events",
            nulls=True,
        ),
        "loss_after": Column(
            "Float64", "mean loss of the patch learned without them on the same events, nats", nulls=True
        ),
        "kept": Column("Boolean", "false where the guard switched the patch off (θ̂ is zero)"),
    }
)

#: One row a user with an event by then, sorted by user_index: what the device remembers.
MEMORY: Final = Table(
    {
        "user_index": Column("Int32", "dense user number"),
        "user_id": Column("String", "the id in the outside log"),
        "seen": Column("Int64", "positive events up to the memory's moment, those that no longer fit included"),
        "bytes": Column("Int32", "bytes that the memory takes on the device"),
        "items": Column("List(Int32)", "item numbers that the memory holds, newest first"),
    }
)

#: One row per (subject, bin of predicted probability): a reliability diagram.
RELIABILITY: Final = Table(
    {
        "subject": Column("String", "id-based name of the scored artifact"),
        "lower": Column("Float64", "lower edge of the bin"),
        "upper": Column("Float64", "upper edge of the bin"),
        "rows": Column("Int64", "scored rows in the bin"),
        "predicted": Column("Float64", "mean predicted probability of the rows; null without any", nulls=True),
        "observed": Column("Float64", "share of positives among the rows; null without any", nulls=True),
    }
)

#: (kind of artifact, name of the file) → what is in it. The store writes no other table.
TABLES: Final[Mapping[tuple[str, str], Table]] = {
    ("dataset", "events.parquet"): EVENTS,
    ("dataset", "users.parquet"): USERS,
    ("dataset", "items.parquet"): ITEMS,
    ("dataset", "vocabulary.parquet"): VOCABULARY,
    ("dataset", "rejects.parquet"): REJECTS,
    ("memory", "memory.parquet"): MEMORY,
    ("patches", "users.parquet"): PATCHED_USERS,
    ("evaluation", "per_user.parquet"): PER_USER,
    ("evaluation", "aggregate.parquet"): AGGREGATE,
    ("evaluation", "reliability.parquet"): RELIABILITY,
    ("evaluation", "comparison.parquet"): COMPARISON,
    ("evaluation", "tail_minus_head.parquet"): TAIL_MINUS_HEAD,
    ("evaluation", "harm.parquet"): HARM,
    ("evaluation", "worst_users.parquet"): WORST_USERS,
}


def check_table(kind: str, name: str, table: "pl.DataFrame") -> None:
    """Refuse a table that is not what an artifact of this kind holds under this name.

    Args:
        kind: of the artifact, e.g. 'evaluation'.
        name: of the file, e.g. 'per_user.parquet'.
        table: its content.

    Raises:
        ValueError: there is no such table, or it does not fit; it is a fault of the program, not of its user.
    """
    if (kind, name) not in TABLES:
        raise ValueError(f"{name} is no table of kind {kind}: describe it in tables.py first")
    TABLES[kind, name].check(f"{kind}'s {name}", table)
