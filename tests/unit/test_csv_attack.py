"""Attack the parser with odd files: each row is loaded unaltered or rejected whole, or the file is refused by name.

CSV_ATTACK_CASES says how many files of each kind, CSV_ATTACK_SEED repeats them: `make attack` is the long form.
"""

import gzip
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest

from include.dlt_pipelines.files import CsvDialect, SourceFileError, TableContract, parse
from tests.unit import csv_oracle

CASES = int(os.environ.get("CSV_ATTACK_CASES", "1"))
SEED = int(os.environ.get("CSV_ATTACK_SEED", "1"))
HANGS = 300.0  # seconds; a case takes a fraction of one, but the machine may be busy
KEPT = 900_000  # minimum characters kept of a rejected row

TABLE = TableContract(
    "t", {"id": "BIGINT", "day": "DATE", "amount": "DECIMAL(10,2)", "name": "VARCHAR", "note": "VARCHAR"}, ("id",), 0
)
COLUMNS = list(TABLE.columns)
HEADER = ",".join(COLUMNS).encode()
WORDS = ["a", "Zoë", "O'Neil", "王", "", "x y", "null", "-", "NaN", "=1+1", "\\", "\\n", "#", "'", ";", "\t", "😀"]
DATES = [
    *(
        "2018-1-1",
        "0000-01-01",
        "infinity",
        "2020-02-30",
        "2024-02-29",
        "20200101",
        "2020-01-01 00:00:00",
        "01/02/2020",
    ),
    *("2020-01-01 (BC)", "0001-01-01", "9999-12-31", "10000-01-01", "-2020-01-01", "today", "epoch"),
]

pytestmark = [pytest.mark.unit, pytest.mark.timeout(60 + CASES * 30)]

Rows = list[bytes]
Kind = Callable[[Random], bytes]
KINDS: dict[str, Kind] = {}
REFUSED: dict[str, Kind] = {}


def good(r: Random, **values: str) -> list[str]:
    row = {
        "id": str(r.randrange(10**12)),
        "day": f"20{r.randrange(100):02}-{r.randrange(1, 13):02}-{r.randrange(1, 29):02}",
        "amount": f"{r.randrange(-(10**6), 10**6) / 100:.2f}",
        "name": r.choice(WORDS),
        "note": r.choice(WORDS),
    }
    return list((row | values).values())


def line(r: Random, **values: str) -> bytes:
    return ",".join(good(r, **values)).encode()


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def lines(r: Random) -> Rows:
    return [line(r) for _ in range(r.randrange(1, 12))]


def text(rows: Rows, end: bytes = b"\n", header: bytes = HEADER) -> bytes:
    return end.join([header, *rows]) + end


def put(r: Random, odd: Callable[[], bytes]) -> bytes:
    """A file with some odd lines among good ones."""
    return text([odd() if r.random() < 0.4 else line(r) for _ in range(r.randrange(2, 14))] + [odd(), line(r)])


def kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


def refused(function: Kind) -> Kind:
    REFUSED[function.__name__] = function
    return function


def each(name: str, odd: Callable[[Random], bytes]) -> None:
    """A kind of file whose odd lines are odd in one way."""
    KINDS[name] = lambda r: put(r, lambda: odd(r))


def one_of(column: str, *values: str) -> Callable[[Random], bytes]:
    return lambda r: line(r, **{column: r.choice(values)})


each("all_quoted", lambda r: ",".join(map(quoted, good(r))).encode())
each("doubled_quotes", lambda r: line(r, name=quoted(r.choice(['"', 'a"b', '""', '","', '"\n"']))))
each("commas_in_quotes", lambda r: line(r, name=quoted(r.choice([",", "a,b", ",,,,", '",'])), note=quoted(",")))
each(
    "lines_in_quotes", lambda r: line(r, name=quoted(r.choice(["a\nb", "\n", "a\r\nb", "\r", "a\n\n\r\n\nb", "\n\r"])))
)
each("a_row_within_a_value", lambda r: line(r, note=quoted("\n".join(x.decode() for x in lines(r)))))
each(
    "spaces_around_quotes",
    lambda r: line(r, name=r.choice([' "a"', '"a" ', '  "a,b"  ', '  "a"', '" a "', ' "" ', '"a" ","'])),
)
each("spaces_in_values", lambda r: b" " + line(r, day=" 2020-01-01 ", name="  a  ", note=r.choice([" ", "   ", "b "])))
each("quotes_left_open", lambda r: line(r, note=r.choice(['"', '"a', ' "a', '"a""', '"a,b', '""" '])))
each("quotes_open_and_close", lambda r: r.choice([b'x","y', b'1,"', b'","', b'",', b'"', b'""', b'"""', b'",",",","']))
each("text_after_a_quote", lambda r: line(r, name=r.choice(['"a"b', '"a" b', '"a""', '"a"b"', '""a', '"a"\t'])))
each("quotes_in_bare_values", lambda r: line(r, name=r.choice(['a"', 'a"b', 'a""b', 'a"b"', "5'10\"", 'x" "'])))
each("too_few_values", lambda r: line(r).rsplit(b",", r.randrange(1, 5))[0])
each("too_many_values", lambda r: line(r) + r.choice([b",", b",,", b",a", b',"a"', b"," * 50]))
each("lone_cr", lambda r: r.choice([line(r, name="a\rb"), b"\r" + line(r), line(r) + b"\r" + line(r), b"\r\r"]))
each("cr_cr_lf", lambda r: r.choice([line(r) + b"\r\r", b"\r\r", b"\r"]))
each("nul", lambda r: r.choice([line(r, name="a\0b"), line(r, id="1\0"), b"\0", b"\0" * 9, line(r, day="\0")]))
each("not_utf8", lambda r: line(r) + r.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", "é".encode("latin-1")]))
each("utf16", lambda r: line(r).decode().encode(r.choice(["utf-16-le", "utf-16-be"])))
each(
    "unicode",
    lambda r: line(r, name=r.choice(["\ufeff", "\u2028", "\x85", "e\u0301", "\u200b", "\u202e", "\U0010ffff"])),
)
each("control_characters", lambda r: line(r, name=r.choice(["\x1a", "\x0b", "\x0c", "\x1b[0m", "\x7f", "\x08"])))
each("spaces_only", lambda r: r.choice([b" ", b"   ", b"\t", b" , , , , ", b'  ""  ']))
each("commas_only", lambda r: r.choice([b",,,,", b",", b",,,", b",,,,,", b'"",,"",,']))
each("other_separators", lambda r: line(r).replace(b",", r.choice([b";", b"\t", b"|", b", ", b",,"])))
each("the_header_again", lambda r: r.choice([HEADER, HEADER + b" ", HEADER.upper(), b"# " + HEADER]))
each(
    "numbers",
    one_of(
        "id", "5.5", "5.0", "1e3", "1_000", "0x1F", "\u0661", "+7", "--1", str(2**63), str(-(2**63)), "1 000", "inf"
    ),
)
each("dates", one_of("day", *DATES))
each(
    "decimals",
    one_of(
        "amount",
        "10.005",
        "10.0000",
        "1.",
        ".5",
        "1e2",
        "99999999.99",
        "100000000",
        "1,5",
        "-0",
        "+1.10",
        "$1",
        "NaN",
        "1_0.5",
    ),
)
each("formulas", one_of("note", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", '"=HYPERLINK(""x"")"'))
each("escapes", one_of("note", '\\"', '"\\"', '"a\\""', "\\N", "\\,", '"\\""', "\\"))
each("long_value", lambda r: line(r, note="x" * r.choice([10_000, 200_000, 999_000, 1_100_000, 2_100_000])))


@kind
def plain(r: Random) -> bytes:
    return text(lines(r))


@kind
def crlf(r: Random) -> bytes:
    return text(lines(r), b"\r\n")


@kind
def mixed_line_ends(r: Random) -> bytes:
    return text([row + r.choice([b"", b"\r"]) for row in lines(r)], header=HEADER + r.choice([b"", b"\r"]))


@kind
def no_final_line_end(r: Random) -> bytes:
    return text(lines(r)).removesuffix(b"\n") + r.choice([b"", b"\r", b"\n\r", b'\n"', b",", b"\n1"])


@kind
def byte_order_mark(r: Random) -> bytes:
    return b"\xef\xbb\xbf" + text(lines(r), header=r.choice([HEADER, HEADER.replace(b"id", b'"id"')]))


@kind
def blank_lines(r: Random) -> bytes:
    return text(
        [r.choice([b"\n", b"\r\n", b"\n\n\n", b"\r\n\n", b""]) + row for row in lines(r)]
    ) + b"\n" * r.randrange(9)


@kind
def many_blank_lines(r: Random) -> bytes:
    end = r.choice([b"\n", b"\r\n"])
    return text([end * r.randrange(60_000) + row for row in [*lines(r), line(r, note='"'), line(r, name='"a\n\n\nb"')]])


@kind
def no_rows(r: Random) -> bytes:
    return HEADER + r.choice([b"", b"\n", b"\r\n", b"\n\n\n", b"\n\r", b"\r\n\r\n\n"])


@kind
def reordered_columns(r: Random) -> bytes:
    order = r.sample(range(len(COLUMNS)), len(COLUMNS))
    head = [r.choice([COLUMNS[at], quoted(COLUMNS[at])]) for at in order]
    return "\n".join([",".join(head), *(",".join(good(r)[at] for at in order) for _ in range(5)), "1,2"]).encode()


@kind
def value_of_many_lines(r: Random) -> bytes:
    return text([line(r), line(r, note='"' + "\n" * r.choice([998, 999, 1000, 1500]) + '"'), *lines(r)])


@kind
def quote_left_open_above_many_lines(r: Random) -> bytes:
    return text([line(r, note='"open'), *(line(r) for _ in range(r.randrange(900, 1100))), line(r, note='a"'), line(r)])


@kind
def quotes_left_open_in_many_lines(r: Random) -> bytes:
    return text([b'x","y'] * r.randrange(1200, 3000) + lines(r))


@kind
def many_rows(r: Random) -> bytes:  # more than one batch, and more than one block of the byte counts
    some = [line(r, note="x" * 400) for _ in range(100)]
    return text([r.choice(some) for _ in range(20_000)] + [b"1,2"])


@kind
def many_rows_with_one_odd_end(r: Random) -> bytes:
    return text(
        [r.choice([line(r)])] * 40_000 + [r.choice([b"", b"\r", b'"', line(r, note="a\rb"), line(r, note='"a\nb"')])]
    )


@kind
def spliced(r: Random) -> bytes:
    content = KINDS[r.choice(["lines_in_quotes", "all_quoted", "plain"])](r)
    a, b = sorted(r.randrange(len(HEADER) + 1, len(content) + 1) for _ in range(2))
    return r.choice([content[:a] + content[b:], content[:b] + content[a:], content[:a]])


@kind
def mutated(r: Random) -> bytes:
    content = bytearray(KINDS[r.choice(["lines_in_quotes", "doubled_quotes", "crlf"])](r))
    for _ in range(r.randrange(1, 6)):
        content[r.randrange(len(HEADER) + 1, len(content))] = r.choice(b'",\r\n 0a\x00\xff')
    return bytes(content)


@kind
def soup(r: Random) -> bytes:
    return HEADER + b"\n" + bytes(r.choice(b'"""",,,,\n\n\r 1a-\\') for _ in range(r.randrange(400)))


@kind
def soup_of_rows(r: Random) -> bytes:
    parts = [b'"', b'""', b",", b"\n", b"\r\n", b"1,2020-01-01,1.5,", b"a,b", b'"a\nb"', b" "]
    return HEADER + b"\n" + b"".join(r.choice(parts) for _ in range(r.randrange(120)))


@kind
def binary(r: Random) -> bytes:
    return HEADER + b"\n" + r.randbytes(r.randrange(3000))


@kind
def gzipped(r: Random) -> bytes:
    return gzip.compress(KINDS[r.choice(["plain", "lines_in_quotes", "quotes_left_open"])](r))


@kind
def gzipped_in_parts(r: Random) -> bytes:
    content = text(lines(r))
    return gzip.compress(content[:30]) + gzip.compress(b"") + gzip.compress(content[30:])


@refused
def header_leaves_a_quote_open(r: Random) -> bytes:
    head = ",".join([*COLUMNS[:-1], '"note']).encode()
    return text([*(line(r) for _ in range(500)), r.choice([b'"', b'note"', b'"' + line(r)])], header=head)


@refused
def header_lacks_a_column(r: Random) -> bytes:
    return text(lines(r), header=",".join(r.sample(COLUMNS, r.randrange(1, 5))).encode())


@refused
def header_has_more_columns(r: Random) -> bytes:
    return text(lines(r), header=HEADER + b"," + b",".join(b"c%d" % i for i in range(r.choice([1, 90_000]))))


@refused
def header_repeats_columns(r: Random) -> bytes:
    return text(lines(r), header=HEADER + b",id" * r.choice([1, 100_000]))


@refused
def header_differs_in_letters(r: Random) -> bytes:
    return text(lines(r), header=r.choice([HEADER.upper(), HEADER + b"_", HEADER.replace(b"day", b"d\0y")]))


@refused
def header_is_odd(r: Random) -> bytes:
    odd = [
        b'"note"x',
        b'no"te',
        b'"note" x',
        b"note\r\r",
        b"note\rx",
        b'"note\r"',
        b"note\xff",
        b'"note"' + b" " * 2_000_000,
    ]
    return text(lines(r), header=HEADER.replace(b"note", r.choice(odd)))


@refused
def header_missing(r: Random) -> bytes:
    return r.choice(
        [b"", b"\n", b"\n" + text(lines(r)), b"\n".join(lines(r)), b"#\n" + text(lines(r)), b"\xef\xbb\xbf"]
    )


@refused
def other_encoding(r: Random) -> bytes:
    return text(lines(r)).decode().encode(r.choice(["utf-16", "utf-16-le", "utf-32", "cp037"]), "replace")


@refused
def other_format(r: Random) -> bytes:
    rest = r.randbytes(500)
    return (
        r.choice([b"PK\3\4", b"PAR1", b"\x1f\x8b", b"%PDF-1.7\n", b'{"id": 1}\n', b"<html>\n", b"\x28\xb5\x2f\xfd"])
        + rest
    )


@refused
def broken_gzip(r: Random) -> bytes:
    whole = gzip.compress(text([line(r) for _ in range(200)]))
    at = r.randrange(20, len(whole) - 10)
    return r.choice([whole[:at], whole[:-4] + b"1234", whole + b"junk", whole[:at] + b"\0\0" + whole[at:]])


SECTION = CsvDialect(delimiter="§")
GERMAN = CsvDialect(
    delimiter=";",
    encoding="cp1252",
    decimal=",",
    thousands=".",
    symbols=("€", "EUR"),
    null_values=("-", "NaN"),
    date_format="%d.%m.%Y",
)
DIALECTS = {
    "semicolons": CsvDialect(delimiter=";"),
    "tabs, single quotes": CsvDialect(delimiter="\t", quote="'"),
    "pipes, no quotes": CsvDialect(delimiter="|", quote=""),
    "a backslash escapes": CsvDialect(escape="\\"),
    "spaces": CsvDialect(delimiter=" "),
    "a delimiter of two bytes": SECTION,
    "title, comments, footer": CsvDialect(skip=2, comment="#", footer=1),
    "trailing delimiters, filled": CsvDialect(trailing_delimiter=True, short_rows="fill", header=False),
    "code page, German values": GERMAN,
    "two bytes per character": CsvDialect(encoding="utf-16"),
}
SAMPLE = 6  # kinds for each dialect in the short form
PACKED_OR_HEADER = ("gzipped", "gzipped_in_parts", "byte_order_mark", "reordered_columns")
SHORT = [name for name in KINDS if name not in PACKED_OR_HEADER and "many" not in name and "long" not in name]


def translated(content: bytes, dialect: CsvDialect, r: Random) -> bytes:
    """A file of the default dialect in another: characters that change their meaning are exchanged."""
    if dialect is GERMAN:
        content = re.sub(rb"(20\d\d)-(\d\d)-(\d\d)", rb"\3.\2.\1", content)
        content = re.sub(rb"(?<=,)(-?\d+)[.](\d\d)(?=,)", lambda one: amount(one[1], one[2], r), content)
    elif dialect is SECTION:
        return content.replace(b",", "§".encode())
    elif dialect.encoding == "utf-16":
        return content.decode(errors="replace").encode("utf-16")
    new = dialect.delimiter + (dialect.quote or '"')
    content = content.translate(bytes.maketrans((',"' + new).encode(), (new + ',"').encode()))
    if not dialect.header:
        content = content.split(b"\n", 1)[1] if b"\n" in content else b""
    if dialect.trailing_delimiter and r.random() < 0.7:
        content = re.sub(rb"(?m)(?<!\r)(\r?)$(?!\Z)", rb",\1", content)
    if dialect.comment:
        lines = content.split(b"\n")
        for _ in range(r.randrange(4)):
            lines.insert(r.randrange(len(lines)), r.choice([b"#", b'# a, "b', b"#1,2020-01-01,1,a,b"]))
        content = b"\n".join([*r.choice([[b"Title", b""], [b'"', b"a,b\r"]]), *lines, b"Total,,19.75"])
    return content


def amount(whole: bytes, cents: bytes, r: Random) -> bytes:
    number = f"{int(whole):,}".replace(",", ".") if r.random() < 0.5 else whole.decode()
    mark = r.choice(["{}", "{}", "{} \x80", "\x80{}", "EUR {}", "{}%", "{}.000"])
    return mark.format(f"{number},{cents.decode()}").encode("latin-1")


def outcome(
    folder: Path, name: str, content: bytes, table: TableContract = TABLE
) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    """Return the loaded rows, and line and text of the rejected ones, after checking counts and reasons."""
    file = folder / name
    file.write_bytes(content)
    started = time.monotonic()
    try:
        parsed = parse(file, table, folder, "7.5")
    finally:
        assert time.monotonic() - started < HANGS
    with duckdb.connect() as connection:
        loaded = connection.execute(f"select {','.join(COLUMNS)} from '{parsed.parquet}'").fetchall()
        rejected = []
        if parsed.rejects:
            rejected = connection.execute(f"select line, text, reason from '{parsed.rejects}' order by line").fetchall()
    assert (parsed.rows_loaded, parsed.rows_rejected) == (len(loaded), len(rejected))
    assert all(re.fullmatch(r"[\w .;:(),%-]+", reason) for *_, reason in rejected)
    return loaded, [row[:2] for row in rejected]


def same_rows(loaded: list[tuple[Any, ...]], expected: list[csv_oracle.Row]) -> bool:
    """Say whether the rows are those expected, in any order: blocks of a file are parsed in parallel."""
    return Counter(loaded) == Counter(row.values for row in expected if row.values is not None)


@pytest.mark.parametrize("name", KINDS)
def test_each_row_of_an_odd_file_is_loaded_unaltered_or_rejected_whole(tmp_path: Path, name: str) -> None:
    for case in range(CASES):
        content = KINDS[name](Random(f"{SEED} {name} {case}"))
        packed = name.startswith("gzipped")
        expected = list(csv_oracle.rows(gzip.decompress(content) if packed else content, TABLE.columns))
        loaded, rejected = outcome(tmp_path, "t.csv.gz" if packed else "t.csv", content)
        assert len(loaded) + len(rejected) == len(expected), case
        assert same_rows(loaded, expected), case
        texts = [(row.line, row.text[:KEPT]) for row in expected if row.values is None]
        assert [(at, found[:KEPT]) for at, found in rejected] == texts, case


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_row_of_a_file_in_another_dialect_is_loaded_unaltered_or_rejected_whole(
    tmp_path: Path, dialect: str
) -> None:
    table = replace(TABLE, dialect=DIALECTS[dialect])
    kinds = [name for name in KINDS if name not in PACKED_OR_HEADER]
    kinds = kinds if CASES > 1 else Random(f"{SEED} {dialect}").sample(SHORT, SAMPLE)
    for name in kinds:
        for case in range(CASES):
            r = Random(f"{SEED} {name} {case}")
            content = translated(KINDS[name](r), table.dialect, r)
            expected = list(csv_oracle.rows(content, TABLE.columns, table.dialect))
            try:
                loaded, rejected = outcome(tmp_path, "t.csv", content, table)
            except SourceFileError as error:
                # A title may leave too few lines, and a footer may be a row.
                assert re.search("the file ends|is empty|footer", str(error)), (name, case)
                continue
            assert same_rows(loaded, expected), (name, case)
            texts = [(row.line, row.text[:KEPT]) for row in expected if row.values is None]
            assert [(at, found[:KEPT]) for at, found in rejected] == texts, (name, case)


@pytest.mark.parametrize("name", ["plain", "lines_in_quotes", "quotes_left_open", "spliced", "soup_of_rows"])
def test_lines_that_end_in_cr_are_those_that_end_in_lf(tmp_path: Path, name: str) -> None:
    swap = bytes.maketrans(b"\r\n", b"\n\r")
    for case in range(CASES):
        content = KINDS[name](Random(f"{SEED} {name} {case}"))
        if content.count(b"\n") <= content.count(b"\r") or content.startswith(HEADER + b"\r"):
            continue
        expected = list(csv_oracle.rows(content, TABLE.columns))
        loaded, rejected = outcome(tmp_path, "t.csv", content.translate(swap))
        values = [[exchanged(one) for one in row.values] for row in expected if row.values is not None]
        assert [list(row) for row in loaded] == values, case
        assert rejected == [(row.line, exchanged(row.text)) for row in expected if row.values is None], case


def exchanged(value: Any) -> Any:
    return value.translate({10: 13, 13: 10}) if isinstance(value, str) else value


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_with_a_bad_header_or_truncated_content_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file = "t.csv.gz" if name == "broken_gzip" else "t.csv"
    for case in range(CASES):
        content = REFUSED[name](Random(f"{SEED} {name} {case}"))
        with pytest.raises(SourceFileError) as error:
            outcome(tmp_path, file, content)
        assert str(error.value).startswith(f"{tmp_path / file}:"), case
        assert len(str(error.value)) < 2000, case


def test_the_long_form_has_500_cases_of_30_kinds() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    cases = re.search(r"CSV_ATTACK_CASES=\$\(or \$\(CSV_ATTACK_CASES\),(\d+)\)", makefile)
    assert cases
    assert len(KINDS | REFUSED) >= 30
    assert len(KINDS | REFUSED) * int(cases[1]) >= 500
