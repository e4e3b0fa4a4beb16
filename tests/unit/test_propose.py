"""What is proposed for a file: encoding, types, keys, relationships, names, personal data."""

# ruff: noqa: RUF001
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include.dlt_pipelines.files import TableContract
from include.dlt_pipelines.propose.column_types import Reading, read_columns
from include.dlt_pipelines.propose.encoding import detect_encoding
from include.dlt_pipelines.propose.keys import Relationship, find_key, find_relationships
from include.dlt_pipelines.propose.names import snake_case, staged_names, table_name
from include.dlt_pipelines.propose.personal import is_personal
from include.dlt_pipelines.propose.write import contract
from include.sql import identifier

pytestmark = pytest.mark.unit


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connected:
        yield connected


def readings(
    connection: duckdb.DuckDBPyConnection, columns: dict[str, list[str | None]], delimiter: str = ","
) -> dict[str, Reading]:
    names = ", ".join(f"{identifier(name)} varchar" for name in columns)
    connection.execute(f"create or replace table texts ({names})")
    for row in zip(*columns.values(), strict=True):
        connection.execute(f"insert into texts values ({', '.join('?' * len(row))})", list(row))
    return read_columns(connection, "texts", list(columns), delimiter)


@pytest.mark.parametrize(
    ("column", "values", "type_", "options"),
    [
        ("amount", ["12,50", "1.007,25"], "DECIMAL(18,2)", {"decimal": ",", "thousands": "."}),
        ("amount", ["1,250.00", "2,666.50"], "DECIMAL(18,2)", {"thousands": ","}),
        ("amount", ["1'000.50", "2.00"], "DECIMAL(18,2)", {"thousands": "'"}),
        ("amount", ["12.5", "7.25"], "DECIMAL(18,2)", {}),
        ("ratio", ["12.5", "7.25"], "DOUBLE", {}),
        ("ratio", ["1e5", "2.5"], "DOUBLE", {}),
        ("amount", ["$12.50", "$7.25"], "DECIMAL(18,2)", {"symbols": ("$",)}),
        ("amount", ["€1", "$2"], "VARCHAR", {}),
        ("share", ["45%", "5"], "VARCHAR", {}),
        ("big", ["12345678901234567890123", "5"], "DECIMAL(38,0)", {}),
        ("zip", ["01067", "80331"], "VARCHAR", {}),
        ("phone", ["+4930123", "+4930124"], "VARCHAR", {}),
        ("sex", ["F", "F"], "VARCHAR", {}),
        ("flag", ["T", "F"], "BOOLEAN", {}),
        ("flag", ["true", "true"], "BOOLEAN", {}),
        ("answer", ["no", "no"], "VARCHAR", {}),
        ("answer", ["ja", "nein"], "BOOLEAN", {"true_values": ("ja",), "false_values": ("nein",)}),
        ("paid_on", ["01/25/2026", "02/26/2026"], "DATE", {"date_format": "%m/%d/%Y"}),
        ("paid_on", ["January 5, 2026", "February 6, 2026"], "DATE", {"date_format": "%B %d, %Y"}),
        ("paid_on", ["25-Jan-2026", None], "DATE", {"date_format": "%d-%b-%Y"}),
        ("service_date", ["20260105", "20260106"], "DATE", {"date_format": "%Y%m%d"}),
        ("number", ["20260105", "20260106"], "BIGINT", {}),
        ("at", ["16:05", "17:00"], "TIME", {"time_format": "%H:%M"}),
        ("at", ["25:05:00", "17:00:00"], "VARCHAR", {}),
        ("n", ["12.5", "NA"], "DECIMAL(18,1)", {"null_values": ("NA",)}),
        ("n", ["1", "  "], "BIGINT", {"null_values": ("",)}),
        ("note", ["NA", "x"], "VARCHAR", {}),
        ("note", ["\\N", "x"], "VARCHAR", {"null_values": ("\\N",)}),
        ("t0", [None, None], "VARCHAR", {}),
    ],
)
def test_a_type_is_proposed_if_all_texts_have_it(
    connection: duckdb.DuckDBPyConnection, column: str, values: list[str | None], type_: str, options: dict[str, object]
) -> None:
    found = readings(connection, {column: values})[column]
    assert (found.type, dict(found.options)) == (type_, options)


@pytest.mark.parametrize(
    ("values", "delimiter", "note"),
    [
        (["01/02/2026", "03/04/2026"], ",", "%d/%m/%Y and %m/%d/%Y fit all rows"),
        (["01/02/2026 10:00", "03/04/2026 11:00"], ",", "%d/%m/%Y %H:%M and %m/%d/%Y %H:%M fit all rows"),
        (["01.02.26", "31.03.26"], ",", "no century"),
        (["1,250", "2,300"], ",", "',' may be the decimal mark or that of thousands"),
        (["1.250", "2.300"], ";", "'.' may be the decimal mark or that of thousands"),
        (["2,2", "2", "2", "1"], ",", "may be lists"),
    ],
)
def test_what_has_two_meanings_stays_text_and_says_so(
    connection: duckdb.DuckDBPyConnection, values: list[str], delimiter: str, note: str
) -> None:
    found = readings(connection, {"x": [*values]}, delimiter)["x"]
    assert found.type == "VARCHAR"
    assert note in found.note


def test_the_mark_of_thousands_shows_in_the_column_or_in_others(connection: duckdb.DuckDBPyConnection) -> None:
    found = readings(connection, {"amount": ["12.50", "7.25"], "quantity": ["1,250", "2,300"]})
    assert (found["quantity"].type, found["quantity"].options) == ("BIGINT", {"thousands": ","})
    alone = readings(connection, {"quantity": ["1,250", "12,300", "4,300", "5,100", "6,000", "776"]})
    assert (alone["quantity"].type, alone["quantity"].options) == ("BIGINT", {"thousands": ","})
    codes = readings(connection, {"codes": ["840,978", "222,840", "332,840", "516,710", "858,927", "776"]})
    assert codes["codes"].type == "VARCHAR"


def test_the_last_row_counts_as_much_as_the_first(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        "create table texts as select case when i < 9999 then '1' else 'off' end as x from range(10000) t(i)"
    )
    found = read_columns(connection, "texts", ["x"], ",")["x"]
    assert found == Reading("VARCHAR", note="text, as 1 of 10,000 values are no numbers")
    late = "select case when i = 9999 then '01.02.2026' end as x from range(10000) t(i)"
    connection.execute(f"create or replace table texts as {late}")
    assert read_columns(connection, "texts", ["x"], ",")["x"].type == "DATE"


@pytest.mark.parametrize(
    ("text", "written", "found"),
    [
        ("id,straße\n1,Süd\n", "cp1252", "cp1252"),
        ("miasto\nŁódź\nGdańsk\nŚwiętochłowice\n", "cp1250", "cp1250"),
        ("číslo,účtu\nPříliš,žluťoučký\n", "cp1250", "cp1250"),
        ("город\nМосква\nСанкт-Петербург\n", "cp1251", "cp1251"),
        ("город\nМосква\nСанкт-Петербург\n", "koi8_r", "koi8_r"),
        ("πόλη\nΑθήνα\n", "cp1253", "cp1253"),
        ("都市,値\n東京,5\n大阪,6\n", "shift_jis", "shift_jis"),
        ("a,b\n1,ñ\n", "utf-8", "utf-8"),
        ("a,b\n1,ñ\n", "utf-8-sig", "utf-8"),
        ("a,b\n1,ñ\n", "utf-16", "utf-16"),
        ("a,b\n1,ñ\n", "utf-16-le", "utf-16-le"),
        ("a,b\n\0,1\n", "utf-8", "utf-8"),
    ],
)
def test_encodings(tmp_path: Path, text: str, written: str, found: str) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(text.encode(written))
    assert detect_encoding(path).name == found


def test_a_few_lines_of_another_encoding_do_not_change_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes("ñ\n".encode() * 100 + b"\xf1\n")
    found = detect_encoding(path)
    assert found.name == "utf-8"
    assert "1 of 101 lines beyond ASCII are not UTF-8" in found.note


@pytest.mark.parametrize(
    ("table", "columns", "rows", "key"),
    [
        ("raw_orders", "user_id bigint, id bigint", "i % 7, i", ("id",)),
        ("shops", "o_orderkey bigint, c bigint", "i, i", ("o_orderkey",)),
        ("units", "name varchar, \"M49 Code\" varchar", "'n' || i, 'c' || i", ("M49 Code",)),
        ("payments", "amount bigint, total double, name varchar", "i, i, 'n' || i", ()),
        ("trips", "trip_id bigint, stop_sequence bigint", "i // 10, i % 10", ("trip_id", "stop_sequence")),
        ("facts", "country varchar, year bigint, x bigint", "(i // 10)::varchar, i % 10, i", ("country", "year")),
        ("days", "date date, x bigint", "date '2026-01-01' + i::int, i", ("date",)),
        ("flags", "paid bigint, x bigint", "i, 1", ()),
    ],
)  # fmt: skip
def test_keys_need_a_name_that_says_so(
    connection: duckdb.DuckDBPyConnection, table: str, columns: str, rows: str, key: tuple[str, ...]
) -> None:
    connection.execute(f"create table found ({columns})")
    connection.execute(f"insert into found select {rows} from range(100) t(i)")
    types = dict(
        connection.execute("select column_name, data_type from duckdb_columns() where not internal").fetchall()
    )
    assert find_key(connection, "found", table, types, []) == key


def test_a_key_needs_rows_and_none_of_them_null(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("create table found as select i as id, i as code from range(4) t(i)")
    assert find_key(connection, "found", "found", {"id": "BIGINT", "code": "BIGINT"}, []) == ()
    connection.execute("insert into found select i, i from range(4, 9) t(i)")
    assert find_key(connection, "found", "found", {"id": "BIGINT", "code": "BIGINT"}, []) == ("id",)
    assert find_key(connection, "found", "found", {"id": "BIGINT", "code": "BIGINT"}, ["id"]) == (), (
        "9 codes may be counts"
    )


def test_relationships_need_a_name_and_all_values(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("create table raw_users as select i as id from range(10) t(i)")
    connection.execute(
        "create table raw_orders as select i as id, i % 10 as user_id, i as stranger_id from range(20) t(i)"
    )
    connection.execute("create table payments as select i as id, i as order_id, i % 11 as user_id from range(20) t(i)")
    tables = {
        "raw_users": {"id": "BIGINT"},
        "raw_orders": {"id": "BIGINT", "user_id": "BIGINT", "stranger_id": "BIGINT"},
        "payments": {"id": "BIGINT", "order_id": "BIGINT", "user_id": "BIGINT"},
    }
    keys = {"raw_users": ("id",), "raw_orders": ("id",), "payments": ("id",)}
    assert find_relationships(connection, tables, keys) == [
        Relationship("raw_orders", "user_id", "raw_users", "id"),
        Relationship("payments", "order_id", "raw_orders", "id"),
    ]


def test_a_small_table_without_a_key_can_be_referred_to(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("create table calendar as select 's' || i as service_id from range(2) t(i)")
    connection.execute("create table stops as select i as stop_id from range(9) t(i)")
    connection.execute("create table trips as select i as trip_id, 's' || i % 2 as service_id from range(9) t(i)")
    connection.execute("create table transfers as select i as from_stop_id, 1 as to_stop_id from range(2) t(i)")
    tables = {
        "calendar": {"service_id": "VARCHAR"},
        "stops": {"stop_id": "BIGINT"},
        "trips": {"trip_id": "BIGINT", "service_id": "VARCHAR"},
        "transfers": {"from_stop_id": "BIGINT", "to_stop_id": "BIGINT"},
    }
    keys = {"calendar": (), "stops": ("stop_id",), "trips": ("trip_id",), "transfers": ()}
    assert find_relationships(connection, tables, keys) == [
        Relationship("trips", "service_id", "calendar", "service_id"),
        Relationship("transfers", "from_stop_id", "stops", "stop_id"),
        Relationship("transfers", "to_stop_id", "stops", "stop_id"),
    ]


def test_names_are_ascii_and_stay_readable() -> None:
    names = ["Währung", "M49 Code", "orderId", "Amount (EUR)", "HTTPServer", "город", "注文番号", "№", "it's"]
    assert [snake_case(name) for name in names] == [
        *("wahrung", "m49_code", "order_id", "amount_eur", "http_server", "gorod", "zhu_wen_fan_hao", "no", "its"),
    ]
    assert staged_names("raw_orders", ["id", "Year", "year", "select", "9 lives", "", "a", "A"]) == [
        *("order_id", "order_year", "year", "order_select", "order_9_lives", "order_column", "a", "a_2"),
    ]


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("Sales 2026.CSV", "sales_2026"),
        ("orders.csv.gz", "orders"),
        ("2026.csv", "table_2026"),
        ("lineitem.tbl", "lineitem"),
        ("Umsätze_07.01.txt", "umsatze_07_01"),
        ("...", "table"),
    ],
)
def test_a_table_is_named_after_its_file(file: str, table: str) -> None:
    assert table_name(Path(file)) == table


@pytest.mark.parametrize(
    ("column", "table", "examples", "personal"),
    [
        ("first_name", "x", [], True),
        ("Vorname", "x", [], True),
        ("Apellidos", "x", [], True),
        ("Nr. téléphone", "x", [], True),
        ("Geburtsdatum", "x", [], True),
        ("name", "customers", [], True),
        ("name", "products", [], False),
        ("product_name", "customers", [], False),
        ("ip_count", "x", [], False),
        ("contact", "x", ["ana@example.com", "ben@example.com"], True),
        ("account", "x", ["DE89 3704 0044 0532 0130 00"], True),
        ("account", "x", ["DE00 3704 0044 0532 0130 00"], False),
        ("c", "x", ["+49 30 1234567"], True),
        ("c", "x", ["2026-01-05", "100"], False),
    ],
)
def test_personal_data_shows_in_names_and_in_forms(
    column: str, table: str, examples: list[str], personal: bool
) -> None:
    assert is_personal(column, table, examples) is personal


def test_a_contract_is_written_without_what_is_as_by_default() -> None:
    text = contract(TableContract("raw_stores", {"id": "BIGINT"}, ("id",)))
    assert "".join(text.split()) == 'TableContract("raw_stores",{"id":"BIGINT"},primary_key=("id",),)'
