"""What becomes of each type, by value, wherever published data go: the table of docs/reading.md, cell by cell."""

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include.duckdb_session import open_duckdb
from include.serving import ServeError, serve
from include.warehouse.errors import NotReadyError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import files
from testing.project import PROJECT, unchecked
from tests.integration.test_serve import SCHEMA, Server, postgres

pytestmark = pytest.mark.integration

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


@pytest.mark.files
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


@pytest.mark.parametrize("name", VALUES)
def test_a_lake(name: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--target") != "ducklake":
        pytest.skip("about the lake: --target ducklake")
    cell = documented()[name][1]
    if cell.startswith("refused"):
        with pytest.raises((NotReadyError, duckdb.Error)):
            publish(name)
        return
    release = publish(name)
    with target().open_release(release) as connection:
        found = connection.execute("select v::varchar from marts.t order by id").fetchall()
    assert [text for (text,) in found] == wanted(name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as found:
        yield found


@pytest.mark.files
@pytest.mark.parametrize("name", VALUES)
def test_a_postgres_server(name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setenv("SERVE_PASSWORD", server.password)
    monkeypatch.setenv("SERVE_URL", server.url)
    cell = documented()[name][2]
    publish(name)
    if cell == "refused":
        with pytest.raises(ServeError) as refused:
            serve()
        assert "1701411" not in str(refused.value)
        return
    serve()
    value = "encode(v, 'hex')" if VALUES[name][0] == "BLOB" else "v::text"
    with server.session() as run:
        found = [text for (text,) in run(f"select {value} from {SCHEMA}.t order by id")]
        of = f"from pg_attribute where attrelid = '{SCHEMA}.t'::regclass and attname = 'v'"
        ((kind,),) = run(f"select format_type(atttypid, -1) {of}")
    assert found == _PRINTED.get(name, wanted(name))
    assert (kind in ("text", "character varying")) == (cell in ("text", "JSON") or VALUES[name][0] == "VARCHAR"), kind


# What PostgreSQL prints in another way than DuckDB.
_PRINTED = {
    "list of HUGEINT": ["{99999999999999999999999999999999999999}"],
    "DOUBLE, infinite or NaN": ["NaN", "Infinity"],
    "BLOB": ["00ff"],
    "INTERVAL": ["1 mon 2 days 00:00:00.000003", "-1 mons"],
    "nested list": ["{{1},{2}}"],
    "STRUCT": ['{"a":1,"HUGEINT":"x"}'],
    "MAP": ['{"a":1}'],
}
