"""Finds the log files, hashes them, and reads their decompressed bytes with checks for damage."""

import codecs
import glob
import gzip
import hashlib
import os
import select
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dcclctl.errors import DataError, UsageError

BLOCK_BYTES = 1 << 20
#: A file that inflates beyond both limits is taken for a compression bomb.
BOMB_BYTES = 64 << 20
BOMB_RATIO = 200

BOM = codecs.BOM_UTF8
#: So much of a file is looked at to recognise its format.
HEAD_BYTES = 1 << 20
#: A pipe is copied to a file first, up to so many bytes, and at most half of the free space.
PIPE_BYTES = 64 << 30
#: So long a pipe without a writer is waited for.
PIPE_WAIT_SECONDS = 10.0

_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
#: First bytes of what must be unpacked → its name, and the program that unpacks it to stdout.
_ARCHIVES = {
    b"PK\x03\x04": ("a zip archive or an Excel sheet", "unzip -p"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x -so"),
    b"\xfd7zXZ\x00": ("compressed with xz", "xzcat"),
    b"Rar!\x1a\x07": ("a rar archive", "unrar p -inul"),
    **{b"BZh%d1AY&SY" % level: ("compressed with bzip2", "bzcat") for level in range(1, 10)},
}


#: How the path of a pipe begins that has no name of its own.
_UNNAMED = (("/", "dev"), ("/", "proc"))


@dataclass(frozen=True)
class Source:
    """A file to read, as it was when it was hashed.

    Args:
        path: where it is. sha256: hash of its bytes as they are, compressed or not.
        bytes: its size. modified_ns: its time of modification. packing: '.gz', '.zst' or ''.
        copy: the temporary file with the bytes of a pipe; it is deleted together with this object.
    """

    path: Path
    sha256: str
    bytes: int
    modified_ns: int
    packing: str = ""
    copy: Any = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> Path:
        """The file that holds its bytes."""
        return self.path if self.copy is None else Path(self.copy.name)

    @property
    def name(self) -> str:
        """Base name; the only part of the path that is recorded in an artifact. Of a pipe without a name: 'pipe'."""
        return "pipe" if self.copy is not None and self.path.parts[:2] in _UNNAMED else self.path.name

    @property
    def stem(self) -> str:
        """Base name without .gz or .zst."""
        return self.path.stem if self.path.suffix in (".gz", ".zst") else self.path.name

    def check_unchanged(self) -> None:
        """Refuse a file that has changed since it was hashed.

        Raises:
            DataError: its size or its time of modification differs.
        """
        after = self.place.stat()
        if (after.st_size, after.st_mtime_ns) != (self.bytes, self.modified_ns):
            raise DataError(
                f"{self.path} changed while it was read", "Wait until it is written completely, or ingest a copy."
            )


def find_paths(arguments: list[Path]) -> list[Path]:
    """The log files that the LOG arguments name: files, globs, and folders of a known layout.

    Raises:
        UsageError: there is no such file, or a folder holds no log with a known name.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            found.append(_log_in_folder(argument))
        elif argument.exists():
            found.append(argument)
        else:
            matches = sorted(Path(match) for match in glob.glob(str(argument), recursive=True))  # noqa: PTH207 (also takes absolute patterns)
            files = [match for match in matches if match.is_file()]
            if not files:
                raise UsageError(f"no such file: {argument}", "Check the path; a glob like 'logs/*.csv.gz' works too.")
            found += files
    return found


def _log_in_folder(folder: Path) -> Path:
    known = ("u.data", "ratings.dat", "ratings.csv", "UserBehavior.csv")
    logs = [path for name in known if (path := folder / name).is_file()] or sorted(folder.glob("*.inter"))
    if len(logs) == 1:
        return logs[0]
    files = sorted(path.name for path in folder.iterdir() if path.is_file())[:8]
    problem = "holds several logs" if logs else "holds no log with a known name"
    raise UsageError(
        f"the folder {folder} {problem} (it has: {', '.join(files) or 'no files'})",
        f"Name the file: dcclctl ingest {folder / (files[0] if files else 'LOG')}",
    )


def _sha256(file: IO[bytes], on_bytes: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
        on_bytes(len(block))
    return digest.hexdigest()


def identify(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Source:
    """Hash a file, or what comes out of a pipe.

    Args:
        on_bytes: called with how many bytes have been hashed since the last call; not for a pipe, whose size nobody knows.

    Raises:
        DataError: it cannot be read, is empty, is a device, or is an archive.
    """
    copy = None
    try:
        kind = path.stat().st_mode
        if stat.S_ISFIFO(kind):
            copy = _copy_of_pipe(path)
        elif not stat.S_ISREG(kind):
            raise DataError(f"{path} is not a file", "Name a file, or a pipe like <(zcat log.csv.gz).")
        place = path if copy is None else Path(copy.name)
        before = place.stat()
        with place.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            digest = _sha256(file, on_bytes if copy is None else lambda count: None)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "Check the path and its permissions.") from error
    if before.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)", "Leave it out, or fetch it again.")
    for first, (what, program) in _ARCHIVES.items():
        if start.startswith(first):
            raise DataError(f"{path} is {what}", f"Unpack it, e.g. dcclctl ingest <({program} {path})")
    packing = path.suffix if path.suffix in (".gz", ".zst") else ""
    packing = packing or next((packed for first, packed in _PACKED.items() if start.startswith(first)), "")
    return Source(path, digest, before.st_size, before.st_mtime_ns, packing, copy)


def _copy_of_pipe(path: Path) -> Any:
    """A temporary file with everything that comes out of a pipe.

    Raises:
        DataError: nobody writes into it, or it does not end.
    """
    copy = tempfile.NamedTemporaryFile(prefix="dcclctl-")  # noqa: SIM115 (lives as long as its Source)
    limit = min(PIPE_BYTES, shutil.disk_usage(copy.name).free // 2)
    deadline, size = time.monotonic() + PIPE_WAIT_SECONDS, 0
    # Opened without waiting: a pipe that nobody writes into would block for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            ready = dict(poll.poll(100))
            try:
                block = os.read(descriptor, BLOCK_BYTES)
            except BlockingIOError:  # there is a writer, but nothing to read yet
                deadline = float("inf")
                continue
            if not block and (size or ready):
                break
            if not block and time.monotonic() > deadline:
                raise DataError(f"nobody writes into the pipe {path}", "Start the program that writes into it first.")
            size += len(block)
            if size > limit:
                raise DataError(
                    f"more than {limit:,} bytes come out of the pipe {path}", "Write them to a file, and ingest that."
                )
            copy.write(block)
    finally:
        os.close(descriptor)
    copy.flush()
    return copy


def check_distinct(sources: list[Source]) -> None:
    """Refuse the same file twice: its events would count double.

    Raises:
        DataError: two files have the same hash.
    """
    seen: dict[str, Source] = {}
    for source in sources:
        if source.sha256 in seen:
            raise DataError(
                f"{source.path} and {seen[source.sha256].path} are the same file (SHA-256 {source.sha256[:12]}…)",
                "Name it once.",
            )
        seen[source.sha256] = source


class ByteStream:
    """Decompressed bytes of a source, block by block; `position` counts the compressed bytes read so far."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.position = 0

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of bytes.

        Raises:
            DataError: damaged or truncated compression, a bomb, or a file that changed since it was hashed.
        """
        source, size = self.source, 0
        try:
            with source.place.open("rb") as file:
                if source.packing == ".gz":
                    _check_gzip(source, file)
                for block in _inflate(file, source.packing):
                    size += len(block)
                    self.position = file.tell()
                    if size > BOMB_BYTES and size > BOMB_RATIO * source.bytes:
                        raise DataError(
                            f"{source.path} inflates to more than {BOMB_RATIO} times its size: taken for a compression bomb",
                            "If it is a real log, decompress it yourself and ingest the plain file.",
                        )
                    yield block
        except (EOFError, gzip.BadGzipFile, zlib.error, _ZstdError) as error:
            told = f"{error} (after {size:,} decompressed bytes)" if size else str(error)
            raise DataError(f"{source.path} is damaged or cut: {told}", "Fetch the file again.") from error
        except OSError as error:
            raise DataError(f"cannot read {source.path}: {error.strerror}", "Check the disk.") from error
        source.check_unchanged()


class _ZstdError(Exception):
    """A zstd stream that cannot be inflated."""


def _check_gzip(source: Source, file: IO[bytes]) -> None:
    begins = file.read(2)
    file.seek(0)
    if begins and _PACKED.get(begins) != ".gz":
        raise DataError(
            f"{source.path} is named .gz and is not compressed by gzip",
            "If it is a plain log, leave .gz out of its name; else fetch the file again.",
        )


def _inflate(file: IO[bytes], packing: str) -> Iterator[bytes]:
    if packing == ".gz":
        # GzipFile reads several members one after another and checks each one's CRC.
        with gzip.GzipFile(fileobj=file) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    elif packing == ".zst":
        yield from _inflate_zstd(file)
    else:
        while block := file.read(BLOCK_BYTES):
            yield block


def _inflate_zstd(file: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    # Not stream_reader: it takes a truncated frame for the end of the file. Small inputs limit what one call inflates.
    decoder = zstandard.ZstdDecompressor()
    stream = None
    try:
        while data := file.read(16 << 10):
            while data:
                stream = stream or decoder.decompressobj()
                yield stream.decompress(data)
                data = stream.unused_data if stream.eof else b""
                stream = None if stream.eof else stream
    except zstandard.ZstdError as error:
        raise _ZstdError(str(error)) from error
    if stream is not None:
        raise _ZstdError("the last zstd frame is not complete")


def first_bytes(source: Source, size: int = HEAD_BYTES) -> bytes:
    """The first `size` decompressed bytes of a source, or all of a smaller one."""
    head = b""
    for block in ByteStream(source):
        head += block
        if len(head) >= size:
            break
    return head[:size]


def utf8_blocks(stream: ByteStream, encoding: str) -> Iterator[bytes]:
    """Blocks of a text file as UTF-8, without its byte order mark; bytes declared UTF-8 pass through unchecked.

    Raises:
        DataError: bytes that are not valid in the declared encoding.
    """
    if encoding == "utf-8":
        head = b""
        blocks = iter(stream)
        while len(head) < len(BOM) and (block := next(blocks, b"")):
            head += block
        yield head.removeprefix(BOM)
        yield from blocks
        return
    decoder = None
    try:
        for block in stream:
            if decoder is None:
                decoder = decoder_of(encoding, block)
                yield decoder.decode(block).removeprefix("\ufeff").encode("utf-8")
            else:
                yield decoder.decode(block).encode("utf-8")
        if decoder is not None:
            yield decoder.decode(b"", final=True).encode("utf-8")
    except UnicodeError as error:
        raise DataError(
            f"{stream.source.path} is not {encoding}: {error.args[-1]}", "Declare its encoding with --encoding."
        ) from error


def decoder_of(encoding: str, start: bytes, errors: str = "strict") -> codecs.IncrementalDecoder:
    """A decoder for a text that begins with these bytes; UTF-16 and UTF-32 need no byte order mark."""
    size = {"utf-16": 2, "utf-32": 4}.get(encoding, 0)
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    if size and not start.startswith(marks):
        # The first byte of most characters of a log is zero if the high byte comes first.
        units = start[:4096]
        encoding += "-be" if units[::size].count(0) > units[size - 1 :: size].count(0) else "-le"
    return codecs.getincrementaldecoder(encoding)(errors)
