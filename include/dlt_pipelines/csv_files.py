"""Parse CSV files against a declared contract: every row is either loaded, or rejected with a reason.

    file ──▶ fast path: DuckDB reads the whole file; accepted if every line yields one valid row
      └────▶ careful path: records are split one by one, so that a bad line does not affect its
             neighbours; good rows go to Parquet, bad ones to a Parquet file of rejects

`rows loaded + rows rejected = rows in the file` is checked after each parse. The right side is counted from the file's
bytes: every non-blank line below the header starts a row, unless it continues a quoted value.
"""

import gzip
import io
import logging
import re
import threading
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import duckdb
import pyarrow
import pyarrow.parquet

from include.errors import PipelineError, is_disk_full
from include.sql import identifier, literal

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 1_000_000
MAX_LINES_PER_RECORD = 1_000
MEMORY = "512MB"  # per DuckDB connection of a load; the rest spills to disk
PROGRESS_SECONDS = 10.0
_BATCH_ROWS = 50_000
_BATCH_BYTES = 8_000_000
_RECORD_COLUMNS = ("_text", "_column", "_reason")
_SHOWN = 200  # characters of a file to show in a message

# As DuckDB parses them: spaces around quotes are not part of the value, a quote inside a bare value is.
# No group is possessive, `(...)*+`: Python before 3.11.5, such as Debian 12's, matches those wrongly (CPython 106052).
_QUOTED = rb'[^"]*+(?:""[^"]*+)*'
_FIELD = rb'(?: *+"%s" *+|(?! *+")[^,\r\n]*+)' % _QUOTED
_VALUE = re.compile(_FIELD)
_RECORD = re.compile(rb"%s(?:,%s)*" % (_FIELD, _FIELD))
_OPEN_QUOTE = re.compile(rb'(?:%s,)* *+"%s' % (_FIELD, _QUOTED))
_TORN_QUOTES = re.compile(rb'" +"')  # DuckDB reads `"a" ","` as `a ,`
# A line that starts inside a quoted value and ends inside one, and one that ends the record.
_STILL_OPEN = re.compile(rb'%s(?:" *+,(?:%s,)* *+"%s)?' % (_QUOTED, _FIELD, _QUOTED))
_CLOSES = re.compile(rb'%s" *+(?:,%s)*' % (_QUOTED, _FIELD))
_BLANK_LINES = re.compile(rb"(?:\r?\n++)+")
_LINE_ENDS = r"\n+(?:\r\n+)*"  # a line end and the blank lines after it; DuckDB uses it too

# DuckDB's casts round, guess and drop ('5.5', '1_000', '2018-1-1', 'infinity', '+05:00'), so a text must also match its
# type's form. Types without one are refused: Parquet stores HUGEINT as DOUBLE, and nested types have ambiguous texts.
_INTEGER = "[+-]?[0-9]+"
_FRACTION = "([.][0-9]{0,%s}0*)?"
_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"  # DuckDB reads year 0 as 1 BC
_DATE = f"{_YEAR}-[0-9]{{2}}-[0-9]{{2}}"
_TIME = "([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}"
_TIMESTAMP = f"{_DATE}[ T]{_TIME}{_FRACTION}"
_FORMS = {
    "VARCHAR": "",
    "BOOLEAN": "(?i)(true|false|t|f|1|0)",
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT"), _INTEGER),
    **dict.fromkeys(("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"), _INTEGER),
    **dict.fromkeys(("FLOAT", "DOUBLE"), f"{_INTEGER}([.][0-9]*)?([eE]{_INTEGER})?"),
    "DATE": _DATE,
    "TIME": _TIME + _FRACTION % 6,
    "TIMESTAMP_S": _TIMESTAMP % 0,
    "TIMESTAMP_MS": _TIMESTAMP % 3,
    "TIMESTAMP": _TIMESTAMP % 6,
    "TIMESTAMP WITH TIME ZONE": f"{_TIMESTAMP % 6}(Z|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)",
}

_Reader: TypeAlias = "io.BufferedReader[_SourceFile] | gzip.GzipFile"


class SourceFileError(PipelineError):
    """A bad source file, which a retry cannot fix. The message has file, line, column and remedy, but no row values."""

    runbook = "A source file is missing or malformed"


class SourceChangedError(PipelineError):
    """A source file was modified while being read."""

    retryable = True
    runbook = "A source file changed while it was read"


@dataclass(frozen=True)
class TableContract:
    """The contract of a source file: the one place where a raw table is declared.

    Attributes:
        name: the table, and the file name without `.csv` or `.csv.gz` unless `files` is set.
        columns: DuckDB types by column name, in table order; aliases are normalized (`int8` becomes `BIGINT`).
        primary_key: the columns that identify a row; checked by dbt tests, not here.
        min_rows: a file with fewer rows fails the load, as an empty file is rarely intended.
        files: pattern of a drop folder's files, such as `raw_orders*.csv`; files ending in `.gz` too are found as well.
            The table then has the column `_file`, and a load reads new and changed files only.
        write_disposition: how the rows of a drop folder's files combine. `append`: the table has those of all files.
            `merge`: of the rows with equal keys, it has those of the last file by name.

    Raises:
        ValueError: a column's type is unknown or has no exact text form in CSV, or a drop folder is declared wrongly.
    """

    name: str
    columns: Mapping[str, str]
    primary_key: tuple[str, ...]
    min_rows: int = 1
    files: str = ""
    write_disposition: Literal["append", "merge"] = "append"

    def __post_init__(self) -> None:
        self._check_drop_folder()
        types = {}
        for column, declared in self.columns.items():
            try:
                types[column] = _canonical(declared)
                _form(types[column])
            except (duckdb.Error, KeyError):
                raise ValueError(
                    f"{self.name}.{column}: type {declared!r} is not supported. Use one of {', '.join(_FORMS)} or "
                    "DECIMAL(width, scale); for any other, VARCHAR, and cast it in the staging model."
                ) from None
        object.__setattr__(self, "columns", types)

    def _check_drop_folder(self) -> None:
        if "/" in self.files:
            raise ValueError(f"{self.name}: files={self.files!r} must be a pattern for names, without a folder.")
        if self.write_disposition == "merge" and not (self.files and self.primary_key):
            raise ValueError(f"{self.name}: merge needs `files` and a primary_key.")
        if self.files and "_file" in self.columns:
            raise ValueError(f"{self.name}: the column _file is added to the table of a drop folder, so rename yours.")

    @property
    def added_columns(self) -> tuple[str, ...]:
        """The raw table's columns after those of the file, all VARCHAR."""
        return ("_dlt_load_id", "_file") if self.files else ("_dlt_load_id",)


@dataclass(frozen=True)
class ParsedFile:
    """The outcome of parsing one file; `rejects` is a Parquet file if any row was rejected."""

    file: Path
    parquet: Path
    rejects: Path | None
    rows_loaded: int
    rows_rejected: int


def find_file(data_dir: Path, table: TableContract) -> Path:
    """Return the CSV file of a table.

    Args:
        data_dir: the folder of the source files.
        table: the contract of the file to find.

    Raises:
        SourceFileError: the file is missing, exists both plain and gzipped, or the folder cannot be read.
    """
    both = data_dir / f"{table.name}.csv", data_dir / f"{table.name}.csv.gz"
    try:
        found = [path for path in both if path.exists()]
        if found and not found[0].is_file():
            raise SourceFileError(f"{found[0]}: is not a file. Replace it with the CSV file of that name.")
    except PermissionError:
        raise SourceFileError(f"{data_dir}: this user cannot access the folder. Grant it: chmod a+rx") from None
    except OSError as error:
        raise _unreadable(data_dir, error) from None
    if not found:
        raise SourceFileError(
            f"{data_dir / table.name}.csv: no such file (nor .csv.gz). Deliver it there, or set the source's data_dir "
            "to the folder that has it."
        )
    if len(found) > 1:
        raise SourceFileError(f"{found[0]}: {found[1].name} exists too, so it is ambiguous which to load. Remove one.")
    return found[0]


def find_files(data_dir: Path, table: TableContract) -> dict[str, Path]:
    """Return the CSV files of a table, by name, in the order in which they apply.

    Args:
        data_dir: the folder of the source files.
        table: the contract of the files to find.

    Raises:
        SourceFileError: there is no file, one exists both plain and gzipped or is none, or the folder cannot be read.
    """
    if not table.files:
        path = find_file(data_dir, table)
        return {path.name: path}
    patterns = (table.files, f"{table.files}.gz")
    try:
        entries = [path for path in data_dir.iterdir() if any(fnmatchcase(path.name, one) for one in patterns)]
        odd = [path for path in entries if not path.is_file()]
    except PermissionError:
        raise SourceFileError(f"{data_dir}: this user cannot read the folder. Grant it: chmod a+rx") from None
    except (FileNotFoundError, NotADirectoryError):
        raise SourceFileError(f"{data_dir}: no such folder. Create it, or set the source's data_dir.") from None
    except OSError as error:
        raise _unreadable(data_dir, error) from None
    if odd:
        raise SourceFileError(f"{odd[0]}: is not a file. Replace it with the CSV file of that name, or remove it.")
    found = {path.name: path for path in entries}
    if not found:
        # Not taken for a withdrawal of everything: more likely the folder is not mounted.
        raise SourceFileError(
            f"{data_dir / table.files}: no such file. Deliver one there, or set the source's data_dir to the folder "
            "that has them."
        )
    if twice := sorted(found.keys() & {f"{name}.gz" for name in found}):
        raise SourceFileError(
            f"{found[twice[0]]}: the file exists plain too, so its rows would be loaded twice. Remove one."
        )
    return dict(sorted(found.items()))


def read_header(path: Path, table: TableContract) -> list[str]:
    """Return a file's column names, in file order, after checking them against the contract.

    The header is the first line only: an open quote in it must not swallow the rows below.

    Args:
        path: the CSV file, plain or gzipped.
        table: the contract; columns may be in any order.

    Raises:
        SourceFileError: the file is empty or unreadable, or its header is missing or violates the contract.
    """
    expected = f"Expected in the first line, in any order, comma-separated, in UTF-8: {','.join(table.columns)}"
    with _open(path) as file:
        line = file.readline(MAX_LINE_BYTES)
    if not line:
        raise SourceFileError(f"{path}: the file is empty. {expected}")
    if len(line) == MAX_LINE_BYTES:
        raise SourceFileError(f"{path}:1: the first line is at least {MAX_LINE_BYTES} bytes long. {expected}")
    try:
        text = _without_end(line).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceFileError(f"{path}:1: the header is not UTF-8 ({error.reason}). {expected}") from None
    header = text.encode()
    values, end = _split(header)
    names = [_unquoted(value).decode() for value in values]
    if _OPEN_QUOTE.fullmatch(header):
        raise SourceFileError(f"{path}:1: the header has an unclosed quote. Close or remove it. {expected}")
    if b"\r" in header:
        raise SourceFileError(f"{path}:1: a lone carriage return. Lines must end with LF or CRLF. {expected}")
    if not set(names) & set(table.columns):
        # Don't show the line: it may be a row.
        raise SourceFileError(f"{path}:1: no header: the first line names none of the columns. {expected}")
    problems = []
    if end < len(header):
        problems.append(f"unexpected quote after value {len(names)}")
    if missing := [name for name in table.columns if name not in names]:
        problems.append(f"column {', '.join(missing)} is missing")
    if unknown := [name for name in names if name not in table.columns]:
        problems.append(f"column {', '.join(map(repr, unknown))[:_SHOWN]} is unknown")
    if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
        problems.append(f"column {', '.join(repeated)[:_SHOWN]} is repeated")
    if problems:
        raise SourceFileError(
            f"{path}:1: {'; '.join(problems)}. Found: {text[:_SHOWN]}. {expected}. "
            f"Fix the file, or update the contract of {table.name} if the source has changed permanently."
        )
    return names


def parse(path: Path, table: TableContract, out_dir: Path, load_id: str) -> ParsedFile:
    """Parse one file into Parquet.

    Args:
        path: the CSV file, plain or gzipped; UTF-8, with or without a byte order mark.
        table: its contract.
        out_dir: an existing folder, with no other file of this table, for the Parquet files and spilled data.
        load_id: dlt's load id, written to each row as `_dlt_load_id`, beside the file's name for a drop folder.

    Returns:
        The Parquet files and the counts; loaded plus rejected is the number of rows in the file.

    Raises:
        SourceFileError: the file cannot be read, or has fewer rows than the contract requires.
    """
    names = read_header(path, table)
    parquet, rejects = out_dir / f"{table.name}.parquet", out_dir / f"{table.name}.rejects.parquet"
    added = dict(zip(table.added_columns, (load_id, path.name), strict=False))
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(out_dir / "spill")}) as connection:
        connection.execute("set enable_progress_bar = false")
        loaded, rejected = _parse_fast(connection, path, names, table, parquet, added), 0
        if loaded is None:
            logger.info("%s: not every line is one valid row; reading it record by record", path)
            loaded, rejected = _parse_careful(connection, path, names, table, parquet, rejects, added)
    if loaded + rejected < table.min_rows:
        raise SourceFileError(
            f"{path}: {loaded + rejected} rows below the header, at least {table.min_rows} expected. Deliver the file "
            f"again, or lower min_rows in the contract of {table.name} if this is correct."
        )
    return ParsedFile(path, parquet, rejects if rejected else None, loaded, rejected)


def _parse_fast(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    names: list[str],
    table: TableContract,
    parquet: Path,
    added: Mapping[str, str],
) -> int | None:
    """Return the number of rows written, or None if lines and valid rows don't match one to one."""
    source = (
        f"read_csv({literal(path)}, columns={dict.fromkeys(names, 'VARCHAR')}, header=true, auto_detect=false, "
        f"delim=',', quote='\"', escape='\"', nullstr='', max_line_size={MAX_LINE_BYTES}, hive_partitioning=false)"
    )
    try:
        loaded = _copy(
            connection, f"select {_select(table, added)} from {source} where {_all_valid(table)}", parquet, path
        )
    except duckdb.Error as error:
        if is_disk_full(str(error)):
            raise
        return None
    return loaded if _one_row_per_line(connection, path, table, parquet, loaded) else None


def _one_row_per_line(
    connection: duckdb.DuckDBPyConnection, path: Path, table: TableContract, parquet: Path, loaded: int
) -> bool:
    """Check that the file's line ends and commas match the rows: DuckDB skips or tolerates some bad lines."""
    lines = commas = quotes = odd = 0
    last = b"\n"
    with _open(path) as file:
        while block := file.read(1 << 20):
            block += file.readline(MAX_LINE_BYTES)  # don't split a CRLF
            lines += block.count(b"\n")
            commas += block.count(b",")
            # Most files have none, and a membership test is faster than a count.
            if b"\r" in block:
                odd += block.count(b"\r") - block.count(b"\r\n")
            if b'"' in block:
                quotes += block.count(b'"')
                odd += len(_TORN_QUOTES.findall(block))
            last = block[-1:]
    lines += last != b"\n"
    if odd or loaded != lines - 1:
        return False
    if len(table.columns) == 1 and _filled_lines(path) != lines:
        return False  # with a single column, DuckDB reads a blank line as NULL
    if quotes:
        commas -= _total(connection, "strlen({0}) - strlen(replace({0}, ',', ''))", parquet, _texts(table))
    return commas == lines * (len(table.columns) - 1)


def _filled_lines(path: Path) -> int:
    """Count non-blank lines on raw bytes: an independent check of the code that splits the file."""
    filled, tail = 0, b"\n"
    with _open(path) as file:
        while block := file.read(1 << 20):
            text = tail[-1:] + block + file.readline(MAX_LINE_BYTES)  # don't split a CRLF
            filled += len(re.findall(_LINE_ENDS.encode(), text)) - text.startswith(b"\n")
            tail = text[-2:]
    return filled + (not tail.endswith(b"\n") and tail != b"\n\r")


def _total(connection: duckdb.DuckDBPyConnection, count: str, parquet: Path, columns: Sequence[str]) -> int:
    """Sum a count, given as SQL with {0} for the text, over columns of a Parquet file."""
    sums = "+".join(f"coalesce(sum({count.format(identifier(name))}), 0)" for name in columns)
    row = connection.execute(f"select {sums or 0} from {_parquet(parquet)}").fetchone()
    return int(row[0]) if row else 0


def _texts(table: TableContract) -> list[str]:
    return [name for name, type_ in table.columns.items() if type_ == "VARCHAR"]


def _parse_careful(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    names: list[str],
    table: TableContract,
    parquet: Path,
    rejects: Path,
    added: Mapping[str, str],
) -> tuple[int, int]:
    """Split the file into records in Python; return the number of rows loaded and rejected."""
    records = parquet.with_suffix(".records")
    _write_records(path, names, records)
    source = _parquet(records)
    sound = f"_reason is null and {_all_valid(table)}"
    loaded = _copy(connection, f"select {_select(table, added)} from {source} where {sound}", parquet, path)
    reasons, columns = [], []
    for name, type_ in table.columns.items():
        bad = f"when not {_valid(name, type_)} then"
        reasons.append(f"case {bad} {literal(f'{name}: not a valid {type_}')} end")
        columns.append(f"{bad} {literal(name)}")
    rejected = _copy(
        connection,
        f"select {literal(added['_dlt_load_id'])} as _dlt_load_id, {literal(table.name)} as table_name, "
        f"{literal(path)} as file, _line as line, "
        f"case when _reason is not null then _column {' '.join(columns)} end as column_name, "
        f"coalesce(_reason, concat_ws('; ', {', '.join(reasons)})) as reason, _text as text, now() as rejected_at "
        f"from {source} where not ({sound})",
        rejects,
        path,
    )
    records.unlink()
    within = f"len(regexp_extract_all({{0}}, {literal(_LINE_ENDS)}))"
    joined = _total(connection, within, parquet, _texts(table)) + _total(connection, within, rejects, ["text"])
    rows = _filled_lines(path) - 1 - joined
    if loaded + rejected != rows:
        raise SourceFileError(
            f"{path}: {rows} rows in the file, but {loaded} loaded and {rejected} rejected. Nothing was loaded. "
            "This is a bug in the parser: please report it with the file."
        )
    return loaded, rejected


def _write_records(path: Path, names: list[str], target: Path) -> None:
    """Write each record to Parquet: its line number, text, error and values."""
    schema = pyarrow.schema([("_line", pyarrow.int64())] + [(n, pyarrow.string()) for n in (*_RECORD_COLUMNS, *names)])
    size = 0
    batch: list[tuple[int | str | None, ...]] = []
    with pyarrow.parquet.ParquetWriter(target, schema) as out, _open(path) as file:

        def flush() -> None:
            columns = zip(*batch, strict=True)
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            out.write_table(pyarrow.table(arrays, schema=schema))

        for line, record in _records(file):
            values, column, reason = _read(record, names)
            batch.append((line, record.decode(errors="backslashreplace"), column, reason, *values))
            size += len(record)
            if len(batch) == _BATCH_ROWS or size > _BATCH_BYTES:
                flush()
                batch, size = [], 0
        if batch:
            flush()


def _records(file: _Reader) -> Iterator[tuple[int, bytes]]:
    """Yield each record below the header with its first line number; a quoted value may span lines.

    A quote that is never closed ends at its own line, so that it does not swallow the lines below.
    """
    lines = _lines(file)
    next(lines, None)
    ahead: deque[tuple[int, bytes]] = deque()
    # Each line ahead is examined once, however many quotes are open above it. Entered inside a quote, the first `still`
    # of them (`size` bytes) end inside one; `closes` says whether the next closes it, None if not known yet.
    still, size = 0, 0
    closes: bool | None = None
    while first := ahead.popleft() if ahead else next(lines, None):
        number, line = first
        if still:
            still, size = still - 1, size - len(line)
        else:
            closes = None
        record = _without_end(line)
        if b'"' in line and _OPEN_QUOTE.fullmatch(line):
            while closes is not False:
                if still == len(ahead):
                    ahead.extend(islice(lines, 1))
                    if still == len(ahead):
                        break
                below, text = ahead[still]
                if below - number >= MAX_LINES_PER_RECORD or len(line) + size > MAX_LINE_BYTES:
                    break
                if closes is None and _STILL_OPEN.fullmatch(text):
                    still, size = still + 1, size + len(text)
                elif closes := closes or bool(_CLOSES.fullmatch(_without_end(text))):
                    record = _without_end(b"".join([line, *(ahead.popleft()[1] for _ in range(still + 1))]))
                    still, size, closes = 0, 0, None
                    break
        if record and not _BLANK_LINES.fullmatch(line):
            yield number, record


def _lines(file: _Reader) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their line ends, numbered from 1; an overlong line is truncated.

    Consecutive blank lines are yielded together, as a file may have millions.
    """
    number = 1
    while line := file.readline(MAX_LINE_BYTES + 2):
        rest = line
        while len(rest) == MAX_LINE_BYTES + 2 and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 2)
        if line in (b"\n", b"\r\n") and (more := _BLANK_LINES.match(file.peek(1))):
            line += file.read(more.end())
        yield number, line
        number += line.count(b"\n") or 1


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _read(record: bytes, names: list[str]) -> tuple[Sequence[str | None], str | None, str | None]:
    """Return the values, or the column and reason if they are not one per column in valid UTF-8."""
    nothing = [None] * len(names)
    if len(record) > MAX_LINE_BYTES:
        return nothing, None, f"the row is longer than {MAX_LINE_BYTES} bytes; only its beginning is kept"
    try:
        record.decode()
    except UnicodeDecodeError as error:
        column = names[min(len(_split(record[: error.start])[0]), len(names)) - 1]
        return nothing, column, f"not valid UTF-8 at byte {error.start + 1} of the row"
    if b'"' in record or b"\r" in record:
        values, end = _split(record)
        if end < len(record):
            column = names[min(len(values), len(names)) - 1]
            if _OPEN_QUOTE.fullmatch(record):
                return nothing, column, "unclosed quote"
            return nothing, column, "unexpected quote or line end"
    else:
        values = record.split(b",")
    if len(values) != len(names):
        missing = names[len(values)] if len(values) < len(names) else None
        return nothing, missing, f"{len(values)} values, {len(names)} expected"
    return [_unquoted(value).decode() or None for value in values], None, None


def _split(record: bytes) -> tuple[list[bytes], int]:
    """Return the raw values up to the first malformed one, and the position where reading stopped."""
    values, end = [], 0
    while True:
        match = _VALUE.match(record, end)
        values.append(match[0] if match else b"")
        end = match.end() if match else end
        if record[end : end + 1] != b",":
            return values, end
        end += 1


def _unquoted(value: bytes) -> bytes:
    bare = value.strip(b" ")
    return bare[1:-1].replace(b'""', b'"') if bare.startswith(b'"') else value


def _select(table: TableContract, added: Mapping[str, str]) -> str:
    columns = [
        identifier(name) if type_ == "VARCHAR" else f"try_cast({identifier(name)} as {type_}) as {identifier(name)}"
        for name, type_ in table.columns.items()
    ]
    return ", ".join([*columns, *(f"{literal(value)} as {name}" for name, value in added.items())])


def _all_valid(table: TableContract) -> str:
    return " and ".join(_valid(name, type_) for name, type_ in table.columns.items())


def _valid(name: str, type_: str) -> str:
    """Return an SQL condition: the text is empty, or a value of the type with nothing lost or guessed."""
    if type_ == "VARCHAR":
        return "true"
    text, value = identifier(name), f"try_cast({identifier(name)} as {type_})"
    checks = [f"{value} is not null", f"regexp_full_match({text}, {literal(f' *{_form(type_)} *')})"]
    if type_ in ("FLOAT", "DOUBLE"):
        # These hold about 7 and 16 digits: the parsed value must print with the text's digits, but for outer zeros.
        digits = "trim(regexp_replace({}, '[eE].*|[^0-9]', '', 'g'), '0')"
        checks.append(f"{digits.format(text)} = {digits.format(f'{value}::varchar')}")
    return f"({text} is null or ({' and '.join(checks)}))"


@cache
def _canonical(declared: str) -> str:
    """Return DuckDB's canonical name of a type."""
    if declared in _FORMS:
        return declared  # saves opening a connection, by far the slowest step here
    with duckdb.connect() as connection:
        return str(connection.type(declared))


def _form(type_: str) -> str:
    """Return the regular expression for a type's texts; KeyError if the type has none."""
    if decimal := re.fullmatch(r"DECIMAL\(\d+,(\d+)\)", type_):
        return _INTEGER + _FRACTION % decimal[1]
    return _FORMS[type_]


def _copy(connection: duckdb.DuckDBPyConnection, query: str, target: Path, source: Path) -> int:
    """Write a query's rows to Parquet and return their number, logging progress if it takes long."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(PROGRESS_SECONDS):
            logger.info("%s: %.0f %% parsed", source, max(connection.query_progress(), 0.0))

    watcher = threading.Thread(target=report, daemon=True)
    watcher.start()
    try:
        # The file is short-lived: compressing it costs more than it saves.
        row = connection.execute(
            f"copy ({query}) to {literal(target)} (format parquet, compression uncompressed)"
        ).fetchone()
    finally:
        done.set()
        watcher.join()
    return int(row[0]) if row else 0


@contextmanager
def _open(path: Path) -> Iterator[_Reader]:
    """Open a plain or gzipped file; read errors become SourceFileError."""
    try:
        plain = io.BufferedReader(_SourceFile(path))
    except PermissionError:
        raise SourceFileError(f"{path}: this user cannot read the file. Grant it: chmod a+r") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    with plain:
        if path.suffix != ".gz":
            yield plain
            return
        try:
            with gzip.open(plain) as file:
                yield file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceFileError(f"{path}: not a complete gzip file ({error}). Deliver it again.") from None


class _SourceFile(io.FileIO):
    """Turns read errors into SourceFileError here, where they can't be confused with errors of writing output."""

    def readinto(self, buffer: Any, /) -> int:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise _unreadable(Path(str(self.name)), error) from None


def _unreadable(path: Path, error: OSError) -> SourceFileError:
    return SourceFileError(
        f"{path}: cannot be read ({error.strerror}). Check the disk or share that holds it, then clear this task."
    )


def _parquet(file: Path) -> str:
    return f"read_parquet({literal(file)}, hive_partitioning=false)"
