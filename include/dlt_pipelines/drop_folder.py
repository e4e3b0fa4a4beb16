"""Tables of drop folders: a load reads new and changed files only, and the result equals that of reading all files.

    NAME_raw.TABLE               the rows; if the table merges, of rows with equal keys those of the last file
    NAME_raw.TABLE_superseded    the other rows of a table that merges: they return if the last file is withdrawn
    NAME_raw.loaded_files        the files that the tables hold

All of it changes in the load's transaction, so a file counts as loaded exactly if its rows are there.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from include.dlt_pipelines.files import TableContract, write
from include.dlt_pipelines.files.output import parquet
from include.sql import identifier
from include.warehouse.targets import target

LOADED_FILES = "loaded_files"
_LAST = '"_last "'  # no column's name ends with a space, so no key has this name
_KEYS_AT_ONCE = 4_000_000  # their comparison fits in the memory of a load


@dataclass(frozen=True)
class LoadedFile:
    """A file as it was loaded.

    Attributes:
        digest: identifies its bytes, contract and parser.
        stat: what `stat_of` returned then; empty if it must be read again to know whether it has changed.
    """

    digest: str
    stat: str


def stat_of(stat: os.stat_result, now_ns: int) -> str:
    """Return what changes whenever a file is written, or an empty string if it changed too recently to rely on that.

    Args:
        stat: the file's.
        now_ns: the current time; a second change within the clock's resolution of the first would not show.
    """
    if now_ns - stat.st_ctime_ns < 2_000_000_000:
        return ""
    return f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def tables_of(table: TableContract) -> list[str]:
    """Return the names of the tables that hold a drop folder's rows; none for another table."""
    return [table.name, _superseded(table)][: 1 + (table.write_disposition == "merge")] if table.files else []


def known_files(connection: duckdb.DuckDBPyConnection, schema: str, table: TableContract) -> dict[str, LoadedFile]:
    """Return the files that a table holds, by name; none if the table must be loaded from scratch.

    Args:
        connection: the working database.
        schema: the source's schema.
        table: the contract.
    """
    expected = [(name, target().stored_type(type_)) for name, type_ in table.columns.items()]
    expected += [(name, "VARCHAR") for name in table.added_columns]
    if not table.files or any(target().columns_of(connection, schema, name) != expected for name in tables_of(table)):
        return {}
    try:
        rows = connection.execute(
            f"select file, digest, stat from {_loaded_files(schema)} where table_name = ?", [table.name]
        ).fetchall()
    except duckdb.CatalogException:
        return {}
    return {file: LoadedFile(digest, stat) for file, digest, stat in rows}


def remove(
    connection: duckdb.DuckDBPyConnection, schema: str, table: TableContract, files: Iterable[str], load_id: str
) -> None:
    """Remove the rows of some files; rows that they superseded return, as rows of this load.

    Args:
        connection: the working database, in the load's transaction.
        schema: the source's schema.
        table: the contract.
        files: names of changed and withdrawn files.
        load_id: of this load.
    """
    parameters = [list(files)]
    rows = identifier(schema, table.name)
    if table.write_disposition == "merge":
        superseded, keys = identifier(schema, _superseded(table)), ", ".join(map(identifier, table.primary_key))
        connection.execute(f"delete from {superseded} where list_contains(?, _file)", parameters)
        returning = f"({keys}) in (select ({keys}) from {rows} where list_contains(?, _file))"
        connection.execute(
            f"insert into {rows} select * replace (? as _dlt_load_id) from {superseded} where {returning}",
            [load_id, *parameters],
        )
        connection.execute(f"delete from {superseded} where {returning}", parameters)
    connection.execute(f"delete from {rows} where list_contains(?, _file)", parameters)


def settle(
    connection: duckdb.DuckDBPyConnection, table: TableContract, parts: Sequence[Path], folder: Path
) -> tuple[Path, Path]:
    """Find out, of all rows of a table that merges, which ones others supersede.

    To delete them once they are in the table would write it twice: DuckDB moves what a transaction has added into the
    table only if nothing of it was deleted.

    Args:
        connection: an empty database.
        table: the contract.
        parts: Parquet files of all rows; they are deleted.
        folder: where to write.

    Returns:
        Parquet files of the rows to load, and of those to add to the superseded ones.
    """
    rows, keys = parquet(*parts), ", ".join(map(identifier, table.primary_key))
    count = connection.execute(f"select count(*) from {rows}").fetchone() or (0,)
    slices = 1 + count[0] // _KEYS_AT_ONCE
    connection.execute("create or replace temp table repeated (h ubigint)")
    for number in range(slices):
        # Hashes first: they need a tenth of the keys' memory, and few keys are in several files.
        connection.execute(
            f"insert into repeated select hash({keys}) from {rows} where hash({keys}) % {slices} = {number}"
            " group by 1 having count(*) > 1"
        )
    connection.execute(
        f"create or replace temp table latest as select {keys}, max(_file) as {_LAST} from {rows}"
        f" where hash({keys}) in (from repeated) group by {keys} having min(_file) < max(_file)"
    )
    settled = []
    for name, join in (("rows", "anti"), ("superseded", "semi")):
        settled.append(folder / f"{table.name}-{name}.parquet")
        write(connection, f"select * from {rows} as one {join} join latest on {_matched(table)}", settled[-1])
    for part in parts:
        part.unlink()
    return settled[0], settled[1]


def conclude(
    connection: duckdb.DuckDBPyConnection,
    schema: str,
    table: TableContract,
    files: Mapping[str, LoadedFile],
    load_id: str,
    superseded: Path | None,
) -> None:
    """Settle which rows of a table that merges have equal keys, and record the files that a table holds.

    Args:
        connection: the working database, in the load's transaction, after the new rows were added.
        schema: the source's schema.
        table: the contract.
        files: all files of the table, by name.
        load_id: of this load.
        superseded: of `settle`, if the table had no rows before.
    """
    if not table.files:
        return
    if superseded:
        connection.execute(f"insert into {identifier(schema, _superseded(table))} by name from {parquet(superseded)}")
    elif table.write_disposition == "merge":
        _supersede(connection, schema, table, load_id)
    connection.execute(
        f"create table if not exists {_loaded_files(schema)}"
        " (table_name varchar, file varchar, digest varchar, stat varchar)"
    )
    # One text: each value that is bound costs as much as a hundred rows. And only what differs is written.
    now = json.dumps([{"file": name, "digest": one.digest, "stat": one.stat} for name, one in files.items()])
    record = '[{"file": "varchar", "digest": "varchar", "stat": "varchar"}]'
    connection.execute(
        f"create or replace temp table now as select unnest(from_json(?, '{record}'), recursive := true)", [now]
    )
    connection.execute(
        f"delete from {_loaded_files(schema)} where table_name = ? and (file, digest, stat) not in (from now)",
        [table.name],
    )
    connection.execute(
        f"insert into {_loaded_files(schema)} select ?, * from now"
        f" where file not in (select file from {_loaded_files(schema)} where table_name = ?)",
        [table.name, table.name],
    )


def _supersede(connection: duckdb.DuckDBPyConnection, schema: str, table: TableContract, load_id: str) -> None:
    rows, superseded = identifier(schema, table.name), identifier(schema, _superseded(table))
    keys, matched = ", ".join(map(identifier, table.primary_key)), _matched(table)
    loaded = connection.execute(f"select count(*) from {rows} where _dlt_load_id = ?", [load_id]).fetchone() or (0,)
    slices = 1 + loaded[0] // _KEYS_AT_ONCE
    for number in range(slices):
        # Only the keys of this load's rows can have changed. The table is read once, and once more to delete.
        connection.execute(
            f"create or replace temp table touched as select * from {rows} where hash({keys}) in"
            f" (select hash({keys}) from {rows} where _dlt_load_id = ? and hash({keys}) % {slices} = {number})",
            [load_id],
        )
        connection.execute(
            f"create or replace temp table latest as select {keys}, max(_file) as {_LAST} from touched"
            f" group by {keys} having min(_file) < max(_file)"
        )
        connection.execute(f"insert into {superseded} select one.* from touched as one join latest on {matched}")
        connection.execute(f"delete from {rows} as one using latest where {matched}")
    connection.execute("drop table if exists touched")


def _matched(table: TableContract) -> str:
    """Return SQL of the condition that a row, `one`, is superseded by the last file with its key."""
    keys = [f"one.{identifier(key)} = latest.{identifier(key)}" for key in table.primary_key]
    return " and ".join([*keys, f"one._file < latest.{_LAST}"])


def _superseded(table: TableContract) -> str:
    return f"{table.name}_superseded"


def _loaded_files(schema: str) -> str:
    return identifier(schema, LOADED_FILES)
