"""Finds the columns of a log that hold user, item, time and so on: by name, or as `--map` says."""

from dcclctl.errors import DataError, UsageError
from dcclctl.logs.layout import Layout

#: `impressions` is a column of lists of shown items, which stands for item and label; `clicked` lists those chosen.
ROLES = ("user", "item", "time", "label", "category", "behaviour", "name", "impressions", "clicked")
REQUIRED = ("user", "item", "time")

#: Role → column names that are recognised, best first.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "user": (
        *("user_id", "userId", "user", "uid", "userid", "UserId", "UserID", "reviewerID", "reviewer_id"),
        *("customer_id", "customerId", "household_id", "visitorid", "visitor_id", "member_id", "account_id"),
    ),
    "item": (
        *("item_id", "itemId", "item", "iid", "itemid", "ItemId", "ItemID", "parent_asin", "asin", "movieId"),
        *("movie_id", "MovieID", "product_id", "productId", "ProductId", "product", "sku", "article_id"),
        *("track_id", "song_id", "video_id", "news_id", "book_id", "business_id", "content_id"),
    ),
    "time": (
        *("timestamp", "Timestamp", "time", "Time", "ts", "unixReviewTime", "time_ms", "event_time", "datetime"),
        *("date", "created_at", "transaction_timestamp", "t_dat", "ordinal"),
    ),
    "label": ("label", "rating", "Rating", "score", "stars", "overall", "click"),
    "category": ("category", "category_id", "categoryId", "cat", "category_code", "item_category", "CategoryID"),
    # an item's name is used only if --map names its column: a column `name` of a log may well be the user's
    "name": (),
    "behaviour": ("behaviour", "behavior", "behaviour_type", "behavior_type", "event_type", "event", "action"),
}

#: Columns of side tables that hold an item's name, best first.
NAME_COLUMNS = ("name", "title", "movie_title", "item_name", "product_name", "Title")


def assign_roles(
    layout: Layout, mapped: dict[str, str], where: str, row_order: bool = False, near: bool = False
) -> dict[str, str]:
    """Role → column of an event log.

    Args:
        layout: of the file, with the roles that its format knows.
        mapped: what --map says; an empty column leaves the role out.
        where: the file, for messages.
        row_order: a log without a time column is read in the order of its rows; it then has no role `time`.
        near: take names that differ from the usual ones in case, spaces or marks only.

    Raises:
        UsageError: --map names a role or a column that does not exist, or one column for two of user, item and time.
        DataError: a required column is not found; the message shows the header and a complete --map.
    """
    names = list(layout.columns)
    check_unique(names, where)
    roles = {role: column for role, column in layout.roles.items() if role not in mapped}
    for role, column in mapped.items():
        if role not in ROLES:
            raise UsageError(
                f"--map: there is no role {role!r}", f"Roles: {', '.join(ROLES)}; write --map user=uid,item=sku,time=ts"
            )
        if column or role in REQUIRED:
            roles[role] = find_column(names, column, where, role)
    _check_own_columns(names, roles)
    for role in ROLES:
        free = set(names) - set(roles.values()) - (set() if role in REQUIRED else set(layout.unreadable))
        found = next((name for name in SYNONYMS.get(role, ()) if name in free), None)
        if role not in roles and role not in mapped and found is not None:
            roles[role] = found
    if "impressions" in roles:
        roles["item"] = roles["impressions"]
    if near:
        roles |= _near(names, roles, [role for role in REQUIRED if role not in roles])
    missing = [role for role in REQUIRED if role not in roles and not (row_order and role == "time")]
    if missing:
        raise _not_found(names, roles, missing, where)
    return roles


def _check_own_columns(names: list[str], mapped: dict[str, str]) -> None:
    """Refuse --map user=a,item=a; and item=user_id, where nothing else can be the user."""
    for role in REQUIRED:
        column = mapped.get(role) or next((name for name in SYNONYMS[role] if name in names), None)
        other = next((other for other in REQUIRED if other != role and mapped.get(other) == column), None)
        free = role not in mapped and any(name in SYNONYMS[role] and name not in mapped.values() for name in names)
        if column is not None and other is not None and not free:
            raise UsageError(
                f"--map: column {column!r} is given for both {role} and {other}", "Each needs a column of its own."
            )


def check_unique(names: list[str], where: str) -> None:
    """Refuse a header with the same name twice.

    Raises:
        DataError: with the names.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{where}: the header names {', '.join(map(repr, twice))} more than once", "Rename one of the columns."
        )


def find_column(names: list[str], column: str, where: str, role: str) -> str:
    """The column with this name; spaces around the name do not matter.

    Raises:
        UsageError: there is no such column; the message shows the header.
    """
    if column in names:
        return column
    stripped = [name for name in names if name.strip() == column.strip()]
    if len(stripped) == 1:
        return stripped[0]
    raise UsageError(
        f"--map: {where} has no column {column!r} for {role}", f"Its header: {', '.join(map(repr, names))}"
    )


def _near(names: list[str], roles: dict[str, str], missing: list[str]) -> dict[str, str]:
    """Role → a column whose name differs from the usual ones in case, spaces or marks only."""
    near: dict[str, str] = {}
    for role in missing:
        known = {_plain(name) for name in SYNONYMS[role]}
        found = next((name for name in names if _plain(name) in known and name not in roles.values()), None)
        if found is not None:
            near[role] = found
    return near


def _not_found(names: list[str], roles: dict[str, str], missing: list[str], where: str) -> DataError:
    near = _near(names, roles, missing)
    example = {role: roles.get(role) or near.get(role) or f"YOUR_{role.upper()}_COLUMN" for role in REQUIRED}
    hint = ""
    if near:
        pairs = ", ".join(f"{name!r} looks like the {role}" for role, name in near.items())
        hint = f" ({pairs}, but differs in case, spaces or marks)"
    order = "\nIf it has no times and its rows are in order of time: --split per-user (or leave-one-out)"
    return DataError(
        f"{where}: no column for {', '.join(missing)}{hint}; its header: {', '.join(map(repr, names))}",
        "Name the columns: --map '"
        + ",".join(f"{role}={name.strip()}" for role, name in example.items())
        + "'"
        + (order if missing == ["time"] else ""),
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())
