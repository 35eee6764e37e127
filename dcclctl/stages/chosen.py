"""The users and items that an option names: a group, @FILE, or ids."""

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

from dcclctl.artifacts import Dataset
from dcclctl.errors import UsageError, closest
from dcclctl.events.sampling import Ints
from dcclctl.logs.id_file import ids_in
from dcclctl.tables import GROUPS


def chosen_users(dataset: Dataset, users: str, table: pl.DataFrame | None = None) -> tuple[Ints, str]:
    """Dense numbers of the users that a `--users` value means, ascending, and that value without any path or id.

    Args:
        table: user_index, user_id and group of the users to choose from; None: the dataset's.

    Raises:
        UsageError: an unreadable file, or an id that is not known.
    """
    table = dataset.users if table is None else table
    # a forgotten user is an empty row
    forgotten = dataset.users.filter(pl.col("events") == 0)["user_index"]
    if len(forgotten):
        table = table.filter(~pl.col("user_index").is_in(forgotten.implode()))
    if users == "all":
        return table["user_index"].to_numpy().astype(np.int64), users
    if users in GROUPS:
        return table.filter(pl.col("group") == users)["user_index"].to_numpy().astype(np.int64), users
    if users.startswith("@"):
        wanted = ids_in("users", users, "user")
    else:
        wanted = [part.strip() for part in users.split(",") if part.strip()]
    found = table.filter(pl.col("user_id").is_in(wanted))
    missing = sorted(set(wanted) - set(found["user_id"]))
    if missing or not wanted:
        words = ["tail", "head", "all", "new"]
        meant = closest(users, words)
        raise UsageError(
            f"--users: {dataset.ref} has no user {_some(missing)}" if missing else "--users is empty",
            (f"Did you mean {meant}? " if meant else "") + _forms(words, table["user_id"].head(100).to_list()),
        )
    return found["user_index"].to_numpy().astype(np.int64), _name_of(wanted)


def _forms(words: list[str], user_ids: list[str]) -> str:
    """How users may be chosen, with some ids as examples."""
    listed = [each for each in user_ids if "," not in each][:3]
    examples = f"ids such as {', '.join(listed)}" if listed else "ids"
    commas = "" if len(listed) == min(3, len(user_ids)) else " Ids with commas go into @FILE, one a line."
    return f"Use {', '.join(words)}, @FILE, or {examples}.{commas}"


def find_users(table: pl.DataFrame, ref: str, user_ids: list[str]) -> pl.DataFrame:
    """The rows of some users, in the order of their numbers.

    Args:
        table: user_index, user_id and group of all users. ref: the dataset's reference, for messages.

    Raises:
        UsageError: no such user.
    """
    found = table.filter(pl.col("user_id").is_in(user_ids))
    missing = next((each for each in user_ids if each not in set(found["user_id"])), None)
    if missing is not None:
        raise UsageError(f"{ref} has no user {missing!r}", f"Its users are {', '.join(table['user_id'][:5])}, …")
    return found


def chosen_items(dataset: Dataset, candidates: str) -> tuple[npt.NDArray[np.bool_], list[str], str]:
    """The items that a `--candidates` value means; those that the dataset does not have are left out.

    Args:
        candidates: @FILE with one id a line.

    Returns:
        (I,) flags, the ids that are not known, and the value without any path.

    Raises:
        UsageError: not @FILE, an unreadable or empty file, or none of its items is known.
    """
    if not candidates.startswith("@"):
        raise UsageError(
            f"--candidates {candidates!r} is not @FILE", "Give a text file with one item id a line: @FILE."
        )
    wanted = ids_in("candidates", candidates, "item")
    ids = dataset.items["item_id"]
    known = ids.is_in(wanted)
    if not known.any():
        what = f"{dataset.ref} has none of its {len(wanted):,} items" if wanted else "the file is empty"
        raise UsageError(
            f"--candidates {candidates}: {what}", f"Give ids of the log, such as {', '.join(ids[:3])}, one a line."
        )
    return known.to_numpy(), sorted(set(wanted) - set(ids.filter(known))), _name_of(wanted)


def _name_of(ids: list[str]) -> str:
    """A name for a list of ids, for a manifest.

    A manifest holds no user's id: it is handed on, and it must not need to be rewritten when a user is forgotten. The ids
    are sorted, so that the same ones in another order, or in a file, are the same work.
    """
    return f"@sha256:{hashlib.sha256(chr(10).join(sorted(set(ids))).encode()).hexdigest()}"


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (" …" if len(ids) > 5 else "")
