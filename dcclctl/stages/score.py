"""`score`: explain one user — the cloud model's ranking and the patched one, side by side."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from dcclctl.algorithm.eventlog import TEST, EventLog
from dcclctl.algorithm.sampling import Ints
from dcclctl.config import EvaluateConfig
from dcclctl.errors import DataError, UsageError
from dcclctl.stages.compute import settle
from dcclctl.stages.handles import Dataset
from dcclctl.stages.serve import Subject, serve


@dataclass(frozen=True)
class Explanation:
    """What is known about one user, and what each model would show.

    Attributes:
        user_id, group: who. events: the user's events before the test period.
        history: the last items that the model sees, newest first: item_id, name.
        test_items: ids of what the user really took in the test period.
        rankings: model → table rank, item_id, name, logit, cloud_rank; best first.
        served_by: model → one of tables.SERVED_BY.
    """

    user_id: str
    group: str
    events: int
    history: pl.DataFrame
    test_items: list[str]
    rankings: dict[str, pl.DataFrame]
    served_by: dict[str, str]


def find_user(dataset: Dataset, user_id: str) -> int:
    """Dense number of a user.

    Raises:
        UsageError: no such user.
    """
    found = dataset.users.filter(pl.col("user_id") == user_id)
    if found.is_empty():
        shown = ", ".join(dataset.users["user_id"][:5])
        raise UsageError(f"{dataset.artifact.ref} has no user {user_id!r}", f"Its users are {shown}, …")
    return int(found["user_index"][0])


def score_user(subject: Subject, user_id: str, top: int, config: EvaluateConfig) -> Explanation:
    """Rank the catalogue for one user as of the start of the test period.

    Args:
        subject: a cloud model or patches.
        user_id: the outside id.
        top: items per ranking.
        config: unpatched, device and threads are used.

    Raises:
        UsageError: no such user. DataError: the user has no event in any period.
    """
    config = settle(config)
    dataset, log = subject.cloud.dataset, subject.cloud.dataset.log
    user = find_user(dataset, user_id)
    mine = np.flatnonzero(log.user == user)
    if not len(mine):
        raise DataError(f"user {user_id!r} has no events", "Choose another user.")
    past, later = mine[log.period[mine] < TEST], mine[log.period[mine] == TEST]
    # The history at the start of the test period: at its first event, or, without one, after the user's last event.
    moment = later[:1]
    if not len(later):
        log, moment = after_everything(log, int(past[-1]))
    seen = np.unique(log.item[past[log.label[past] > 0]])
    backbone = subject.cloud.backbone(config, log)
    head, served = serve(subject, config, backbone)
    with torch.no_grad():
        below = backbone.activations(moment, None)
        logits = {"cloud": backbone.head(moment, None, below)[0].cpu().numpy()}
        if subject.patches is not None or subject.everyone_by_encoder:
            logits["patched"] = head(moment, None, below)[0].cpu().numpy()
    allowed = np.ones(log.n_items, dtype=bool)
    if dataset.repeats == "first":
        allowed[seen] = False
    names = dataset.items.select("item_index", "item_id", "name")
    places = {}
    for name, values in logits.items():
        order = np.argsort(np.where(allowed, -values, np.inf), kind="stable")
        place = np.empty(log.n_items, dtype=np.int64)
        place[order] = np.arange(1, log.n_items + 1)
        places[name] = (order[: min(top, int(allowed.sum()))], place)
    rankings = {name: _ranking(order, logits[name], places["cloud"][1], names) for name, (order, _) in places.items()}
    history, mask = log.histories(moment, subject.cloud.history)
    about = dataset.users.row(user, named=True)
    return Explanation(
        user_id=user_id,
        group=about["group"],
        events=len(past),
        history=names[history[0][mask[0]].numpy()].drop("item_index"),
        test_items=[names["item_id"][int(item)] for item in log.item[later[log.label[later] > 0]]],
        rankings=rankings,
        served_by={name: "cloud" if name == "cloud" else str(served[user]) for name in logits},
    )


def after_everything(log: EventLog, last: int) -> tuple[EventLog, Ints]:
    """A log with one more row, a moment after the user's last event `last` at which nothing was had; and that row's number."""
    at = last + 1
    seen = int((log.label[log.user == log.user[last]] > 0).sum())
    longer = replace(
        log,
        user=np.insert(log.user, at, log.user[last]),
        item=np.insert(log.item, at, log.item[last]),
        label=np.insert(log.label, at, 0),
        period=np.insert(log.period, at, log.period[last]),
        share=np.insert(log.share, at, log.share[last]),
        history_start=np.insert(log.history_start, at, log.history_start[last]),
        history_end=np.insert(log.history_end, at, log.history_start[last] + seen),
    )
    return longer, np.array([at])


def _ranking(order: Ints, logits: npt.NDArray[np.float32], cloud_place: Ints, names: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "rank": np.arange(1, len(order) + 1),
            "item_id": names["item_id"].gather(order),
            "name": names["name"].gather(order),
            "logit": logits[order].astype(np.float64),
            "cloud_rank": cloud_place[order],
        }
    )
