"""From logits to metrics per user."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from jaxtyping import Float

from dcclctl.artifacts import Dataset
from dcclctl.evaluation.candidates import Batch, Candidates
from dcclctl.events.sampling import NO_ITEM, Ints
from dcclctl.metrics.beyond import exposure
from dcclctl.metrics.calibration import Reliability
from dcclctl.metrics.metric import METRICS, RankMetric
from dcclctl.metrics.ranking import ranks


@dataclass
class Scores:
    """What scoring one model leaves: ranks of positive events, and figures of each user's scored rows.

    Rows are kept until `reduce`, which turns those of whole users into figures, so that memory does not grow with events.

    Attributes:
        candidates: what is scored.
        events, ranks, rivals: (P,) of each positive event: row of the log, rank, and number of items it was ranked among.
        row_users, row_labels, row_logits: of each scored row since the last `reduce`.
        row_metrics: for each metric of rows its values, table by table. bins: of calibration.
        shown: (I,) how often each item is among the best of a positive event; None where candidates are sampled.
    """

    candidates: Candidates
    events: list[Ints] = field(default_factory=list)
    ranks: list[npt.NDArray[np.float64]] = field(default_factory=list)
    rivals: list[Ints] = field(default_factory=list)
    row_users: list[Ints] = field(default_factory=list)
    row_labels: list[npt.NDArray[np.int8]] = field(default_factory=list)
    row_logits: list[npt.NDArray[np.float32]] = field(default_factory=list)
    row_metrics: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    bins: Reliability = field(default_factory=Reliability)
    shown: Ints | None = None

    def add(self, batch: Batch, logits: Float[np.ndarray, "B C"]) -> None:
        """Take ranks and rows from one batch. Overwrites `logits`."""
        log, config = self.candidates.log, self.candidates.config
        events, own = batch.events, batch.own_logits(logits)
        self._add_rows(events, own, batch.negative_logits(logits), batch.negatives != NO_ITEM)
        others, items, rivals = batch.rival_logits(logits), log.item[events], batch.rivals
        positive = log.label[events] > 0
        if not positive.all():
            events, own, others, items, rivals = (each[positive] for each in (events, own, others, items, rivals))
        if batch.items is None:
            best = exposure(_top_lists(others, items, own, max(config.k)), log.n_items)
            self.shown = best if self.shown is None else self.shown + best
        self.events.append(events)
        self.ranks.append(ranks(own, others))
        self.rivals.append(rivals)

    def _add_rows(
        self,
        events: Ints,
        own: Float[np.ndarray, "B"],
        negatives: Float[np.ndarray, "B N"],
        there: npt.NDArray[np.bool_],
    ) -> None:
        """Rows for AUC: observed labels as they are; else each event's own item against its negatives."""
        log = self.candidates.log
        if self.candidates.observed:
            negatives, there = negatives[:, :0], there[:, :0]
        scores = np.concatenate([own[:, None], negatives], axis=1)
        counted = np.concatenate([np.ones((len(events), 1), dtype=bool), there], axis=1)
        labels = np.zeros(scores.shape, dtype=np.int8)
        labels[:, 0] = log.label[events]
        self.row_users.append(np.repeat(log.user[events], counted.sum(1)))
        self.row_labels.append(labels[counted])
        self.row_logits.append(scores[counted])

    def reduce(self) -> None:
        """Turn the rows into figures of their users; all rows of these users must have been added."""
        users, labels, logits = (np.concatenate(part) for part in (self.row_users, self.row_labels, self.row_logits))
        for name, metric in METRICS.items():
            if not isinstance(metric, RankMetric):
                self.row_metrics.setdefault(name, []).append(metric.of(users, labels, logits))
        self.bins.add(logits, labels)
        for part in (self.row_users, self.row_labels, self.row_logits):
            part.clear()

    def per_user(self, dataset: Dataset, name: str, served: npt.NDArray[np.character]) -> pl.DataFrame:
        """One row per user with a scored event; metrics are means over the user's events, AUC over the user's rows.

        A positive event without any other candidate has no rank, and counts in no ranking metric.

        Args:
            name: of the model. served: (U,) what serves each user.

        Returns:
            A PER_USER table, see tables.py.
        """
        log, config, sampled = self.candidates.log, self.candidates.config, self.candidates.sampled
        events, rank, rivals = np.concatenate(self.events), np.concatenate(self.ranks), np.concatenate(self.rivals)
        order = np.argsort(events)  # sums of floats in one order, whatever the batches were
        order = order[rivals[order] > 0]
        events, rank = events[order], rank[order]
        scored = np.bincount(log.user[self.candidates.events], minlength=log.n_users)
        users = np.flatnonzero(scored)
        scored = scored[users]
        queries = np.bincount(log.user[events], minlength=log.n_users)[users]

        def mean(values: npt.NDArray[np.float64]) -> pl.Series:
            sums = np.bincount(log.user[events], weights=values, minlength=log.n_users)[users]
            means = np.divide(sums, queries, out=np.full(len(users), np.nan), where=queries > 0)
            return pl.Series(means).fill_nan(None)

        suffix = f"/{sampled}" if sampled else ""
        columns: dict[str, pl.Series] = {}
        for metric, each in METRICS.items():
            if not isinstance(each, RankMetric):
                own = pl.DataFrame({"user_index": users.astype(np.int32)}).join(
                    pl.concat(self.row_metrics[metric]), on="user_index", how="left", maintain_order="left"
                )
                columns[metric] = own.drop("user_index").to_series()
            elif each.at_k:
                columns |= {f"{metric}@{k}{suffix}": mean(each.of(rank, k)) for k in config.k}
            else:
                columns[f"{metric}{suffix}"] = mean(each.of(rank))
        about = dataset.users.select("user_index", "user_id", "group", "activity_group")
        table = about.filter(pl.Series(np.isin(about["user_index"].to_numpy(), users)))
        return table.with_columns(
            pl.Series("events", scored.astype(np.int32)),
            pl.Series("served_by", served[users]),
            *(values.alias(metric) for metric, values in columns.items()),
        ).select(pl.lit(name).alias("subject"), pl.all())

    def few_candidates(self) -> tuple[int, int]:
        """Positive events that were ranked among nothing, and among fewer items than the largest cut-off."""
        rivals = np.concatenate(self.rivals)
        return int((rivals == 0).sum()), int((rivals < max(self.candidates.config.k)).sum())


def whole_users(users: Ints, most: int) -> Iterator[slice]:
    """Slices of `users` (E,), ascending, of at most `most` events each, or of one user with more."""
    begin = 0
    while begin < len(users):
        end = begin + most
        if end < len(users):
            end = int(np.searchsorted(users, users[end]))  # where the user that would be cut begins
            if end <= begin:
                end = int(np.searchsorted(users, users[begin], side="right"))
        yield slice(begin, end)
        begin = end


def _top_lists(others: Float[np.ndarray, "B I"], own: Ints, own_logits: Float[np.ndarray, "B"], top: int) -> Ints:
    """(B, K) the best items of each event, the own one among them where it is one of the best; −1 for none."""
    # twice as fast as numpy's argpartition
    edge, best = (each.numpy() for each in torch.from_numpy(others).topk(min(top, others.shape[1]), sorted=False))
    best = np.where(np.isfinite(edge), best, -1)
    # the own item is not among the others: it enters the list where it beats the last of them
    worst = edge.argmin(axis=1)
    enters = own_logits > edge[np.arange(len(best)), worst]
    best[np.flatnonzero(enters), worst[enters]] = own[enters]
    return best
