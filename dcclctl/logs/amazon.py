"""Amazon reviews: ratings without a header (2014, 2018), with one (2023), and JSON lines."""

import re

from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.jsonl import JsonlFormat
from dcclctl.logs.layout import Layout

_ASIN = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")


class AmazonFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By an Amazon item id in one of the first two of four fields; other layouts only if --format names Amazon."""
        if head.named and head.text.lstrip()[:1] in (b"{", b"["):
            return JsonlFormat().layout(head, "amazon")
        fields, delimiter = head.fields, head.delimiter or ""
        if len(fields) == 4 and (order := _order(fields)):
            return Layout("amazon", "text", order, delimiter=delimiter, has_header=False)
        if not head.named:
            return None
        if not set(fields) & {"user_id", "parent_asin", "asin"}:
            raise head.unlike("amazon")
        return Layout("amazon", "text", tuple(fields), delimiter=delimiter)


def _order(fields: list[str]) -> tuple[str, ...] | None:
    """Columns of a ratings file without a header: 2014 has user,item,…, 2018 has item,user,…"""
    numeric = all(re.fullmatch(r"[0-9]+(\.[0-9]+)?", field) for field in fields[2:])
    first, second = (bool(_ASIN.fullmatch(field)) for field in fields[:2])
    if not numeric or first == second:
        return None
    ids = ("item_id", "user_id") if first else ("user_id", "item_id")
    return (*ids, "rating", "timestamp")
