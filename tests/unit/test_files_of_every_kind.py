"""Small files of every kind that people deliver (`tests/data/files`), each with the right values, written by hand."""

from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from include.dlt_pipelines.files import CsvDialect, TableContract, find_files, parse

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).resolve().parents[1] / "data" / "files"
JAN, FEB = date(2026, 1, 25), date(2026, 2, 26)
ORDERS = {"order_id": "BIGINT", "amount": "DECIMAL(18,2)"}
SALES = {"order_id": "BIGINT", "sold_on": "DATE", "amount": "DECIMAL(18,2)"}
TWO = [(1, Decimal("12.50")), (2, Decimal("7.25"))]
THREE = [(1, date(2026, 1, 5), Decimal("12.50")), (2, date(2026, 1, 6), Decimal("7.25"))]
NOTES = {"order_id": "BIGINT", "note": "VARCHAR"}

Case = tuple[str, dict[str, str], list[tuple[Any, ...]], dict[str, Any]]


def case(file: str, columns: dict[str, str], rows: list[tuple[Any, ...]], **dialect: Any) -> Case:
    return file, columns, rows, dialect


CASES = [
    case("Sales 2026.csv", ORDERS, TWO),
    case("k01_semicolon.csv", SALES, THREE, delimiter=";"),
    case("k02_tab.csv", SALES, THREE, delimiter="\t"),
    case("k03_pipe.csv", SALES, THREE, delimiter="|"),
    case(
        "k04_cp1252_header.csv",
        {"order_id": "BIGINT", "straße": "VARCHAR"},
        [(1, "Nord"), (2, "Süd")],
        encoding="cp1252",
    ),
    case(
        "k05_cp1252_value.csv",
        {"order_id": "BIGINT", "street": "VARCHAR"},
        [(1, "Nord"), (2, "Süd"), (3, "West")],
        encoding="cp1252",
    ),
    case(
        "k06_utf16.csv",
        {"order_id": "BIGINT", "street": "VARCHAR"},
        [(1, "Nord"), (2, "Süd")],
        encoding="utf-16",
    ),
    case("k07_decimal_comma.csv", ORDERS, [(1, Decimal("12.50")), (2, Decimal("1007.25"))], decimal=",", thousands="."),
    case("k08_thousands.csv", ORDERS, [(1, Decimal("1250.00")), (2, Decimal("2666.50"))], thousands=","),
    case(
        "k09_currency_percent.csv",
        {"order_id": "BIGINT", "amount": "DECIMAL(18,2)", "share": "INTEGER"},
        [(1, Decimal("12.50"), 45), (2, Decimal("7.25"), 55)],
        symbols=("$", "%"),
    ),
    case("k10_date_us.csv", {"order_id": "BIGINT", "sold_on": "DATE"}, [(1, JAN), (2, FEB)], date_format="%m/%d/%Y"),
    case("k11_date_de.csv", {"order_id": "BIGINT", "sold_on": "DATE"}, [(1, JAN), (2, FEB)], date_format="%d.%m.%Y"),
    case(
        "k12_time_ampm.csv",
        {"order_id": "BIGINT", "sold_at": "TIMESTAMP"},
        [(1, datetime(2026, 1, 25, 16, 5)), (2, datetime(2026, 2, 6, 11, 0))],
        timestamp_format="%m/%d/%Y %I:%M %p",
    ),
    case(
        "k13_timestamp_minutes.csv",
        {"order_id": "BIGINT", "sold_at": "TIMESTAMP"},
        [(1, datetime(2026, 1, 25, 16, 5)), (2, datetime(2026, 2, 26, 17, 0))],
        timestamp_format="%Y-%m-%d %H:%M",
    ),
    case("k14_preamble.csv", SALES, THREE, skip=2),
    case("k15_preamble_meta.csv", SALES, THREE, skip=2),
    case("k16_no_header.csv", SALES, THREE, header=False),
    case(
        "k17_no_header_text.csv",
        {"order_id": "BIGINT", "region": "VARCHAR", "status": "VARCHAR"},
        [(1, "Nord", "open"), (2, "Sued", "closed")],
        header=False,
    ),
    case(
        "k18_no_header_alltext.csv",
        {"order_id": "VARCHAR", "region": "VARCHAR", "status": "VARCHAR"},
        [("A1", "Nord", "open"), ("A2", "Sued", "closed"), ("A3", "West", "open")],
        header=False,
    ),
    case("k19_footer.csv", ORDERS, TWO, footer=1),
    case("k20_footer_text.csv", SALES, THREE, footer=1),
    case("k21_trailing_delim.csv", ORDERS, TWO, trailing_delimiter=True),
    case("k22_trailing_delim_rows.csv", ORDERS, TWO, trailing_delimiter=True),
    case(
        "k23_empty_name.csv",
        {"column_1": "BIGINT", "region": "VARCHAR", "amount": "DECIMAL(18,2)"},
        [(0, "Nord", Decimal("12.50")), (1, "Sued", Decimal("7.25"))],
    ),
    case(
        "k24_dup_names.csv",
        {"order_id": "BIGINT", "amount": "DECIMAL(18,2)", "amount_2": "DECIMAL(18,2)"},
        [(1, Decimal("12.50"), Decimal("2.50")), (2, Decimal("7.25"), Decimal("1.25"))],
    ),
    case(
        "k25_dup_case.csv",
        {"order_id": "BIGINT", "Amount": "DECIMAL(18,2)", "amount_2": "DECIMAL(18,2)"},
        [(1, Decimal("12.50"), Decimal("2.50")), (2, Decimal("7.25"), Decimal("1.25"))],
    ),
    case("k26_names_space.csv", {"Order ID": "BIGINT", "Sold On": "DATE", "Amount (EUR)": "DECIMAL(18,2)"}, THREE),
    case("k27_names_unicode.csv", {"注文番号": "BIGINT", "金額": "DECIMAL(18,2)"}, TWO),
    case("k28_name_quote_newline.csv", {"order_id": "BIGINT", "amount\nin EUR": "DECIMAL(18,2)"}, TWO),
    case("k29_name_quote.csv", {"order_id": "BIGINT", 'the "real" amount': "DECIMAL(18,2)"}, TWO),
    case("k30_name_backslash.csv", {"order_id": "BIGINT", "geo\\TIME": "DECIMAL(18,2)"}, TWO),
    case(
        "k31_name_space_pad.csv",
        {"order_id": "BIGINT", "amount": "DECIMAL(18,2)", "city": "VARCHAR"},
        [(1, Decimal("12.50"), "Nord"), (2, Decimal("7.25"), "Sued")],
    ),
    case("k32_quoted_newline.csv", NOTES, [(1, "first\nsecond"), (2, "x, y")]),
    case("k33_cr_only.csv", ORDERS, TWO),
    case("k34_leading_zero.csv", {"plz": "VARCHAR", "city": "VARCHAR"}, [("01067", "Nord"), ("80331", "Sued")]),
    case("k35_null_text.csv", ORDERS, [(1, Decimal("12.50")), (2, None), (3, Decimal("7.25"))], null_values=("NA",)),
    case("k36_null_dash.csv", ORDERS, [(1, Decimal("12.50")), (2, None), (3, Decimal("7.25"))], null_values=("-",)),
    case("k37_null_quoted_empty.csv", NOTES, [(1, None), (2, None), (3, "x")]),
    case(
        "k38_bool_yn.csv",
        {"order_id": "BIGINT", "paid": "BOOLEAN"},
        [(1, True), (2, False), (3, True)],
        true_values=("Y",),
        false_values=("N",),
    ),
    case(
        "k39_bool_yesno.csv",
        {"order_id": "BIGINT", "paid": "BOOLEAN"},
        [(1, True), (2, False), (3, True)],
        true_values=("yes",),
        false_values=("no",),
    ),
    case("k40_backslash_n.csv", NOTES, [(1, None), (2, "x")], null_values=("\\N",)),
    case("k41_comment.csv", ORDERS, TWO, comment="#"),
    case("k42_single_quote.csv", NOTES, [(1, "a, b"), (2, "c")], quote="'"),
    case("k43_escaped_backslash.csv", NOTES, [(1, 'say "hi", ok'), (2, "x")], escape="\\"),
    case(
        "k44_ragged.csv",
        {"order_id": "BIGINT", "amount": "DECIMAL(18,2)", "note": "VARCHAR"},
        [(1, Decimal("12.50"), None), (2, Decimal("7.25"), "x")],
        short_rows="fill",
    ),
    case("k45_header_only.csv", ORDERS, []),
    case("k46_one_column.csv", {"email": "VARCHAR"}, [("ana@example.com",), ("ben@example.com",)]),
    case("k47_wide.csv", {f"c{at}": "VARCHAR" for at in range(1200)}, [("1",) * 1200]),
    case(
        "k48_big_int.csv",
        {"order_id": "BIGINT", "big": "DECIMAL(38,0)"},
        [(1, Decimal("12345678901234567890123")), (2, Decimal(5))],
    ),
    case(
        "k49_year.csv",
        {"year": "SMALLINT", "region": "VARCHAR", "amount": "DECIMAL(18,2)"},
        [
            (2024, "Nord", Decimal("12.50")),
            (2025, "Nord", Decimal("7.25")),
            (2024, "Sued", Decimal("1.00")),
            (2025, "Sued", Decimal("2.00")),
        ],
    ),
    case("k50_float_mixed.csv", {"order_id": "BIGINT", "amount": "DOUBLE"}, [(1, 12.5), (2, 7.25), (3, 7.0)]),
    case("k51_sep_line.csv", ORDERS, TWO, skip=1, delimiter=";"),
    case(
        "k52_plus.csv",
        {"order_id": "BIGINT", "phone": "VARCHAR", "amount": "DECIMAL(18,2)"},
        [(1, "+4930123", Decimal("12.50")), (2, "+4930124", Decimal("7.25"))],
    ),
    case("k53_space_delim.csv", ORDERS, TWO, delimiter=" "),
    case("k54_reserved.csv", {"select": "BIGINT", "from": "DATE", "group": "DECIMAL(18,2)"}, THREE),
    case("k55_time.csv", {"order_id": "BIGINT", "at": "TIME"}, [(1, time(16, 5)), (2, time(17, 0))]),
    case(
        "k56_iso_z.csv",
        {"order_id": "BIGINT", "at": "TIMESTAMP WITH TIME ZONE"},
        [(1, datetime(2026, 1, 5, 16, 5, 0, 123000, UTC)), (2, datetime(2026, 1, 5, 17, 5, tzinfo=UTC))],
    ),
    case(
        "k57_month.csv",
        {"month": "VARCHAR", "amount": "DECIMAL(18,2)"},
        [("2026-01", Decimal("12.50")), ("2026-02", Decimal("7.25"))],
    ),
    case(
        "k58_emptycol.csv",
        {"order_id": "BIGINT", "unused": "VARCHAR", "amount": "DECIMAL(18,2)"},
        [(1, None, Decimal("12.50")), (2, None, Decimal("7.25"))],
    ),
    case(
        "k59_yyyymmdd.csv",
        {"order_id": "BIGINT", "service_date": "DATE"},
        [(1, date(2026, 1, 5)), (2, date(2026, 1, 6))],
        date_format="%Y%m%d",
    ),
    case("k60_json.csv", {"order_id": "BIGINT", "tags": "VARCHAR"}, [(1, '{"a": 1}'), (2, '{"a": 2}')]),
    case("k61_load_id.csv", {"order_id": "BIGINT", "_dlt_load_id_2": "VARCHAR"}, [(1, "x"), (2, "y")]),
    case(
        "k62_dup_rows.csv",
        {"region": "VARCHAR", "amount": "BIGINT"},
        [("Nord", 1), ("Nord", 1), ("Sued", 2)],
    ),
    case("k70.tsv", ORDERS, TWO[:1], delimiter="\t"),
    case("k71.txt", ORDERS, TWO[:1]),
    case("k74.CSV", ORDERS, TWO),
    case("k75.csv.zip", ORDERS, TWO),
    case("k76.csv.bz2", ORDERS, TWO),
    case("k72.jsonl", ORDERS, TWO, format="jsonl"),
    case("k77.parquet", ORDERS, TWO[:1], format="parquet"),
    case("k78.xlsx", ORDERS, TWO[:1], format="xlsx"),
]


@pytest.mark.parametrize("one", CASES, ids=[one[0] for one in CASES])
def test_each_kind_of_file_is_loaded_with_the_right_values(tmp_path: Path, one: Case) -> None:
    file, columns, rows, dialect = *one[:3], dict(one[3])
    format_ = dialect.pop("format", "csv")
    table = TableContract("t", columns, (), 0, file=file, format=format_, dialect=CsvDialect(**dialect))
    path = find_files(FOLDER, table)[file]
    parsed = parse(path, table, tmp_path, "7.5")
    assert parsed.rejects is None
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        found = connection.execute(f"select * exclude (_dlt_load_id) from '{parsed.parquet}'").fetchall()
    assert found == rows


def test_every_file_has_its_values() -> None:
    assert {one[0] for one in CASES} == {path.name for path in FOLDER.iterdir()}
