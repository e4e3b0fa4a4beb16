"""Kinds of files as people deliver them: what is proposed for each, and its rows as a load then has them."""

import bz2
import zipfile
from pathlib import Path

import duckdb
import pytest

from include.dlt_pipelines.files import parse
from include.dlt_pipelines.propose import propose
from include.dlt_pipelines.propose.write import dialect
from include.sql import identifier

pytestmark = pytest.mark.integration

# A file, the columns of its contract, what its dialect declares, and its rows.
KINDS = [
    (
        "Sales 2026.csv",
        b"order_id,amount\n1,12.50\n2,7.25\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        "",
        "1|12.50 / 2|7.25",
    ),
    (
        "semicolon.csv",
        b"order_id;sold_on;amount\n1;2026-01-05;12.50\n2;2026-01-06;7.25\n",
        "order_id BIGINT, sold_on DATE, amount DECIMAL(18,2)",
        'delimiter=";"',
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "tab.csv",
        b"order_id\tsold_on\tamount\n1\t2026-01-05\t12.50\n2\t2026-01-06\t7.25\n",
        "order_id BIGINT, sold_on DATE, amount DECIMAL(18,2)",
        'delimiter="\\t"',
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "pipe.csv",
        b"order_id|sold_on|amount\n1|2026-01-05|12.50\n2|2026-01-06|7.25\n",
        "order_id BIGINT, sold_on DATE, amount DECIMAL(18,2)",
        'delimiter="|"',
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "cp1252_header.csv",
        b"order_id,stra\xdfe\n1,Nord\n2,S\xfcd\n",
        "order_id BIGINT, straße VARCHAR",
        'encoding="cp1252"',
        "1|Nord / 2|Süd",
    ),
    (
        "cp1252_value.csv",
        b"order_id,street\n1,Nord\n2,S\xfcd\n3,West\n",
        "order_id BIGINT, street VARCHAR",
        'encoding="cp1252"',
        "1|Nord / 2|Süd / 3|West",
    ),
    (
        "utf16.csv",
        b"\xff\xfeo\x00r\x00d\x00e\x00r\x00_\x00i\x00d\x00,\x00s\x00t\x00r\x00e\x00e\x00t\x00\n\x001\x00,\x00N\x00o\x00r\x00d\x00\n\x002\x00,\x00S\x00\xfc\x00d\x00\n\x00",
        "order_id BIGINT, street VARCHAR",
        'encoding="utf-16"',
        "1|Nord / 2|Süd",
    ),
    (
        "decimal_comma.csv",
        b'order_id,amount\n1,"12,50"\n2,"1.007,25"\n',
        "order_id BIGINT, amount DECIMAL(18,2)",
        'decimal=",", thousands="."',
        "1|12.50 / 2|1007.25",
    ),
    (
        "thousands.csv",
        b'order_id,amount\n1,"1,250.00"\n2,"2,666.50"\n',
        "order_id BIGINT, amount DECIMAL(18,2)",
        'thousands=","',
        "1|1250.00 / 2|2666.50",
    ),
    (
        "currency_percent.csv",
        b"order_id,amount,share\n1,$12.50,45%\n2,$7.25,55%\n",
        "order_id BIGINT, amount DECIMAL(18,2), share BIGINT",
        'columns={ "amount": {"symbols": ("$",)}, "share": {"symbols": ("%",)}, }',
        "1|12.50|45 / 2|7.25|55",
    ),
    (
        "date_us.csv",
        b"order_id,sold_on\n1,01/25/2026\n2,02/26/2026\n",
        "order_id BIGINT, sold_on DATE",
        'date_format="%m/%d/%Y"',
        "1|2026-01-25 / 2|2026-02-26",
    ),
    (
        "date_de.csv",
        b"order_id,sold_on\n1,25.01.2026\n2,26.02.2026\n",
        "order_id BIGINT, sold_on DATE",
        'date_format="%d.%m.%Y"',
        "1|2026-01-25 / 2|2026-02-26",
    ),
    (
        "time_ampm.csv",
        b"order_id,sold_at\n1,1/25/2026 4:05 PM\n2,2/6/2026 11:00 AM\n",
        "order_id BIGINT, sold_at TIMESTAMP",
        'timestamp_format="%m/%d/%Y %I:%M %p"',
        "1|2026-01-25 16:05:00 / 2|2026-02-06 11:00:00",
    ),
    (
        "timestamp_minutes.csv",
        b"order_id,sold_at\n1,2026-01-25 16:05\n2,2026-02-26 17:00\n",
        "order_id BIGINT, sold_at TIMESTAMP",
        'timestamp_format="%Y-%m-%d %H:%M"',
        "1|2026-01-25 16:05:00 / 2|2026-02-26 17:00:00",
    ),
    (
        "preamble.csv",
        b"Sales report of January\n\norder_id,sold_on,amount\n1,2026-01-05,12.50\n2,2026-01-06,7.25\n",
        "order_id BIGINT, sold_on DATE, amount DECIMAL(18,2)",
        "skip=2",
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "preamble_meta.csv",
        b"Account:,4711\nPeriod:,January\norder_id,sold_on,amount\n1,2026-01-05,12.50\n2,2026-01-06,7.25\n",
        "order_id BIGINT, sold_on DATE, amount DECIMAL(18,2)",
        "skip=2",
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "no_header.csv",
        b"1,2026-01-05,12.50\n2,2026-01-06,7.25\n",
        "column_1 BIGINT, column_2 DATE, column_3 DECIMAL(18,2)",
        "header=False",
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "no_header_text.csv",
        b"1,Nord,open\n2,Sued,closed\n",
        "column_1 BIGINT, column_2 VARCHAR, column_3 VARCHAR",
        "header=False",
        "1|Nord|open / 2|Sued|closed",
    ),
    (
        "no_header_alltext.csv",
        b"A1,Nord,open\nA2,Sued,closed\nA3,West,open\n",
        "column_1 VARCHAR, column_2 VARCHAR, column_3 VARCHAR",
        "header=False",
        "A1|Nord|open / A2|Sued|closed / A3|West|open",
    ),
    (
        "footer.csv",
        b"order_id,amount\n1,12.50\n2,7.25\nTotal,19.75\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        "footer=1",
        "1|12.50 / 2|7.25",
    ),
    (
        "footer_text.csv",
        b"order_id,sold_on,amount\n1,2026-01-05,12.50\n2,2026-01-06,7.25\nDownloaded on 2026-01-07\n",
        "order_id BIGINT, sold_on DATE, amount DECIMAL(18,2)",
        "footer=1",
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "trailing_delim.csv",
        b"order_id,amount,\n1,12.50,\n2,7.25,\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        "trailing_delimiter=True",
        "1|12.50 / 2|7.25",
    ),
    (
        "trailing_delim_rows.csv",
        b"order_id,amount\n1,12.50,\n2,7.25,\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        "trailing_delimiter=True",
        "1|12.50 / 2|7.25",
    ),
    (
        "empty_name.csv",
        b",region,amount\n0,Nord,12.50\n1,Sued,7.25\n",
        "column_1 BIGINT, region VARCHAR, amount DECIMAL(18,2)",
        "",
        "0|Nord|12.50 / 1|Sued|7.25",
    ),
    (
        "dup_names.csv",
        b"order_id,amount,amount\n1,12.50,2.50\n2,7.25,1.25\n",
        "order_id BIGINT, amount DECIMAL(18,2), amount_2 DECIMAL(18,2)",
        "",
        "1|12.50|2.50 / 2|7.25|1.25",
    ),
    (
        "dup_case.csv",
        b"order_id,Amount,amount\n1,12.50,2.50\n2,7.25,1.25\n",
        "order_id BIGINT, Amount DECIMAL(18,2), amount_2 DECIMAL(18,2)",
        "",
        "1|12.50|2.50 / 2|7.25|1.25",
    ),
    (
        "names_space.csv",
        b"Order ID,Sold On,Amount (EUR)\n1,2026-01-05,12.50\n2,2026-01-06,7.25\n",
        "Order ID BIGINT, Sold On DATE, Amount (EUR) DECIMAL(18,2)",
        "",
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    (
        "names_unicode.csv",
        b"\xe6\xb3\xa8\xe6\x96\x87\xe7\x95\xaa\xe5\x8f\xb7,\xe9\x87\x91\xe9\xa1\x8d\n1,12.50\n2,7.25\n",
        "注文番号 BIGINT, 金額 DECIMAL(18,2)",
        "",
        "1|12.50 / 2|7.25",
    ),
    (
        "name_quote_newline.csv",
        b'order_id,"amount\nin EUR"\n1,12.50\n2,7.25\n',
        "order_id BIGINT, amount\nin EUR DECIMAL(18,2)",
        "",
        "1|12.50 / 2|7.25",
    ),
    (
        "name_quote.csv",
        b'order_id,"the ""real"" amount"\n1,12.50\n2,7.25\n',
        'order_id BIGINT, the "real" amount DECIMAL(18,2)',
        "",
        "1|12.50 / 2|7.25",
    ),
    (
        "name_backslash.csv",
        b"order_id,geo\\TIME\n1,12.50\n2,7.25\n",
        "order_id BIGINT, geo\\TIME DECIMAL(18,2)",
        "",
        "1|12.50 / 2|7.25",
    ),
    (
        "name_space_pad.csv",
        b"order_id, amount ,city\n1,12.50,Nord\n2,7.25,Sued\n",
        "order_id BIGINT, amount DECIMAL(18,2), city VARCHAR",
        "",
        "1|12.50|Nord / 2|7.25|Sued",
    ),
    (
        "quoted_newline.csv",
        b'order_id,note\n1,"first\nsecond"\n2,"x, y"\n',
        "order_id BIGINT, note VARCHAR",
        "",
        "1|first\nsecond / 2|x, y",
    ),
    (
        "cr_only.csv",
        b"order_id,amount\r1,12.50\r2,7.25\r",
        "order_id BIGINT, amount DECIMAL(18,2)",
        "",
        "1|12.50 / 2|7.25",
    ),
    (
        "leading_zero.csv",
        b"plz,city\n01067,Nord\n80331,Sued\n",
        "plz VARCHAR, city VARCHAR",
        "",
        "01067|Nord / 80331|Sued",
    ),
    (
        "null_text.csv",
        b"order_id,amount\n1,12.50\n2,NA\n3,7.25\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        'null_values=("NA",)',
        "1|12.50 / 2|NULL / 3|7.25",
    ),
    (
        "null_dash.csv",
        b"order_id,amount\n1,12.50\n2,-\n3,7.25\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        'null_values=("-",)',
        "1|12.50 / 2|NULL / 3|7.25",
    ),
    (
        "null_quoted_empty.csv",
        b'order_id,note\n1,""\n2,\n3,x\n',
        "order_id BIGINT, note VARCHAR",
        "",
        "1|NULL / 2|NULL / 3|x",
    ),
    (
        "bool_yn.csv",
        b"order_id,paid\n1,Y\n2,N\n3,Y\n",
        "order_id BIGINT, paid BOOLEAN",
        'true_values=("y",), false_values=("n",)',
        "1|true / 2|false / 3|true",
    ),
    (
        "bool_yesno.csv",
        b"order_id,paid\n1,yes\n2,no\n3,yes\n",
        "order_id BIGINT, paid BOOLEAN",
        'true_values=("yes",), false_values=("no",)',
        "1|true / 2|false / 3|true",
    ),
    (
        "backslash_n.csv",
        b"order_id,note\n1,\\N\n2,x\n",
        "order_id BIGINT, note VARCHAR",
        'null_values=("\\\\N",)',
        "1|NULL / 2|x",
    ),
    (
        "comment.csv",
        b"# export of January\norder_id,amount\n1,12.50\n2,7.25\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        "skip=1",
        "1|12.50 / 2|7.25",
    ),
    (
        "single_quote.csv",
        b"order_id,note\n1,'a, b'\n2,'c'\n",
        "order_id BIGINT, note VARCHAR",
        'quote="\'"',
        "1|a, b / 2|c",
    ),
    (
        "escaped_backslash.csv",
        b'order_id,note\n1,"say \\"hi\\", ok"\n2,"x"\n',
        "order_id BIGINT, note VARCHAR",
        'escape="\\\\"',
        '1|say "hi", ok / 2|x',
    ),
    (
        "ragged.csv",
        b"order_id,amount,note\n1,12.50\n2,7.25,x\n",
        "order_id BIGINT, amount DECIMAL(18,2), note VARCHAR",
        'short_rows="fill"',
        "1|12.50|NULL / 2|7.25|x",
    ),
    ("header_only.csv", b"order_id,amount\n", "order_id VARCHAR, amount VARCHAR", "", ""),
    (
        "one_column.csv",
        b"email\nana@example.com\nben@example.com\n",
        "email VARCHAR",
        "",
        "ana@example.com / ben@example.com",
    ),
    (
        "big_int.csv",
        b"order_id,big\n1,12345678901234567890123\n2,5\n",
        "order_id BIGINT, big DECIMAL(38,0)",
        "",
        "1|12345678901234567890123 / 2|5",
    ),
    (
        "year.csv",
        b"year,region,amount\n2024,Nord,12.50\n2025,Nord,7.25\n2024,Sued,1.00\n2025,Sued,2.00\n",
        "year BIGINT, region VARCHAR, amount DECIMAL(18,2)",
        "",
        "2024|Nord|12.50 / 2025|Nord|7.25 / 2024|Sued|1.00 / 2025|Sued|2.00",
    ),
    (
        "float_mixed.csv",
        b"order_id,amount\n1,12.5\n2,7.25\n3,7\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        "",
        "1|12.50 / 2|7.25 / 3|7.00",
    ),
    (
        "sep_line.csv",
        b"sep=;\norder_id;amount\n1;12.50\n2;7.25\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        'delimiter=";", skip=1',
        "1|12.50 / 2|7.25",
    ),
    (
        "plus.csv",
        b"order_id,phone,amount\n1,+4930123,+12.50\n2,+4930124,+7.25\n",
        "order_id BIGINT, phone VARCHAR, amount DECIMAL(18,2)",
        "",
        "1|+4930123|12.50 / 2|+4930124|7.25",
    ),
    (
        "space_delim.csv",
        b"order_id amount\n1 12.50\n2 7.25\n",
        "order_id BIGINT, amount DECIMAL(18,2)",
        'delimiter=" "',
        "1|12.50 / 2|7.25",
    ),
    (
        "reserved.csv",
        b"select,from,group\n1,2026-01-05,12.50\n2,2026-01-06,7.25\n",
        "select BIGINT, from DATE, group DECIMAL(18,2)",
        "",
        "1|2026-01-05|12.50 / 2|2026-01-06|7.25",
    ),
    ("time.csv", b"order_id,at\n1,16:05:00\n2,17:00:00\n", "order_id BIGINT, at TIME", "", "1|16:05:00 / 2|17:00:00"),
    (
        "iso_z.csv",
        b"order_id,at\n1,2026-01-05T16:05:00.123Z\n2,2026-01-05T17:05:00.000Z\n",
        "order_id BIGINT, at TIMESTAMP WITH TIME ZONE",
        "",
        "1|2026-01-05 16:05:00.123+00 / 2|2026-01-05 17:05:00+00",
    ),
    (
        "month.csv",
        b"month,amount\n2026-01,12.50\n2026-02,7.25\n",
        "month VARCHAR, amount DECIMAL(18,2)",
        "",
        "2026-01|12.50 / 2026-02|7.25",
    ),
    (
        "emptycol.csv",
        b"order_id,unused,amount\n1,,12.50\n2,,7.25\n",
        "order_id BIGINT, unused VARCHAR, amount DECIMAL(18,2)",
        "",
        "1|NULL|12.50 / 2|NULL|7.25",
    ),
    (
        "yyyymmdd.csv",
        b"order_id,service_date\n1,20260105\n2,20260106\n",
        "order_id BIGINT, service_date DATE",
        'date_format="%Y%m%d"',
        "1|2026-01-05 / 2|2026-01-06",
    ),
    (
        "json.csv",
        b'order_id,tags\n1,"{""a"": 1}"\n2,"{""a"": 2}"\n',
        "order_id BIGINT, tags VARCHAR",
        "",
        '1|{"a": 1} / 2|{"a": 2}',
    ),
    ("load_id.csv", b"order_id,_dlt_load_id\n1,x\n2,y\n", "order_id BIGINT, _dlt_load_id_2 VARCHAR", "", "1|x / 2|y"),
    (
        "dup_rows.csv",
        b"region,amount\nNord,1\nNord,1\nSued,2\n",
        "region VARCHAR, amount BIGINT",
        "",
        "Nord|1 / Nord|1 / Sued|2",
    ),
    ("k70.tsv", b"order_id\tamount\n1\t12.50\n", "order_id BIGINT, amount DECIMAL(18,2)", 'delimiter="\\t"', "1|12.50"),
    ("k71.txt", b"order_id,amount\n1,12.50\n", "order_id BIGINT, amount DECIMAL(18,2)", "", "1|12.50"),
    ("k74.CSV", b"order_id,amount\n1,12.50\n2,7.25\n", "order_id BIGINT, amount DECIMAL(18,2)", "", "1|12.50 / 2|7.25"),
]


def rows_of(path: Path, folder: Path) -> tuple[str, str, str]:
    """The proposed columns, the dialect, and the rows that a load has with them, as texts."""
    (table,) = propose([path])
    contract = table.contract
    parsed = parse(path, contract, folder, "")
    assert parsed.rows_rejected == table.rejected == 0
    columns = ", ".join(f"{identifier(name)}::varchar" for name in contract.columns)
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        rows = connection.execute(f"select {columns} from read_parquet('{parsed.parquet}')").fetchall()
    shown = " / ".join("|".join("NULL" if value is None else value for value in row) for row in rows)
    types = ", ".join(f"{name} {type_}" for name, type_ in contract.columns.items())
    declared = " ".join(dialect(contract.dialect).split()).removeprefix("CsvDialect(").removesuffix(")")
    return types, declared.strip().rstrip(","), shown


@pytest.mark.parametrize(("name", "content", "types", "declared", "rows"), KINDS, ids=[kind[0] for kind in KINDS])
def test_a_kind_of_file_loads_as_proposed(
    tmp_path: Path, name: str, content: bytes, types: str, declared: str, rows: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (tmp_path / "parsed").mkdir()
    assert rows_of(path, tmp_path / "parsed") == (types, declared, rows)


def test_packed_files_are_read_as_they_are(tmp_path: Path) -> None:
    text = "order_id;amount\n1;12,50\n2;7,25\n"
    (tmp_path / "orders.csv.bz2").write_bytes(bz2.compress(text.encode()))
    with zipfile.ZipFile(tmp_path / "Orders 2026.zip", "w") as archive:
        archive.writestr("inside.txt", text)
    for path in (tmp_path / "orders.csv.bz2", tmp_path / "Orders 2026.zip"):
        folder = tmp_path / path.suffix
        folder.mkdir()
        types, _, rows = rows_of(path, folder)
        assert (types, rows) == ("order_id BIGINT, amount DECIMAL(18,2)", "1|12.50 / 2|7.25")


def test_a_thousand_columns_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("\n".join(",".join(f"{row}{at}" for at in range(1200)) for row in ("c", 1, 2)) + "\n")
    (table,) = propose([path])
    assert set(table.contract.columns.values()) == {"BIGINT"}
    assert len(table.columns) == 1200
