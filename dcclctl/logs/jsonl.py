"""Reads JSON lines as batches of records. Numbers keep the text they were written with."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from dcclctl.errors import DataError
from dcclctl.logs.batch import MAX_FIELD_BYTES, Batch, BatchBuilder
from dcclctl.logs.format import Head, LogFormat
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import BOM, ByteStream
from dcclctl.logs.text import check_utf8, chunks

MAX_DEPTH = 64
#: The columns are chosen from so many lines; a key that first appears later is reported.
LATE_RECORD = 100
_CHUNK_BYTES = 8 << 20
_BLANK_LINES = re.compile(rb"[ \t\r\n]*\n")


class _Number(str):
    """A JSON number, as it was written."""


class _Refused(Exception):
    """A line that is not a usable JSON object; the argument is the reason."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _Refused("duplicate-keys")
    return values


def _no_constant(text: str) -> None:
    raise _Refused("nan-literal")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
)


def parse_line(line: str) -> dict[str, Any]:
    """Decode one line as an object whose numbers are `str`.

    Raises:
        _Refused: with the reason.
    """
    if line.count("{") + line.count("[") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        raise _Refused("too-deep")
    try:
        value = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise _Refused("broken-json") from error
    if not isinstance(value, dict):
        raise _Refused("broken-json")
    if "\\u" in line:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise _Refused("lone-surrogate") from error
    return value


def _depth(line: str) -> int:
    depth = deepest = 0
    in_string = escaped = False
    for character in line:
        if escaped:
            escaped = False
        elif in_string:
            escaped = character == "\\"
            in_string = character != '"'
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest


def first_keys(head: bytes) -> list[str]:
    """Keys of the objects in the first lines, in order of appearance; broken lines are skipped.

    Of an object inside an object, or of a list of objects, the paths of the inner keys stand for its key: user.id.
    """
    keys: dict[str, None] = {}
    lines = [line for line in head.decode("utf-8", "replace").split("\n") if line.strip()]
    for line in lines[:LATE_RECORD]:
        try:
            keys |= dict.fromkeys(_paths(parse_line(line)))
        except _Refused:
            continue
    return list(keys)


def _paths(values: dict[str, Any], above: str = "") -> Iterator[str]:
    """Paths of all values that are no objects."""
    for key, value in values.items():
        objects = value if isinstance(value, list) else [value]
        if objects and all(isinstance(each, dict) and each for each in objects):
            for each in objects:
                yield from _paths(each, f"{above}{key}.")
        else:
            yield above + key


def _at(value: Any, path: list[str]) -> Any:
    """The value at the end of a path; None where there is none, and a list that stands in the way."""
    for key in path:
        if isinstance(value, list):
            return value
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _flattened(values: dict[str, Any], wanted: list[str]) -> list[dict[str, Any]]:
    """One record for each object of the list that the wanted paths lead through; without a list, one record.

    Raises:
        _Refused: the paths lead through two lists.
    """
    # a key with a dot in its name is that key
    paths = {name: [name] if name in values else name.split(".") for name in wanted}
    lists: dict[tuple[str, ...], list[Any]] = {}
    for path in paths.values():
        for depth in range(1, len(path)):
            found = _at(values, path[:depth])
            if isinstance(found, list):
                lists[tuple(path[:depth])] = found
                break
    if len(lists) > 1:
        raise _Refused("nested-value")
    place, objects = next(iter(lists.items()), ((), [values]))
    inside = {name: tuple(path[: len(place)]) == place for name, path in paths.items()}
    return [
        {name: _at(*((each, path[len(place) :]) if inside[name] else (values, path))) for name, path in paths.items()}
        for each in objects
    ]


def read_jsonl(stream: ByteStream, layout: Layout, wanted: list[str], lists: Collection[str] = ()) -> Iterator[Batch]:
    """Read a JSON-lines file batch by batch.

    Args:
        stream, layout: the file and its layout.
        wanted: keys to return; 'user.id' is the key id of the object user, and a path through a list of objects makes
            one record of each of them.
        lists: keys whose lists and objects are returned as JSON text, instead of refusing the record.

    Raises:
        DataError: not UTF-8, or anything that `ByteStream` refuses.
    """
    offset, record = len(BOM) if layout.bom else 0, 1
    nested = any("." in name for name in wanted)
    seen: set[str] = set()
    types: dict[str, type] = {}
    for chunk, last in chunks(stream, layout.encoding, _CHUNK_BYTES):
        check_utf8(chunk, offset, stream)
        builder = BatchBuilder(wanted, chunk, offset, record)
        counts = {"blank-lines": 0, "mixed-types": 0}
        late, position = 0, 0
        while position < len(chunk):
            if blank := _BLANK_LINES.match(chunk, position):
                counts["blank-lines"] += chunk.count(b"\n", position, blank.end())
                position = blank.end()
                continue
            start, position = position, chunk.find(b"\n", position) + 1 or len(chunk)
            line = chunk[start:position].rstrip(b"\r\n")
            if not line.strip():
                counts["blank-lines"] += 1
                continue
            try:
                values = parse_line(line.decode("utf-8"))
                flat = _flattened(values, wanted) if nested else [values]
            except _Refused as error:
                builder.reject(str(error), start, start + len(line))
                continue
            if not seen.issuperset(values):
                late += len(values.keys() - seen) if builder.record > LATE_RECORD else 0
                seen |= values.keys()
            for each in flat:
                try:
                    fields = [_field(each.get(name), name in lists) for name in wanted]
                except _Refused as error:
                    builder.reject(str(error), start, start + len(line))
                    continue
                for name, text in zip(wanted, fields, strict=True):
                    kind = type(each.get(name))
                    if text is not None and types.setdefault(name, kind) is not kind:
                        counts["mixed-types"] += 1
                builder.keep(fields, start, start + len(line))
        batch = builder.batch()
        batch.normalised = {name: count for name, count in counts.items() if count}
        batch.warnings = {"late-columns": late} if late else {}
        batch.cut = last and not chunk.endswith(b"\n")
        offset, record = offset + len(chunk), builder.record
        yield batch


def _field(value: Any, lists: bool) -> str | None:
    """A value as text, true and false as JSON writes them; refuses an object, a list (without `lists`), a long field."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        if not lists:
            raise _Refused("nested-value")
        return json.dumps(value, ensure_ascii=False)
    if len(value) > MAX_FIELD_BYTES // 4 and len(value.encode()) > MAX_FIELD_BYTES:
        raise _Refused("field-too-long")
    return str(value)


class JsonlFormat(LogFormat):
    def recognise(self, head: Head) -> Layout | None:
        """By a bracket at its start."""
        if head.named or head.text.lstrip()[:1] in (b"{", b"["):
            return self.layout(head, "jsonl")
        return None

    def layout(self, head: Head, name: str) -> Layout:
        """The layout, under the name of this format or of another one that uses JSON lines.

        Raises:
            DataError: the file does not hold one JSON object on each line.
        """
        text, path = head.text.lstrip(), head.source.path
        array = text.startswith(b"[")
        if array or text.split(b"\n", 1)[0].strip() == b"{":
            found, program = ("array", "'.[]'") if array else ("object over many lines", ".")
            raise DataError(
                f"{path} is one JSON {found}, not JSON lines (one object a line)",
                f"Convert it: jq -c {program} {path} > lines.jsonl",
            )
        keys = first_keys(head.text)
        if not keys:
            raise DataError(f"{path}: none of its first lines is a JSON object", "Name its format, e.g. --format csv.")
        return Layout(name, "jsonl", tuple(keys))
