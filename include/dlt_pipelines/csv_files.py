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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import duckdb

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1_000_000
MAX_LINES_PER_RECORD = 1_000
_LONGEST_LINE = 8 * MAX_LINE_BYTES  # a record, its text once more, and their doubled quotes
PARSER_MEMORY = "512MB"
PROGRESS_SECONDS = 10.0

_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\r\n][^,\r\n]*+|)'
_RECORD = re.compile(rb"%s(?:,%s)*+" % (_FIELD, _FIELD))
_OPEN_QUOTE = re.compile(rb'(?:%s,)*+"(?:[^"]++|"")*+' % _FIELD)
_CSV_OPTIONS = "auto_detect=false, delim=',', quote='\"', escape='\"', nullstr=''"


class SourceFileError(Exception):
    """A source file that a retry cannot mend; the message names file, line, column and remedy."""


class SourceChangedError(Exception):
    """A source file was written to while it was read; a retry can mend it."""


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
        SourceFileError: there is no such file, or both a plain and a gzipped one.
    """
    found = [path for path in (data_dir / f"{table.name}.csv", data_dir / f"{table.name}.csv.gz") if path.exists()]
    if not found:
        raise SourceFileError(
            f"{data_dir / table.name}.csv: no such file (nor .csv.gz). Put it there, or point SOURCES__JAFFLE_SHOP__DATA_DIR to "
            "the folder that holds it."
        )
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
    expected = ",".join(table.columns)
    with _open(path) as file:
        line = file.readline(MAX_LINE_BYTES)
    if not line.strip():
        raise SourceFileError(f"{path}: the file is empty. Expected a header line: {expected}")
    try:
        names = next(csv.reader([line.decode("utf-8-sig").strip("\r\n")]))
    except (UnicodeDecodeError, StopIteration, csv.Error) as error:
        raise SourceFileError(f"{path}:1: the header cannot be read ({error}). Expected, in UTF-8: {expected}") from None
    if not set(names) & set(table.columns):
        raise SourceFileError(f"{path}:1: no header: found {','.join(names)!r}. Make the first line: {expected}")
    problems = []
    if missing := [name for name in table.columns if name not in names]:
        problems.append(f"column {', '.join(missing)} is missing")
    if unknown := [name for name in names if name not in table.columns]:
        problems.append(f"column {', '.join(map(repr, unknown))} is unknown")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"column {', '.join(repeated)} stands more than once")
    if problems:
        raise SourceFileError(
            f"{path}:1: {'; '.join(problems)}. Found: {','.join(names)}. Expected, in any order: {expected}. "
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
    with duckdb.connect(config={"memory_limit": PARSER_MEMORY, "temp_directory": str(out_dir / "spill")}) as con:
        loaded = _parse_fast(con, path, names, table, parquet, load_id)
        rejected = 0
        if loaded is None:
            log.info("%s: not every line is one valid row; reading it record by record", path)
            clean = out_dir / f"{table.name}.clean.csv"
            loaded, rejected = _parse_careful(con, path, names, table, parquet, rejects, clean, load_id)
            clean.unlink()
    if loaded + rejected < table.min_rows:
        raise SourceFileError(
            f"{path}: {loaded + rejected} rows below the header, at least {table.min_rows} expected. Deliver the file "
            f"again, or lower min_rows in the contract of {table.name} if this is right."
        )
    return ParsedFile(path, parquet, rejects if rejected else None, loaded, rejected)


def _parse_fast(
    con: duckdb.DuckDBPyConnection, path: Path, names: list[str], table: TableContract, parquet: Path, load_id: str
) -> int | None:
    """Return the rows written, or None where lines and rows do not match one to one."""
    source = (
        f"read_csv({_quoted(path)}, columns={dict.fromkeys(names, 'VARCHAR')}, header=true, store_rejects=true, "
        f"max_line_size={MAX_LINE_BYTES}, {_CSV_OPTIONS})"
    )
    valid = " and ".join(_valid(name, type_) for name, type_ in table.columns.items())
    try:
        loaded = _copy(con, f"select {_select(table, load_id)} from {source} where {valid}", parquet, path)
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        if "No space left" in str(error):
            raise
        return None
    return loaded if loaded == _count_lines(path) - 1 else None


def _parse_careful(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    names: list[str],
    table: TableContract,
    parquet: Path,
    rejects: Path,
    clean: Path,
    load_id: str,
) -> tuple[int, int]:
    """Return the rows loaded and rejected after splitting the file into records in Python."""
    con.execute("create table rejects (line bigint, column_name varchar, reason varchar, text varchar)")
    sound = unsound = 0
    rejects_csv = clean.with_suffix(".rejects")
    with (
        clean.open("wb") as out,
        rejects_csv.open("w", newline="", encoding="utf-8") as bad,
        _open(path) as file,
    ):
        reject = csv.writer(bad, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow
        for line, record in islice(_records(file), 1, None):
            problem = _problem(record, names)
            if problem:
                unsound += 1
                reject((line, *problem, _text(record)))
            else:
                sound += 1
                out.write(b'%d,"%s",%s\n' % (line, record.replace(b'"', b'""'), record))

    def read(file: Path, columns: dict[str, str]) -> str:
        return f"read_csv({_quoted(file)}, columns={columns}, header=false, max_line_size={_LONGEST_LINE}, {_CSV_OPTIONS})"

    reject_columns = {"line": "BIGINT", "column_name": "VARCHAR", "reason": "VARCHAR", "text": "VARCHAR"}
    con.execute(f"insert into rejects select * from {read(rejects_csv, reject_columns)}")
    rows = read(clean, {"_line": "BIGINT", "_text": "VARCHAR"} | dict.fromkeys(names, "VARCHAR"))
    valid = {name: _valid(name, type_) for name, type_ in table.columns.items()}
    all_valid = " and ".join(valid.values())
    loaded = _copy(con, f"select {_select(table, load_id)} from {rows} where {all_valid}", parquet, path)
    reasons = [
        f"case when not ({valid[name]}) then {_quoted(name + ': ')} || '''' || \"{name}\" || ''' is not a valid {type_}' end"
        for name, type_ in table.columns.items()
    ]
    first_bad = "case " + " ".join(f"when not ({valid[name]}) then {_quoted(name)}" for name in valid) + " end"
    con.execute(
        f"insert into rejects select _line, {first_bad}, concat_ws('; ', {', '.join(reasons)}), _text "
        f"from {rows} where not ({all_valid})"
    )
    rejected = _copy(
        con,
        f"select {_quoted(load_id)} as _dlt_load_id, {_quoted(table.name)} as table_name, {_quoted(path)} as file, line, "
        "column_name, reason, text, now() as rejected_at from rejects order by line",
        rejects,
        path,
    )
    if loaded + rejected != sound + unsound:
        raise SourceFileError(
            f"{path}: {sound + unsound} rows read, but {loaded} loaded and {rejected} rejected. Nothing was loaded; this is a "
            "defect of the parser: please report it with the file."
        )
    return loaded, rejected


def _records(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield each record with the number of its first line; a value in quotes may span lines.

    A quote that is never closed ends with its own line, so that the lines below it are not swallowed.
    """
    lines = _lines(file)
    ahead: deque[tuple[int, bytes]] = deque()
    while True:
        number, line = ahead.popleft() if ahead else next(lines, (0, b""))
        if not number:
            return
        record, used = line, 0
        if b'"' in line and _OPEN_QUOTE.fullmatch(line):
            while used < MAX_LINES_PER_RECORD and len(record) <= MAX_LINE_BYTES:
                if used == len(ahead):
                    if not (following := next(lines, None)):
                        break
                    ahead.append(following)
                record += b"\n" + ahead[used][1]
                used += 1
                if b'"' in ahead[used - 1][1] and not _OPEN_QUOTE.fullmatch(record):
                    break
            if _RECORD.fullmatch(record):
                for _ in range(used):
                    ahead.popleft()
            else:
                record = line
        if record:
            yield number, record


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines without their ends, numbered from 1; of an overlong one only the beginning."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        rest = line
        while len(rest) == MAX_LINE_BYTES + 2 and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 2)
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _problem(record: bytes, names: list[str]) -> tuple[str, str] | None:
    """Return the column and the reason if the record is not one value per column in valid UTF-8."""
    if len(record) > MAX_LINE_BYTES:
        return "", f"the row is longer than {MAX_LINE_BYTES} bytes; its beginning is kept here"
    try:
        record.decode()
    except UnicodeDecodeError as error:
        before = record[: error.start].count(b",")
        return names[min(before, len(names) - 1)], f"byte {record[error.start]:#04x} is not valid UTF-8"
    if b'"' in record or b"\r" in record:
        match = _RECORD.match(record)
        end = match.end() if match else 0
        found = sum(1 for _ in re.finditer(rb",(?:%s)" % _FIELD, record[:end])) + 1
        if end < len(record):
            broken = names[min(found, len(names)) - 1]
            if _OPEN_QUOTE.fullmatch(record):
                return broken, "the quote that opens the value is never closed"
            return broken, "a quote or a line end stands where it may not"
    else:
        found = record.count(b",") + 1
    if found < len(names):
        return names[found], f"{found} values, {len(names)} expected"
    if found > len(names):
        return "", f"{found} values, {len(names)} expected"
    return None


def _text(record: bytes) -> str:
    return record.decode(errors="backslashreplace")


def _select(table: TableContract, load_id: str) -> str:
    columns = [
        f'"{name}"' if type_ == "VARCHAR" else f'try_cast(trim("{name}") as {type_}) as "{name}"'
        for name, type_ in table.columns.items()
    ]
    return ", ".join([*columns, f"{_quoted(load_id)} as _dlt_load_id"])


def _valid(name: str, type_: str) -> str:
    """Return SQL that is true where a text is a value of the type without loss: DuckDB's casts round and guess."""
    if type_ == "VARCHAR":
        return "true"
    cast = f'try_cast("{name}" as {type_})'
    exact = f'"{name}" is null or coalesce({cast}::varchar = "{name}", false)'
    trimmed = f'try_cast(trim("{name}") as {type_}) is not null'
    if type_ in {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"}:
        return f"({exact} or ({trimmed} and regexp_full_match(trim(\"{name}\"), '[+-]?[0-9]+')))"
    if type_ == "DATE":
        return f"({exact} or ({trimmed} and regexp_full_match(trim(\"{name}\"), '[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}')))"
    if type_.startswith("DECIMAL"):
        same = f'try_cast(trim("{name}") as {type_}) = try_cast(trim("{name}") as decimal(38, 12))'
        return f"({exact} or coalesce({same}, false))"
    return f"({exact} or {trimmed})"


def _copy(con: duckdb.DuckDBPyConnection, query: str, target: Path, source: Path) -> int:
    """Write a query's rows to Parquet and return how many, logging how far it is where that takes long."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(PROGRESS_SECONDS):
            log.info("%s: %.0f %% parsed", source, max(con.query_progress(), 0.0))

    watcher = threading.Thread(target=tell, daemon=True)
    watcher.start()
    try:
        row = con.execute(f"copy ({query}) to {_quoted(target)} (format parquet)").fetchone()
    finally:
        done.set()
        watcher.join()
    return int(row[0]) if row else 0


def _count_lines(path: Path) -> int:
    count, last = 0, b"\n"
    with _open(path) as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzipped file, with any failure to read it told as that of a source file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceFileError(f"{path}: not a complete gzip file ({error}). Deliver it again.") from None
    except PermissionError:
        raise SourceFileError(f"{path}: may not be read by this user. Allow it: chmod a+r {path}") from None


def _quoted(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
