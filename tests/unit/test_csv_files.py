import csv
import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.dlt_pipelines.files import SourceFileError, TableContract, contract, find_files, parse, read_header
from include.dlt_pipelines.files.records import Record, Splitter
from tests.unit import csv_oracle

pytestmark = pytest.mark.unit

TABLE = TableContract("t", {"id": "BIGINT", "day": "DATE", "name": "VARCHAR"}, ("id",), min_rows=0)
HEADER = b"id,day,name\n"
GOOD = b"1,2020-01-01,a\n"


def query(sql: str) -> list[tuple]:
    # In a fresh instance: DuckDB caches files per instance, and these are rewritten.
    with duckdb.connect(":memory:") as connection:
        return connection.execute(sql).fetchall()


def parsed(folder: Path, content: bytes, name: str = "t.csv") -> tuple[list[tuple], list[tuple]]:
    """Return the loaded rows and the rejected rows (line, column, reason, text)."""
    file = folder / name
    file.write_bytes(content)
    outcome = parse(file, TABLE, folder, "7.5")
    rows = query(f"select id, day::varchar, name from '{outcome.parquet}'")
    rejects = []
    if outcome.rejects:
        rejects = query(f"select line, column_name, reason, text from '{outcome.rejects}' order by line")
    assert (outcome.rows_loaded, outcome.rows_rejected) == (len(rows), len(rejects))
    return rows, rejects


@pytest.mark.parametrize(
    "content",
    [
        HEADER + GOOD,
        b"\xef\xbb\xbf" + HEADER + GOOD,
        (HEADER + GOOD).replace(b"\n", b"\r\n"),
        (HEADER + GOOD).removesuffix(b"\n"),
        b"name,id,day\na,1,2020-01-01\n",
        b'"id","day","name"\n"1","2020-01-01","a"\n',
        HEADER + b"\n" + GOOD + b"\n\n",
        HEADER + b" 1 , 2020-01-01 ,a\n",
        HEADER + b"+01,2020-01-01,a\n",
    ],
    ids=["plain", "bom", "crlf", "no-final-eol", "reordered", "quoted", "blank-lines", "spaces", "sign-and-zeros"],
)
def test_all_common_ways_to_write_a_row_are_loaded(tmp_path: Path, content: bytes) -> None:
    assert parsed(tmp_path, content) == ([(1, "2020-01-01", "a")], [])


def test_gzip_is_read(tmp_path: Path) -> None:
    assert parsed(tmp_path, gzip.compress(HEADER + GOOD), "t.csv.gz") == ([(1, "2020-01-01", "a")], [])


def test_values_are_kept_verbatim(tmp_path: Path) -> None:
    rows, rejects = parsed(
        tmp_path, HEADER + b'1,2020-01-01,"q ""x"", y"\n2,2020-01-01,"a\r\nb"\n3,2020-01-01,a"b\n,,\n'
    )
    assert [row[2] for row in rows] == ['q "x", y', "a\r\nb", 'a"b', None]
    assert rows[3] == (None, None, None)
    assert rejects == []


def test_each_row_carries_the_load_id(tmp_path: Path) -> None:
    parsed(tmp_path, HEADER + GOOD)
    assert query(f"select _dlt_load_id from '{tmp_path / 't.parquet'}'") == [("7.5",)]


def test_spaces_around_quotes_are_no_part_of_the_value(tmp_path: Path) -> None:
    for spaces in (1, 2, 3):
        text = (
            HEADER + f'1,2020-01-01,{" " * spaces}"a"{" " * spaces}\n{" " * spaces}"2",2020-01-01,"b  ""c"\n'.encode()
        )
        rows, rejects = parsed(tmp_path, text)
        assert ([row[2] for row in rows], rejects) == (["a", 'b  "c'], [])


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        (b"5.5,2020-01-01,a", "id", "id: not a valid BIGINT"),
        (b"1e3,2020-01-01,a", "id", "id: not a valid BIGINT"),
        (b"1_000,2020-01-01,a", "id", "id: not a valid BIGINT"),
        (b"9223372036854775808,2020-01-01,a", "id", "id: not a valid BIGINT"),
        (b"1,2020-02-30,a", "day", "day: not a valid DATE"),
        (b"1,2020-1-1,a", "day", "day: not a valid DATE"),
        (b"1,infinity,a", "day", "day: not a valid DATE"),
        (b"x,y,a", "id", "id: not a valid BIGINT; day: not a valid DATE"),
        (b"1,2020-01-01", "name", "2 values, 3 expected"),
        (b"1,2020-01-01,a,b", None, "4 values, 3 expected"),
        (b'1,2020-01-01,"a', "name", "unclosed quote"),
        (b'1,2020-01-01,"a"b', "name", "unexpected quote or line end"),
        (b"1,2020-01-01,a\rb", "name", "unexpected quote or line end"),
        (b"1,2020-01-01,\xff", "name", "not valid UTF-8 at byte 14 of the row"),
    ],
)
def test_a_bad_line_is_rejected_alone_with_its_line_column_and_reason(
    tmp_path: Path, line: bytes, column: str | None, reason: str
) -> None:
    rows, rejects = parsed(tmp_path, HEADER + GOOD + line + b"\n" + GOOD)
    assert [row[0] for row in rows] == [1, 1]
    assert rejects == [(3, column, reason, line.decode(errors="backslashreplace"))]


def test_mixed_line_ends_are_read(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + GOOD + GOOD.replace(b"\n", b"\r\n") + GOOD)
    assert (len(rows), rejects) == (3, [])


def test_a_trailing_comma_is_rejected_though_duckdb_accepts_it(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"1,2020-01-01,a,\n" * 2 + b'1,2020-01-01,"a,b"\n')
    assert (len(rows), [reject[2] for reject in rejects]) == (1, ["4 values, 3 expected"] * 2)


def test_a_line_split_by_a_lone_cr_does_not_offset_a_lost_line(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"1,2020-01-01,a\r2,2020-01-01,b\nlost\n")
    assert (rows, [reject[0] for reject in rejects]) == ([], [2, 3])


def test_nul_bytes_are_kept_in_text_and_rejected_in_numbers(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"1,2020-01-01,a\0b\n1\0,2020-01-01,a\n")
    assert ([row[2] for row in rows], [reject[0] for reject in rejects]) == (["a\0b"], [3])


@pytest.mark.parametrize("folder", ["it's", "name=x", "id=5", "a[1]", "st*r", "q?", 'do"ble', "ü {a,b}"])
def test_the_folder_name_is_not_interpreted(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "t.csv").write_bytes(HEADER + GOOD)
    outcome = parse(tmp_path / folder / "t.csv", TABLE, tmp_path, "7.5")
    assert query(f"select id, name from '{outcome.parquet}'") == [(1, "a")]


def test_an_overlong_line_is_rejected_and_the_rest_loaded(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"2,2020-01-01," + b"a" * 3_000_000 + b"\n" + GOOD)
    assert len(rows) == 1
    assert rejects[0][0] == 2
    assert "longer than 1000000 bytes" in rejects[0][2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv: the file is empty. Expected"),
        (GOOD, "t.csv:1: no header: the line has none of the columns' names. Expected"),
        (b"id;day;name\n", "The names are in line 1: declare CsvDialect(delimiter=';')"),
        (b"id,day,name,x\n", "t.csv:1: column 'x' is unknown"),
        (b"id,name\n", "t.csv:1: column day is missing"),
        (b"id,day,name,name\n", "t.csv:1: column 'name_2' is unknown (the second is named so if a name is repeated)"),
        ("id,day,name\n".encode("utf-16"), "t.csv:1: the header is not UTF-8"),
        (b'id,day,"name\n', "t.csv:1: the header has an unclosed quote. Close or remove it. Expected"),
        (b'id,day,"name"x\n', "t.csv:1: unexpected quote after name 3"),
        (b"id,day,name\rx\n", "t.csv:1: a lone carriage return"),
        (b'id,day,"name"' + b" " * 1_000_000 + b"\n", "t.csv:1: the header is at least 1000000 bytes long"),
    ],
)
def test_a_bad_header_is_reported_with_file_line_and_expected_columns(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises(SourceFileError) as error:
        read_header(file, TABLE)
    assert message in str(error.value)
    assert "id,day,name" in str(error.value)


def test_an_unclosed_quote_in_the_header_does_not_swallow_rows(tmp_path: Path) -> None:
    with pytest.raises(SourceFileError, match="the header has an unclosed quote"):
        parsed(tmp_path, b'id,day,"name\n' + GOOD * 500 + b'"\n' + GOOD)


@pytest.mark.parametrize(
    "records",
    [
        [2],  # the last lines are lost
        [2, 3, 4, 4],  # a line is duplicated
    ],
    ids=["lost", "doubled"],
)
def test_lost_or_duplicated_rows_are_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[int]
) -> None:
    found = [Record(0, line, b"x,y,z") for line in records]
    monkeypatch.setattr(Splitter, "records", lambda *_: found)
    with pytest.raises(SourceFileError, match=r"3 rows in the file, but 0 loaded and .* rejected. Nothing was loaded"):
        parsed(tmp_path, HEADER + b"x,y,z\n" * 3)


def test_a_blank_line_is_not_a_row_in_a_single_column_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'id\n1\n\n""\n2\n')
    outcome = parse(tmp_path / "t.csv", TableContract("t", {"id": "BIGINT"}, ("id",)), tmp_path, "1")
    assert query(f"select id from '{outcome.parquet}'") == [(1,), (None,), (2,)]


# Regressions that took minutes: each line examined the next thousand, or blank lines were read one by one.
SLOW = {
    "quotes-left-open": b'x","y\n' * 50_000,
    "quotes-left-open-above-a-long-line": (b'x","y\n' * 990 + b"z" * 900_000 + b'"z\n') * 10,
    "blank-lines": b"\n" * 100_000_000,
    "blank-lines-within-quotes": (b'1,2020-01-01,"' + b"\n" * 900) * 300,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("body", SLOW.values(), ids=SLOW)
def test_parsing_time_is_linear_in_file_size(tmp_path: Path, body: bytes) -> None:
    rows, rejects = parsed(tmp_path, HEADER + body + GOOD)
    assert len(rows) + len(rejects) > 0


@pytest.mark.timeout(30)
def test_a_header_of_many_columns_is_refused_at_once(tmp_path: Path) -> None:
    header = b"id,day,name," + b",".join(b"c%d" % number for number in range(100_000))
    with pytest.raises(SourceFileError, match=r"column 'c0', 'c1'.* is unknown"):
        parsed(tmp_path, header + b"\n")


def test_an_unreadable_file_is_reported_by_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").symlink_to("/proc/self/mem")  # its first page is not mapped: EIO
    with pytest.raises(SourceFileError, match=r"t\.csv: cannot be read \(Input/output error\)\. Check the disk"):
        parse(tmp_path / "t.csv", TABLE, tmp_path, "1")


def test_a_truncated_gzip_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceFileError, match=r"t\.csv\.gz: cannot be unpacked"):
        parsed(tmp_path, gzip.compress(HEADER + GOOD * 1000)[:-20], "t.csv.gz")


def test_a_file_without_rows_is_reported(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(HEADER)
    with pytest.raises(SourceFileError, match="0 rows, at least 1 expected"):
        parse(tmp_path / "t.csv", TableContract("t", TABLE.columns, ("id",)), tmp_path, "1")


def test_a_missing_file_or_a_folder_in_its_place_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceFileError, match=r"t\.csv: no such file .* set the source's data_dir"):
        find_files(tmp_path, TABLE)
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(SourceFileError, match="is not a file"):
        find_files(tmp_path, TABLE)


def test_having_both_a_plain_and_a_gzipped_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    (tmp_path / "t.csv.gz").touch()
    with pytest.raises(SourceFileError, match="ambiguous which to load"):
        find_files(tmp_path, TABLE)


SOUND = st.tuples(st.integers(0, 10**12), st.dates(), st.text("abcé '", max_size=6)).map(
    lambda row: f'{row[0]},{row[1].isoformat()},"{row[2].replace(chr(34), chr(34) * 2)}"'.encode()
)
SOUND_IN_TWO_LINES = SOUND.map(lambda line: line[:-1] + b"\nz" + line[-1:])
BROKEN = st.one_of(
    st.sampled_from([b"x,2020-01-01,a", b"1,2020-01-01", b"1,2020-01-01,a,b", b"1,2020-01-01,\xc3"]),
    st.binary(min_size=1, max_size=12).map(lambda raw: b"!" + raw.translate(None, b'\r\n"')),
)


SOUND_LINE, TWO_LINES = st.tuples(st.just(True), SOUND), st.tuples(st.just(True), SOUND_IN_TWO_LINES)
BROKEN_LINE, OPEN_QUOTE = st.tuples(st.just(False), BROKEN), st.just((False, b'7,2020-01-01,"open'))
# An open quote followed by a two-line row is ambiguous, so a file has one or the other.
LINES = st.sampled_from([TWO_LINES, OPEN_QUOTE]).flatmap(
    lambda special: st.lists(st.one_of(SOUND_LINE, BROKEN_LINE, special), max_size=12)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, end=st.sampled_from([b"\n", b"\r\n"]))
def test_every_valid_row_is_loaded_and_every_other_rejected(
    tmp_path: Path, lines: list[tuple[bool, bytes]], end: bytes
) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"".join(line + end for _, line in lines))
    assert len(rows) + len(rejects) == len(lines)
    assert [row[0] for row in rows] == [int(line.split(b",")[0]) for sound, line in lines if sound]
    assert [text for *_, text in rejects] == [
        line.decode(errors="backslashreplace") for sound, line in lines if not sound
    ]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.text('1a,"\n\r-2020\\é', max_size=80).map(lambda text: text.encode()))
def test_row_counts_balance_and_rejected_lines_are_complete_for_any_text(tmp_path: Path, body: bytes) -> None:
    rows, rejects = parsed(tmp_path, HEADER + body)
    # Each non-blank line is in exactly one loaded or rejected row, alone or as part of a longer record.
    lines = [line for line in body.removesuffix(b"\n").split(b"\n") if line.strip(b"\r")]
    held = sum(1 + (row[2] or "").count("\n") for row in rows) + sum(1 + text.count("\n") for *_, text in rejects)
    assert held >= len(lines)
    numbered = (HEADER + body).split(b"\n")
    for line, _, _, text in rejects:
        assert text.split("\n")[0].encode() in numbered[line - 1]


def values_of(line: str) -> list[str] | None:
    """Read a line with Python's csv module; None if it is malformed."""
    try:
        values = next(csv.reader([line], strict=True))
    except csv.Error:
        return None
    return values if len(values) == 2 else None


def leaves_a_quote_open(line: str) -> bool:
    try:
        next(csv.reader([line], strict=True))
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.text('1,"a\\;é', min_size=1, max_size=8),
            st.sampled_from(['1,"x, ""y"""', "2,a", "3,", '4,""', '"5","b"']),
        ).filter(lambda line: not leaves_a_quote_open(line)),
        max_size=6,
    )
)
def test_both_parsing_paths_agree_with_pythons_csv_module(tmp_path: Path, lines: list[str]) -> None:
    table = TableContract("t", {"one": "VARCHAR", "two": "VARCHAR"}, ("one",), min_rows=0)
    sound = [tuple(value or None for value in values) for line in lines if (values := values_of(line))]
    for more in ([], ["one value"]):  # a malformed line forces the careful path
        (tmp_path / "t.csv").write_text("\n".join(["one,two", *lines, *more]), encoding="utf-8", newline="")
        outcome = parse(tmp_path / "t.csv", table, tmp_path, "7.5")
        assert query(f"select one, two from '{outcome.parquet}'") == sound
        assert outcome.rows_rejected == len(lines) - len(sound) + len(more)


@pytest.mark.parametrize(
    ("declared", "canonical"),
    [
        *[(name, "BIGINT") for name in ("bigint", "INT8", "long", "BIGINT")],
        *[("INT", "INTEGER"), ("integer", "INTEGER"), ("ubigint", "UBIGINT"), ("text", "VARCHAR"), ("date", "DATE")],
        *[("NUMERIC(10, 2)", "DECIMAL(10,2)"), ("DECIMAL", "DECIMAL(18,3)"), ("real", "FLOAT"), ("bool", "BOOLEAN")],
        *[("datetime", "TIMESTAMP"), ("timestamptz", "TIMESTAMP WITH TIME ZONE")],
    ],
)
def test_types_are_normalized_to_duckdbs_names(declared: str, canonical: str) -> None:
    assert TableContract("t", {"x": declared}, ("x",)).columns == {"x": canonical}


@pytest.mark.parametrize(
    "declared",
    [
        *["HUGEINT", "UHUGEINT", "BIGNUM", "INTERVAL", "BLOB", "BIT", "JSON", "TIMETZ", "INTEGER[]", "STRUCT(a INT)"],
        *["ENUM('a', 'b')", "DECIMAL(99,2)", "nonsense", "", "BIGINT, 1"],
    ],
)
def test_declaring_a_type_without_an_exact_text_form_is_refused(declared: str) -> None:
    with pytest.raises(ValueError, match=r"t\.x: type .* is not supported\. Use one of VARCHAR, .*DECIMAL"):
        TableContract("t", {"x": declared}, ("x",))


def loaded(folder: Path, type_: str, texts: list[str]) -> dict[int, Any]:
    """Return the values of the loaded texts by list index, in the form the oracle uses."""
    table = TableContract("t", {"n": "BIGINT", "x": type_}, ("n",), min_rows=0)
    quoted = [text.replace('"', '""') for text in texts]
    content = "".join(f'{n},"{text}"\n' for n, text in enumerate(quoted))
    (folder / "t.csv").write_text("n,x\n" + content, encoding="utf-8", newline="")
    outcome = parse(folder / "t.csv", table, folder, "1")
    assert outcome.rows_loaded + outcome.rows_rejected == len(texts)
    x = {
        **dict.fromkeys(("FLOAT", "DOUBLE"), "x::varchar"),
        **dict.fromkeys(
            ("TIME", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP WITH TIME ZONE"), "epoch_us(x)"
        ),
    }.get(table.columns["x"], "x")
    found = query(f"select n, {x} from '{outcome.parquet}'")
    return {n: Decimal(value) if x == "x::varchar" else value for n, value in found}


LOSSY = {
    "bigint": ["5.5", "1e3", "1_000", "9223372036854775808", "0x1F"],
    "INT": ["5.5", "2147483648"],
    "UBIGINT": ["5.5", "-1", "18446744073709551616"],
    "NUMERIC(10,2)": ["10.005", "1e2", "100000000", "1_0"],
    "DECIMAL": ["1.23456"],
    "DOUBLE": ["1_000", "9007199254740993", "1e400", "1e-400", "inf", "nan"],
    "FLOAT": ["16777217", "1e39", "0.123456789"],
    "date": ["2018-1-1", "0000-01-01", "infinity", "epoch", "2018-01-01 (BC)"],
    "TIMESTAMP": [
        *["2018-01-01 00:00:00+05:00", "2018-01-01 00:00:00Z", "infinity", "2018-01-01", "0000-01-01 00:00:00"],
        *["2018-01-01 00:00:00.1234567", "2018-01-01 24:00:00", "2018-01-01 00:00"],
    ],
    "TIMESTAMP_S": ["2018-01-01 00:00:00.5"],
    "TIMESTAMP_MS": ["2018-01-01 00:00:00.0005"],
    "TIMESTAMPTZ": ["2018-01-01 00:00:00", "2018-01-01 00:00:00 Europe/Berlin", "2018-01-01 00:00:00+00:99"],
    "TIME": ["24:00:00", "1:2:3", "10:30:00+05", "10:30:00.1234567"],
    "bool": ["yes", "on", "2"],
}


@pytest.mark.parametrize("type_", LOSSY)
def test_a_text_that_a_cast_would_round_guess_or_truncate_is_rejected(tmp_path: Path, type_: str) -> None:
    assert loaded(tmp_path, type_, LOSSY[type_]) == {}


STAMPS = st.datetimes().map(lambda at: at.isoformat(sep=" ", timespec="microseconds"))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def integers(bits: int, signed: bool) -> st.SearchStrategy[str]:
    low = -(2 ** (bits - 1)) if signed else 0
    return st.integers(low, low + 2**bits - 1).map(str)


# Texts that are loaded.
SOUND_TEXTS = {
    "VARCHAR": st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    "BOOLEAN": st.sampled_from(["true", "FALSE", "True", "t", "F", "1", "0"]),
    **{f"{name}INT": integers(bits, True) for name, bits in (("TINY", 8), ("SMALL", 16), ("BIG", 64))},
    **{f"U{name}INT": integers(bits, False) for name, bits in (("TINY", 8), ("SMALL", 16), ("BIG", 64))},
    "INTEGER": integers(32, True),
    "UINTEGER": integers(32, False),
    "FLOAT": st.integers(-(10**6), 10**6).map(lambda number: str(number / 100)),
    "DOUBLE": FLOATS.map(repr),
    "DECIMAL(10,2)": st.integers(-(10**10) + 1, 10**10 - 1).map(lambda cents: str(Decimal(cents) / 100)),
    "DECIMAL(38,0)": st.integers(-(10**38) + 1, 10**38 - 1).map(str),
    "DATE": st.dates().map(str),
    "TIME": st.times().map(lambda at: at.isoformat(timespec="microseconds")),
    "TIMESTAMP": STAMPS,
    "TIMESTAMP_S": STAMPS.map(lambda text: text[:19]),
    "TIMESTAMP_MS": STAMPS.map(lambda text: text[:23]),
    "TIMESTAMP WITH TIME ZONE": st.tuples(STAMPS, st.sampled_from(["Z", "+00", "+05:30", "-0930", "+14:00"])).map(
        "".join
    ),
}
ODD_TEXTS = st.one_of(
    st.one_of(*SOUND_TEXTS.values()),
    st.text("0123456789+-.:eE_ TZxinfa", min_size=1, max_size=12),
    st.tuples(st.one_of(*SOUND_TEXTS.values()), st.integers(0, 20), st.sampled_from("0159+-.:e_ TZ")).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]
    ),
)


@pytest.mark.parametrize("type_", SOUND_TEXTS)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_text_is_loaded_as_its_exact_value_or_rejected(tmp_path: Path, type_: str, data: st.DataObject) -> None:
    sound = data.draw(st.lists(SOUND_TEXTS[type_], min_size=1, max_size=40))
    values = loaded(tmp_path, type_, sound)
    assert values == {at: csv_oracle.exact(type_, text) for at, text in enumerate(sound)}
    odd = data.draw(st.lists(ODD_TEXTS, min_size=1, max_size=80))
    values = loaded(tmp_path, type_, odd)
    assert values == {at: csv_oracle.exact(type_, odd[at]) for at in values}


def test_every_type_with_a_form_is_tested() -> None:
    assert set(contract.TYPES) <= SOUND_TEXTS.keys()
