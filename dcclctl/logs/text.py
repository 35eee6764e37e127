"""Reads delimited text as batches of records.

Clean pieces of text are checked with vectorised byte counts and parsed by polars; a piece with quotes, NULs, blank lines
or a wrong number of fields is read record by record. Both ways give the same rows (tested). polars' options for broken
text (ignore_errors, truncate_ragged_lines, utf8-lossy) are never used: they lose rows silently.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from dcclctl.errors import DataError
from dcclctl.logs.batch import MAX_FIELD_BYTES, Batch, BatchBuilder
from dcclctl.logs.layout import Layout
from dcclctl.logs.sources import BOM, ByteStream, utf8_blocks

#: Bytes that are parsed at once, so that their memory is reused; and the size of the pieces of a chunk that is not clean.
CHUNK_BYTES = 8 << 20
PIECE_BYTES = 256 << 10
#: So many bytes without a line end are not line-separated text.
MAX_LINE_BYTES = 64 << 20

_OTHER_DELIMITERS = (",", ";", "\t", "|", "::")
_BLANK_LINES = re.compile(rb"[ \t\r\n]*\n")
_EMPTY_LINES = re.compile(rb"[\r\n]*\n")
#: What else a text that is not UTF-8 may be.
_ENCODINGS = ("gbk", "big5", "shift_jis", "euc_kr", "cp1251", "cp1252")


def chunks(stream: ByteStream, encoding: str, size: int = CHUNK_BYTES) -> Iterator[tuple[bytes, bool]]:
    """Chunks of whole lines, about `size` bytes each, and whether a chunk is the last one (its line end may be missing).

    Raises:
        DataError: the text has no line ends, or is not UTF-8.
    """
    blocks: list[bytes] = []
    held = 0
    for block in utf8_blocks(stream, encoding):
        blocks.append(block)
        held += len(block)
        if held < size:
            continue
        end = block.rfind(b"\n") + 1
        if end == 0:
            if held > size + MAX_LINE_BYTES:
                raise DataError(
                    f"{stream.source.path} has no line ends: it is not line-separated text", "Convert it to CSV first."
                )
            continue
        blocks[-1] = block[:end]
        yield b"".join(blocks), False
        blocks, held = [block[end:]], len(block) - end
    yield b"".join(blocks), True


def check_utf8(data: bytes, offset: int, stream: ByteStream) -> None:
    """Refuse bytes that are not UTF-8; `offset` is where they start in the file.

    Raises:
        DataError: with the first such byte and its offset.
    """
    if data.isascii():
        return
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[data.rfind(b"\n", 0, error.start) + 1 : (data.find(b"\n", error.start) + 1 or len(data))][:200]
        raise DataError(
            f"{stream.source.path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}",
            _readings(line.strip()),
        ) from error


def _readings(line: bytes) -> str:
    """How a line that is not UTF-8 reads in other encodings: a person sees which one is right, a program does not."""
    found = []
    for encoding in _ENCODINGS:
        try:
            found.append(f"{encoding:<9} {line.decode(encoding)[:60]}")
        except UnicodeDecodeError:
            continue
    return "\n".join(["Declare the encoding in which this line reads right, e.g. --encoding NAME:", *found])


def read_text(stream: ByteStream, layout: Layout, wanted: list[str]) -> Iterator[Batch]:
    """Read a delimited text file batch by batch; `wanted` names the columns to return.

    Raises:
        DataError: not UTF-8, no line ends, or anything that `ByteStream` refuses.
    """
    offset, record, carried = len(BOM) if layout.bom else 0, 1, b""
    reader = _RecordReader(layout, wanted)
    header_pending = layout.has_header
    for chunk, last in chunks(stream, layout.encoding):
        check_utf8(chunk, offset + len(carried), stream)
        chunk = carried + chunk if carried else chunk
        if header_pending:
            blank = _BLANK_LINES.match(chunk)
            start = blank.end() if blank else 0
            skipped = chunk.count(b"\n", 0, start)
            end = chunk.find(b"\n", start) + 1 or len(chunk)
            chunk, offset, header_pending = chunk[end:], offset + end, False
            if skipped:
                yield reader.blank_lines(skipped, record)
        batch = _fast(chunk, offset, record, layout, wanted)
        if batch is not None:
            batch.cut = last and not chunk.endswith(b"\n")
            carried = b""
            offset, record = offset + len(chunk), record + batch.read
            yield batch
            continue
        start = 0
        while start < len(chunk):
            end = _piece_end(chunk, start, PIECE_BYTES)
            piece = chunk[start:end]
            batch = _fast(piece, offset, record, layout, wanted)
            if batch is None:
                batch, used = reader.read(piece, offset, record, final=last and end == len(chunk))
                # A quoted record may continue after the piece; try again with twice as much of the chunk.
                reach = 2 * PIECE_BYTES
                while used == 0 and end < len(chunk):
                    end = _piece_end(chunk, start, reach)
                    reach *= 2
                    batch, used = reader.read(chunk[start:end], offset, record, final=last and end == len(chunk))
                if used == 0:
                    break
            else:
                used = len(piece)
            start, offset, record = start + used, offset + used, record + batch.read
            batch.cut = last and start == len(chunk) and not chunk.endswith(b"\n")
            yield batch
        carried = chunk[start:]


def _piece_end(chunk: bytes, start: int, size: int) -> int:
    return len(chunk) if start + size >= len(chunk) else (chunk.find(b"\n", start + size) + 1 or len(chunk))


def _fast(chunk: bytes, offset: int, record: int, layout: Layout, wanted: list[str]) -> Batch | None:
    """Parse text in which every line has exactly the right number of plain fields; None for any other text."""
    width = len(layout.columns)
    odd = (layout.quoting and b'"' in chunk) or b"\0" in chunk
    if not chunk or width < 2 or len(layout.delimiter.encode()) > 1 or odd:
        return None
    if b"\r" in chunk and chunk.count(b"\r") != chunk.count(b"\r\n"):
        return None
    if chunk.startswith((b"\n", b"\r\n")) or b"\n\n" in chunk or b"\n\r\n" in chunk:
        return _between_empty_lines(chunk, offset, record, layout, wanted)
    if not chunk.endswith(b"\n"):
        chunk += b"\n"
    data = np.frombuffer(chunk, np.uint8)
    line_end = data == 10
    separators = np.flatnonzero(line_end | (data == ord(layout.delimiter)))
    if len(separators) % width:
        return None
    ends = separators[width - 1 :: width]
    if np.count_nonzero(line_end) != len(ends) or not line_end[ends].all():
        return None
    # No field is longer than its line, so only text with a very long line needs the record reader.
    if int(ends[0]) > MAX_FIELD_BYTES or int(np.diff(ends).max(initial=0)) > MAX_FIELD_BYTES:
        return None
    frame = pl.read_csv(
        chunk,
        has_header=False,
        schema={name: pl.String for name in layout.columns},
        columns=[layout.columns.index(name) for name in wanted],
        separator=layout.delimiter,
        quote_char=None,
    ).select(wanted)
    if frame.height != len(ends):
        return None
    if any(column.null_count() for column in frame.iter_columns()):
        # polars reads an empty field as null; the record reader gives an empty text.
        frame = frame.fill_null("")
    if layout.columns[-1] in wanted and b"\r" in chunk:
        frame = frame.with_columns(pl.col(layout.columns[-1]).str.strip_suffix("\r"))

    def raw(row: int) -> tuple[int, str]:
        start = int(ends[row - 1]) + 1 if row else 0
        return offset + start, chunk[start : int(ends[row])].removesuffix(b"\r").decode("utf-8")

    return Batch(frame, np.arange(record, record + len(ends), dtype=np.int64), raw, read=len(ends))


def _between_empty_lines(chunk: bytes, offset: int, record: int, layout: Layout, wanted: list[str]) -> Batch | None:
    """As `_fast`, with the empty lines taken out first."""
    data = np.frombuffer(chunk, np.uint8)
    stops = np.flatnonzero(data == 10)
    if not chunk.endswith(b"\n"):
        stops = np.append(stops, len(data))
    starts = np.append(0, stops[:-1] + 1)
    lengths = stops - starts
    empty = (lengths == 0) | ((lengths == 1) & (data[np.minimum(starts, len(data) - 1)] == 13))
    stay = np.ones(len(data) + 1, np.bool_)
    stay[starts[empty]] = stay[stops[empty]] = False
    if empty.all():
        batch = BatchBuilder(wanted, b"", offset, record).batch()
    elif (found := _fast(data[stay[:-1]].tobytes(), offset, record, layout, wanted)) is not None:
        batch = found
    else:
        return None
    starts, stops = starts[~empty], stops[~empty]

    def raw(row: int) -> tuple[int, str]:
        start = int(starts[row])
        return offset + start, chunk[start : int(stops[row])].removesuffix(b"\r").decode("utf-8")

    batch.raw = raw
    batch.normalised["blank-lines"] = int(empty.sum())
    return batch


class _Record(NamedTuple):
    """One record in a buffer: its fields or why it has none, and where the next record starts."""

    fields: list[str]
    reason: str
    next: int


class _RecordReader:
    """Reads records one by one; a broken record is rejected with its first line, and reading continues at the next line."""

    def __init__(self, layout: Layout, wanted: list[str]) -> None:
        self._width = len(layout.columns)
        self._quoting = layout.quoting
        self._delimiter = layout.delimiter
        self._wanted = {name: layout.columns.index(name) for name in wanted}
        self._ids = [layout.columns.index(layout.roles[role]) for role in ("user", "item") if role in layout.roles]
        self._blank = None if self._width < 2 else _EMPTY_LINES if layout.delimiter in " \t" else _BLANK_LINES

    def blank_lines(self, count: int, record: int) -> Batch:
        """A batch without records that counts blank lines."""
        batch = BatchBuilder(self._wanted, b"", 0, record).batch()
        batch.normalised["blank-lines"] = count
        return batch

    def read(self, data: bytes, offset: int, record: int, final: bool) -> tuple[Batch, int]:
        """Read the records of a buffer.

        Args:
            data: bytes from a record's start. offset: where they start in the file. record: number of the first record.
            final: whether the file ends with them; otherwise a quoted record that is still open is left for later.

        Returns:
            The batch, and how many bytes it used.
        """
        builder = BatchBuilder(self._wanted, data, offset, record)
        blank = position = 0
        while position < len(data):
            run = self._blank.match(data, position) if self._blank else None
            if run:
                blank += data.count(b"\n", position, run.end())
                position = run.end()
                continue
            found = self._next(data, position, final)
            if found is None:
                break
            text = data[position : found.next].rstrip(b"\r\n")
            end = position + len(text)
            if not text.strip(b" \t") and len(found.fields) != self._width:
                blank += 1
            elif found.reason:
                builder.reject(found.reason, position, end)
            else:
                builder.keep([found.fields[column] for column in self._wanted.values()], position, end)
            position = found.next
        batch = builder.batch()
        if blank:
            batch.normalised["blank-lines"] = blank
        return batch, position

    def _next(self, data: bytes, start: int, final: bool) -> _Record | None:
        """The record at `start`; None if it is quoted and may continue after the buffer."""
        newline = data.find(b"\n", start)
        line_end = newline if newline >= 0 else len(data)
        after_line = min(line_end + 1, len(data))
        line = data[start:line_end].removesuffix(b"\r")
        if not self._quoting or b'"' not in line:
            fields = line.decode("utf-8").split(self._delimiter)
            return _Record(fields, self._field_problem(line, fields, newline < 0), after_line)
        fields, reason, after = self._quoted(data, start)
        if reason == "unclosed-quote" and not final and len(data) - start <= MAX_FIELD_BYTES * self._width:
            return None
        if reason == "":
            reason = self._field_problem(line, fields, after == len(data) and not data.endswith(b"\n"))
            if reason and after > after_line:
                # Several lines with a wrong number of fields: the first quote was probably not meant as one.
                reason = "unclosed-quote"
        if reason == "" and after > after_line and any("\n" in fields[place] for place in self._ids):
            # Lines inside an id: its quote was not meant as one, and the next lines are records of their own.
            reason = "line-end-in-id"
        return _Record([], reason, after_line) if reason else _Record(fields, "", after)

    def _field_problem(self, line: bytes, fields: list[str], unterminated: bool) -> str:
        if any(len(field) > MAX_FIELD_BYTES // 4 and len(field.encode()) > MAX_FIELD_BYTES for field in fields):
            return "field-too-long"
        if len(fields) == self._width:
            return ""
        if len(fields) > self._width:
            return "extra-fields"
        text = line.decode("utf-8")
        if any(other != self._delimiter and len(text.split(other)) == self._width for other in _OTHER_DELIMITERS):
            return "mixed-delimiters"
        return "cut-last-row" if unterminated else "missing-fields"

    def _quoted(self, data: bytes, start: int) -> tuple[list[str], str, int]:
        """Fields of a record with quotes, the reason to reject it ('' for none), and where the next record starts."""
        fields: list[str] = []
        position, separator = start, self._delimiter.encode()
        while True:
            if data.startswith(b'"', position):
                end = self._closing_quote(data, position + 1)
                if end < 0:
                    return fields, "unclosed-quote", len(data)
                fields.append(data[position + 1 : end].replace(b'""', b'"').decode("utf-8"))
                position = end + 1
            else:
                stops = [stop for mark in (separator, b"\n") if (stop := data.find(mark, position)) >= 0]
                end = min(stops, default=len(data))
                text = data[position:end]
                if b'"' in text:
                    return fields, "stray-quote", len(data)
                if not data.startswith(separator, end):
                    text = text.removesuffix(b"\r")
                fields.append(text.decode("utf-8"))
                position = end
            if data.startswith(separator, position):
                position += len(separator)
            elif position >= len(data) or (position + 1 == len(data) and data.endswith(b"\r")):
                return fields, "", len(data)
            elif data.startswith((b"\n", b"\r\n"), position):
                return fields, "", data.index(b"\n", position) + 1
            else:
                # Text follows a closing quote. If that quote is on a later line, the first line's quote was never closed.
                broken = "unclosed-quote" if b"\n" in data[start:position] else "stray-quote"
                return fields, broken, len(data)

    @staticmethod
    def _closing_quote(data: bytes, start: int) -> int:
        limit = start + MAX_FIELD_BYTES + 1
        position = data.find(b'"', start, limit)
        while position >= 0 and data.startswith(b'"', position + 1):
            position = data.find(b'"', position + 2, limit)
        return position
