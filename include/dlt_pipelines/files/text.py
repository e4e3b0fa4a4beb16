"""Delivered files as UTF-8 text: packed ones are unpacked, other encodings decoded, in a stream.

    file ──unpack──▶ bytes ──decode──▶ UTF-8, lines that end in LF or CRLF

A byte that does not decode becomes 0xFF, which is never part of UTF-8, and its escape: so it rejects its row, and only
that.
"""

import bz2
import codecs
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow

from include.dlt_pipelines.files.contract import Format, SourceFileError

PACKED = (".gz", ".bz2", ".zst", ".zip")
MAX_LINE_BYTES = 1_000_000
LINE_ENDS = r"\n+(?:\r\n+)*"  # a line end and the blank lines after it; DuckDB uses it too
UNDECODABLE = b"\xff"
_BLOCK = 1 << 20
Reader: TypeAlias = "io.BufferedReader[Any]"
# What unpacks to more than both is refused: it is not data, but an attack or an accident that fills the disk.
_MAX_FACTOR, _MAX_UNPACKED = 1_000, 10_000_000_000
# Classic Mac OS ended lines with CR alone, and put LF within values: exchanged, they are ordinary lines.
_EXCHANGE = bytes.maketrans(b"\r\n", b"\n\r")
_UNPACK_ERRORS = (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, OSError, RuntimeError, ValueError)


class _SourceFile(io.FileIO):
    """Turns read errors into SourceFileError here, where they can't be confused with errors of writing output."""

    def readinto(self, buffer: Any, /) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise unreadable(Path(str(self.name)), error) from None


class Text:
    """A file as text.

    Attributes:
        path: the file.
        in_place: whether its bytes are the text already.
        mark: the bytes of a byte order mark in front of it, if it is in place.
        size: the bytes of the file.
        exchanged: whether CR and LF are exchanged in the text, as the file's lines end in CR.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        """Look at the beginning of a file.

        Args:
            path: the file.
            encoding: its encoding; a byte order mark is not part of the text.

        Raises:
            SourceFileError: the file cannot be read or unpacked.
        """
        self.path = path
        self._encoding = codecs.lookup(encoding).name.removesuffix("-sig")
        self.exchanged = False
        with self.open() as text:
            first = text.peek(1)
        # Values may have lone CRs as well, even those of the header.
        end, lone = first.find(b"\r"), first.count(b"\r") - first.count(b"\r\n")
        ends_line = end >= 0 and first[end + 1 : end + 2] != b"\n" and b"\n" not in first[:end]
        self.exchanged = ends_line and lone > first.count(b"\n")
        with _plain(path) as file:
            packed = _unpacker(file.peek(16)) is not None
            self.mark = 3 * file.peek(3).startswith(codecs.BOM_UTF8)
        self.in_place = not packed and not self.exchanged and self._encoding == "utf-8"
        self.size = path.stat().st_size

    def blocks(self) -> Iterator[bytes]:
        """Yield the text, in blocks of about a megabyte.

        Raises:
            SourceFileError: the file cannot be read or unpacked.
        """
        with open_unpacked(self.path) as file:
            first = True
            for block in _decoded(file, self._encoding):
                text = block.removeprefix(codecs.BOM_UTF8) if first else block
                first = first and not block
                yield text.translate(_EXCHANGE) if self.exchanged else text

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """Open the text for reading.

        Raises:
            SourceFileError: the file cannot be read or unpacked.
        """
        blocks = self.blocks()
        try:
            with io.BufferedReader(_Blocks(blocks), _BLOCK) as reader:
                yield reader
        finally:
            blocks.close()  # type: ignore[attr-defined]  # a generator

    @staticmethod
    def exchange(value: str | None) -> str | None:
        """Return a value with CR and LF exchanged."""
        return value.translate({10: 13, 13: 10}) if value else value

    def shown(self, record: bytes) -> str:
        """Return some of the text as the file has it, for a person to read."""
        if self.exchanged:
            record = record.translate(_EXCHANGE)
        if self._encoding != "utf-8":
            record = record.replace(UNDECODABLE, b"")
        return record.decode(errors="backslashreplace")


class _Blocks(io.RawIOBase):
    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(f"\udcff\\x{byte:02x}" for byte in bad), error.end


codecs.register_error("elt_escaped", _escaped)


def _decoded(file: BinaryIO, encoding: str) -> Iterator[bytes]:
    if encoding == "utf-8":
        while block := file.read(_BLOCK):
            yield block
        return
    decoder = codecs.getincrementaldecoder(encoding)("elt_escaped")
    ascii_is_itself = _extends_ascii(encoding)
    final = False
    while not final:
        block = file.read(_BLOCK)
        final = not block
        if block.isascii() and ascii_is_itself and not decoder.getstate()[0] and not final:
            yield block
        else:
            yield decoder.decode(block, final).encode("utf-8", "surrogateescape")


@cache
def _extends_ascii(encoding: str) -> bool:
    text = bytes(range(128))
    try:
        return text.decode(encoding) == text.decode("ascii")
    except UnicodeError:
        return False


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked if it is packed.

    Args:
        path: the file.

    Raises:
        SourceFileError: the file cannot be read, is damaged, or is an archive of several files.
    """
    with ExitStack() as stack:
        plain = stack.enter_context(_plain(path))
        start = plain.peek(16)
        unpack = _unpacker(start)
        if unpack is None:
            yield plain
            return
        with _damaged(path):
            unpacked = stack.enter_context(unpack(plain))
        yield _Unpacked(unpacked, path)  # type: ignore[misc]


@contextmanager
def _plain(path: Path) -> Iterator[Reader]:
    try:
        plain = io.BufferedReader(_SourceFile(path), _BLOCK)
    except PermissionError:
        raise SourceFileError(f"{path}: this user cannot read the file. Grant it: chmod a+r") from None
    except OSError as error:
        raise unreadable(path, error) from None
    with plain:
        yield plain


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNPACK_ERRORS as error:
        raise SourceFileError(
            f"{path}: cannot be unpacked ({' '.join(str(error).split())[:200]}). It is damaged or incomplete: deliver "
            "it again."
        ) from None


class _Unpacked:
    """Reads what is unpacked, up to a bound."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self._read = file, path, 0
        self._most = max(path.stat().st_size * _MAX_FACTOR, _MAX_UNPACKED)

    def read(self, size: int) -> bytes:
        with _damaged(self._path):
            block = bytes(self._file.read(size))
        self._read += len(block)
        if self._read > self._most:
            raise SourceFileError(
                f"{self._path}: unpacks to more than {self._most / 1e9:.0f} GB, {_MAX_FACTOR} times its size. If these "
                "are data, deliver them unpacked."
            )
        return block


def _unpacker(start: bytes) -> Callable[[Reader], Any] | None:
    """Return what unpacks a file with these first bytes; None if it is not packed."""
    if start.startswith(b"\x1f\x8b"):
        return lambda file: gzip.open(file)
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return lambda file: bz2.open(file)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return lambda file: pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _open_zip
    return None


@contextmanager
def _open_zip(file: Reader) -> Iterator[Any]:
    """Open the only file in an archive; its name is not used for anything."""
    name = Path(str(file.raw.name))
    with zipfile.ZipFile(file) as archive:
        inside = archive.infolist()
        if any(one.filename == "xl/workbook.xml" for one in inside):
            raise SourceFileError(f"{name}: is an Excel file. Declare it in the contract: format='xlsx'.")
        members = [one for one in inside if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            raise SourceFileError(f"{name}: has {len(members)} files. Deliver one file in each archive.")
        if members[0].flag_bits & 1:
            raise SourceFileError(f"{name}: is protected by a password. Deliver it without.")
        with archive.open(members[0]) as member:
            yield member


def line_blocks(file: Reader, size: int | None = None) -> Iterator[bytes]:
    """Yield a text in blocks that end where a line does, unless that is overlong.

    Args:
        file: the text.
        size: the bytes to read; all by default.
    """
    while size is None or size > 0:
        block = file.read(_BLOCK if size is None else min(_BLOCK, size))
        if size is None or len(block) < size:
            block += file.readline(MAX_LINE_BYTES if size is None else min(MAX_LINE_BYTES, size - len(block)))
        if not block:
            return
        size = None if size is None else size - len(block)
        yield block


def count_filled_lines(blocks: Iterable[bytes]) -> int:
    """Count non-blank lines on raw bytes: an independent check of the code that splits the text."""
    filled, tail = 0, b"\n"
    for block in blocks:
        text = tail[-1:] + block
        filled += len(re.findall(LINE_ENDS.encode(), text)) - text.startswith(b"\n")
        tail = text[-2:]
    return filled + (not tail.endswith(b"\n") and tail != b"\n\r")


def detect_format(path: Path) -> Format:
    """Return the format of a file by its first bytes: one that has no other is CSV.

    Args:
        path: the file, which may be packed.

    Raises:
        SourceFileError: the file cannot be read or unpacked.
    """
    with _plain(path) as file:
        if _unpacker(file.peek(16)) is _open_zip and _is_workbook(path):
            return "xlsx"
    with open_unpacked(path) as file:
        start = file.read(4096)
    if start.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b'{"', b"{}")) else "csv"


def _is_workbook(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def unreadable(path: Path, error: OSError) -> SourceFileError:
    """Return the error of a disk or a share that cannot be read."""
    return SourceFileError(
        f"{path}: cannot be read ({error.strerror}). Check the disk or share that holds it, then clear this task."
    )
