"""Every table that crosses a stage: columns, types, meaning, units.

A column is (polars type name, meaning). Extra columns are named by pattern where stated.
"""

from typing import Final

GROUPS: Final = ("head", "tail", "new")
ACTIVITY_GROUPS: Final = 20

#: One row an event that was kept, sorted by (user_index, time_us, order in the log).
EVENTS: Final = {
    "user_index": ("Int32", "dense user number, row of `users`"),
    "item_index": ("Int32", "dense item number, row of `items`"),
    "time_us": ("Int64", "microseconds since 1970 UTC; in an ordinal log the order number"),
    "label": ("Int8", "1 positive, 0 negative (observed labels only; an implicit log has 1 everywhere)"),
    "period": ("Int8", "0 cloud, 1 device, 2 valid, 3 test"),
}

#: One row a user, sorted by user_index. Plus `profile_<column>` Int32: code in `vocabulary`, 0 = missing.
USERS: Final = {
    "user_index": ("Int32", "dense user number"),
    "user_id": ("String", "the id in the outside log, verbatim"),
    "events": ("Int32", "events in all periods"),
    "events_before_test": ("Int32", "events in cloud, device and valid"),
    "group": ("String", "head, tail, or new (no event before the test period)"),
    "activity_group": ("Int8", "0 least active … 19 most active, equal sizes; null for new users"),
}

#: One row an item, sorted by item_index.
ITEMS: Final = {
    "item_index": ("Int32", "dense item number"),
    "item_id": ("String", "the id in the outside log, verbatim"),
    "name": ("String", "a person's name for it; null where unknown"),
    "category_indices": (
        "List(Int32)",
        "codes in `vocabulary` (kind 'category'), all category columns together, from 0",
    ),
}

#: What the codes stand for. kind 'category': codes from 0 over all columns. kind 'profile': codes from 1 within a column.
VOCABULARY: Final = {
    "kind": ("String", "'category' or 'profile'"),
    "column": ("String", "column of the side table or log that the value came from"),
    "code": ("Int32", "code used in `items.category_indices` or `users.profile_<column>`"),
    "value": ("String", "the value, verbatim"),
}

#: Rows that were not kept.
REJECTS: Final = {
    "source": ("String", "file name"),
    "record": ("Int64", "record number in the file, from 1, the header not counted"),
    "byte_offset": ("Int64", "where the record starts; null where the format has no offsets"),
    "reason": ("String", "one of logs.rules.REASONS"),
    "raw": ("String", "the record's text, cut at 64 KiB"),
}

#: One row per (subject, user): the metrics of one scored model for one user. Plus one Float64 column a metric.
PER_USER: Final = {
    "subject": ("String", "reference of the scored artifact, e.g. cloud@3 or patches@1"),
    "user_index": ("Int32", "dense user number"),
    "user_id": ("String", "the id in the outside log"),
    "group": ("String", "head, tail or new"),
    "activity_group": ("Int8", "0 … 19; null for new users"),
    "events": ("Int32", "scored events of the user in the period"),
    "served_by": ("String", "patch, encoder or cloud"),
}

#: One row per (subject, group, metric).
AGGREGATE: Final = {
    "subject": ("String", "reference of the scored artifact"),
    "group": ("String", "all, head, tail, new, or activity-00 … activity-19"),
    "metric": ("String", "name of the metric, e.g. ndcg@10, gauc"),
    "value": ("Float64", "unweighted mean over the group's users; null where no user has a value"),
    "users": ("Int64", "users that the mean is over"),
}

#: One row per (subject but the baseline, group, metric): the paired comparison. Positive differences are not always good:
#: of log_loss less is better.
COMPARISON: Final = {
    "subject": ("String", "id-based name of the scored artifact, e.g. patches@3fa9c2d1"),
    "group": ("String", "all, head, tail or new"),
    "metric": ("String", "name of the metric"),
    "users": ("Int64", "users with a value on both sides; all figures of the row are over them"),
    "value": ("Float64", "mean of the subject; null without users"),
    "baseline": ("Float64", "mean of the baseline"),
    "difference": ("Float64", "value − baseline"),
    "low": ("Float64", "lower end of the 95 % bootstrap interval of the difference; null for fewer than 20 users"),
    "high": ("Float64", "its upper end"),
    "p_value": ("Float64", "two-sided, of this comparison alone"),
    "p_holm": ("Float64", "the same, corrected (Holm) for all metrics of the group"),
    "verdict": ("String", "better or worse where p_holm is at most 0.05, else inconclusive"),
    "users_to_settle": ("Int64", "users that would settle an inconclusive row, if the difference is as it looks now"),
}

#: One row per (subject but the baseline, metric): does it do more for tail users than for head users? Of log_loss less
#: is better here too.
TAIL_MINUS_HEAD: Final = {
    "subject": ("String", "id-based name of the scored artifact"),
    "metric": ("String", "name of the metric"),
    "users": ("Int64", "tail and head users with a value on both sides"),
    "difference": (
        "Float64",
        "mean difference of the tail to the baseline − that of the head; null if either has no user",
    ),
    "low": ("Float64", "lower end of its 95 % bootstrap interval; null where either group has fewer than 20 users"),
    "high": ("Float64", "its upper end"),
    "p_value": ("Float64", "two-sided, of this comparison alone"),
    "p_holm": ("Float64", "the same, corrected (Holm) for all metrics"),
    "verdict": (
        "String",
        "tail or head: whom it favours (more gain, less loss), where p_holm is at most 0.05; else inconclusive",
    ),
}

#: One row per (K of --first-events, subject, metric): new users served with their first K events.
FIRST_EVENTS: Final = {
    "first_events": ("Int32", "K: events in every history"),
    "subject": ("String", "id-based name of the scored artifact"),
    "metric": ("String", "name of the metric"),
    "value": ("Float64", "unweighted mean over the new users"),
    "users": ("Int64", "users that the mean is over"),
    "difference": ("Float64", "value − the baseline's at the same K, paired by user; null of the baseline itself"),
    "low": ("Float64", "lower end of its 95 % bootstrap interval"),
    "high": ("Float64", "its upper end"),
    "verdict": ("String", "better, worse or inconclusive, see COMPARISON"),
}

#: One row per (subject but the baseline, group, metric): whom the subject makes worse than the baseline.
HARM: Final = {
    "subject": ("String", "id-based name of the scored artifact"),
    "group": ("String", "all, head, tail or new"),
    "metric": ("String", "name of the metric"),
    "users": ("Int64", "users with a value on both sides"),
    "better": ("Float64", "share of them who gain"),
    "worse": ("Float64", "share of them who lose"),
    "unchanged": ("Float64", "share of them with the same value"),
    "harm_10": ("Float64", "of the users made worse, a tenth lose more than this (below 0); null without any"),
    "harm_50": ("Float64", "of the users made worse, half lose more than this (below 0)"),
}

#: At most 20 rows per (subject but the baseline, metric): the users who lose most, the hardest hit first.
WORST_USERS: Final = {
    "subject": ("String", "id-based name of the scored artifact"),
    "metric": ("String", "name of the metric"),
    "user_index": ("Int32", "dense user number"),
    "user_id": ("String", "the id in the outside log"),
    "group": ("String", "head, tail or new"),
    "activity_group": ("Int8", "0 … 19; null for new users"),
    "difference": ("Float64", "the user's value − baseline"),
}

#: One row per (rule of a gate, model that it is for). A drop is a change for the worse: of log_loss a rise.
GATE: Final = {
    "subject": ("String", "id-based name of the scored artifact"),
    "group": ("String", "the rule's group"),
    "metric": ("String", "the rule's metric, as it was measured"),
    "max_drop": ("String", "what the rule allows, as written: 1% (of the baseline) or 0.002"),
    "allowed": ("Float64", "the same in the metric's own units; null without users"),
    "users": ("Int64", "users with a value on both sides"),
    "baseline": ("Float64", "mean of the baseline over them"),
    "drop": ("Float64", "how much worse than the baseline; below 0: better"),
    "low": ("Float64", "lower end of the 95 % interval of the drop; null for fewer than 20 users"),
    "high": ("Float64", "its upper end"),
    "verdict": ("String", "fail, pass or inconclusive; see stages/gate.py"),
    "users_to_settle": ("Int64", "users that would settle an inconclusive row, if the drop is as it looks now"),
}

#: One row a patched user, sorted by user_index. θ̂ itself is row `row` of `theta` in the shard's safetensors file.
PATCHED_USERS: Final = {
    "user_index": ("Int32", "dense user number"),
    "user_id": ("String", "the id in the outside log"),
    "shard": ("Int32", "number of the shard file that holds θ̂"),
    "row": ("Int32", "row of θ̂ within the shard"),
    "events": ("Int32", "local events that the patch learned from"),
    "loss_before": (
        "Float64",
        "mean loss of the cloud model on the held-back events, nats; null without held-back events",
    ),
    "loss_after": ("Float64", "mean loss of the patch learned without them on the same events, nats"),
    "kept": ("Boolean", "false where the guard switched the patch off (θ̂ is zero)"),
}
