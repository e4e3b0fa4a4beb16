"""The published database as readers see it: tables, sizes, samples, profiles.

A published release never changes, so everything read from it is cached by its version and re-read for the next one.
"""

import os
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import duckdb

from include.settings import REJECTED_ROWS, warehouse_name
from include.sql import identifier, literal
from include.warehouse import builds
from include.warehouse.connection import time_limit
from include.warehouse.errors import WarehouseError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release

SAMPLE_ROWS = 20
PROFILE_ROWS = 100_000
PROFILE_SECONDS = 20.0
SAMPLE_SECONDS = 1.0
EXAMPLES = 3  # of a group of rejected rows
GROUPS = 100
_VIEW_SECONDS = 0.2
_BACKGROUND_SECONDS = 0.2
_BINS = 12
_COUNTED_DISTINCT = 50_000
_TEXT_LENGTH = 200


@dataclass(frozen=True)
class Column:
    """A column as the database has it."""

    name: str
    type: str


@dataclass(frozen=True)
class Table:
    """A table or view.

    Attributes:
        kind: table or view.
        rows: None for a view that could not be counted in time.
    """

    schema: str
    name: str
    kind: str
    rows: int | None
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class State:
    """What readers see now.

    Attributes:
        loads: the run that loaded each source's table, by `schema.table`.
    """

    release: Release
    tables: tuple[Table, ...]
    loads: Mapping[str, str] = field(default_factory=dict, hash=False)

    def table(self, schema: str, name: str) -> Table | None:
        """Return a table by its exact name, or None."""
        return next((one for one in self.tables if (one.schema, one.name) == (schema, name)), None)


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram, or one frequent value.

    Attributes:
        is_range: whether it is a bar, of values from one to another.
    """

    label: str
    rows: int
    is_range: bool = False


@dataclass(frozen=True)
class Profile:
    """Statistics of a column's values.

    Attributes:
        distinct: distinct values.
        bins: a histogram or frequent values, over the rows sampled.
        approximate: whether `distinct` is an estimate, less than 1 % off.
    """

    column: str
    nulls: int
    distinct: int
    minimum: str | None
    maximum: str | None
    bins: tuple[Bin, ...]
    approximate: bool = False


@dataclass(frozen=True)
class TableProfile:
    """Profiles of a table's columns.

    Attributes:
        rows: rows that the statistics are from: all of the table, unless counting them exceeded `PROFILE_SECONDS`.
        sampled: rows that the histograms are from.
        exact: whether the statistics are from all rows.
        complete: whether all columns are profiled; false while in progress, or if it exceeded `PROFILE_SECONDS`.
        running: whether it is in progress.
    """

    rows: int
    sampled: int
    exact: bool
    complete: bool
    columns: tuple[Profile, ...]
    running: bool = False


_background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="warehouse-catalog")


def _version() -> Hashable:
    # Also where it is: a process can switch warehouses.
    version = target().published_version()
    return version and (target().published_location(), version)


def current() -> State | None:
    """Return what readers see now, or None before the first publish.

    Raises:
        include.warehouse.errors.WarehouseError: the published file cannot be read.
    """
    before = _version()
    while before is not None:
        try:
            state = _state(before)
        except (duckdb.Error, OSError) as error:
            if _version() == before:
                raise WarehouseError(f"The published file cannot be read: {error}") from error
            state = None
        after = _version()
        if after == before:
            return state
        _state.cache_clear()  # a publish in between: the new release may be cached under the old version
        before = after
    return None


def sizes(state: State) -> dict[tuple[str, str], int]:
    """Return the tables' bytes on disk, by schema and name. Small tables share blocks, so the sum may exceed the file.

    DuckDB reads all of a file's metadata for this, which takes seconds for a large file. So it runs in the background,
    once per published release; the result is empty until it is done.
    """
    with suppress(TimeoutError, duckdb.Error):
        return _sizes(state.release).result(_BACKGROUND_SECONDS)
    return {}


def sizes_known(state: State) -> bool:
    """Return whether `sizes` has its result, or has failed."""
    return _sizes(state.release).done()


def sample(table: Table) -> list[tuple[str | None, ...]]:
    """Return the first rows of a table, values as text.

    Raises:
        duckdb.Error: it cannot be read, or not in time.
    """
    with _reading(SAMPLE_SECONDS) as connection:
        cells = ", ".join(f"left(cast({identifier(one.name)} as varchar), {_TEXT_LENGTH})" for one in table.columns)
        return connection.execute(f"select {cells} from {_name(table)} limit {SAMPLE_ROWS}").fetchall()


def rejected_groups(state: State, load_ids: Collection[str]) -> list[dict[str, Any]]:
    """Return the rejected rows in the published database, counted by table, column and kind of reason.

    Args:
        state: what readers see.
        load_ids: those of the loads that readers see, whose rows come first and are counted apart.

    Returns:
        Dictionaries with table_name, column_name, reason (without values), is_current, rows, and the first few as
        examples, with file, line, reason and text.

    Raises:
        duckdb.Error: they cannot be read, or not in time.
    """
    columns = "table_name, file, line, column_name, reason, text, _dlt_load_id"
    tables = [f"select {columns} from {_name(one)}" for one in state.tables if one.name == REJECTED_ROWS]
    if not tables:
        return []
    with _reading(SAMPLE_SECONDS) as connection:
        cursor = connection.execute(
            "select table_name, column_name, list_contains(?::varchar[], _dlt_load_id) as is_current,"
            # as artifacts.without_values
            " rtrim(trim(regexp_extract(reason, ?)), ':') as reason, count(*) as rows,"
            " arg_min({'file': file, 'line': line, 'reason': reason, 'text': left(text, 500)},"
            f" coalesce(line, 0), {EXAMPLES}) as examples"
            f" from ({' union all '.join(tables)}) group by all"
            f" order by is_current desc, rows desc, table_name, column_name, reason limit {GROUPS}",
            [list(load_ids), "^[^\"'`]*"],
        )
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def profile(table: Table) -> TableProfile:
    """Profile a table's columns in bounded time: statistics from all rows, histograms of a large table from a sample.

    It runs in the background, once per published release and table. Until it is done, the profile is incomplete.

    Raises:
        duckdb.Error: the table cannot be read.
    """
    with suppress(TimeoutError):
        return _profile(_version(), table).result(_BACKGROUND_SECONDS)
    return TableProfile(0, 0, True, False, (), running=True)


def table_counts(release: Release) -> dict[str, int]:
    """Return the row counts of a published release's tables, by `schema.table`.

    Raises:
        duckdb.Error: the file cannot be read.
    """
    return _table_counts(replace(release, published=False))


@lru_cache(maxsize=64)
def _table_counts(release: Release) -> dict[str, int]:
    with target().open_release(release) as connection:
        return {f"{schema}.{table}": rows for (schema, table), rows in target().count_rows(connection).items()}


@lru_cache(maxsize=4)
def _state(_found: Hashable) -> State | None:
    release = target().published_release()
    if release is None:
        return None
    with _reading() as connection:
        counts = target().count_rows(connection)
        columns: dict[tuple[str, str], list[Column]] = {}
        for schema, name, column, kind in connection.execute(
            "select schema_name, table_name, column_name, data_type from duckdb_columns()"
            " where database_name = ? and not internal order by schema_name, table_name, column_index",
            [warehouse_name()],
        ).fetchall():
            columns.setdefault((schema, name), []).append(Column(column, kind))
        tables = [
            Table(schema, name, "table", counts[schema, name], tuple(columns[schema, name]))
            if (schema, name) in counts
            else Table(schema, name, "view", _count_view(connection, schema, name), tuple(columns[schema, name]))
            for schema, name in sorted(columns)
        ]
        loads = {one.relation: one.run_id for one in builds.loads(connection)}
    return State(release, tuple(tables), loads)


@lru_cache(maxsize=64)
def _profile(_found: Hashable, table: Table) -> Future[TableProfile]:
    return _background.submit(copy_context().run, _read_profile, table)


def _read_profile(table: Table) -> TableProfile:
    names = [identifier(one.name) for one in table.columns]
    profiles: list[Profile] = []
    sampled, rows, exact, complete = 0, table.rows or 0, True, False
    statistics: list[Profile] = []
    with _reading() as connection, suppress(duckdb.InterruptException, duckdb.OutOfMemoryException):
        method = ""
        if table.rows is None or table.rows > PROFILE_ROWS:
            method = f" limit {PROFILE_ROWS}"
            try:
                with time_limit(connection, PROFILE_SECONDS):
                    rows, statistics = _statistics(connection, table, names)
            except duckdb.InterruptException:
                exact = False
            # Never a limit on a sample: in DuckDB 1.5, that takes minutes for a large table.
            if rows > PROFILE_ROWS:
                method = f" using sample {100 * PROFILE_ROWS / rows:.4f} percent (system, 42)"
        with time_limit(connection, PROFILE_SECONDS):
            connection.execute(
                f"create table memory.main.looked_at as select {', '.join(names)} from {_name(table)}{method}"
            )
            sampled = connection.execute("select count(*) from memory.main.looked_at").fetchall()[0][0]
            for at, column in enumerate(table.columns):
                one = _column_profile(connection, column, sampled)
                profiles.append(replace(statistics[at], bins=one.bins) if statistics else one)
            complete = True
    return TableProfile(rows if exact else sampled, sampled, exact, complete, tuple(profiles))


def _statistics(connection: duckdb.DuckDBPyConnection, table: Table, names: Sequence[str]) -> tuple[int, list[Profile]]:
    """Return the number of rows and each column's statistics, from two passes over all rows in bounded memory."""
    wanted = ", ".join(
        f"count({name}), approx_count_distinct({name}), {_text(f'min({name})')}, {_text(f'max({name})')}"
        for name in names
    )
    rows, *found = connection.execute(f"select count(*), {wanted} from {_name(table)}").fetchall()[0]
    columns = [found[at : at + 4] for at in range(0, len(found), 4)]
    # DuckDB's approximation is up to a quarter off. Counting one in `step` of the hashes is not, if enough are left.
    steps = [max(1, approximately // _COUNTED_DISTINCT) for _, approximately, _, _ in columns]
    wanted = ", ".join(
        f"{step} * count(distinct hash({name})) filter ({name} is not null and hash({name}) % {step} = 0)"
        for name, step in zip(names, steps, strict=True)
    )
    distinct = connection.execute(f"select {wanted} from {_name(table)}").fetchall()[0]
    return rows, [
        Profile(column.name, rows - values, min(number, values), least, most, (), step > 1)
        for column, (values, _, least, most), number, step in zip(table.columns, columns, distinct, steps, strict=True)
    ]


def _text(value: str) -> str:
    return f"left(cast({value} as varchar), {_TEXT_LENGTH})"


def _column_profile(connection: duckdb.DuckDBPyConnection, column: Column, rows: int) -> Profile:
    name = identifier(column.name)
    nulls, distinct, least, most = connection.execute(
        f"select count(*) - count({name}), count(distinct {name}), {_text(f'min({name})')}, {_text(f'max({name})')}"
        " from memory.main.looked_at"
    ).fetchall()[0]
    bins: tuple[Bin, ...] = ()
    with suppress(duckdb.DataError, duckdb.NotSupportedError):  # infinite dates have no epoch
        bins = _bins(connection, column, distinct, rows - nulls)
    return Profile(column.name, nulls, distinct, least, most, bins)


def _bins(connection: duckdb.DuckDBPyConnection, column: Column, distinct: int, values: int) -> tuple[Bin, ...]:
    """Return a histogram for numbers and times, or the most frequent values if there are few."""
    name, kind = identifier(column.name), column.type.split("(")[0]
    numeric = kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "DECIMAL", "FLOAT", "DOUBLE")
    temporal = kind in ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
    if (numeric or temporal) and distinct > _BINS:
        number = f"epoch({name})" if temporal else f"cast({name} as double)"
        found = connection.execute(
            f"with v as (select {number} as x from memory.main.looked_at where {name} is not null),"
            " b as (select min(x) as low, max(x) as high from v where isfinite(x))"
            f" select least({_BINS - 1}, cast(floor((x - low) / (high - low) * {_BINS}) as integer)) as bin, count(*),"
            " any_value(low), any_value(high) from v, b where isfinite(x) and high > low group by 1 order by 1"
        ).fetchall()
        counts = {bin_: rows for bin_, rows, _, _ in found}
        if not found:
            return ()
        low, width = found[0][2], (found[0][3] - found[0][2]) / _BINS
        return tuple(Bin(_edges(low, width, at, temporal), counts.get(at, 0), True) for at in range(_BINS))
    if values and (distinct <= _BINS or distinct < values / 2):
        top = connection.execute(
            f"select left(cast({name} as varchar), 60), count(*) from memory.main.looked_at where {name} is not null"
            f" group by {name} order by 2 desc, 1 limit 6"
        ).fetchall()
        return tuple(Bin(label, rows) for label, rows in top)
    return ()


def _edges(low: float, width: float, at: int, temporal: bool) -> str:
    ends = (low + width * at, low + width * (at + 1))
    if temporal:
        with suppress(OverflowError):  # a year past 9999
            return " to ".join(f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=end):%Y-%m-%d}" for end in ends)
    return " to ".join(f"{end:,.6g}" for end in ends)


@contextmanager
def _reading(seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    with target().open_release() as connection:
        connection.execute("set memory_limit = '512MB'")
        connection.execute("set temp_directory = ''")  # raise an error rather than spill to disk
        connection.execute(f"set threads = {min(2, os.cpu_count() or 1)}")
        if seconds is None:
            yield connection
        else:
            with time_limit(connection, seconds):
                yield connection


@lru_cache(maxsize=4)
def _sizes(release: Release) -> Future[dict[tuple[str, str], int]]:
    return _background.submit(copy_context().run, _read_sizes, release)


def _read_sizes(release: Release) -> dict[tuple[str, str], int]:
    sizes = {}
    with target().open_release(release) as connection:
        row = connection.execute(
            "select block_size from pragma_database_size() where database_name = ?", [warehouse_name()]
        ).fetchone()
        for schema, table in target().count_rows(connection):
            name = literal(identifier(schema, table))
            with suppress(duckdb.CatalogException):  # DuckDB 1.5 fails on names with a quotation mark here
                blocks = connection.execute(
                    "select count(distinct b) from (select unnest(list_append(additional_block_ids, block_id)) as b"
                    f" from pragma_storage_info({name}) where persistent) where b >= 0"
                ).fetchone()
                sizes[schema, table] = blocks[0] * row[0] if blocks and row else 0
    return sizes


def _count_view(connection: duckdb.DuckDBPyConnection, schema: str, view: str) -> int | None:
    try:
        with time_limit(connection, _VIEW_SECONDS):
            row: Any = connection.execute(f"select count(*) from {identifier(schema, view)}").fetchone()
            return int(row[0])
    except duckdb.Error:  # too slow, or it reads a missing table
        return None


def _name(table: Table) -> str:
    return identifier(warehouse_name(), table.schema, table.name)
