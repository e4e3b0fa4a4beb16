"""Run users' read-only SQL on the published database, in a sandboxed process.

    caller ──SQL──▶ query_process.py: attach the file, lock everything else down, run one SELECT ──rows──▶ caller

DuckDB's settings keep SQL away from files, network, extensions and configuration. The process has limited memory and
time, cannot write files, has no environment variables, and is killed when its time is up. If memory still runs out, the
kernel kills it before the server.
"""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow

from include.duckdb_session import open_duckdb
from include.settings import REPOSITORY_ROOT, warehouse_name, warehouse_timezone
from include.sql import identifier, literal, parquet_type
from include.warehouse.errors import size_text
from include.warehouse.targets import target
from include.warehouse.targets.base import Release

QUERIES = REPOSITORY_ROOT / "include" / "queries"
MAX_ROWS = 1000
MAX_CSV_ROWS = 100_000
SECONDS = 10.0
MAX_MEMORY_BYTES = 512 * 2**20
AT_ONCE = 2
_MAX_SQL = 100_000
_MAX_COLUMNS = 1000
_MAX_BYTES = 20_000_000
_START_SECONDS = 5.0
# First characters that make a spreadsheet treat a cell as a formula; numeric types may start with them.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|BIGNUM|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)")

_slots = threading.BoundedSemaphore(AT_ONCE)


class QueryError(Exception):
    """The query was refused, stopped or invalid; the message is for its author."""


class QueryBusyError(QueryError):
    """Too many queries are running."""


@dataclass(frozen=True)
class Answer:
    """A query's result.

    Attributes:
        columns: column names, not necessarily unique.
        types: DuckDB types.
        rows: values as DuckDB prints them, None for NULL.
        truncated: whether rows were left out.
        seconds: how long the query took.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    truncated: bool
    seconds: float


def memory_bytes() -> int:
    """Return DuckDB's memory limit for one query; its process may use twice that.

    All concurrent queries together leave at least a third of the machine's or container's memory to the server.
    """
    return min(MAX_MEMORY_BYTES, _available_bytes() // (2 * (AT_ONCE + 1)))


def _available_bytes(root: Path = Path("/")) -> int:
    """Return the machine's memory, or the limit of its control group (such as a container's) if lower.

    Args:
        root: the folder of `proc` and `sys`.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):  # of version 2, of version 1
                mount = root / "sys/fs/cgroup" / controllers
                name = "memory.limit_in_bytes" if controllers else "memory.max"
                own = mount / group.lstrip("/")
                # Parent groups limit it too. In a container, the mount point itself can be the container's group.
                for folder in (own, *own.parents):
                    with contextlib.suppress(OSError, ValueError):  # none here, or "max"
                        limits.append(int((folder / name).read_text()))
    return min(limits)


def run(sql: str, max_rows: int = MAX_ROWS, seconds: float = SECONDS, release: Release | None = None) -> Answer:
    """Run one SELECT on the published database.

    Args:
        sql: one statement.
        max_rows: maximum number of rows to return.
        seconds: time limit.
        release: a kept one; default what readers see.

    Raises:
        QueryError: the query was refused or stopped, or DuckDB reported an error.
        QueryBusyError: `AT_ONCE` queries are already running.
    """
    if not target().can_be_sandboxed:
        raise QueryError(
            "Queries here need a DuckDB file. Connect says how to open what is published in a DuckDB of your own."
        )
    if not target().published_version():
        raise QueryError("Nothing is published yet.")
    if len(sql) > _MAX_SQL:
        raise QueryError(f"A query may have at most {_MAX_SQL:,} characters.")
    if not _slots.acquire(blocking=False):
        raise QueryBusyError(f"{AT_ONCE} queries are already running; try again when one has finished.")
    try:
        return _run(sql, max_rows, seconds, release)
    finally:
        _slots.release()


def csv_lines(answer: Answer) -> Iterator[str]:
    """Yield a result as CSV, in chunks, with an apostrophe before text that a spreadsheet would run as a formula."""
    numbers = [NUMBER.fullmatch(kind) is not None for kind in answer.types]
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(_text_cell(name) for name in answer.columns)
    for at, row in enumerate(answer.rows, 1):
        writer.writerow(cell if number else _text_cell(cell) for cell, number in zip(row, numbers, strict=True))
        if at % 1000 == 0:
            yield lines.getvalue()
            lines.seek(0)
            lines.truncate()
    yield lines.getvalue()


def parquet(answer: Answer) -> bytes:
    """Return a result as a Parquet file, with the query's types.

    Raises:
        QueryError: a type that Parquet does not have.
    """
    names = [f"c{at}" for at in range(len(answer.columns))]
    texts = pyarrow.table(
        {name: pyarrow.array(column, pyarrow.string()) for name, column in zip(names, _columns(answer), strict=True)}
    )
    casts = ", ".join(
        f"{name}::{parquet_type(kind)} as {identifier(column)}"
        for name, kind, column in zip(names, answer.types, _distinct(answer.columns), strict=True)
    )
    with tempfile.TemporaryDirectory() as folder, open_duckdb() as connection:
        connection.register("texts", texts)
        path = Path(folder) / "query.parquet"
        try:
            connection.execute(f"copy (select {casts} from texts) to {literal(path)} (format parquet)")
        except duckdb.Error as error:
            raise QueryError(f"This result cannot be Parquet: {str(error).splitlines()[0]}") from None
        return path.read_bytes()


def _columns(answer: Answer) -> list[list[str | None]]:
    return [[row[at] for row in answer.rows] for at in range(len(answer.columns))]


def _distinct(names: Sequence[str]) -> list[str]:
    """Return column names that differ, as Parquet needs: `n`, `n_1`, ..."""
    found: dict[str, str] = {}  # by name in lower case
    last: Counter[str] = Counter()
    for name in names:
        new = name
        while new.lower() in found:
            last[name.lower()] += 1
            new = f"{name}_{last[name.lower()]}"
        found[new.lower()] = new
    return list(found.values())


@dataclass(frozen=True)
class Saved:
    """A query that the repository keeps: a file of `include/queries`, whose first line is a comment with its title."""

    title: str
    sql: str


def saved() -> list[Saved]:
    """Return the saved queries, by title."""
    found = []
    for path in QUERIES.glob("*.sql"):
        first, _, rest = path.read_text().partition("\n")
        found.append(Saved(first.lstrip("- ").strip() or path.stem, rest.strip()))
    return sorted(found, key=lambda one: one.title)


def _text_cell(cell: str | None) -> str | None:
    return f"'{cell}" if cell and cell.startswith(FORMULA) else cell


def _run(sql: str, max_rows: int, seconds: float, release: Release | None) -> Answer:
    memory = memory_bytes()
    order = {
        "database": warehouse_name(),
        "attach": [f"set global TimeZone = {literal(warehouse_timezone())}", *target().attach_statements(release)],
        "sql": sql,
        "max_rows": max_rows,
        "max_columns": _MAX_COLUMNS,
        "max_bytes": _MAX_BYTES,
        "seconds": seconds,
        "memory_bytes": memory,
    }
    started = time.monotonic()
    child = Path(__file__).with_name("query_process.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-X", "utf8", str(child)],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=seconds + _START_SECONDS,
            env={},
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise QueryError(f"Stopped after {seconds:g} s, the time limit for queries.") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        if time.monotonic() - started >= seconds:
            raise QueryError(f"Stopped after {seconds:g} s, the time limit for queries.") from None
        most = size_text(memory)
        raise QueryError(
            f"The query crashed its process: it needs more than {most} of memory, or hits a bug in DuckDB."
        ) from None
    if "error" in answer:
        raise QueryError(answer["error"])
    rows = tuple(tuple(row) for row in answer["rows"])
    return Answer(tuple(answer["columns"]), tuple(answer["types"]), rows, answer["truncated"], answer["seconds"])
