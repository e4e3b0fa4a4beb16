"""Parse CSV text against a contract.

    text ──▶ fast path: DuckDB reads the whole; accepted if every line is in one valid row
      └────▶ in blocks: one that the fast path does not accept takes the careful path: its records are split one by one,
             so that a bad line does not affect its neighbours

`rows loaded + rows rejected = rows in the file` is checked after each parse. The right side is counted from the text's
bytes: every non-blank line below the header starts a row, unless it continues a quoted value.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from include.dlt_pipelines.files.contract import SourceFileError, TableContract
from include.dlt_pipelines.files.header import Top, read_header, read_top
from include.dlt_pipelines.files.output import Output
from include.dlt_pipelines.files.parser import Parser
from include.dlt_pipelines.files.records import MAX_LINES_PER_RECORD, Outcome, Splitter, without_end
from include.dlt_pipelines.files.text import LINE_ENDS, MAX_LINE_BYTES, Text, count_filled_lines, line_blocks
from include.dlt_pipelines.files.values import values
from include.errors import is_disk_full
from include.sql import literal

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_MIN_PART, _MAX_PART = 1 << 20, 1 << 26  # bytes to try the fast path on, once it has failed on the whole
_LINE_ENDS_EXCHANGED = r"\r+(?:\n\r+)*"  # in values, CR and LF are as in the file


@dataclass(frozen=True)
class Body:
    """The rows of a text, or a part of them.

    Attributes:
        text: the delivered file.
        path: a file that has the text, in UTF-8.
        names: the columns, in file order.
        start: the position of the first row's first byte.
        end: the position after the last row.
        line: the number of the first row's line.
        skip: the lines of `path` above the first row.
    """

    text: Text
    path: Path
    names: list[str]
    start: int
    end: int
    line: int
    skip: int

    def blocks(self) -> Iterator[bytes]:
        """Yield the text in blocks that end where a line does, unless that is overlong."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            yield from line_blocks(file, self.end - self.start)


@dataclass(frozen=True)
class _Counts:
    """What the bytes of a text have; `odd` if they have what DuckDB reads in another way than the careful path."""

    lines: int
    delimiters: int
    quotes: bool
    odd: bool


class CsvParser(Parser):
    """Parses one CSV file."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, table: TableContract, output: Output) -> None:
        """Parse nothing yet.

        Args:
            connection: an empty database.
            table: the contract.
            output: where the rows go.
        """
        super().__init__(connection, table, output)
        self._splitter = Splitter(table.dialect)

    @staticmethod
    def check(path: Path, table: TableContract) -> None:
        """Check the header."""
        read_header(path, table)

    def parse(self, path: Path, out_dir: Path) -> int | None:
        """Parse a file."""
        text = Text(path, self._dialect.encoding)
        body = self._body(text, read_top(text, self._table), out_dir / "text")
        if (fast := self._fast(body)) is not None:
            self._output.keep(*fast)
        else:
            logger.info("%s: not every line is one valid row; reading it in blocks", path)
            self._parse_blocks(body, out_dir / "block")
        rows = None if fast else self._count_rows(body)
        if body.path != path:
            body.path.unlink()
        return rows

    def _body(self, text: Text, top: Top, copy: Path) -> Body:
        names = list(top.names)
        # With quotes in them, DuckDB takes other lines than these for those to skip.
        plain_top = top.lines < 2 or not self._dialect.quote or not top.quotes
        if text.in_place and plain_top and not self._dialect.footer:
            return Body(text, text.path, names, top.size + text.mark, text.size, top.lines + 1, top.lines)
        with text.open() as source, copy.open("wb") as target:
            left = top.size
            while left:
                left -= len(source.read(min(left, _BLOCK)))
            shutil.copyfileobj(source, target, _BLOCK)
        body = Body(text, copy, names, 0, copy.stat().st_size, top.lines + 1, 0)
        return self._without_footer(body) if self._dialect.footer else body

    def _without_footer(self, body: Body) -> Body:
        """Return the rows without the footer; a valid row in it is an error, as it would be lost."""
        with body.path.open("rb") as file:
            at = max(body.end - MAX_LINE_BYTES, 0)
            file.seek(at)
            lines = file.read().splitlines(keepends=True)[at > 0 :]
        footer: list[bytes] = []
        end = body.end
        while lines and len(footer) < self._dialect.footer:
            line = lines.pop()
            end -= len(line)
            if line.strip():
                footer.append(without_end(line))
        path = body.text.path
        if len(footer) < self._dialect.footer:
            raise SourceFileError(
                f"{path}: {self._dialect.footer} lines of footer are declared, and it has {len(footer)} below its "
                "header. Deliver the file again."
            )
        if self._output.has_row([self._splitter.read(line, body.names) for line in footer], body.names):
            raise SourceFileError(
                f"{path}: one of the last {self._dialect.footer} lines, which are declared as its footer, is a row. "
                "Nothing was loaded. Deliver the file again, or correct footer= in its contract."
            )
        os.truncate(body.path, end)
        return replace(body, end=end)

    def _fast(self, body: Body) -> tuple[int, Path] | None:
        """Return the number of rows and a file of them, or None if lines and valid rows don't match one to one."""
        counts = self._count(body)
        width = len(body.names) + self._has_trailing_delimiter(body)
        if counts.odd or (width == 1 and count_filled_lines(body.blocks()) != counts.lines):
            return None  # with a single column, DuckDB reads a blank line as NULL
        self._output.absent = frozenset(self._table.optional) - set(body.names)
        found = values(self._table, self._texts(body))
        condition = "true" if width == len(body.names) else "t is null"
        try:
            rows, part = self._output.copy_all(self._read_csv(body, width), found, condition)
        except duckdb.Error as error:
            if is_disk_full(str(error)):
                raise
            return None
        if self._matches(body, counts, rows, part, width):
            return rows, part
        part.unlink()
        return None

    def _count(self, body: Body) -> _Counts:
        lines = delimiters = 0
        quotes = odd = False
        last = b"\n"
        comment = self._dialect.comment.encode()
        for block in body.blocks():
            lines += block.count(b"\n")
            delimiters += block.count(self._splitter.delimiter)
            # Most files have none, and a membership test is faster than a count.
            if b"\r" in block:
                odd = odd or block.count(b"\r") != block.count(b"\r\n")
            if self._splitter.quote and self._splitter.quote in block:
                quotes = True
                odd = odd or self._splitter.reads_otherwise(block)
            if comment:
                odd = odd or block.startswith(comment) or b"\n" + comment in block
            last = block[-1:]
            if odd:
                break
        return _Counts(lines + (last != b"\n"), delimiters, quotes, odd)

    def _has_trailing_delimiter(self, body: Body) -> bool:
        if not self._dialect.trailing_delimiter:
            return False
        with body.path.open("rb") as file:
            file.seek(body.start)
            line = file.readline(MAX_LINE_BYTES).rstrip(b"\r\n")
        values, _ = self._splitter.split(line)
        return len(values) == len(body.names) + 1 and not values[-1]

    def _read_csv(self, body: Body, width: int) -> str:
        dialect = self._dialect
        columns = {f"c{position}": "VARCHAR" for position in range(len(body.names))}
        if width > len(body.names):
            columns["t"] = "VARCHAR"
        return (
            f"read_csv({literal(body.path)}, columns={columns}, header=false, skip={body.skip}, auto_detect=false, "
            f"delim={literal(dialect.delimiter)}, quote={literal(dialect.quote)}, "
            f"escape={literal(dialect.escape or dialect.quote)}, nullstr='', compression='none', "
            f"max_line_size={MAX_LINE_BYTES}, hive_partitioning=false)"
        )

    def _texts(self, body: Body) -> dict[str, str]:
        texts = {name: f"c{position}" for position, name in enumerate(body.names)}
        if body.text.exchanged:
            return {name: rf"translate({text}, e'\r\n', e'\n\r')" for name, text in texts.items()}
        return texts

    def _matches(self, body: Body, counts: _Counts, rows: int, part: Path, width: int) -> bool:
        """Check that line ends and delimiters match the rows: DuckDB skips or tolerates some bad lines."""
        delimiters = self._delimiters_in_values(body, part, width) if counts.quotes else 0
        if counts.delimiters - delimiters != rows * (width - 1):
            return False
        if not counts.quotes or rows == counts.lines:
            return rows == counts.lines or rows == count_filled_lines(body.blocks())
        end = "chr(13)" if body.text.exchanged else "chr(10)"
        lines, most_lines, most_bytes = self._output.extent(part, f"strlen({{0}}) - strlen(replace({{0}}, {end}, ''))")
        if most_lines >= MAX_LINES_PER_RECORD or most_bytes >= MAX_LINE_BYTES // 2:
            return False  # values over many lines have limits
        if rows == counts.lines - lines:
            return True
        return rows == count_filled_lines(body.blocks()) - self._output.sum_over_texts([part], _ends(body.text))

    def _delimiters_in_values(self, body: Body, part: Path, width: int) -> int:
        """Return how many delimiters are within values."""
        mark = literal(self._dialect.delimiter)
        count = f"(strlen({{0}}) - strlen(replace({{0}}, {mark}, ''))) // strlen({mark})"
        if not self._dialect.numbers_may_have(self._dialect.delimiter):
            return self._output.sum_over_texts([part], count)
        # Those in texts of numbers, dates and so on are not in the values any more.
        sums = ", ".join(f"sum({count.format(f'c{position}')})" for position in range(len(body.names)))
        row = self._connection.execute(f"select {sums} from {self._read_csv(body, width)}").fetchone()
        return sum(map(int, filter(None, row or ())))

    def _parse_blocks(self, body: Body, file: Path) -> None:
        at, line, size = body.start, body.line, _MAX_PART
        while at < body.end:
            end, lines = _write_part(body, at, size, file)
            part = replace(body, path=file, start=0, end=end - at, line=line, skip=0)
            if (fast := self._fast(part)) is not None:
                self._output.keep(*fast)
                at, line, size = end, line + lines, min(size * 2, _MAX_PART)
            elif size > _MIN_PART and end - at > _MIN_PART:
                size = max(size // 8, _MIN_PART)
            else:
                at, line = self._parse_carefully(body, at, line, end)
            file.unlink()

    def _parse_carefully(self, body: Body, at: int, line: int, end: int) -> tuple[int, int]:
        """Parse the records that start before a position; return position and line of the next one."""
        following = body.end, 0

        def records() -> Iterator[tuple[int, str, Outcome]]:
            nonlocal following
            with body.path.open("rb") as file:
                file.seek(at)
                for record in self._splitter.records(file, at, line):
                    if record.start >= end:
                        following = record.start, record.line
                        return
                    outcome = self._splitter.read(record.content, body.names)
                    if body.text.exchanged:
                        outcome = outcome._replace(values=[body.text.exchange(value) for value in outcome.values])
                    yield record.line, body.text.shown(record.content), outcome

        self._output.add_records(records(), body.names)
        return following

    def _count_rows(self, body: Body) -> int:
        joined = self._output.sum_over_all_texts(_ends(body.text))
        comments = 0
        if comment := self._dialect.comment:
            pattern = re.compile(rb"(?m)^" + re.escape(comment.encode()))
            comments = sum(len(pattern.findall(block)) for block in body.blocks())
            end = literal(("\r" if body.text.exchanged else "\n") + comment)
            comments -= self._output.sum_over_all_texts(f"len(string_split({{0}}, {end})) - 1")
        return count_filled_lines(body.blocks()) - joined - comments


def _ends(text: Text) -> str:
    pattern = _LINE_ENDS_EXCHANGED if text.exchanged else LINE_ENDS
    return f"len(regexp_extract_all({{0}}, {literal(pattern)}))"


def _write_part(body: Body, at: int, size: int, target: Path) -> tuple[int, int]:
    """Write the lines from a position to a file; return the position after them, and their number."""
    lines, end = 0, at
    with body.path.open("rb") as source, target.open("wb") as out:
        source.seek(at)
        while end < body.end:
            missing = size - (end - at)
            block = source.read(min(missing, _BLOCK)) if missing > 0 else source.readline(_BLOCK)
            out.write(block)
            end, lines = end + len(block), lines + block.count(b"\n")
            if missing <= len(block) and block.endswith(b"\n"):
                break
    return end, lines
