"""Lists of recommendations: the best items of every user at the start of the test period, and what one user's are made of."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from dcclctl.artifacts import Dataset
from dcclctl.devices.serving import Subject, serve
from dcclctl.errors import UsageError
from dcclctl.events.log import TEST, EventLog
from dcclctl.events.sampling import Ints
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import score

#: events of a user that are shown where the model says nothing of how many it reads
_SHOWN = 20
_BATCH = 256


@dataclass(frozen=True)
class WholeCatalogue:
    """Events that are ranked over all items."""

    events: Ints
    items: None = None


@dataclass(frozen=True)
class Explanation:
    """What is known about one user, and what each model would show.

    Attributes:
        user_id, group: who. events: the user's events before the test period.
        history: the last items that the model sees, newest first: item_id, name.
        test_items: ids of the items that the user interacted with in the test period.
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


def at_start_of_test(log: EventLog, users: Ints) -> tuple[EventLog, Ints]:
    """A row for each user whose history is all that came before the test period.

    It is the user's first event of the test period; a user without one gets a row of its own after its last event.

    Args:
        users: (U,) users with an event, ascending.

    Returns:
        The log, with added rows, and the rows (U,).
    """
    first = np.searchsorted(log.user, users)
    end = np.searchsorted(log.user, users, side="right")
    tested = np.flatnonzero(log.period == TEST)
    owners, at = np.unique(log.user[tested], return_index=True)
    first_test = np.full(log.n_users, -1)
    first_test[owners] = tested[at]
    moment: Ints = first_test[users]
    without = moment < 0
    moment[without] = end[without]
    places, last = end[without], end[without] - 1  # rows are inserted before the places

    def longer(values: npt.NDArray[Any], added: npt.NDArray[Any] | int) -> npt.NDArray[Any]:
        return np.insert(values, places, added)

    rows = moment + np.searchsorted(places, moment, "left")
    before = np.concatenate([[0], np.cumsum(log.label > 0)])  # positive events among the first n
    history_start = longer(log.history_start, log.history_start[last])
    history_end = longer(log.history_end, 0)
    # also what came at the moment of the first test event itself, where periods are cut on each user's own timeline
    history_end[rows] = history_start[rows] + before[moment] - before[first]
    log = replace(
        log,
        user=longer(log.user, log.user[last]),
        item=longer(log.item, log.item[last]),
        label=longer(log.label, 0),
        period=longer(log.period, log.period[last]),
        share=longer(log.share, log.share[last]),
        history_start=history_start,
        history_end=history_end,
    )
    return log, rows


def find_user(dataset: Dataset, user_id: str) -> int:
    """Dense number of a user.

    Raises:
        UsageError: no such user.
    """
    found = dataset.users.filter(pl.col("user_id") == user_id)
    if found.is_empty():
        shown = ", ".join(dataset.users["user_id"][:5])
        raise UsageError(f"{dataset.ref} has no user {user_id!r}", f"Its users are {shown}, …")
    return int(found["user_index"][0])


def recommend(
    subject: Subject, users: Ints, k: int, device: torch.device, unpatched: str = "cloud", seed: int = 0
) -> pl.DataFrame:
    """The best k items of some users, ranked over all items that a user may be shown.

    Args:
        users: (U,) dense numbers, ascending. unpatched, seed: see serving.serve.

    Returns:
        user_id, rank from 1, item_id, name, logit, served_by; a user's best item first.
    """
    dataset = subject.cloud.dataset
    log, rows = at_start_of_test(dataset.log, users)
    backbone = open_backbone(subject.cloud, device, log)
    served = serve(subject, backbone, unpatched, seed)
    user_of = dict(zip(rows.tolist(), users.tolist(), strict=True))
    parts = []
    for batch, (logits,) in score(backbone, [served.head], rows, WholeCatalogue, log.n_items, _BATCH):
        values = logits.numpy().astype(np.float64)
        values[~_allowed(dataset, log.user[batch.events])] = -np.inf
        best = np.argsort(-values, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(values, best, axis=1)
        row, place = np.nonzero(np.isfinite(scores))
        parts.append(
            pl.DataFrame(
                {
                    "user_index": [user_of[int(event)] for event in batch.events[row]],
                    "rank": place + 1,
                    "item_index": best[row, place].astype(np.int32),
                    "logit": scores[row, place],
                }
            )
        )
    found = pl.concat(parts).sort("user_index", "rank")
    by = served.by[found["user_index"].to_numpy()]
    return (
        found.with_columns(pl.Series("served_by", by), pl.col("user_index").cast(pl.Int32))
        .join(dataset.users.select("user_index", "user_id"), on="user_index", how="left", maintain_order="left")
        .join(dataset.items.select("item_index", "item_id", "name"), on="item_index", how="left", maintain_order="left")
        .select("user_id", "rank", "item_id", "name", "logit", "served_by")
    )


def explain(
    subject: Subject, user_id: str, top: int, device: torch.device, unpatched: str = "cloud", seed: int = 0
) -> Explanation:
    """One user's lists: the cloud model's, and the subject's beside it.

    Raises:
        UsageError: no such user.
    """
    dataset = subject.cloud.dataset
    user = find_user(dataset, user_id)
    log, moment = at_start_of_test(dataset.log, np.array([user]))
    backbone = open_backbone(subject.cloud, device, log)
    served = serve(subject, backbone, unpatched, seed)
    with torch.no_grad():
        below = backbone.activations(moment, None)
        logits = {"cloud": backbone.head(moment, None, below)[0].cpu().numpy()}
        if subject.patches is not None or subject.suffix:
            logits["patched"] = served.head(moment, None, below)[0].cpu().numpy()
    allowed = _allowed(dataset, np.array([user]))[0]
    orders = {name: np.argsort(np.where(allowed, -values, np.inf), kind="stable") for name, values in logits.items()}
    cloud_place = np.empty(log.n_items, dtype=np.int64)
    cloud_place[orders["cloud"]] = np.arange(1, log.n_items + 1)
    names = dataset.items.select("item_index", "item_id", "name")
    shown = min(top, int(allowed.sum()))
    history, mask = log.histories(moment, subject.cloud.history or _SHOWN)
    mine = dataset.log.events_of(user)
    later = mine[dataset.log.period[mine] == TEST]
    return Explanation(
        user_id=user_id,
        group=dataset.users["group"][user],
        events=len(mine) - len(later),
        history=names[history[0][mask[0]].numpy()].drop("item_index"),
        test_items=[names["item_id"][int(item)] for item in dataset.log.item[later[dataset.log.label[later] > 0]]],
        rankings={name: _ranking(order[:shown], logits[name], cloud_place, names) for name, order in orders.items()},
        served_by={name: "cloud" if name == "cloud" else str(served.by[user]) for name in logits},
    )


def _allowed(dataset: Dataset, users: Ints) -> npt.NDArray[np.bool_]:
    """(B, I) may the item be shown to the user? In a log without repeats not what the user has before the test period."""
    log: EventLog = dataset.log
    allowed = np.ones((len(users), log.n_items), dtype=bool)
    if not log.repeats:
        for row, user in enumerate(users):
            mine = log.events_of(int(user))
            allowed[row, log.item[mine[(log.period[mine] < TEST) & (log.label[mine] > 0)]]] = False
    return allowed


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
