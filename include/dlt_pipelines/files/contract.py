"""The contract of a table's files, and the errors of files that violate it."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import duckdb

from include.dlt_pipelines.files.dialect import CsvDialect
from include.duckdb_session import open_duckdb
from include.errors import PipelineError

Format = Literal["csv", "jsonl", "parquet", "xlsx"]
FORMATS: dict[Format, str] = {"csv": "CSV", "jsonl": "JSON Lines", "parquet": "Parquet", "xlsx": "Excel"}

# Those whose texts have one meaning, besides DECIMAL. Parquet stores HUGEINT as DOUBLE, and nested types have
# ambiguous texts.
TYPES = (
    *("VARCHAR", "BOOLEAN", "DATE", "TIME", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"),
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE"),
)


class SourceFileError(PipelineError):
    """A bad source file, which a retry cannot fix. The message has file, line, column and remedy, but no row values."""

    runbook = "A source file is missing or malformed"


class SourceChangedError(PipelineError):
    """A source file was modified while being read."""

    retryable = True
    runbook = "A source file changed while it was read"


_DEFAULT = CsvDialect()


@dataclass(frozen=True)
class TableContract:
    """The contract of a source file: the one place where a raw table is declared.

    Attributes:
        name: the table.
        columns: DuckDB types by column name, in table order; aliases are normalized (`int8` becomes `BIGINT`). A name
            that a file lacks, repeats or pads is here as `column_names` makes it.
        primary_key: the columns that identify a row; checked by dbt tests, not here.
        min_rows: a file with fewer rows fails the load, as an empty file is rarely intended.
        file: the file's name, by default the table's with its format's ending. It may be packed as well: a name with
            `.gz`, `.bz2`, `.zst` or `.zip` added is found too.
        files: pattern of a drop folder's files, such as `raw_orders*.csv`; packed ones are found as well. The table
            then has the column `_file`, and a load reads new and changed files only.
        write_disposition: how the rows of a drop folder's files combine. `append`: the table has those of all files.
            `merge`: of the rows with equal keys, it has those of the last file by name.
        format: `csv`, `jsonl` (a JSON object per line), `parquet` or `xlsx`.
        sheet: the sheet of an Excel file, by default the first.
        optional: columns that a file may lack, as older ones do, and the text of the value that its rows have then;
            None for no value.
        dialect: how rows and values are written. Of `jsonl`, `parquet` and `xlsx`, the options for values hold for
            texts; `header` and `skip` hold for `xlsx`.

    Raises:
        ValueError: a column's type is unknown or has no exact text form, or the declaration contradicts itself.
    """

    name: str
    columns: Mapping[str, str]
    primary_key: tuple[str, ...]
    min_rows: int = 1
    files: str = ""
    write_disposition: Literal["append", "merge"] = "append"
    file: str = ""
    format: Format = "csv"
    sheet: str = ""
    dialect: CsvDialect = _DEFAULT
    optional: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_drop_folder()
        self._check_format()
        self._check_names()
        types = {}
        for column, declared in self.columns.items():
            types[column] = _canonical(declared)
            if types[column] not in TYPES and not types[column].startswith("DECIMAL"):
                raise ValueError(
                    f"{self.name}.{column}: type {declared!r} is not supported. Use one of {', '.join(TYPES)} or "
                    "DECIMAL(width, scale); for any other, VARCHAR, and cast it in the staging model."
                )
            if form := self.dialect.of(column).timestamp_format:
                zoned = types[column] == "TIMESTAMP WITH TIME ZONE"
                if types[column].startswith("TIMESTAMP") and zoned != ("%z" in form):
                    raise ValueError(f"{self.name}.{column}: %z is for TIMESTAMP WITH TIME ZONE, and only for it.")
        object.__setattr__(self, "columns", types)
        self._check_optional()

    def _check_drop_folder(self) -> None:
        if any(re.search(r"[/\0]", one) for one in (self.file, self.files)):
            raise ValueError(f"{self.name}: file and files are names in the source's folder, without a path.")
        if self.file and self.files:
            raise ValueError(f"{self.name}: declare file= for one file, or files= for a drop folder.")
        if self.write_disposition == "merge" and not (self.files and self.primary_key):
            raise ValueError(f"{self.name}: merge needs `files` and a primary_key.")

    def _check_format(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"{self.name}: format={self.format!r} is not one of {', '.join(FORMATS)}.")
        if self.sheet and self.format != "xlsx":
            raise ValueError(f"{self.name}: only a file of the format xlsx has a sheet.")

    def _check_optional(self) -> None:
        for column, default in self.optional.items():
            if column not in self.columns or column in self.primary_key or not self.dialect.header:
                raise ValueError(
                    f"{self.name}: {column} cannot be optional: only a column that is not in the primary_key can, of "
                    "files that name their columns."
                )
            if default is not None and not _is_value(default, self.columns[column]):
                raise ValueError(f"{self.name}.{column}: the default {default!r} is no {self.columns[column]}.")

    def _check_names(self) -> None:
        names = Counter(name.lower() for name in self.columns)
        if repeated := [name for name in self.columns if names[name.lower()] > 1]:
            raise ValueError(f"{self.name}: {' and '.join(repeated)} are one column: case does not count.")
        if odd := [name for name in self.columns if name != _bare(name) or not name or "\0" in name]:
            raise ValueError(f"{self.name}: {odd[0]!r} cannot name a column: remove the spaces around it.")
        if own := [name for name in self.columns if name.lower() in self.added_columns]:
            raise ValueError(
                f"{self.name}: each load adds the column {own[0]} to the table. A file's own column of that name is "
                f"{own[0]}_2 in the contract."
            )
        if unknown := [name for name in (*self.primary_key, *self.dialect.columns) if name not in self.columns]:
            raise ValueError(f"{self.name}: {', '.join(unknown)} is not among its columns.")

    @property
    def added_columns(self) -> tuple[str, ...]:
        """The raw table's columns after those of the file, all VARCHAR."""
        return ("_dlt_load_id", "_file") if self.files else ("_dlt_load_id",)

    @property
    def definition(self) -> str:
        """What the rows of a file depend on besides the file, as text."""
        parts = dict(self.columns), self.primary_key, self.write_disposition, self.format, self.sheet, self.dialect
        return repr((*parts, dict(self.optional)) if self.optional else parts)

    @property
    def code(self) -> str:
        """Digest of the definition, as dbt's nodes have one of theirs."""
        return hashlib.md5(self.definition.encode(), usedforsecurity=False).hexdigest()

    @property
    def file_name(self) -> str:
        """The file's name, of a table without a drop folder."""
        return self.file or f"{self.name}.{self.format}"


def column_names(header: Sequence[str], reserved: Sequence[str] = ("_dlt_load_id",)) -> list[str]:
    """Return the columns' names for the names in a file, all different and none empty.

    Spaces around a name are not part of it; one without a name is `column_N` by its position; of equal names, where
    case does not count, the second is `NAME_2`; so is one that the load adds itself, such as `_dlt_load_id`.

    Args:
        header: the names in the file.
        reserved: names that the load adds, in lower case.
    """
    names: list[str] = []
    delivered = {_bare(name).lower() for name in header}
    seen = set(reserved)
    repeats = Counter[str]()
    for position, raw in enumerate(header, 1):
        name = base = _bare(raw) or f"column_{position}"
        while name.lower() in seen or (name != _bare(raw) and name.lower() in delivered):
            repeats[base] += 1
            name = f"{base}_{repeats[base] + 1}"
        seen.add(name.lower())
        names.append(name)
    return names


def _bare(name: str) -> str:
    return name.strip(" \t\u00a0")


@cache
def _canonical(declared: str) -> str:
    """Return DuckDB's canonical name of a type; empty if it has no such type."""
    if declared in TYPES:
        return declared  # saves opening a connection, by far the slowest step here
    try:
        with open_duckdb() as connection:
            return str(connection.type(declared))
    except duckdb.Error:
        return ""


def _is_value(text: str, type_: str) -> bool:
    with open_duckdb() as connection:
        found = connection.execute(f"select try_cast(? as {type_}) is not null", [text]).fetchone()
    return bool(found and found[0])
