"""OTTO: one session a line in JSON, with the list of its events."""

import dataclasses

from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.jsonl import JsonlFormat, first_keys
from dcclctl.logs.layout import Layout

_ROLES = {"user": "session", "item": "events.aid", "time": "events.ts", "behaviour": "events.type"}


class OttoFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By the keys of its first lines."""
        keys = first_keys(head.text) if head.text.lstrip()[:1] == b"{" else []
        if not {*_ROLES.values()}.issubset(keys):
            if head.named:
                raise head.unlike("otto")
            return None
        return dataclasses.replace(JsonlFormat().layout(head, "otto"), roles=_ROLES)
