"""Lists of recommendations: the best items of users at one moment, and what one user's list is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dcclctl.config import ScoreSettings
from dcclctl.devices.serving import Subject, serve
from dcclctl.events.log import TEST, EventLog
from dcclctl.events.sampling import Ints, ranges
from dcclctl.models.kind import open_backbone
from dcclctl.models.scoring import HeadFunction, score

Moment = Literal["test", "end"]

#: events of a user that are shown where the model says nothing of how many it reads
_SHOWN = 20
#: users ranked at once, at most; and their scores, about
_BATCH, _SCORES = 256, 1 << 23


#: with fewer candidates than this share of the items, only they are scored; the whole catalogue has a faster way
_FEW = 1 / 8


@dataclass(frozen=True)
class Ranked:
    """Events and the items that are ranked for them: the same for all, or None for the whole catalogue."""

    events: Ints
    items: Int[Tensor, "B C"] | None


@dataclass(frozen=True)
class ListRules:
    """Which items a list may hold.

    Attributes:
        top: items in a list, at most. as_of: the moment: the start of the test period, or after the last event.
        exclude_seen: leave out items of the user's events before the moment, positive or not.
        candidates: (I,) items that may be shown; None: all.
    """

    top: int
    as_of: Moment
    exclude_seen: bool
    candidates: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Explanation:
    """What is known about one user, and what each model would show.

    Attributes:
        user_id, group: who. events: the user's events before the moment.
        history: the last items that the model sees, newest first: item_id, name.
        test_items: ids of the items that the user interacted with after the moment.
        rankings: model → table rank, item_id, name, score, cloud_rank; best first.
        served_by: model → one of tables.SERVED_BY.
    """

    user_id: str
    group: str
    events: int
    history: pl.DataFrame
    test_items: list[str]
    rankings: dict[str, pl.DataFrame]
    served_by: dict[str, str]


def at_moment(log: EventLog, users: Ints, as_of: Moment) -> tuple[EventLog, Ints]:
    """Add a row for each user whose history is all that came before a moment.

    The row stands where an event of the user at that moment would stand, and is no event to learn from.

    Args:
        users: (U,) ascending; they need not have events.

    Returns:
        The log, with added rows, and the rows (U,).
    """
    first = np.searchsorted(log.user, users)
    if as_of == "end":
        place = np.searchsorted(log.user, users, side="right")
    else:  # each user's periods are in order of time
        place = np.searchsorted(log.user * (TEST + 1) + log.period, users * (TEST + 1) + TEST)
    positives = np.concatenate([[0], np.cumsum(log.label > 0)])  # among the first n events

    def longer(values: npt.NDArray[Any], added: npt.NDArray[Any] | int) -> npt.NDArray[Any]:
        return np.insert(values, place, added)

    log = replace(
        log,
        user=longer(log.user, users),
        item=longer(log.item, 0),
        label=longer(log.label, 0),
        period=longer(log.period, TEST),
        share=longer(log.share, 0),
        history_start=longer(log.history_start, positives[first]),
        # also what came at the moment of the next event itself, where periods are cut on each user's own timeline
        history_end=longer(log.history_end, positives[place]),
        place=None,
    )
    return log, place + np.arange(len(users))


def best_columns(scores: Float[Tensor, "B I"], k: int) -> Int[Tensor, "B K"]:
    """Columns of the k largest scores, the largest first; of equal scores the smaller column comes first.

    Which of the columns that score -inf come last is left open.
    """
    k = min(k, scores.shape[1])
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    columns = columns[:, :k]
    least = values[:, k - 1 : k]
    # topk takes any of the scores that are equal at the end of the list
    tied = (values[:, k:] == least).any(1) & torch.isfinite(least[:, 0])
    if tied.any():
        some, least = scores[tied], least[tied]
        above, equal = some > least, some == least
        kept = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        columns[tied] = kept.nonzero()[:, 1].view(-1, k)
    columns = columns.sort(dim=1).values
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def allowed_candidates(subject: Subject, rules: ListRules) -> npt.NDArray[np.bool_] | None:
    """(I,) items that a model's lists may hold; None: all."""
    if subject.bundle is None:
        return rules.candidates
    # a device cannot show what it does not hold
    shipped: npt.NDArray[np.bool_] = subject.bundle.users()["number"].numpy() >= 0
    return shipped if rules.candidates is None else shipped & rules.candidates


class Lister:
    """One model that makes lists for some users at one moment.

    Args:
        log: the users' events; it may have users that the model's dataset does not have, with numbers after its own.
        users: (U,) ascending.

    Attributes:
        log: the log with a row for every user at the moment. rows: (U,) these rows.
    """

    def __init__(
        self,
        subject: Subject,
        log: EventLog,
        users: Ints,
        rules: ListRules,
        device: torch.device,
        settings: ScoreSettings,
    ) -> None:
        self.subject = subject
        self.rules = rules = replace(rules, candidates=allowed_candidates(subject, rules))
        self.log, self.rows = at_moment(log, users, rules.as_of)
        self.backbone = open_backbone(subject.cloud, device, self.log)
        self.served = serve(subject, self.backbone, settings.unpatched, settings.seed)
        #: (C,) items that are scored, ascending; None: the whole catalogue
        self.items: Int[Tensor, "C"] | None = None
        if rules.candidates is not None and rules.candidates.mean() < _FEW:
            self.items = torch.from_numpy(np.flatnonzero(rules.candidates))

    def lists(self, users: slice, on_users: Callable[[int], None] = lambda done: None) -> pl.DataFrame:
        """The lists of some of the users.

        Args:
            users: places in `rows`. on_users: called with the number of those done.

        Returns:
            place, rank from 1, item_index, score, served_by; sorted by place and rank.
        """
        rows, parts, done = self.rows[users], [], 0
        batch_size = max(1, min(_BATCH, _SCORES // max(1, self.log.n_items)))
        for batch, (logits,) in self._scores([self.served.head], rows, batch_size):
            shown = logits.masked_fill(~self.allowed(batch.events), -torch.inf)
            best = best_columns(shown, self.rules.top)
            scores = shown.gather(1, best)
            row, place = (each.numpy() for each in torch.nonzero(torch.isfinite(scores), as_tuple=True))
            parts.append(
                pl.DataFrame(
                    {
                        "place": np.searchsorted(rows, batch.events[row]),
                        "rank": (place + 1).astype(np.int32),
                        "item_index": self._items_of(best)[row, place],
                        "score": scores.numpy()[row, place].astype(np.float64),
                        "served_by": self.served.by_event(self.log, batch.events)[row],
                    }
                )
            )
            done += len(batch.events)
            on_users(done)
        return pl.concat(parts).sort("place", "rank")

    def _scores(
        self, heads: list[HeadFunction], rows: Ints, at_once: int
    ) -> Iterator[tuple[Ranked, list[Float[Tensor, "B C"]]]]:
        """Scores of the items that are ranked, as scoring.score gives them."""

        def batch_of(events: Ints) -> Ranked:
            return Ranked(events, None if self.items is None else self.items.expand(len(events), -1))

        width = self.log.n_items if self.items is None else len(self.items)
        return score(self.backbone, heads, rows, batch_of, width, at_once)

    def _items_of(self, columns: Int[Tensor, "..."]) -> npt.NDArray[np.int32]:
        """The items of some columns of scores."""
        items = columns if self.items is None else self.items[columns]
        return items.numpy().astype(np.int32)

    def allowed(self, rows: Ints) -> Bool[Tensor, "B C"]:
        """Which of the scored items may stand in the lists of some rows."""
        allowed = np.ones((len(rows), self.log.n_items), dtype=bool)
        if self.rules.candidates is not None:
            allowed &= self.rules.candidates
        if self.rules.exclude_seen:
            first = np.searchsorted(self.log.user, self.log.user[rows])
            allowed[np.repeat(np.arange(len(rows)), rows - first), self.log.item[ranges(first, rows)]] = False
        found = torch.from_numpy(allowed)
        return found if self.items is None else found[:, self.items]

    def explain(self, users: pl.DataFrame) -> list[Explanation]:
        """What is known of each user, and the cloud model's list beside the subject's.

        Args:
            users: the lister's users: user_index, user_id, group.
        """
        heads = {"cloud": self.backbone.head}
        if self.subject.patches is not None or self.subject.suffix or self.subject.bundle is not None:
            heads["patched"] = self.served.head
        found = {}
        # one by one: a list is shown for few users, and their histories are of different lengths
        for row in self.rows:
            for _, logits in self._scores([*heads.values()], np.array([row]), _BATCH):
                found[int(row)] = dict(zip(heads, logits, strict=True))
        rows = zip(self.rows, users.iter_rows(named=True), strict=True)
        return [self._explanation(int(row), user, found[int(row)]) for row, user in rows]

    def _explanation(self, row: int, user: dict[str, Any], logits: dict[str, Float[Tensor, "one C"]]) -> Explanation:
        log, at = self.log, np.array([row])
        names = self.subject.cloud.dataset.items.select("item_index", "item_id", "name")
        limited = self.subject.cloud.history > 0
        history, mask = log.histories(at, int(self.backbone.items_read(at)[0]) if limited else _SHOWN)
        mine = log.events_of(int(log.user[row]))
        later = mine[mine > row]
        allowed = self.allowed(at)
        shown = {name: values.masked_fill(~allowed, -torch.inf)[0] for name, values in logits.items()}
        by = str(self.served.by_event(log, at)[0])
        return Explanation(
            user_id=user["user_id"],
            group=user["group"],
            events=len(mine) - len(later) - 1,
            history=names[history[0][mask[0]].numpy()].drop("item_index"),
            test_items=[names["item_id"][int(item)] for item in log.item[later[log.label[later] > 0]]],
            rankings={name: self._ranking(values, shown["cloud"], names) for name, values in shown.items()},
            served_by={name: "cloud" if name == "cloud" else by for name in logits},
        )

    def _ranking(self, scores: Float[Tensor, "C"], cloud: Float[Tensor, "C"], names: pl.DataFrame) -> pl.DataFrame:
        best = best_columns(scores.unsqueeze(0), self.rules.top)[0]
        best = best[torch.isfinite(scores[best])]
        own, columns = cloud[best].unsqueeze(1), torch.arange(len(cloud))
        items = self._items_of(best)
        earlier = (cloud > own) | ((cloud == own) & (columns < best.unsqueeze(1)))
        return pl.DataFrame(
            {
                "rank": np.arange(1, len(best) + 1),
                "item_id": names["item_id"].gather(items),
                "name": names["name"].gather(items),
                "score": scores[best].numpy().astype(np.float64),
                "cloud_rank": earlier.sum(1).numpy() + 1,
            }
        )
