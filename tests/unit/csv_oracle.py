"""Independent CSV reader in plain Python, byte by byte, to check the parser against; shares no code with it."""

import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from include.dlt_pipelines.files import CsvDialect

DEFAULT = CsvDialect()
LINES, BYTES = 1000, 1_000_000  # maximum per row
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d*))?(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)


class Row(NamedTuple):
    """A row; `values` is None if it must be rejected."""

    line: int
    text: str
    values: tuple[Any, ...] | None


def rows(content: bytes, columns: Mapping[str, str], dialect: CsvDialect = DEFAULT) -> Iterator[Row]:
    """Yield the rows below the header: each non-blank line starts one, unless it continues a quoted value."""
    if dialect.encoding == "utf-16":
        content = content.decode("utf-16").encode()
    content = content.removeprefix(b"\xef\xbb\xbf")
    at, line, comment = 0, 1, dialect.comment.encode()
    for _ in range(dialect.skip):
        at, line = _line_end(content, at), line + 1
    while comment and content.startswith(comment, at):
        at, line = _line_end(content, at), line + 1
    names = [name.encode() for name in columns]
    if dialect.header:
        names = fields(content, at, dialect)[0] or []
        at, line = _line_end(content, at), line + 1
    content = _without_footer(content, dialect.footer)
    while at < len(content):
        end = _line_end(content, at)
        if content[at:end] not in (b"\n", b"\r\n", b"\r") and not (comment and content.startswith(comment, at)):
            values, stop = fields(content, at, dialect)
            if values is not None and content.count(b"\n", at, stop - 1) < LINES:
                end = stop
            else:
                values = None
            text = content[at:end].removesuffix(b"\n").removesuffix(b"\r")
            parsed = None
            if values is not None and len(text) <= BYTES:
                parsed = _parsed(_fitted(values, len(names), dialect, text), names, columns, dialect)
            yield Row(line, _shown(text, dialect), parsed)
        line += content.count(b"\n", at, end)
        at = end


def _without_footer(content: bytes, lines: int) -> bytes:
    for _ in range(lines):
        content = content.rstrip(b"\r\n\t ")
        content = content[: content.rfind(b"\n") + 1]
    return content


def _fitted(values: list[bytes], width: int, dialect: CsvDialect, text: bytes) -> list[bytes]:
    if dialect.trailing_delimiter and len(values) == width + 1 and text.endswith(dialect.delimiter.encode()):
        return values[:-1]
    if dialect.short_rows == "fill" and len(values) < width:
        return values + [b""] * (width - len(values))
    return values


def _shown(text: bytes, dialect: CsvDialect) -> str:
    if dialect.encoding == "cp1252":
        return text.decode("cp1252", errors="backslashreplace")
    return text.decode(errors="backslashreplace")


def fields(content: bytes, at: int, dialect: CsvDialect = DEFAULT) -> tuple[list[bytes] | None, int]:
    """Return the fields of the record starting there (None if malformed) and the start of the next one."""
    found = []
    delimiter, quote, escape = dialect.delimiter.encode(), dialect.quote.encode(), dialect.escape.encode()
    space = b"" if delimiter == b" " else b" "
    while True:
        start = at
        while space and content[at : at + 1] == space:
            at += 1
        if quote and content[at : at + 1] == quote:
            value, at = _quoted(content, at + 1, quote, escape, delimiter)
            if value is None:
                return None, at
            while space and content[at : at + 1] == space:
                at += 1
        else:
            at = start
            while at < len(content) and content[at] not in b"\r\n" and not content.startswith(delimiter, at):
                line = content.find(b"\n", at)
                line = len(content) if line < 0 else line
                # Within the line, or a file without the mark would be searched to its end for each value.
                at = min(
                    (one for mark in (delimiter, b"\r") if (one := content.find(mark, at, line)) >= 0), default=line
                )
            value = content[start:at]
        found.append(value)
        if content.startswith(delimiter, at):
            at += len(delimiter)
        elif at == len(content) or content[at : at + 2] == b"\r":
            return found, len(content)
        elif content[at : at + 1] == b"\n":
            return found, at + 1
        elif content[at : at + 2] == b"\r\n":
            return found, at + 2
        else:
            return None, at


def _quoted(content: bytes, at: int, quote: bytes, escape: bytes, delimiter: bytes) -> tuple[bytes | None, int]:
    """Return the value of which the first character is there, and the position after its closing quote."""
    value = b""
    while True:
        marks = [one for mark in (quote, escape) if mark and (one := content.find(mark, at)) >= 0]
        if not marks:
            return None, at
        value += content[at : min(marks)]
        at = min(marks) + 1
        if escape and content[at - 1 : at] == escape:
            known = next((one for one in (quote, escape, delimiter) if content.startswith(one, at)), None)
            if known is None:
                return None, at
            value, at = value + known, at + len(known)
        elif not escape and content[at : at + 1] == quote:
            value, at = value + quote, at + 1
        else:
            return value, at


def _plain(type_: str, text: str, dialect: CsvDialect) -> str:
    """Return a text of a dialect as one of the default; ValueError if it is none."""
    text = text.strip(" ")
    if type_.endswith("INT") or type_.startswith("DECIMAL"):
        for symbol in dialect.symbols:
            pattern = re.escape(symbol)
            text = re.sub(rf"^([+-]?){pattern} ?(?=\d|[{re.escape(dialect.decimal)}])", r"\1", text, count=1)
            text = re.sub(rf"^{pattern} ?([+-])(?=\d)", r"\1", text, count=1)
            text = re.sub(rf"(?<=\d) ?{pattern}$", "", text, count=1)
        if dialect.thousands and dialect.thousands in text:
            mark = re.escape(dialect.thousands)
            whole, decimal, rest = text.partition(dialect.decimal)
            if dialect.thousands in rest or not re.fullmatch(rf"[+-]?\d{{1,3}}({mark}\d{{3}})+", whole, re.ASCII):
                raise ValueError(text)
            text = whole.replace(dialect.thousands, "") + decimal + rest
        if dialect.decimal != ".":
            if "." in text:
                raise ValueError(text)
            text = text.replace(dialect.decimal, ".")
    if type_ == "DATE" and dialect.date_format == "%d.%m.%Y":
        day, month, year = _checked(r"\d{1,2}\.\d{1,2}\.\d{4}", text).split(".")
        text = f"{year}-{month:0>2}-{day:0>2}"
    return text


def exact(type_: str, text: str) -> Any:
    """Return the exact value of a text in a DuckDB type; ValueError if it is not unambiguous.

    Times are microseconds, or nanoseconds for TIMESTAMP_NS, and timestamps are these since 1970.
    """
    if type_ == "VARCHAR":
        return text
    text = text.strip(" ")
    if type_.endswith("INT") or type_.endswith("INTEGER"):
        return int(_checked(r"[+-]?\d+", text))
    if type_ in ("FLOAT", "DOUBLE"):
        return Decimal(_checked(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", text))
    if type_.startswith("DECIMAL"):
        return Decimal(_checked(r"[+-]?(\d+(\.\d*)?|\.\d+)", text))
    if type_ == "BOOLEAN":
        return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[
            _checked(r"\w+", text).lower()
        ]
    if type_ == "UUID":
        return uuid.UUID(_checked(r"[\da-fA-F]{8}-([\da-fA-F]{4}-){3}[\da-fA-F]{12}", text))
    if type_ == "DATE":
        return date(*map(int, _checked(r"\d{4}-\d\d-\d\d", text).split("-")))
    match = STAMP.fullmatch(f"1970-01-01 {text}" if type_ == "TIME" else text)
    if not match or bool(match[8]) != (type_ == "TIMESTAMP WITH TIME ZONE"):
        raise ValueError(text)
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    offset = timedelta()
    if zone := (match[8] or "Z").replace(":", "").removeprefix("Z"):
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:] or 0)) * int(zone[0] + "1")
        timezone(offset)  # ValueError beyond a day
        if int(zone[3:] or 0) > 59:
            raise ValueError(text)
    seconds = (datetime(year, month, day, hour, minute, second, tzinfo=UTC) - EPOCH - offset) // timedelta(seconds=1)
    with localcontext(prec=100):
        count = (seconds + Decimal(f"0.{match[7] or 0}")) * 10 ** (9 if type_ == "TIMESTAMP_NS" else 6)
    if type_ in ("TIMESTAMP_S", "TIMESTAMP_MS") and count % (1000000 if type_ == "TIMESTAMP_S" else 1000):
        raise ValueError(text)
    return count


def _parsed(
    values: list[bytes], names: list[bytes], columns: Mapping[str, str], dialect: CsvDialect
) -> tuple[Any, ...] | None:
    encoding = "cp1252" if dialect.encoding == "cp1252" else "utf-8"
    if len(values) != len(names):
        return None
    found = []
    try:
        texts = {name.decode(encoding): value.decode(encoding) for name, value in zip(names, values, strict=True)}
        for name, type_ in columns.items():
            text = texts[name]
            missing = not text or (text if type_ == "VARCHAR" else text.strip(" ")) in dialect.null_values
            found.append(
                None if missing else exact(type_, _plain(type_, text, dialect) if type_ != "VARCHAR" else text)
            )
    except (ValueError, KeyError):
        return None
    return tuple(found) if all(map(_fits, columns.values(), found)) else None


def _fits(type_: str, value: Any) -> bool:
    if type_ == "BIGINT":
        return value is None or -(2**63) <= value < 2**63
    if type_ == "DECIMAL(10,2)":
        return value is None or (abs(value) < 10**8 and value == round(value, 2))
    return True


def _checked(form: str, text: str) -> str:
    if not re.fullmatch(form, text, re.ASCII):
        raise ValueError(text)
    return text


def _line_end(content: bytes, at: int) -> int:
    return content.find(b"\n", at) + 1 or len(content)
