"""Independent CSV reader in plain Python, byte by byte, to check the parser against; shares no code with it."""

import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

LINES, BYTES = 1000, 1_000_000  # maximum per row
BARE = re.compile(rb"[^,\r\n]*")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d*))?(Z|[+-]\d\d(?::?\d\d)?)?", re.ASCII)


class Row(NamedTuple):
    """A row; `values` is None if it must be rejected."""

    line: int
    text: str
    values: tuple[Any, ...] | None


def rows(content: bytes, columns: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows below the header: each non-blank line starts one, unless it continues a quoted value."""
    names = fields(content.removeprefix(b"\xef\xbb\xbf"), 0)[0]
    at, line = _line_end(content, 0), 2
    while at < len(content):
        end = _line_end(content, at)
        if content[at:end] not in (b"\n", b"\r\n", b"\r"):
            values, stop = fields(content, at)
            if values is not None and content.count(b"\n", at, stop - 1) < LINES:
                end = stop
            else:
                values = None
            text = content[at:end].removesuffix(b"\n").removesuffix(b"\r")
            if values is None or len(text) > BYTES or len(values) != len(names):
                parsed = None
            else:
                parsed = _parsed(dict(zip(names, values, strict=True)), columns)
            yield Row(line, text.decode(errors="backslashreplace"), parsed)
        line += content.count(b"\n", at, end)
        at = end


def fields(content: bytes, at: int) -> tuple[list[bytes] | None, int]:
    """Return the fields of the record starting there (None if malformed) and the start of the next one."""
    found = []
    while True:
        start = at
        while content[at : at + 1] == b" ":
            at += 1
        if content[at : at + 1] == b'"':
            value = b""
            while True:
                close = content.find(b'"', at + 1)
                if close < 0:
                    return None, at
                value += content[at + 1 : close]
                at = close + 1
                if content[at : at + 1] != b'"':
                    break
                value += b'"'
            while content[at : at + 1] == b" ":
                at += 1
        else:
            at = BARE.match(content, start).end()  # type: ignore[union-attr]
            value = content[start:at]
        found.append(value)
        if content[at : at + 1] == b",":
            at += 1
        elif at == len(content) or content[at : at + 2] == b"\r":
            return found, len(content)
        elif content[at : at + 1] == b"\n":
            return found, at + 1
        elif content[at : at + 2] == b"\r\n":
            return found, at + 2
        else:
            return None, at


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
        return Decimal(_checked(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text))
    if type_.startswith("DECIMAL"):
        return Decimal(_checked(r"[+-]?\d+(\.\d*)?", text))
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


def _parsed(values: Mapping[bytes, bytes], columns: Mapping[str, str]) -> tuple[Any, ...] | None:
    try:
        texts = {name: values[name.encode()].decode() for name in columns}
        found = tuple(exact(type_, texts[name]) if texts[name] else None for name, type_ in columns.items())
    except (ValueError, KeyError):
        return None
    return found if all(_fits(type_, value) for type_, value in zip(columns.values(), found, strict=True)) else None


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
