"""Where the rows of a file go: Parquet files of good rows, and of rejected ones with their reasons."""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow
import pyarrow.parquet

from include.dlt_pipelines.files.contract import TableContract
from include.dlt_pipelines.files.records import Outcome
from include.dlt_pipelines.files.values import Value, values
from include.sql import identifier, literal

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
_BATCH_ROWS = 50_000
_BATCH_BYTES = 8_000_000
# DuckDB's Parquet writer takes 0.8 MB for each column of text, however few rows there are.
WIDE, _WIDE_BATCH_ROWS = 200, 2_048
_COLUMNS_AT_ONCE = 100
_RECORD_COLUMNS = ("line", "text", "column_name", "reason")


@dataclass(frozen=True)
class ParsedFile:
    """The outcome of parsing one file; `rejects` is a Parquet file if any row was rejected.

    Attributes:
        table: its table's name, and
        digest: what identifies its content and contract; both once it is loaded.
    """

    file: Path
    parquet: Path
    rejects: Path | None
    rows_loaded: int
    rows_rejected: int
    table: str = ""
    digest: str = ""


class Output:
    """Collects the rows of a file, in parts.

    Attributes:
        loaded: the number of good rows so far.
        rejected: that of rejected ones.
        absent: optional columns that the file lacks.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, path: Path, table: TableContract, out_dir: Path, load_id: str
    ) -> None:
        """Collect nothing yet.

        Args:
            connection: for the conversions.
            path: the delivered file, for messages.
            table: its contract.
            out_dir: an existing folder for the parts.
            load_id: dlt's load id.
        """
        self._connection, self._path, self._table, self._dir = connection, path, table, out_dir
        self._added = dict(zip(table.added_columns, (load_id, path.name), strict=False))
        self._parts: list[Path] = []
        self._reject_parts: list[Path] = []
        self.loaded = self.rejected = 0
        self.absent: frozenset[str] = frozenset()

    def copy_all(self, source: str, found: Sequence[Value], condition: str) -> tuple[int, Path]:
        """Write the rows of a source to a file that is not kept yet; return their number and the file.

        Args:
            source: SQL of the rows, with no columns that are named `value_N`.
            found: the values of the columns.
            condition: SQL of a further condition.

        Raises:
            duckdb.Error: a row is not good, or cannot be read.
        """
        # A filter would parse each value a second time, for its condition.
        parsed = {one.parsed: f"value_{number}" for number, one in enumerate(found) if one.parsed}
        once = [
            Value(one.name, *(text.replace(one.parsed, parsed[one.parsed]) for text in (one.value, one.valid)))
            if one.parsed
            else one
            for one in found
        ]
        first = replace(once[0], value=f"case when {_all(once, condition)} then {once[0].value} else error('bad') end")
        inner = ", ".join(["*", *(f"{value} as {alias}" for value, alias in parsed.items())])
        return self._write(f"select {self._select([first, *once[1:]])} from (select {inner} from {source})")

    def keep(self, rows: int, part: Path) -> None:
        """Add good rows.

        Args:
            rows: their number.
            part: the file that has them.
        """
        self.loaded += rows
        self._parts.append(part)

    def add_records(self, records: Iterable[tuple[int, str, Outcome]], names: Sequence[str]) -> None:
        """Add rows, good ones and bad ones.

        Args:
            records: the line or row number of each, its text and its values, empty texts being NULL.
            names: the columns, in file order.
        """
        file = self._dir / f"{self._table.name}.records"
        _write_records(file, records, len(names))
        texts = {name: f"v{names.index(name)}" for name in self._table.columns if name in names}
        self.add_rows(parquet(file), values(self._table, texts))
        file.unlink()

    def add_rows(self, source: str, found: Sequence[Value]) -> None:
        """Add rows, good ones and bad ones.

        Args:
            source: SQL of the rows, with `line`, `text`, and `column_name` and `reason` if one is bad already.
            found: the values of the columns.
        """
        sound = _all(found, "reason is null")
        self.keep(*self._write(f"select {self._select(found)} from {source} where {sound}"))
        self._add_rejects(f"{source} where ({sound}) is not true", found)

    def _add_rejects(self, source: str, found: Sequence[Value]) -> None:
        reasons, columns = [], []
        for one in found:
            bad = f"when ({one.valid}) is not true then"
            type_ = self._table.columns[one.name]
            reasons.append(f"case {bad} {literal(f'{one.name}: not a valid {type_}{self._form(one.name, type_)}')} end")
            columns.append(f"{bad} {literal(one.name)}")
        part = self._dir / f"{self._table.name}-{len(self._reject_parts)}.rejects.parquet"
        rejected = self._copy(
            f"select {literal(self._added['_dlt_load_id'])} as _dlt_load_id, {literal(self._table.name)} as table_name,"
            f" {literal(self._path)} as file, line, "
            f"case when reason is not null then column_name {' '.join(columns)} end as column_name, "
            f"coalesce(reason, concat_ws('; ', {', '.join(reasons)})) as reason, text, now() as rejected_at "
            f"from {source}",
            part,
        )
        if rejected:
            self._reject_parts.append(part)
            self.rejected += rejected

    def _form(self, name: str, type_: str) -> str:
        """Return the declared form of a column's texts, for a reason."""
        dialect = self._table.dialect.of(name)
        kind = "timestamp" if type_.startswith("TIMESTAMP") else type_.lower()
        form = getattr(dialect, f"{kind}_format", "")
        return f" in the form {form}" if form else ""

    def _select(self, found: Sequence[Value]) -> str:
        columns = [f"{one.value} as {identifier(one.name)}" for one in found]
        return ", ".join([*columns, *(f"{literal(value)} as {name}" for name, value in self._added.items())])

    def _write(self, query: str) -> tuple[int, Path]:
        target = self._dir / f"{self._table.name}-{len(self._parts)}.parquet"
        return self._copy(query, target), target

    def has_row(self, outcomes: Sequence[Outcome], names: Sequence[str]) -> bool:
        """Return whether one of some records is a row: with valid values, its key, and if it has no type but text.

        Args:
            outcomes: their values.
            names: the columns, in file order.
        """
        if set(self._table.columns.values()) == {"VARCHAR"}:
            return False  # anything is a valid text
        file = self._dir / f"{self._table.name}.records"
        _write_records(file, ((0, "", one) for one in outcomes), len(names))
        texts = {name: f"v{names.index(name)}" for name in self._table.columns if name in names}
        keys = [f"{texts[name]} is not null" for name in self._table.primary_key]
        filled = " and ".join(keys) or f"coalesce({', '.join(texts.values())}) is not null"
        condition = f"reason is null and {filled}"
        found = self._connection.execute(
            f"select count(*) from {parquet(file)} where {_all(values(self._table, texts), condition)}"
        ).fetchone()
        file.unlink()
        return bool(found and found[0])

    def sum_over_texts(self, parts: Sequence[Path], count: str) -> int:
        """Return the sum of a count over the text columns of good rows.

        Args:
            parts: files of rows.
            count: SQL of the count in a text, `{0}`.
        """
        return self._sum(parts, [count.format(text) for text in self._text_columns])

    def sum_over_all_texts(self, count: str) -> int:
        """Return the sum of a count over the text columns of the good rows so far, and the texts of rejected ones.

        Args:
            count: SQL of the count in a text, `{0}`.
        """
        return self.sum_over_texts(self._parts, count) + self._sum(self._reject_parts, [count.format("text")])

    def extent(self, part: Path, count: str) -> tuple[int, int, int]:
        """Return the sum of a count over the text columns of good rows, the most in a row, and the most bytes in one.

        Args:
            part: a file of rows.
            count: SQL of the count in a text, `{0}`.
        """
        if not self._text_columns:
            return 0, 0, 0
        counts, sizes = (
            "+".join(f"coalesce({one.format(text)}, 0)" for text in self._text_columns)
            for one in (count, "strlen({0})")
        )
        row = self._connection.execute(
            f"select coalesce(sum({counts}), 0), coalesce(max({counts}), 0), coalesce(max({sizes}), 0)"
            f" from {parquet(part)}"
        ).fetchone()
        assert row
        return int(row[0]), int(row[1]), int(row[2])

    @property
    def _text_columns(self) -> list[str]:
        columns = self._table.columns.items()
        return [identifier(name) for name, type_ in columns if type_ == "VARCHAR" and name not in self.absent]

    def _sum(self, parts: Sequence[Path], counts: Sequence[str]) -> int:
        total = 0
        for first in range(0, len(counts) if parts else 0, _COLUMNS_AT_ONCE):
            sums = ", ".join(f"sum({count})" for count in counts[first : first + _COLUMNS_AT_ONCE])
            row = self._connection.execute(f"select {sums} from {parquet(*parts)}").fetchone()
            total += sum(map(int, filter(None, row or ())))
        return total

    def finish(self) -> ParsedFile:
        """Return the outcome, with all parts in one file each."""
        rejects = self._dir / f"{self._table.name}.rejects.parquet" if self._reject_parts else None
        if rejects:
            self._merge(self._reject_parts, rejects)
        target = self._dir / f"{self._table.name}.parquet"
        self._merge(self._parts, target)
        return ParsedFile(self._path, target, rejects, self.loaded, self.rejected)

    def _merge(self, parts: Sequence[Path], target: Path) -> None:
        if len(parts) == 1 or len(self._text_columns) <= WIDE:
            merge(self._connection, parts, target)
            return
        self._copy(f"select * from {parquet(*parts)}", target)
        for part in parts:
            part.unlink()

    def _copy(self, query: str, target: Path) -> int:
        with self._progress():
            if len(self._text_columns) > WIDE:
                return self._copy_wide(query, target)
            return write(self._connection, query, target)

    def _copy_wide(self, query: str, target: Path) -> int:
        rows = 0
        batches = self._connection.execute(query).to_arrow_reader(_WIDE_BATCH_ROWS)
        with pyarrow.parquet.ParquetWriter(target, batches.schema, compression="none", use_dictionary=False) as out:
            for batch in batches:
                out.write_batch(batch)
                rows += batch.num_rows
        return rows

    @contextmanager
    def _progress(self) -> Iterator[None]:
        """Log progress if it takes long."""
        done = threading.Event()

        def report() -> None:
            while not done.wait(PROGRESS_SECONDS):
                logger.info("%s: %.0f %% parsed", self._path, max(self._connection.query_progress(), 0.0))

        watcher = threading.Thread(target=report, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _write_records(target: Path, records: Iterable[tuple[int, str, Outcome]], width: int) -> None:
    names = [*_RECORD_COLUMNS, *(f"v{position}" for position in range(width))]
    schema = pyarrow.schema([(name, pyarrow.int64() if name == "line" else pyarrow.string()) for name in names])
    size = 0
    batch: list[tuple[int | str | None, ...]] = []
    with pyarrow.parquet.ParquetWriter(target, schema) as out:

        def flush() -> None:
            columns = zip(*batch, strict=True)
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            out.write_table(pyarrow.table(arrays, schema=schema))

        for line, text, outcome in records:
            batch.append((line, text, outcome.column, outcome.reason, *outcome.values))
            size += len(text)
            if len(batch) == _BATCH_ROWS or size > _BATCH_BYTES:
                flush()
                batch, size = [], 0
        if batch:
            flush()


def parquet(*files: Path) -> str:
    """Return SQL that reads Parquet files."""
    return f"read_parquet([{', '.join(map(literal, files))}], hive_partitioning=false)"


def write(connection: duckdb.DuckDBPyConnection, query: str, target: Path) -> int:
    """Write the rows of a query to a Parquet file; return their number."""
    # The file is short-lived: compressing it costs more than it saves.
    copied = connection.execute(
        f"copy ({query}) to {literal(target)} (format parquet, compression uncompressed)"
    ).fetchone()
    return int(copied[0]) if copied else 0


def merge(connection: duckdb.DuckDBPyConnection, parts: Sequence[Path], target: Path) -> Path:
    """Make one Parquet file of several; return it."""
    if len(parts) == 1:
        return parts[0].rename(target)
    write(connection, f"select * from {parquet(*parts)}", target)
    for part in parts:
        part.unlink()
    return target


def _all(found: Sequence[Value], condition: str) -> str:
    return " and ".join([condition, *(one.valid for one in found if one.valid != "true")])
