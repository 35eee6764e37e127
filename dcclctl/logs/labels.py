"""`--label 'rating>=4'`: which events are positive."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.errors import UsageError
from dcclctl.logs.batch import Batch, Flags

_EXPRESSION = re.compile(r"\s*(?P<column>[^<>=!]+?)\s*(?P<operator>>=|<=|==|!=|>|<|=)\s*(?P<value>.+?)\s*")
_COMPARE = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    ">": np.greater,
    "<": np.less,
    "==": np.equal,
    "!=": np.not_equal,
}


@dataclass(frozen=True)
class LabelRule:
    """A condition on one column.

    Args:
        column: its name in the log, or 'label' for the column that --map names. operator: one of >= <= > < == !=.
        value: what the column is compared with.
    """

    column: str
    operator: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "LabelRule":
        """Read an expression like 'rating>=4'.

        Raises:
            UsageError: it is not COLUMN OPERATOR NUMBER.
        """
        match = _EXPRESSION.fullmatch(text)
        try:
            value = float(match["value"]) if match else float("nan")
        except ValueError:
            value = float("nan")
        if match is None or match["operator"] == "=" or not np.isfinite(value):
            raise UsageError(
                f"--label: cannot read {text!r}",
                "Write a column, one of >= > <= < == != and a number, in quotes: --label 'rating>=4'",
            )
        return cls(match["column"], match["operator"], value)

    def read(self, texts: pl.Series, batch: Batch) -> tuple[npt.NDArray[np.int8], dict[str, Flags]]:
        """Labels of a batch, and reason → rejected rows."""
        trimmed = texts.fill_null("").str.strip_chars()
        values = trimmed.cast(pl.Float64, strict=False)
        if values.null_count():
            lower = trimmed.str.to_lowercase()
            words = (lower == "true") | (lower == "false")
            if count := int(words.sum()):
                batch.normalised["labels-true-false"] = batch.normalised.get("labels-true-false", 0) + count
                values = values.zip_with(~words, (lower == "true").cast(pl.Float64))
        numbers = values.fill_null(0.0).to_numpy()
        refused = {"bad-label": values.is_null().to_numpy(), "label-not-finite": ~np.isfinite(numbers)}
        return _COMPARE[self.operator](numbers, self.value).astype(np.int8), refused
