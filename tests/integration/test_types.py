"""What becomes of each type, by value, wherever published data go: the table of docs/reading.md, cell by cell."""

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include.duckdb_session import open_duckdb
from include.serving import ServeError, serve
from include.warehouse.copy_from import copy_from
from include.warehouse.errors import NotReadyError, WarehouseError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import files
from testing import targets
from testing.project import PROJECT, unchecked
from tests.integration.test_serve import SCHEMA, Server, mariadb, postgres

pytestmark = [pytest.mark.integration, pytest.mark.files]

LARGEST = 10**38 - 1
# By the table's first column: the type in DuckDB, and values of it.
VALUES = {
    "HUGEINT (`sum()` of integers)": ("HUGEINT", [f"{LARGEST}", "-9007199254740993"]),
    "HUGEINT of 39 digits": ("HUGEINT", ["170141183460469231731687303715884105727"]),
    "list of HUGEINT": ("HUGEINT[]", [f"[{LARGEST}]"]),
    "UBIGINT": ("UBIGINT", ["18446744073709551615"]),
    "DECIMAL": ("DECIMAL(38,10)", ["1234567890123456789012345678.0123456789"]),
    "DOUBLE, infinite or NaN": ("DOUBLE", ["'nan'", "'infinity'"]),
    "text with a NUL byte": ("VARCHAR", ["'a' || chr(0) || 'b'"]),
    "BLOB": ("BLOB", [r"'\x00\xFF'::blob"]),
    "DATE": ("DATE", ["'0001-01-01'", "'9999-12-31'"]),
    "DATE, infinite": ("DATE", ["'infinity'"]),
    "TIMESTAMP": ("TIMESTAMP", ["'9999-12-31 23:59:59.999999'"]),
    "TIMESTAMP after the year 9999": ("TIMESTAMP", ["'12024-01-01'"]),
    "TIMESTAMP_NS": ("TIMESTAMP_NS", ["'2020-01-01 00:00:00.123456789'"]),
    "TIMESTAMP WITH TIME ZONE": ("TIMESTAMPTZ", ["'2020-06-01 12:00:00.000001+00'"]),
    "INTERVAL": ("INTERVAL", ["interval '1 month 2 days 3 microseconds'", "interval '-1 month'"]),
    "ENUM": ("ENUM('a','b')", ["'b'"]),
    "UUID": ("UUID", ["'6ccd780c-baba-1026-9564-5b8c656024db'"]),
    "BIT": ("BIT", ["'10101'"]),
    "nested list": ("INTEGER[][]", ["[[1], [2]]"]),
    "array": ("INTEGER[2]", ["[1, 2]"]),
    "STRUCT": ('STRUCT(a INTEGER, "HUGEINT" VARCHAR)', ["{'a': 1, 'HUGEINT': 'x'}"]),
    "MAP": ("MAP(VARCHAR, INTEGER)", ["map {'a': 1}"]),
}


def documented() -> dict[str, list[str]]:
    """The cells of the table, by type."""
    text = (PROJECT / "docs" / "reading.md").read_text().split("## Types")[1]
    rows = re.findall(r"^\| (.+) \|$", text.split("\n## ")[0], flags=re.M)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    return {row[0]: row[1:] for row in cells if row[0] in VALUES}


def test_the_table_has_each_type() -> None:
    assert documented().keys() == VALUES.keys()


def publish(name: str) -> Release:
    type_, values = VALUES[name]
    rows = ", ".join(f"({number}, {value}::{type_})" for number, value in enumerate(values))
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts")
        connection.execute(f"create or replace table marts.t as select * from (values {rows}) as r(id, v)")
    return target().publish("a-run", unchecked)


def wanted(name: str, as_type: str = "") -> list[str]:
    """The values as DuckDB's text."""
    type_, values = VALUES[name]
    cast = f"::{as_type}" if as_type else ""
    with open_duckdb() as connection:
        rows = [connection.execute(f"select ({value}::{type_}){cast}::varchar").fetchall()[0] for value in values]
    return [text for (text,) in rows]


def read(query: str) -> list[str]:
    with open_duckdb() as connection:
        return [text for (text,) in connection.execute(query).fetchall()]


@pytest.mark.parametrize("name", VALUES)
def test_a_parquet_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    cell, release = documented()[name][0], publish(name)
    if cell == "refused":
        with pytest.raises(files.FileError, match="take the CSV") as refused:
            files.table_file(release, "marts", "t", "parquet")
        assert "1701411" not in str(refused.value)
        return
    path = files.table_file(release, "marts", "t", "parquet")
    assert read(f"select v::varchar from '{path}' order by id") == wanted(name)
    kind = read(f"select column_type from (describe from '{path}') where column_name = 'v'")[0]
    if cell != "exact":
        assert kind == {"text": "VARCHAR"}.get(cell, cell.strip("`"))


@pytest.fixture(scope="module")
def lake() -> Iterator[targets.Target]:
    with targets.started("ducklake") as found:
        yield found


@pytest.mark.long
@pytest.mark.parametrize("name", VALUES)
def test_a_lake(name: str, lake: targets.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in lake.new(tmp_path).items():
        monkeypatch.setenv(variable, value)
    if documented()[name][1].startswith("refused"):
        with pytest.raises((NotReadyError, duckdb.Error)):
            publish(name)
        return
    with target().open_release(publish(name)) as connection:
        found = connection.execute("select v::varchar from marts.t order by id").fetchall()
    assert [text for (text,) in found] == wanted(name)


@pytest.fixture(scope="module")
def database() -> Iterator[targets.Target]:
    with targets.started("postgres") as found:
        yield found


MOVED = ("HUGEINT (`sum()` of integers)", "list of HUGEINT", "DECIMAL", "TIMESTAMP_NS", "ENUM", "INTERVAL", "STRUCT")


@pytest.mark.long
@pytest.mark.parametrize("engine", ["lake", "database"])
def test_a_warehouse_that_moves_to_another_engine_keeps_each_value_or_nothing_moves(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`copy-from`."""
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "data"))
    with target().open_working() as connection:
        columns = ", ".join(f"{VALUES[name][1][0]}::{VALUES[name][0]} as c{at}" for at, name in enumerate(MOVED))
        connection.execute(f"create schema marts; create table marts.t as select {columns}")
        connection.execute("create view marts.v as from marts.t")
    target().publish("a-run", unchecked)
    environment = request.getfixturevalue(engine).new(tmp_path)
    environment.pop("WAREHOUSE_DIR", None)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    copy_from("duckdb")
    with target().open_working() as connection:
        found = dict(
            zip(MOVED, connection.execute("select columns(*)::varchar from marts.t").fetchall()[0], strict=True)
        )
    expected = {name: wanted(name)[0] for name in MOVED}
    if engine == "database":
        expected["STRUCT"] = '{"a":1,"HUGEINT":"x"}'
    assert found == expected

    monkeypatch.delenv("DBT_TARGET")
    publish("HUGEINT of 39 digits")
    monkeypatch.setenv("DBT_TARGET", environment["DBT_TARGET"])
    for variable, value in request.getfixturevalue(engine).new(tmp_path / "another").items():
        if variable != "WAREHOUSE_DIR":
            monkeypatch.setenv(variable, value)
    with pytest.raises(WarehouseError, match=r"^Nothing was copied: marts\.t has a value") as refused:
        copy_from("duckdb")
    assert "1701411" not in str(refused.value)
    with target().open_working() as connection:
        assert not target().relations(connection)


@pytest.fixture(scope="module", params=[postgres, mariadb], ids=lambda one: one.__name__)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with request.param() as found:
        yield found


@pytest.mark.parametrize("name", VALUES)
def test_a_server(name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setenv("SERVE_PASSWORD", server.password)
    monkeypatch.setenv("SERVE_URL", server.url)
    is_postgres = server.kind == "postgres"
    cell = documented()[name][2 if is_postgres else 3]
    publish(name)
    if cell == "refused":
        with pytest.raises(ServeError) as refused:
            serve()
        assert "1701411" not in str(refused.value)
        return
    serve()
    of_bytes = VALUES[name][0] == "BLOB"
    with server.session() as run:
        if is_postgres:
            value = "encode(v, 'hex')" if of_bytes else "v::text"
            type_ = f"select format_type(atttypid, -1) from pg_attribute where attrelid = '{SCHEMA}.t'::regclass"
            ((kind,),) = run(f"{type_} and attname = 'v'")
        else:
            value = "hex(v)" if of_bytes else "cast(v as char)"
            type_ = f"select data_type from information_schema.columns where table_schema = '{SCHEMA}'"
            ((kind,),) = run(f"{type_} and table_name = 't' and column_name = 'v'")
        found = [text for (text,) in run(f"select {value} from {SCHEMA}.t order by id")]
    assert found == (_IN_POSTGRES if is_postgres else _IN_MYSQL).get(name, wanted(name))
    is_text = kind in ("text", "character varying", "longtext")
    assert is_text == (cell in ("text", "JSON") or VALUES[name][0] == "VARCHAR"), kind


# What a server prints in another way than DuckDB.
_IN_POSTGRES = {
    "list of HUGEINT": ["{99999999999999999999999999999999999999}"],
    "DOUBLE, infinite or NaN": ["NaN", "Infinity"],
    "BLOB": ["00ff"],
    "INTERVAL": ["1 mon 2 days 00:00:00.000003", "-1 mons"],
    "nested list": ["{{1},{2}}"],
    "STRUCT": ['{"a":1,"HUGEINT":"x"}'],
    "MAP": ['{"a":1}'],
}
_IN_MYSQL = {
    "BLOB": ["00FF"],
    "TIMESTAMP WITH TIME ZONE": ["2020-06-01 12:00:00.000001"],
    "nested list": ["[[1],[2]]"],
    "array": ["[1,2]"],
    "STRUCT": ['{"a":1,"HUGEINT":"x"}'],
    "MAP": ['{"a":1}'],
}
