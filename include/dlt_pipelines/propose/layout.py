"""The layout of a CSV file: what separates values, and which lines are title, header, rows and footer.

Each way to split the beginning of the file is tried with the splitter of the loads; the one that gives the most regular
rows is proposed.
"""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from include.dlt_pipelines.files.contract import column_names
from include.dlt_pipelines.files.dialect import CsvDialect
from include.dlt_pipelines.files.records import Splitter
from include.dlt_pipelines.files.text import Text
from include.dlt_pipelines.propose.column_types import NULL_MARKS
from include.dlt_pipelines.propose.names import snake_case

_HEAD, _TAIL = 1 << 20, 1 << 16  # bytes of the beginning and the end to look at
_RECORDS = 1_000
_DELIMITERS = (",", ";", "\t", "|")
_RARE = ("\x1f", "\x01", "^", "~", "¦", ":", " ")
_REGULAR = 0.6  # of the lines must have the same number of values
_CLEAN = 0.7  # of the values that each line is split into, without another delimiter in them
_MOST = 0.75  # of irregular lines must have the delimiter
_FEW = 0.01  # of the rows may be short
_FOOTERS = 10  # lines, at most
_TITLES = 50
_TOTAL = re.compile(
    r"\W*(grand )?(total|sum|subtotal|summe|gesamt|insgesamt|somme|totaux|suma|totale|soma|totaal|razem)\b",
    re.IGNORECASE,
)
_KINDS = {
    "number": re.compile(r"\(?[+-]?[$€£¥]? ?[+-]?[0-9][0-9.,'\u00a0 ]*([eE][+-]?[0-9]+)?( ?[%€$£])?\)?|[+-]?[.][0-9]+"),
    "date": re.compile(
        r"[0-9]{1,4}[-/.][0-9]{1,2}([-/.][0-9]{1,4})?([ T].*)?|[0-9]{1,2}[- ][A-Za-z]{3,9}[- ][0-9]{2,4}"
    ),
    "time": re.compile(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?( ?[AaPp][Mm])?"),
    "boolean": re.compile(r"(?i)true|false"),
}
_USUAL = re.compile(
    r"(.*_)?(id|name|code|date|type|group|country|region|city|state|status|category|title|description|address|email|label)"
)
_SAME_SIZE = 4  # texts of the same length, from which this is no chance
_YEAR = re.compile(r"(1[6-9]|20|21)[0-9]{2}")


@dataclass(frozen=True)
class Row:
    """A record of the file: its first line and its values; none if it cannot be split."""

    line: int
    values: tuple[str, ...]

    @property
    def filled(self) -> int:
        """The number of values that are not empty."""
        return sum(bool(value.strip()) for value in self.values)


@dataclass(frozen=True)
class Layout:
    """What was found.

    Attributes:
        dialect: how the file is laid out.
        header: the names as they are in the file; empty ones if there is no header.
        names: the columns' names for the contract.
        notes: what must be checked.
        doubt: what must be known first; empty if nothing.
    """

    dialect: CsvDialect
    header: tuple[str, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]
    doubt: str = ""


def detect_layout(text: Text, encoding: str, header: bool | None = None) -> Layout | None:
    """Return the layout of a text; None if it is empty.

    Args:
        text: the file.
        encoding: its encoding.
        header: whether it has a header, if this is known.
    """
    head, tail = _ends(text)
    if not head.strip():
        return None
    announced = re.match(rb'"?sep=([^\r\n])"?\r?\n', head)
    base = CsvDialect(encoding=encoding)
    start = 0
    if announced:
        base, start = replace(base, delimiter=announced[1].decode()), 1
    dialect, rows = _split(head, base, fixed=bool(announced))
    rows = [row for row in rows if row.line > start]
    return layout_of(rows, dialect, header, _rows(tail, dialect) if tail else [], start)


def _ends(text: Text) -> tuple[bytes, bytes]:
    """Return the beginning and, if that is not all, the end of a text, in whole lines."""
    head = tail = b""
    longer = False
    for block in text.blocks():
        if len(head) < _HEAD:
            head += block
        longer = longer or len(head) > _HEAD + len(block)
        tail = (tail + block)[-_TAIL:]
    if len(head) <= _HEAD:
        return head, b""
    return head[: head.rfind(b"\n", 0, _HEAD) + 1] or head[:_HEAD], tail[tail.find(b"\n") + 1 :]


def _rows(text: bytes, dialect: CsvDialect) -> list[Row]:
    splitter = Splitter(dialect)
    rows = []
    for record in islice(splitter.records(io.BufferedReader(io.BytesIO(text)), 0, 1), _RECORDS):
        values, end = splitter.split(record.content)
        whole = end == len(record.content)
        texts = (splitter.unquoted(value).decode(errors="replace") for value in values) if whole else ()
        rows.append(Row(record.line, tuple(texts)))
    return rows


def _split(head: bytes, base: CsvDialect, *, fixed: bool) -> tuple[CsvDialect, list[Row]]:
    """Return the delimiter, quote and escape that give the most regular rows, with these rows."""
    best: tuple[float, CsvDialect, list[Row]] | None = None
    for delimiters in ((base.delimiter,),) if fixed else (_DELIMITERS, _RARE):
        for delimiter in delimiters:
            if delimiter.encode() not in head:
                continue
            dialect, rows = _quoted(head, replace(base, delimiter=delimiter))
            score = _score(rows, delimiter)
            if score > (best[0] if best else _REGULAR) and (delimiter != " " or _is_table(rows)):
                best = score, dialect, rows
        if best:
            return best[1], best[2]
    # Rows of any length, if nearly each line has the delimiter.
    lines = [line for line in head.splitlines() if line.strip()]
    for delimiter in _DELIMITERS:
        if not fixed and sum(delimiter.encode() in line for line in lines) >= _MOST * len(lines):
            return _quoted(head, replace(base, delimiter=delimiter))
    # One column: none of the usual delimiters separates anything, so take one that is not in the file.
    unused = [one for one in (*_DELIMITERS, "\x1f") if one.encode() not in head]
    single = replace(base, delimiter=base.delimiter if fixed or not unused else unused[0])
    return single, _rows(head, single)


def _quoted(head: bytes, dialect: CsvDialect) -> tuple[CsvDialect, list[Row]]:
    """Return how values are quoted; other ways than the usual one must give more regular rows."""
    rows = _rows(head, dialect)
    score, found = _score(rows, dialect.delimiter), dialect
    others = []
    if b'\\"' in head:
        others.append(replace(dialect, escape="\\"))
    if b"'" in head and b'"' not in head and dialect.delimiter != "'":
        others.append(replace(dialect, quote="'"))
    if b'"' in head:
        others.append(replace(dialect, quote=""))
    for other in others:
        split = _rows(head, other)
        better = _score(split, other.delimiter)
        if better > score + 0.01 or (other.quote == "'" and better >= score and _all_within(rows, "'")):
            score, found, rows = better, other, split
    return found, rows


def _all_within(rows: Sequence[Row], quote: str) -> bool:
    """Return whether all texts of some column, below a header, are within a quote."""
    width = _width(rows)
    body = [row.values for row in rows[1:] if len(row.values) == width]
    columns = zip(*body, strict=True)
    return any(
        all(re.fullmatch(f"{quote}.*{quote}", one) for one in column if one) and any(column) for column in columns
    )


def _width(rows: Sequence[Row]) -> int:
    widths = Counter(len(row.values) for row in rows if len(row.values) > 1)
    return max(widths, key=lambda width: (widths[width], width)) if widths else 1


def _score(rows: Sequence[Row], delimiter: str) -> float:
    """Return how regular rows are: the share of those with the same number of values, less for odd values."""
    width = _width(rows)
    if width < 2 or not rows:
        return 0
    regular = [row for row in rows if len(row.values) == width]
    cells = [value.strip() for row in regular[:200] for value in row.values if value.strip()]
    others = [one for one in _DELIMITERS if one != delimiter]
    odd = sum(any(one in cell for one in others) and not _KINDS["number"].fullmatch(cell) for cell in cells)
    # Lines above and below the table do not count against it.
    places = [at for at, row in enumerate(rows) if len(row.values) == width]
    share = len(regular) / (places[-1] - places[0] + 1)
    if len(regular) < max(2, len(rows) // 4) and len(rows) > 2:
        return 0
    clean = 1 - 0.6 * odd / max(len(cells), 1)
    # What splits each line alike, from the first one on, is the delimiter, whatever else could split some.
    return share * clean + min(width, 20) / 1_000 + (len(regular) == len(rows) and clean > _CLEAN)


def _is_table(rows: Sequence[Row]) -> bool:
    """Return whether lines split at spaces are rows rather than prose."""
    width = _width(rows)
    widths = [len(row.values) for row in rows]
    # R writes no name above the names of rows.
    regular = set(widths[1:]) == {width} and widths[0] in (width, width - 1) and all(all(row.values) for row in rows)
    return regular and any(_kind_of([row.values[at] for row in rows[1:]]) for at in range(width))


def _kind(value: str) -> str:
    text = value.strip()
    if not text or text in NULL_MARKS:
        return "empty"
    return next((kind for kind, form in _KINDS.items() if form.fullmatch(text)), "text")


def _kind_of(values: Sequence[str]) -> str:
    """Return the kind that nearly all values of a column have; an empty text if they are texts."""
    kinds = Counter(kind for value in values if (kind := _kind(value)) != "empty")
    if not kinds:
        return ""
    kind, count = kinds.most_common(1)[0]
    return kind if kind != "text" and count >= 0.8 * kinds.total() else ""


def layout_of(
    rows: list[Row], dialect: CsvDialect, header: bool | None, tail: Sequence[Row] = (), start: int = 0
) -> Layout:
    """Return which rows are title, header, data and footer.

    Args:
        rows: the first rows of a file, at least one.
        dialect: how they were split.
        header: whether there is a header, if this is known.
        tail: the last rows, if these are not among the first.
        start: lines above the first row that are none.
    """
    notes, doubt = [], ""
    comment = _comment(rows, start)
    if comment:
        dialect = replace(dialect, comment=comment)
        rows = [row for row in rows if not (row.values and row.values[0].startswith(comment))]
    width = _width(rows)
    first = _first(rows, width)
    title, body = rows[:first], rows[first:]
    named, sure = _header(body, width) if header is None else (header, True)
    if named is None:
        named = True
        notes.append("the first row is taken for the header; if it is none: HEADER=no")
    elif not sure:
        doubt = "its first row may be the header or a row: say HEADER=yes or HEADER=no"
    elif not named and header is None:
        notes.append("there seems to be no header; if the first row is one: HEADER=yes")
    above = title[-1] if title and not named and header is None and _names_above(title[-1], width) else None
    names = list(above.values if above else body[0].values if named else ())
    if above:
        first, notes, doubt = first - 1, [], ""
    data = body[1:] if named else body
    dialect, names, width = _shape(dialect, names, data, width, notes)
    if above and len(names) == len(above.values) and len(above.values) != width:
        # The header names one column less than there are values: row names come first, as R writes them.
        dialect = replace(dialect, header=False, skip=above.line)
        names = ["", *names]
        notes.append("the header has no name for the first column, so names are given by position")
    else:
        at = above or body[0]
        dialect = replace(dialect, header=bool(names), skip=at.line - 1)
    footers = _footers(tail or data, data, width)
    if footers:
        dialect = replace(dialect, footer=footers)
    raw = tuple(names) if names else ("",) * width
    return Layout(dialect, raw, tuple(column_names(raw)), tuple(notes), doubt)


def _comment(rows: Sequence[Row], start: int) -> str:
    """Return `#` if lines between rows start with it; above them, they are lines of title."""
    width = _width(rows)
    seen = False
    for row in rows:
        marked = bool(row.values) and row.values[0].startswith("#")
        if seen and marked and len(row.values) != width:
            return "#"
        seen = seen or (not marked and len(row.values) == width and row.line > start + 1)
    return ""


def _first(rows: Sequence[Row], width: int) -> int:
    """Return the first row of the table, whether it is the header or not."""
    if width == 1:
        return 0
    for at, row in enumerate(rows[:_TITLES]):
        if len(row.values) != width or not row.filled:
            continue
        fuller = [later.filled for later in rows[at + 1 : at + 6] if len(later.values) == width]
        # A title that a spreadsheet has filled up with empty values.
        if width > 2 and row.filled <= max(1, width // 4) and fuller and max(fuller) > width // 2:
            continue
        return at
    return 0


def _names_above(row: Row, width: int) -> bool:
    """Return whether the line above the first full row may be its header, with more or fewer names than values."""
    named = [value.strip() for value in row.values]
    like = len(set(named)) == len(named) and all(_kind(value) == "text" for value in named if value)
    return like and len(named) > 1 and (len(named) == width - 1 or len(named) > width)


def _header(body: Sequence[Row], width: int) -> tuple[bool | None, bool]:
    """Return whether the first row is a header, None if nothing speaks for or against it; and whether that is sure."""
    first, rows = body[0], [row for row in body[1:] if len(row.values) == width]
    if not rows:
        return True, True
    names = [value.strip() for value in first.values]
    years = [name for name in names if _YEAR.fullmatch(name)]
    typed, texts = [0, 0], [0, 0]  # for a header, and against one
    formed = 0  # of those against one, names that have the form of all values below
    for at, name in enumerate(names):
        if not name or (len(years) > 2 and len(set(years)) == len(years) and name in years):
            continue
        column = [value for row in rows if (value := row.values[at].strip()) and value not in NULL_MARKS]
        if kind := _kind_of(column):
            typed[0] += _kind(name) == "text"
            typed[1] += _kind(name) == kind
        else:
            looks = _looks(name, column)
            texts[0] += bool(_USUAL.fullmatch(snake_case(name))) or looks is False
            texts[1] += name in column or _kind(name) == "number" or looks is True
            formed += looks is True
    if len(set(names)) < len(names):
        texts[1] += 1
    if typed[0] != typed[1]:
        return typed[0] > typed[1], True  # a text above numbers says more than any text above texts
    pro, con = texts
    return (None, True) if pro == con else (pro > con, pro > con or formed > pro)


def _looks(name: str, column: Sequence[str]) -> bool | None:
    """Return whether a text has the form that all values of a column have; None if they have none."""
    masks, sizes = {_mask(value) for value in column}, {len(value) for value in column}
    if len(masks) == 1 and "9" in min(masks):
        return _mask(name) in masks
    return len(name) in sizes if len(sizes) == 1 and len(column) > _SAME_SIZE else None


def _mask(text: str) -> str:
    return re.sub("[0-9]+", "9", re.sub("[a-z]+", "a", re.sub("[A-Z]+", "A", text)))


def _shape(
    dialect: CsvDialect, names: list[str], data: Sequence[Row], width: int, notes: list[str]
) -> tuple[CsvDialect, list[str], int]:
    """Settle how many columns there are: delimiters at the end of lines, and short rows."""
    ends = [row.values[-1] for row in data if len(row.values) == width]
    if width > 1 and ends and not any(ends) and (len(names) < width or not names[-1].strip()):
        dialect, width = replace(dialect, trailing_delimiter=True), width - 1
        names = names[:width]
    elif names and len(names) == width + 1 and not names[-1].strip():
        dialect, names = replace(dialect, trailing_delimiter=True), names[:width]
    width = max(width, len(names)) if len(names) != width - 1 else width
    longest = width + dialect.trailing_delimiter
    short = sum(1 < len(row.values) < width for row in data)
    full = sum(width <= len(row.values) <= longest for row in data)
    if short > _FEW * max(len(data), 1) and (full or names):
        dialect = replace(dialect, short_rows="fill")
        notes.append(f"{short:,} of the first {len(data):,} rows are short: their missing values will be NULL")
    return dialect, names, width


def _footers(end: Sequence[Row], data: Sequence[Row], width: int) -> int:
    """Return how many lines at the end are no rows: remarks and totals."""
    rows = [row.values for row in data if len(row.values) == width and not _TOTAL.match(row.values[0])]
    kinds = [_kind_of(column) for column in zip(*rows, strict=True)]
    footers = 0
    for row in reversed(end[1:] if end is data else end):
        remark = row.filled == 1 and len(row.values) < width and width > 1 and bool(row.values[0])
        cells = [value for value in row.values if value.strip()]
        total = bool(cells) and bool(_TOTAL.match(cells[0])) and bool(kinds) and (kinds[0] != "" or not row.values[0])
        if footers == _FOOTERS or not (remark or total or (row.filled == 0 and footers)):
            break
        footers += 1
    return footers if footers < _FOOTERS else 0
