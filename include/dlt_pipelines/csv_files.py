"""Parse CSV files against a declared contract: every row is either loaded or kept with the reason why not.

    file ──▶ fast path: DuckDB reads it whole; right when every line came out as one valid row
      └────▶ careful path: records are split one by one, so that each bad line is told apart from its
             neighbours; good rows go to Parquet, bad ones to a Parquet file of rejects

`rows loaded + rows rejected = rows in the file` is checked after each parse, not assumed.
"""

import csv
import gzip
import logging
import re
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import duckdb
import pyarrow
import pyarrow.parquet

from include.errors import PipelineError, is_disk_full
from include.sql import literal

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1_000_000
MAX_LINES_PER_RECORD = 1_000
MEMORY = "512MB"  # of each DuckDB connection of a load; the rest spills to disk
PROGRESS_SECONDS = 10.0
_BATCH_ROWS = 50_000
_BATCH_BYTES = 8_000_000
_RECORD_COLUMNS = ("_text", "_column", "_reason")
_SHOWN = 200  # characters of a file that a message shows

# As DuckDB reads them: spaces around quotes are no part of the value, a quote within a bare value is.
# No group is possessive, `(...)*+`: Python 3.11 before 3.11.5, so Debian 12's, matches those wrongly (CPython 106052).
_QUOTED = rb'[^"]*+(?:""[^"]*+)*'
_FIELD = rb'(?: *+"%s" *+|(?! *+")[^,\r\n]*+)' % _QUOTED
_VALUE = re.compile(_FIELD)
_RECORD = re.compile(rb"%s(?:,%s)*" % (_FIELD, _FIELD))
_OPEN_QUOTE = re.compile(rb'(?:%s,)* *+"%s' % (_FIELD, _QUOTED))
_TORN_QUOTES = re.compile(rb'" +"')  # DuckDB reads `"a" ","` as `a ,`
_STILL_OPEN = re.compile(rb'%s(?:" *+,(?:%s,)* *+"%s)?' % (_QUOTED, _FIELD, _QUOTED))

# DuckDB's casts round and guess ('5.5', '1e3', '1_000', 'infinity', '2018-1-1'): a text must look like the type too.
_INTEGER = "[+-]?[0-9]+"
_FORMS = dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"), _INTEGER)
_FORMS["DATE"] = "[0-9]{4}-[0-9]{2}-[0-9]{2}"


class SourceFileError(PipelineError):
    """A source file that a retry cannot mend; the message names file, line, column and remedy."""

    runbook = "A source file is missing or malformed"


class SourceChangedError(PipelineError):
    """A source file was written to while it was read."""

    retry_can_mend = True
    runbook = "A source file changed while it was read"


@dataclass(frozen=True)
class TableContract:
    """What a source file must hold: the one place where a raw table is declared.

    Attributes:
        name: the table, and the file's name without `.csv` or `.csv.gz`.
        columns: DuckDB types by column name, in the table's order.
        primary_key: the columns that identify a row; dbt's tests judge whether they do.
        min_rows: fewer rows than this fail the load, as a file without rows is rarely meant.
    """

    name: str
    columns: Mapping[str, str]
    primary_key: tuple[str, ...]
    min_rows: int = 1


@dataclass(frozen=True)
class ParsedFile:
    """The outcome of parsing one file; `rejects` is a Parquet file when any row was rejected."""

    file: Path
    parquet: Path
    rejects: Path | None
    rows_loaded: int
    rows_rejected: int


def find_file(data_dir: Path, table: TableContract) -> Path:
    """Return the CSV file of a table.

    Args:
        data_dir: the folder of the source files.
        table: the contract whose file is looked for.

    Raises:
        SourceFileError: there is no such file, or both a plain and a gzipped one, or the folder is closed to this user.
    """
    both = data_dir / f"{table.name}.csv", data_dir / f"{table.name}.csv.gz"
    try:
        found = [path for path in both if path.exists()]
    except PermissionError:
        raise SourceFileError(f"{data_dir}: may not be entered by this user. Allow it: chmod a+rx") from None
    if not found:
        raise SourceFileError(
            f"{data_dir / table.name}.csv: no such file (nor .csv.gz). Put it there, or point "
            "SOURCES__JAFFLE_SHOP__DATA_DIR to the folder that holds it."
        )
    if not found[0].is_file():
        raise SourceFileError(f"{found[0]}: is not a file. Put the CSV file of that name in its place.")
    if len(found) > 1:
        raise SourceFileError(f"{found[0]}: there is {found[1].name} too, so which one counts is unclear. Remove one.")
    return found[0]


def read_header(path: Path, table: TableContract) -> list[str]:
    """Return the column names of a file in the file's order, after checking them against the contract.

    Args:
        path: the CSV file, plain or gzipped.
        table: the contract its header must meet; order is free.

    Raises:
        SourceFileError: the file is empty or unreadable, or its header is missing or not the contract's.
    """
    expected = f"Expected in the first line, in any order, separated by commas, in UTF-8: {','.join(table.columns)}"
    with _open(path) as file:
        line = file.readline(MAX_LINE_BYTES)
    if not line:
        raise SourceFileError(f"{path}: the file is empty. {expected}")
    try:
        text = line.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
        names = next(csv.reader([text]), [])
    except UnicodeDecodeError as error:
        raise SourceFileError(f"{path}:1: the header is not UTF-8 ({error.reason}). {expected}") from None
    except csv.Error:
        raise SourceFileError(f"{path}:1: a lone carriage return. Let lines end with LF or CRLF. {expected}") from None
    if not set(names) & set(table.columns):
        raise SourceFileError(f"{path}:1: no header: found {text[:_SHOWN]!r}. {expected}")
    problems = []
    if missing := [name for name in table.columns if name not in names]:
        problems.append(f"column {', '.join(missing)} is missing")
    if unknown := [name for name in names if name not in table.columns]:
        problems.append(f"column {', '.join(map(repr, unknown))[:_SHOWN]} is unknown")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"column {', '.join(repeated)[:_SHOWN]} stands more than once")
    if problems:
        raise SourceFileError(
            f"{path}:1: {'; '.join(problems)}. Found: {text[:_SHOWN]}. {expected}. "
            f"Mend the file, or the contract of {table.name} if the source has changed for good."
        )
    return names


def parse(path: Path, table: TableContract, out_dir: Path, load_id: str) -> ParsedFile:
    """Parse one file into Parquet.

    Args:
        path: the CSV file, plain or gzipped; UTF-8, with or without a byte order mark.
        table: its contract.
        out_dir: an existing folder for the Parquet files and what does not fit in memory.
        load_id: dlt's load id, written to each row as `_dlt_load_id`.

    Returns:
        The Parquet files and the counts, loaded plus rejected being the rows in the file.

    Raises:
        SourceFileError: the file cannot be read, or has fewer rows than the contract asks for.
    """
    names = read_header(path, table)
    parquet, rejects = out_dir / f"{table.name}.parquet", out_dir / f"{table.name}.rejects.parquet"
    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(out_dir / "spill")}) as con:
        con.execute("set enable_progress_bar = false")
        loaded, rejected = _parse_fast(con, path, names, table, parquet, load_id), 0
        if loaded is None:
            log.info("%s: not every line is one valid row; reading it record by record", path)
            loaded, rejected = _parse_careful(con, path, names, table, parquet, rejects, load_id)
    if loaded + rejected < table.min_rows:
        raise SourceFileError(
            f"{path}: {loaded + rejected} rows below the header, at least {table.min_rows} expected. Deliver the file "
            f"again, or lower min_rows in the contract of {table.name} if this is right."
        )
    return ParsedFile(path, parquet, rejects if rejected else None, loaded, rejected)


def _parse_fast(
    con: duckdb.DuckDBPyConnection, path: Path, names: list[str], table: TableContract, parquet: Path, load_id: str
) -> int | None:
    """Return the rows written, or None where lines and valid rows do not match one to one."""
    source = (
        f"read_csv({literal(path)}, columns={dict.fromkeys(names, 'VARCHAR')}, header=true, auto_detect=false, "
        f"delim=',', quote='\"', escape='\"', nullstr='', max_line_size={MAX_LINE_BYTES}, hive_partitioning=false)"
    )
    try:
        loaded = _copy(con, f"select {_select(table, load_id)} from {source} where {_all_valid(table)}", parquet, path)
    except duckdb.Error as error:
        if is_disk_full(str(error)):
            raise
        return None
    return loaded if _one_row_per_line(con, path, table, parquet, loaded) else None


def _one_row_per_line(
    con: duckdb.DuckDBPyConnection, path: Path, table: TableContract, parquet: Path, loaded: int
) -> bool:
    """Tell whether the file's line ends and commas are those of the rows: DuckDB skips and forgives some lines."""
    lines = commas = quotes = odd = 0
    last = b"\n"
    with _open(path) as file:
        while block := file.read(1 << 20):
            block += file.readline(MAX_LINE_BYTES)  # so that CRLF is not cut in two
            lines += block.count(b"\n")
            commas += block.count(b",")
            # Looking for what most files don't have at all is quicker than counting it.
            if b"\r" in block:
                odd += block.count(b"\r") - block.count(b"\r\n")
            if b'"' in block:
                quotes += block.count(b'"')
                odd += len(_TORN_QUOTES.findall(block))
            last = block[-1:]
    lines += last != b"\n"
    if odd or loaded != lines - 1:
        return False
    texts = [name for name, type_ in table.columns.items() if type_ == "VARCHAR"]
    if quotes and texts:
        within = " + ".join(
            f"coalesce(sum(length(\"{name}\") - length(replace(\"{name}\", ',', ''))), 0)" for name in texts
        )
        row = con.execute(f"select {within} from {_parquet(parquet)}").fetchone()
        commas -= int(row[0]) if row else 0
    return commas == lines * (len(table.columns) - 1)


def _parse_careful(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    names: list[str],
    table: TableContract,
    parquet: Path,
    rejects: Path,
    load_id: str,
) -> tuple[int, int]:
    """Return the rows loaded and rejected after splitting the file into records in Python."""
    records = parquet.with_suffix(".records")
    rows = _write_records(path, names, records)
    source = _parquet(records)
    sound = f"_reason is null and {_all_valid(table)}"
    loaded = _copy(con, f"select {_select(table, load_id)} from {source} where {sound}", parquet, path)
    reasons, columns = [], []
    for name, type_ in table.columns.items():
        bad = f"when not {_valid(name, type_)} then"
        before, after = literal(f"{name}: '"), literal(f"' is not a valid {type_}")
        reasons.append(f'case {bad} {before} || left("{name}", {_SHOWN}) || {after} end')
        columns.append(f"{bad} {literal(name)}")
    rejected = _copy(
        con,
        f"select {literal(load_id)} as _dlt_load_id, {literal(table.name)} as table_name, {literal(path)} as file, "
        f"_line as line, case when _reason is not null then _column {' '.join(columns)} end as column_name, "
        f"coalesce(_reason, concat_ws('; ', {', '.join(reasons)})) as reason, _text as text, now() as rejected_at "
        f"from {source} where not ({sound})",
        rejects,
        path,
    )
    records.unlink()
    if loaded + rejected != rows:
        raise SourceFileError(
            f"{path}: {rows} rows read, but {loaded} loaded and {rejected} rejected. Nothing was loaded; this is a "
            "defect of the parser: please report it with the file."
        )
    return loaded, rejected


def _write_records(path: Path, names: list[str], target: Path) -> int:
    """Write each record's line, text, what is wrong with it and its values to Parquet, and return how many."""
    schema = pyarrow.schema([("_line", pyarrow.int64())] + [(n, pyarrow.string()) for n in (*_RECORD_COLUMNS, *names)])
    count = size = 0
    batch: list[tuple[int | str | None, ...]] = []
    with pyarrow.parquet.ParquetWriter(target, schema) as out, _open(path) as file:

        def flush() -> None:
            columns = zip(*batch, strict=True)
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            out.write_table(pyarrow.table(arrays, schema=schema))

        for line, record in islice(_records(file), 1, None):
            values, column, reason = _read(record, names)
            batch.append((line, record.decode(errors="backslashreplace"), column, reason, *values))
            count, size = count + 1, size + len(record)
            if len(batch) == _BATCH_ROWS or size > _BATCH_BYTES:
                flush()
                batch, size = [], 0
        if batch:
            flush()
    return count


def _records(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each record with the number of its first line; a value in quotes may span lines.

    A quote that is never closed ends with its own line, so that the lines below it are not swallowed.
    """
    lines = _lines(file)
    ahead: deque[tuple[int, bytes]] = deque()
    while first := ahead.popleft() if ahead else next(lines, None):
        number, line = first
        record = _without_end(line)
        if b'"' in line and _OPEN_QUOTE.fullmatch(line):
            parts, size = [line], len(line)
            while len(parts) < MAX_LINES_PER_RECORD and size <= MAX_LINE_BYTES:
                if len(parts) > len(ahead):
                    if not (following := next(lines, None)):
                        break
                    ahead.append(following)
                parts.append(ahead[len(parts) - 1][1])
                size += len(parts[-1])
                if not _STILL_OPEN.fullmatch(parts[-1]):
                    joined = _without_end(b"".join(parts))
                    if _RECORD.fullmatch(joined):
                        record = joined
                        for _ in parts[1:]:
                            ahead.popleft()
                    break
        if record:
            yield number, record


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their ends, numbered from 1; of an overlong one only the beginning."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        rest = line
        while len(rest) == MAX_LINE_BYTES + 2 and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 2)
        yield number, line


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _read(record: bytes, names: list[str]) -> tuple[Sequence[str | None], str | None, str | None]:
    """Return the values, and the column and the reason where they are not one for each column in valid UTF-8."""
    nothing = [None] * len(names)
    if len(record) > MAX_LINE_BYTES:
        return nothing, None, f"the row is longer than {MAX_LINE_BYTES} bytes; its beginning is kept here"
    try:
        record.decode()
    except UnicodeDecodeError as error:
        column = names[min(len(_split(record[: error.start])[0]), len(names)) - 1]
        return nothing, column, f"byte {record[error.start]:#04x} is not valid UTF-8"
    if b'"' in record or b"\r" in record:
        values, end = _split(record)
        if end < len(record):
            column = names[min(len(values), len(names)) - 1]
            if _OPEN_QUOTE.fullmatch(record):
                return nothing, column, "the quote that opens the value is not closed"
            return nothing, column, "a quote or a line end stands where it may not"
    else:
        values = record.split(b",")
    if len(values) != len(names):
        missing = names[len(values)] if len(values) < len(names) else None
        return nothing, missing, f"{len(values)} values, {len(names)} expected"
    return [_unquoted(value).decode() or None for value in values], None, None


def _split(record: bytes) -> tuple[list[bytes], int]:
    """Return the values as they stand, up to the first that is broken, and where reading stopped."""
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


def _select(table: TableContract, load_id: str) -> str:
    columns = [
        f'"{name}"' if type_ == "VARCHAR" else f'try_cast("{name}" as {type_}) as "{name}"'
        for name, type_ in table.columns.items()
    ]
    return ", ".join([*columns, f"{literal(load_id)} as _dlt_load_id"])


def _all_valid(table: TableContract) -> str:
    return " and ".join(_valid(name, type_) for name, type_ in table.columns.items())


def _valid(name: str, type_: str) -> str:
    """Return SQL that is true where a text is empty or a value of the type, with nothing lost or guessed."""
    if type_ == "VARCHAR":
        return "true"
    form = _FORMS.get(type_, "")
    if decimal := re.fullmatch(r"DECIMAL\(\d+, *(\d+)\)", type_):
        form = f"{_INTEGER}([.][0-9]{{0,{decimal[1]}}}0*)?"
    looks = f" and regexp_full_match(\"{name}\", ' *{form} *')" if form else ""
    return f'("{name}" is null or (try_cast("{name}" as {type_}) is not null{looks}))'


def _copy(con: duckdb.DuckDBPyConnection, query: str, target: Path, source: Path) -> int:
    """Write a query's rows to Parquet and return how many, logging how far it is where that takes long."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(PROGRESS_SECONDS):
            log.info("%s: %.0f %% parsed", source, max(con.query_progress(), 0.0))

    watcher = threading.Thread(target=tell, daemon=True)
    watcher.start()
    try:
        # The file lives for seconds: compressing it costs more than it saves.
        row = con.execute(f"copy ({query}) to {literal(target)} (format parquet, compression uncompressed)").fetchone()
    finally:
        done.set()
        watcher.join()
    return int(row[0]) if row else 0


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzipped file, with any failure to read it told as that of a source file."""
    try:
        plain = path.open("rb")
    except OSError as error:
        raise SourceFileError(f"{path}: cannot be read by this user ({error.strerror}). Allow it: chmod a+r") from None
    with plain:
        if path.suffix != ".gz":
            yield plain
            return
        try:
            with gzip.open(plain) as file:
                yield file  # type: ignore[misc]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceFileError(f"{path}: not a complete gzip file ({error}). Deliver it again.") from None


def _parquet(file: Path) -> str:
    return f"read_parquet({literal(file)}, hive_partitioning=false)"
