"""Errors that the user can mend. Every other exception is a bug and keeps its traceback.

Each error says what is wrong, where, and the command or change that mends it; `exit_code` is the shell's exit code.
"""

import difflib
import math
from collections.abc import Collection, Iterable


class DcclError(Exception):
    """An error that the user can mend.

    Args:
        what: what is wrong, and in which file, row, column or artifact.
        remedy: what to type or change; shown on a line of its own.
    """

    exit_code = 3

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  {self.remedy}" if self.remedy else self.what


class UsageError(DcclError):
    """A flag, a reference or a configuration key that cannot be used. Exit 2."""

    exit_code = 2


class DataError(DcclError):
    """A log or a table that cannot be read. Exit 3."""

    exit_code = 3


class ArtifactError(DcclError):
    """An artifact that is missing, damaged, or does not fit the other artifacts. Exit 3."""

    exit_code = 3


class BucketError(DcclError):
    """A bucket that cannot be reached, or not be used as a store. Exit 3."""

    exit_code = 3


class DivergedError(DcclError):
    """A training with NaN or infinite losses. Exit 4."""

    exit_code = 4


class GateError(DcclError):
    """A quality gate that found a significant drop. Exit 4."""

    exit_code = 4


def finite_loss(loss: float, what: str, lower: str) -> float:
    """An epoch's mean loss, if it is a number.

    Args:
        what: the thing learned, as the message names it. lower: the setting to lower, e.g. patch.memory.learning_rate=0.001.

    Raises:
        DivergedError: the loss became infinite or NaN.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"the loss of {what} became {loss}", f"Lower it: --set {lower}")
    return loss


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a wrong one was probably meant to be, if any."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def nearest(word: str, known: Collection[str]) -> str:
    """A remedy: the known word that a wrong one was probably meant to be, else all of them."""
    meant = closest(word, known)
    return f"Did you mean {meant!r}?" if meant else f"Known: {', '.join(known)}."
