"""Find the header of a text, and check it against the contract."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from include.dlt_pipelines.files.contract import FORMATS, SourceFileError, TableContract, column_names
from include.dlt_pipelines.files.dialect import CsvDialect
from include.dlt_pipelines.files.records import Splitter, without_end
from include.dlt_pipelines.files.text import MAX_LINE_BYTES, Reader, Text, detect_format

_SHOWN = 200  # characters of a file to show in a message
_EXPECTED_SHOWN = 1_000
_HEADER_LINES = 20  # at most, of names with line ends
_LINES_SEARCHED = 20


class _HeaderError(Exception):
    """The header cannot be read; the message says why."""


@dataclass(frozen=True)
class Top:
    """What is above the rows.

    Attributes:
        names: the names in the header, as they are there; those of the contract if there is none.
        size: the bytes of the text above the first row.
        lines: the lines above it.
        quotes: whether there are quotes in it.
        header: the text of the header.
    """

    names: Sequence[str]
    size: int
    lines: int
    quotes: bool = False
    header: str = ""


def read_header(path: Path, table: TableContract) -> list[str]:
    """Return a CSV file's column names, in file order, after checking them against the contract.

    Args:
        path: the file.
        table: the contract; columns may be in any order.

    Raises:
        SourceFileError: the file is empty or unreadable, or its header is missing or violates the contract.
    """
    return list(read_top(Text(path, table.dialect.encoding), table).names)


def read_names(path: Path, dialect: CsvDialect) -> list[str]:
    """Return the names in a CSV file's header, as they are there.

    Args:
        path: the file.
        dialect: its dialect.

    Raises:
        SourceFileError: the file is empty or unreadable, or has no such header.
    """
    try:
        return list(_find(Text(path, dialect.encoding), dialect, _HEADER_LINES).names)
    except _HeaderError as error:
        raise SourceFileError(f"{path}{error}") from None


def read_top(text: Text, table: TableContract) -> Top:
    """Return what is above the rows of a text, after checking it against the contract.

    Args:
        text: the file.
        table: the contract.

    Raises:
        SourceFileError: as for `read_header`.
    """
    dialect, path = table.dialect, text.path
    expected = _expected(table)
    try:
        top = _find(text, dialect, sum(name.count("\n") for name in table.columns))
    except _HeaderError as error:
        raise SourceFileError(f"{path}{error}. {_hint(text, table)}{expected}") from None
    if not dialect.header:
        return replace(top, names=list(table.columns))
    names = column_names(top.names, table.added_columns)
    if dialect.trailing_delimiter and not top.names[-1] and names[-1] not in table.columns:
        names.pop()
    if not set(names) & set(table.columns):
        # Don't show the line: it may be a row.
        problem = "no header: the line has none of the columns' names"
        raise SourceFileError(f"{path}:{top.lines}: {problem}. {_hint(text, table)}{expected}")
    check_names(f"{path}:{top.lines}", names, table, top.names, f"Found: {top.header[:_SHOWN]}. {expected}")
    return replace(top, names=names)


def check_names(
    place: str, names: Sequence[str], table: TableContract, delivered: Sequence[str], expected: str
) -> None:
    """Check the names of a file's columns.

    Args:
        place: the file and the line of the header.
        names: the columns' names.
        table: the contract.
        delivered: the names as they are in the file.
        expected: what to say about them.

    Raises:
        SourceFileError: columns are missing or unknown.
    """
    problems = []
    if missing := [name for name in table.columns if name not in names and name not in table.optional]:
        problems.append(f"column {', '.join(missing)[:_SHOWN]} is missing")
    if unknown := [name for name in names if name not in table.columns]:
        repeated = " (the second is named so if a name is repeated)" * bool(set(unknown) - set(delivered))
        problems.append(f"column {', '.join(map(repr, unknown))[:_SHOWN]} is unknown{repeated}")
    if problems:
        raise SourceFileError(
            f"{place}: {'; '.join(problems)}. {expected}. "
            f"Fix the file, or update the contract of {table.name} if the source has changed permanently."
        )


def _expected(table: TableContract) -> str:
    dialect = table.dialect
    if not dialect.header:
        return ""
    columns = dialect.delimiter.join(table.columns)
    return (
        f"Expected in line {dialect.skip + 1}, in any order, separated by {dialect.delimiter!r}, in "
        f"{dialect.encoding.upper()}: {columns[:_EXPECTED_SHOWN]}"
    )


def _find(text: Text, dialect: CsvDialect, more_lines: int) -> Top:
    """Return the names of the header as they are there.

    Args:
        text: the file.
        dialect: its dialect.
        more_lines: how many lines the header may have besides the first: an open quote in it must not swallow rows.
    """
    splitter = Splitter(dialect)
    size = lines = 0
    quotes = False
    with text.open() as file:
        while lines < dialect.skip or (dialect.comment and file.peek(1).startswith(dialect.comment.encode())):
            taken, quoted = _skip_line(file, splitter.quote)
            if not taken:
                raise _HeaderError(f": the file ends in line {lines}, and {dialect.skip} lines of title are declared")
            size, lines, quotes = size + taken, lines + 1, quotes or quoted
        line = file.readline(MAX_LINE_BYTES)
        if not line:
            raise _HeaderError(": the file is empty" if not lines else f": the file ends in line {lines}")
        if not dialect.header:
            return Top((), size, lines, quotes)
        while splitter.leaves_open(line) and more_lines and (more := file.readline(MAX_LINE_BYTES)):
            line, more_lines = line + more, more_lines - 1
    above = lines + 1
    quotes = quotes or bool(splitter.quote and splitter.quote in line)
    header = _decoded(line, above, dialect)
    values, end = splitter.split(header)
    if splitter.leaves_open(header):
        raise _HeaderError(f":{above}: the header has an unclosed quote. Close or remove it")
    if end < len(header):
        problem = "a lone carriage return" if header[end : end + 1] == b"\r" else "unexpected quote"
        raise _HeaderError(f":{above}: {problem} after name {len(values)} of the header")
    names = [splitter.unquoted(value).decode() for value in values]
    return Top(names, size + len(line), lines + (line.count(b"\n") or 1), quotes, header.decode())


def _decoded(line: bytes, number: int, dialect: CsvDialect) -> bytes:
    if len(line) >= MAX_LINE_BYTES:
        raise _HeaderError(f":{number}: the header is at least {MAX_LINE_BYTES} bytes long")
    header = without_end(line)
    try:
        header.decode()
    except UnicodeDecodeError:
        raise _HeaderError(f":{number}: the header is not {dialect.encoding.upper()}") from None
    return header


def _skip_line(file: Reader, quote: bytes) -> tuple[int, bool]:
    """Return the size of a line, and whether it has quotes."""
    size, quoted = 0, False
    while part := file.readline(MAX_LINE_BYTES):
        size, quoted = size + len(part), quoted or bool(quote and quote in part)
        if part.endswith(b"\n"):
            break
    return size, quoted


def _hint(text: Text, table: TableContract) -> str:
    """Return what the contract could declare to read a file whose header was not found."""
    found = detect_format(text.path)
    if found != "csv":
        return f"It is a {FORMATS[found]} file: declare format={found!r} in the contract of {table.name}. "
    with text.open() as file:
        lines = [file.readline(MAX_LINE_BYTES) for _ in range(_LINES_SEARCHED)]
    for number, line in enumerate(lines):
        for delimiter in dict.fromkeys((table.dialect.delimiter, ",", ";", "\t", "|")):
            names = column_names(
                [one.strip('" \r\n') for one in line.decode(errors="replace").split(delimiter)], table.added_columns
            )
            if set(names) == set(table.columns):
                declared = []
                if number != table.dialect.skip:
                    declared.append(f"skip={number}")
                if delimiter != table.dialect.delimiter:
                    declared.append(f"delimiter={delimiter!r}")
                if declared:
                    return (
                        f"The names are in line {number + 1}: declare CsvDialect({', '.join(declared)}) in the "
                        f"contract of {table.name}. "
                    )
    return ""
