"""Split a text into records in plain Python, one by one, so that a bad line does not affect its neighbours."""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from include.dlt_pipelines.files.dialect import CsvDialect
from include.dlt_pipelines.files.text import MAX_LINE_BYTES, Reader

MAX_LINES_PER_RECORD = 1_000
_BLANK_LINES = re.compile(rb"(?:\r?\n++)+")


class Record(NamedTuple):
    """A record: the position of its first byte, the number of its first line, and its bytes without the line end."""

    start: int
    line: int
    content: bytes


class Outcome(NamedTuple):
    """The values of a record, or the column and the reason if they are not one per column."""

    values: Sequence[str | None]
    column: str | None = None
    reason: str | None = None


class Line(NamedTuple):
    """A line: its number, its content with the line end, and its size; an overlong one has more than its content."""

    number: int
    content: bytes
    size: int


class Splitter:
    """Splits text of a dialect.

    As DuckDB parses it: spaces around quotes are not part of the value, a quote inside a bare value is.
    """

    def __init__(self, dialect: CsvDialect) -> None:
        """Compile the patterns of a dialect's fields."""
        self._dialect = dialect
        self.delimiter, self.quote = dialect.delimiter.encode(), dialect.quote.encode()
        self._comment = dialect.comment.encode()
        self._compile(dialect.escape.encode())

    def _compile(self, escape: bytes) -> None:
        # No group is possessive, `(...)*+`: Python before 3.11.5, such as Debian 12's, matches those wrongly
        # (CPython 106052).
        delimiter, quote, mark = map(re.escape, (self.delimiter, self.quote, escape))
        single = len(self.delimiter) == 1
        bare = rb"[^%s\r\n]*+" % delimiter if single else rb"(?:(?!%s)[^\r\n])*" % delimiter
        if not quote:
            self._value = re.compile(bare)
            return
        # DuckDB reads `"a" ","` as `a ,`, drops an escape before any character, and takes a quote after several spaces
        # for a part of its value.
        torn = rb"%s +%s" % (quote, quote) if self.delimiter != b" " else rb"(?!)"
        known = b"|".join((quote, mark, delimiter))
        self._otherwise = re.compile(rb"%s|%s(?!%s)" % (torn, mark, known) if escape else torn)
        self._padded = re.compile(rb"(?:\A|\n|%s)  +%s" % (delimiter, quote))
        pad = rb" *+" if self.delimiter != b" " else rb""
        if escape:
            self._escaped = re.compile(rb"%s(%s)" % (mark, known))
            inside = rb"[^%s%s]*+(?:%s(?:%s)[^%s%s]*+)*" % (quote, mark, mark, known, quote, mark)
        else:
            self._escaped = re.compile(rb"%s(%s)" % (quote, quote))
            inside = rb"[^%s]*+(?:%s%s[^%s]*+)*" % (quote, quote, quote, quote)
        field = rb"(?:%s%s%s%s%s|(?!%s%s)%s)" % (pad, quote, inside, quote, pad, pad, quote, bare)
        opened = rb"%s%s%s" % (pad, quote, inside)
        self._value = re.compile(field)
        self._open_quote = re.compile(rb"(?:%s%s)*%s" % (field, delimiter, opened))
        # A line that starts inside a quoted value and ends inside one, and one that ends the record.
        self._still_open = re.compile(
            rb"%s(?:%s%s%s(?:%s%s)*%s)?" % (inside, quote, pad, delimiter, field, delimiter, opened)
        )
        self._closes = re.compile(rb"%s%s%s(?:%s%s)*" % (inside, quote, pad, delimiter, field))

    def records(self, file: Reader, start: int, line: int) -> Iterator[Record]:
        """Yield each record; a quoted value may span lines.

        A quote that is never closed ends at its own line, so that it does not swallow the lines below.

        Args:
            file: the text, from the first byte of a record.
            start: the position of that byte.
            line: the number of its line.
        """
        following = lines(file, line)
        ahead: deque[Line] = deque()
        # Each line ahead is examined once, however many quotes are open above it. Entered inside a quote, the first
        # `still` of them (`size` bytes) end inside one; `closes` says whether the next closes it, None if unknown.
        still, size = 0, 0
        closes: bool | None = None
        while first := ahead.popleft() if ahead else next(following, None):
            taken = first.size
            if still:
                still, size = still - 1, size - len(first.content)
            else:
                closes = None
            record = without_end(first.content)
            if self._comment and first.content.startswith(self._comment):
                start += taken
                continue
            if self.quote and self.quote in first.content and self._open_quote.fullmatch(first.content):
                while closes is not False:
                    if still == len(ahead):
                        ahead.extend(islice(following, 1))
                        if still == len(ahead):
                            break
                    below = ahead[still]
                    far = below.number - first.number >= MAX_LINES_PER_RECORD
                    if far or len(first.content) + size > MAX_LINE_BYTES:
                        break
                    if closes is None and self._still_open.fullmatch(below.content):
                        still, size = still + 1, size + len(below.content)
                    elif closes := closes or bool(self._closes.fullmatch(without_end(below.content))):
                        rest = [ahead.popleft() for _ in range(still + 1)]
                        record = without_end(b"".join([first.content, *(one.content for one in rest)]))
                        taken += sum(one.size for one in rest)
                        still, size, closes = 0, 0, None
                        break
            if record and not _BLANK_LINES.fullmatch(first.content):
                yield Record(start, first.number, record)
            start += taken

    def split(self, record: bytes) -> tuple[list[bytes], int]:
        """Return the raw values up to the first malformed one, and the position where reading stopped."""
        if not self.quote and b"\r" not in record:
            return record.split(self.delimiter), len(record)
        values, end = [], 0
        while True:
            match = self._value.match(record, end)
            values.append(match[0] if match else b"")
            end = match.end() if match else end
            if not record.startswith(self.delimiter, end):
                return values, end
            end += len(self.delimiter)

    def unquoted(self, value: bytes) -> bytes:
        """Return a raw value without its quotes."""
        if not self.quote:
            return value
        bare = value.strip(b" ") if self.delimiter != b" " else value
        return self._escaped.sub(rb"\1", bare[1:-1]) if bare.startswith(self.quote) else value

    def reads_otherwise(self, text: bytes) -> bool:
        """Return whether a text with quotes may have what DuckDB reads in another way."""
        if self._otherwise.search(text):
            return True
        return self.delimiter != b" " and b"  " + self.quote in text and bool(self._padded.search(text))

    def leaves_open(self, record: bytes) -> bool:
        """Return whether a record ends within quotes."""
        return bool(self.quote and self._open_quote.fullmatch(record))

    def read(self, record: bytes, names: Sequence[str]) -> Outcome:
        """Return the values of a record, one per column, in valid UTF-8.

        Args:
            record: its bytes.
            names: the columns, in file order.
        """
        nothing = [None] * len(names)
        if len(record) > MAX_LINE_BYTES:
            return Outcome(nothing, None, f"the row is longer than {MAX_LINE_BYTES} bytes; only its beginning is kept")
        try:
            record.decode()
        except UnicodeDecodeError as error:
            column = names[min(len(self.split(record[: error.start])[0]), len(names)) - 1]
            return Outcome(nothing, column, self._undecodable(record, error.start))
        if (self.quote and self.quote in record) or b"\r" in record:
            values, end = self.split(record)
            if end < len(record):
                column = names[min(len(values), len(names)) - 1]
                open_quote = self.leaves_open(record)
                return Outcome(nothing, column, "unclosed quote" if open_quote else "unexpected quote or line end")
        else:
            values = record.split(self.delimiter)
        if self._dialect.trailing_delimiter and len(values) == len(names) + 1 and not values[-1]:
            values = values[:-1]
        if len(values) < len(names) and self._dialect.short_rows == "fill":
            values = [*values, *[b""] * (len(names) - len(values))]
        if len(values) != len(names):
            missing = names[len(values)] if len(values) < len(names) else None
            return Outcome(nothing, missing, f"{len(values)} values, {len(names)} expected")
        return Outcome([self.unquoted(value).decode() or None for value in values])

    def _undecodable(self, record: bytes, at: int) -> str:
        if self._dialect.encoding.lower() not in ("utf-8", "utf8", "utf-8-sig"):
            characters = len(record[:at].decode())
            return f"not valid {self._dialect.encoding.upper()} at character {characters + 1} of the row"
        return f"not valid UTF-8 at byte {at + 1} of the row"


def lines(file: Reader, number: int) -> Iterator[Line]:
    """Yield lines with their line ends; an overlong line is truncated.

    Consecutive blank lines are yielded together, as a file may have millions.

    Args:
        file: the text.
        number: of its first line.
    """
    while content := file.readline(MAX_LINE_BYTES + 2):
        size, rest = len(content), content
        while len(rest) == MAX_LINE_BYTES + 2 and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 2)
            size += len(rest)
        if content in (b"\n", b"\r\n") and (more := _BLANK_LINES.match(file.peek(1))):
            content += file.read(more.end())
            size = len(content)
        yield Line(number, content, size)
        number += content.count(b"\n") or 1


def without_end(line: bytes) -> bytes:
    """Return a line without its line end."""
    return line.removesuffix(b"\n").removesuffix(b"\r")
