"""Taobao UserBehavior: five fields on each line and no header."""

from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout

_BEHAVIOURS = frozenset(("pv", "buy", "cart", "fav"))


class TaobaoFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By a behaviour in the fourth of five fields."""
        if len(head.fields) == 5 and head.fields[3] in _BEHAVIOURS and head.delimiter:
            columns = ("user_id", "item_id", "category_id", "behaviour", "timestamp")
            return Layout("taobao", "text", columns, delimiter=head.delimiter, has_header=False)
        if head.named:
            raise head.unlike("taobao")
        return None
