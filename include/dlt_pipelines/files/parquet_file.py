"""Parse Parquet: a column of the contract's type is taken as it is, one of another type by its text."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow
import pyarrow.parquet

from include.dlt_pipelines.files.contract import FORMATS, SourceFileError, TableContract
from include.dlt_pipelines.files.dialect import CsvDialect
from include.dlt_pipelines.files.header import check_names
from include.dlt_pipelines.files.output import parquet
from include.dlt_pipelines.files.parser import Parser
from include.dlt_pipelines.files.text import detect_format
from include.dlt_pipelines.files.values import Value, default_of, value_of
from include.errors import is_disk_full
from include.sql import identifier

_NESTED = ("STRUCT", "MAP", "UNION")
_ISO = CsvDialect()


class ParquetParser(Parser):
    """Parses one Parquet file."""

    @staticmethod
    def check(path: Path, table: TableContract) -> None:
        """Check the columns."""
        if (found := detect_format(path)) != "parquet":
            raise SourceFileError(f"{path}: is a {FORMATS[found]} file, and the contract says format='parquet'.")
        with _readable(path):
            names = pyarrow.parquet.read_schema(path).names
        check_names(str(path), names, table, names, f"Expected, in any order: {', '.join(table.columns)}")

    def parse(self, path: Path, out_dir: Path) -> int:
        """Parse a file."""
        self.check(path, self._table)
        rows = parquet(path).removesuffix(")") + ", file_row_number=true)"
        with _readable(path):
            described = self._connection.execute(f"describe select * exclude (file_row_number) from {rows}").fetchall()
            types = {name: type_ for name, type_, *_ in described}
            found = [
                self._value(name, types[name]) if name in types else default_of(name, self._table)
                for name in self._table.columns
            ]
            names = ", ".join(map(identifier, types))
            source = (
                f'(select {names}, file_row_number + 1 as "line", null::varchar as reason, null::varchar as '
                f"column_name, struct_pack({', '.join(f'{identifier(one)} := {identifier(one)}' for one in types)})"
                f'::json::varchar as "text" from {rows})'
            )
            self._output.add_rows(source, found)
            return int(pyarrow.parquet.read_metadata(path).num_rows)

    def _value(self, name: str, delivered: str) -> Value:
        declared, column = self._table.columns[name], identifier(name)
        if delivered == "VARCHAR":
            return value_of(name, declared, column, self._dialect.of(name))
        if delivered == declared:
            return Value(name, column, "true")
        nested = delivered.startswith(_NESTED) or delivered.endswith("]")
        text = f"to_json({column})::varchar" if nested else f"{column}::varchar"
        return value_of(name, declared, text, _ISO)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, duckdb.Error, OSError) as error:
        if is_disk_full(str(error)) or isinstance(error, SourceFileError):
            raise
        raise SourceFileError(
            f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]}). Deliver it again."
        ) from None
