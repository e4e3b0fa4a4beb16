import csv
import gzip
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.dlt_pipelines.csv_files import SourceFileError, TableContract, find_file, parse, read_header

pytestmark = pytest.mark.unit

TABLE = TableContract("t", {"id": "BIGINT", "day": "DATE", "name": "VARCHAR"}, ("id",), min_rows=0)
HEADER = b"id,day,name\n"
GOOD = b"1,2020-01-01,a\n"


def query(sql: str) -> list[tuple]:
    # In an instance of its own: DuckDB caches the files that an instance has read, and here they are written again.
    with duckdb.connect(":memory:") as con:
        return con.execute(sql).fetchall()


def parsed(folder: Path, content: bytes, name: str = "t.csv") -> tuple[list[tuple], list[tuple]]:
    """Return the rows loaded and the rows rejected (line, column, reason, text)."""
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
def test_every_usual_way_to_write_a_row_is_loaded(tmp_path: Path, content: bytes) -> None:
    assert parsed(tmp_path, content) == ([(1, "2020-01-01", "a")], [])


def test_gzip_is_read(tmp_path: Path) -> None:
    assert parsed(tmp_path, gzip.compress(HEADER + GOOD), "t.csv.gz") == ([(1, "2020-01-01", "a")], [])


def test_values_are_kept_to_the_letter(tmp_path: Path) -> None:
    rows, rejects = parsed(
        tmp_path, HEADER + b'1,2020-01-01,"q ""x"", y"\n2,2020-01-01,"a\r\nb"\n3,2020-01-01,a"b\n,,\n'
    )
    assert [row[2] for row in rows] == ['q "x", y', "a\r\nb", 'a"b', None]
    assert rows[3] == (None, None, None)
    assert rejects == []


def test_each_row_carries_the_load_id(tmp_path: Path) -> None:
    parsed(tmp_path, HEADER + GOOD)
    assert query(f"select _dlt_load_id from '{tmp_path / 't.parquet'}'") == [("7.5",)]


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        (b"5.5,2020-01-01,a", "id", "id: '5.5' is not a valid BIGINT"),
        (b"1e3,2020-01-01,a", "id", "id: '1e3' is not a valid BIGINT"),
        (b"1_000,2020-01-01,a", "id", "id: '1_000' is not a valid BIGINT"),
        (b"9223372036854775808,2020-01-01,a", "id", "id: '9223372036854775808' is not a valid BIGINT"),
        (b"1,2020-02-30,a", "day", "day: '2020-02-30' is not a valid DATE"),
        (b"1,2020-1-1,a", "day", "day: '2020-1-1' is not a valid DATE"),
        (b"1,infinity,a", "day", "day: 'infinity' is not a valid DATE"),
        (b"x,y,a", "id", "id: 'x' is not a valid BIGINT; day: 'y' is not a valid DATE"),
        (b"1,2020-01-01", "name", "2 values, 3 expected"),
        (b"1,2020-01-01,a,b", None, "4 values, 3 expected"),
        (b'1,2020-01-01,"a', "name", "the quote that opens the value is not closed"),
        (b'1,2020-01-01,"a"b', "name", "a quote or a line end stands where it may not"),
        (b"1,2020-01-01,a\rb", "name", "a quote or a line end stands where it may not"),
        (b"1,2020-01-01,\xff", "name", "byte 0xff is not valid UTF-8"),
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


def test_a_surplus_comma_at_the_end_of_a_line_is_rejected_though_duckdb_forgives_it(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"1,2020-01-01,a,\n" * 2 + b'1,2020-01-01,"a,b"\n')
    assert (len(rows), [reject[2] for reject in rejects]) == (1, ["4 values, 3 expected"] * 2)


def test_a_line_split_by_a_lone_cr_does_not_make_up_for_a_line_that_is_lost(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"1,2020-01-01,a\r2,2020-01-01,b\nlost\n")
    assert (rows, [reject[0] for reject in rejects]) == ([], [2, 3])


def test_nul_bytes_are_kept_in_texts_and_rejected_in_numbers(tmp_path: Path) -> None:
    rows, rejects = parsed(tmp_path, HEADER + b"1,2020-01-01,a\0b\n1\0,2020-01-01,a\n")
    assert ([row[2] for row in rows], [reject[0] for reject in rejects]) == (["a\0b"], [3])


@pytest.mark.parametrize("folder", ["it's", "name=x", "id=5", "a[1]", "st*r", "q?", 'do"ble', "ü {a,b}"])
def test_the_folders_name_has_no_meaning(tmp_path: Path, folder: str) -> None:
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
        (GOOD, "t.csv:1: no header: found '1,2020-01-01,a'"),
        (b"id;day;name\n", "t.csv:1: no header: found 'id;day;name'"),
        (b"id,day,name,x\n", "t.csv:1: column 'x' is unknown"),
        (b"id,name\n", "t.csv:1: column day is missing"),
        (b"id,day,name,name\n", "t.csv:1: column name stands more than once"),
        ("id,day,name\n".encode("utf-16"), "t.csv:1: the header is not UTF-8"),
    ],
)
def test_a_bad_header_is_told_with_file_line_and_what_is_expected(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises(SourceFileError) as error:
        read_header(file, TABLE)
    assert message in str(error.value)
    assert "id,day,name" in str(error.value)


def test_a_truncated_gzip_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceFileError, match=r"t\.csv\.gz: not a complete gzip file"):
        parsed(tmp_path, gzip.compress(HEADER + GOOD * 1000)[:-20], "t.csv.gz")


def test_a_file_without_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(HEADER)
    with pytest.raises(SourceFileError, match="0 rows below the header, at least 1 expected"):
        parse(tmp_path / "t.csv", TableContract("t", TABLE.columns, ("id",)), tmp_path, "1")


def test_a_missing_file_or_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceFileError, match=r"t\.csv: no such file"):
        find_file(tmp_path, TABLE)
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(SourceFileError, match="is not a file"):
        find_file(tmp_path, TABLE)


def test_a_plain_and_a_gzipped_file_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    (tmp_path / "t.csv.gz").touch()
    with pytest.raises(SourceFileError, match="which one counts is unclear"):
        find_file(tmp_path, TABLE)


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
# An open quote followed by a row in two lines may be read in two ways, so a file has one or the other.
LINES = st.sampled_from([TWO_LINES, OPEN_QUOTE]).flatmap(
    lambda special: st.lists(st.one_of(SOUND_LINE, BROKEN_LINE, special), max_size=12)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, end=st.sampled_from([b"\n", b"\r\n"]))
def test_every_sound_row_is_loaded_and_every_other_rejected(
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
def test_no_text_breaks_the_account_of_rows_or_loses_a_byte_of_a_rejected_line(tmp_path: Path, body: bytes) -> None:
    rows, rejects = parsed(tmp_path, HEADER + body)
    # Each line that is not blank is, wholly or as part of a longer record, in one row, loaded or rejected.
    lines = [line for line in body.removesuffix(b"\n").split(b"\n") if line.strip(b"\r")]
    held = sum(1 + (row[2] or "").count("\n") for row in rows) + sum(1 + text.count("\n") for *_, text in rejects)
    assert held >= len(lines)
    numbered = (HEADER + body).split(b"\n")
    for line, _, _, text in rejects:
        assert text.split("\n")[0].encode() in numbered[line - 1]


def values_of(line: str) -> list[str] | None:
    """Read a line as Python's own csv module does: None if it is malformed."""
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
def test_both_ways_to_parse_agree_with_pythons_csv_module(tmp_path: Path, lines: list[str]) -> None:
    table = TableContract("t", {"one": "VARCHAR", "two": "VARCHAR"}, ("one",), min_rows=0)
    sound = [tuple(value or None for value in values) for line in lines if (values := values_of(line))]
    for more in ([], ["one value"]):  # a malformed line has the whole file read record by record
        (tmp_path / "t.csv").write_text("\n".join(["one,two", *lines, *more]), encoding="utf-8", newline="")
        outcome = parse(tmp_path / "t.csv", table, tmp_path, "7.5")
        assert query(f"select one, two from '{outcome.parquet}'") == sound
        assert outcome.rows_rejected == len(lines) - len(sound) + len(more)
