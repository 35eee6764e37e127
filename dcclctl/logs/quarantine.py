"""Collects the rejected records of all files, and refuses a file with too many of them."""

from collections import Counter

import polars as pl

from dcclctl.errors import DataError
from dcclctl.logs.batch import Batch, Flags, Reject
from dcclctl.logs.rules import REASONS, REMEDIES
from dcclctl.tables import REJECTS

EXAMPLES = 3
TOO_MANY_REJECTS = "Mend the log, or accept more rejects with --max-reject (a fraction, e.g. 0.05)."


class Quarantine:
    """The rejects of all files, in the order in which they are read."""

    def __init__(self) -> None:
        self._rejects: list[tuple[str, Reject]] = []
        self.counts: Counter[str] = Counter()
        self.by_source: Counter[str] = Counter()

    def add_batch(self, source: str, batch: Batch, refused: dict[str, Flags]) -> Flags | None:
        """Add the rejects of a batch, and the rows that the rules refuse.

        Args:
            source: file name. batch: the batch.
            refused: reason → rows of its frame; a row counts for the first reason that names it.

        Returns:
            Which rows of the frame are kept; None if all are.
        """
        kept: Flags | None = None
        rejects = list(batch.rejects)
        for reason, rows in refused.items():
            if not rows.any():
                continue
            fresh = rows if kept is None else rows & kept
            for row in fresh.nonzero()[0].tolist():
                offset, raw = batch.raw(row)
                rejects.append(Reject(int(batch.records[row]), offset, reason, raw))
            kept = ~fresh if kept is None else kept & ~fresh
        rejects.sort(key=lambda reject: reject.record)
        self._rejects += [(source, reject) for reject in rejects]
        self.counts.update(reject.reason for reject in rejects)
        self.by_source[source] += len(rejects)
        return kept

    def check(self, source: str, read: int, max_reject: float, remedy: str = TOO_MANY_REJECTS) -> None:
        """Refuse a file with too many rejects.

        Args:
            source: file name, or '' for all logs together.
            read: number of records in it. max_reject: largest share of rejects that is accepted.
            remedy: what to do where there are more.

        Raises:
            DataError: with counts by reason and the first examples.
        """
        mine = [(name, reject) for name, reject in self._rejects if not source or name == source]
        if len(mine) <= max_reject * read:
            return
        counts = Counter(reject.reason for _, reject in mine)
        reasons = "; ".join(f"{count} × {reason} ({REASONS[reason]})" for reason, count in counts.most_common())
        examples = "\n".join(
            f"{name}, record {reject.record}: {reject.reason}: {reject.raw[:100]}" for name, reject in mine[:EXAMPLES]
        )
        remedies = "".join(f"\n{REMEDIES[reason]}" for reason in counts if reason in REMEDIES)
        raise DataError(
            f"{len(mine)} of {read} rows rejected, more than {max_reject:.2%}: {reasons}",
            f"{examples}{remedies}\n{remedy}",
        )

    def table(self) -> pl.DataFrame:
        """The rejects as a REJECTS table, see tables.py."""
        rows = [(source, each.record, each.offset, each.reason, each.raw) for source, each in self._rejects]
        return pl.DataFrame(rows, schema=REJECTS.schema(), orient="row")
