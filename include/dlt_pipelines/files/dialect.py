"""How a delivered file writes its rows and values; everything that is not declared is as in the default."""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

# strptime's directives that stand for one value and nothing else, by the texts that they take.
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_LONG_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"  # DuckDB reads year 0 as 1 BC
_DATE_DIRECTIVES = {
    "Y": YEAR,
    "y": "[0-9]{2}",
    "m": "[0-9]{1,2}",
    "d": "[0-9]{1,2}",
    "b": f"(?i:{_MONTHS})",
    "B": f"(?i:{_LONG_MONTHS})",
    "a": "(?i:mon|tue|wed|thu|fri|sat|sun)",
    "A": "(?i:monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
}
_TIME_DIRECTIVES = {
    "H": "[0-9]{1,2}",
    "I": "[0-9]{1,2}",
    "M": "[0-9]{2}",
    "S": "[0-9]{2}",
    "f": "[0-9]{1,6}",
    "p": "(?i:am|pm)",
}
_ZONE_DIRECTIVES = {"z": "[+-][0-9]{2}(:?[0-9]{2})?"}
_REQUIRED = {"date": ("Yy", "mbB", "d"), "time": ("HI", "M"), "timestamp": ("Yy", "mbB", "d", "HI")}


@dataclass(frozen=True)
class CsvDialect:
    """The dialect of a CSV file, part of its contract. What a file has otherwise is an error with its line.

    Attributes:
        delimiter: the character between values.
        quote: the character around values; empty: none, so that a quote is a part of its value.
        escape: the character before a quote, a delimiter or itself within quotes; empty: a quote is doubled.
        encoding: any of Python's text encodings, such as `cp1252` or `utf-16`.
        header: whether a line has the columns' names; otherwise values are those of the contract's columns, in order.
        skip: lines above the header, or above the first row if there is none.
        footer: lines below the last row, such as totals, not counting blank ones.
        comment: lines that start with this text are ignored.
        trailing_delimiter: whether a delimiter may follow the last value of a line.
        short_rows: `fill`: values missing at the end of a row are NULL.
        columns: options for values that differ for a column: `{"paid_on": {"date_format": "%d.%m.%Y"}}`.

        decimal: the decimal mark of numbers.
        thousands: the mark between groups of three digits; a number may have it or not.
        symbols: texts before or after a number that are not part of it, such as `€` and `%`: `45%` is 45.
        null_values: texts that mean NULL, besides the empty one.
        true_values: texts of true, in any case; by default true, t, 1.
        false_values: texts of false; by default false, f, 0.
        date_format: of DATE, in strptime's terms; by default ISO 8601.
        time_format: of TIME.
        timestamp_format: of all types of timestamps; `TIMESTAMP WITH TIME ZONE` needs `%z`.

    Raises:
        ValueError: an option is no such thing, or two contradict each other.
    """

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    encoding: str = "utf-8"
    header: bool = True
    skip: int = 0
    footer: int = 0
    comment: str = ""
    trailing_delimiter: bool = False
    short_rows: Literal["reject", "fill"] = "reject"
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    decimal: str = "."
    thousands: str = ""
    symbols: tuple[str, ...] = ()
    null_values: tuple[str, ...] = ()
    true_values: tuple[str, ...] = ()
    false_values: tuple[str, ...] = ()
    date_format: str = ""
    time_format: str = ""
    timestamp_format: str = ""

    def __post_init__(self) -> None:
        self._check_structure()
        self._check_values()
        for column, options in self.columns.items():
            if unknown := set(options) - _VALUE_OPTIONS:
                raise ValueError(f"columns[{column!r}]: {', '.join(sorted(unknown))} cannot differ for a column.")
            self.of(column)

    def of(self, column: str) -> "CsvDialect":
        """Return the dialect of a column's values.

        Args:
            column: its name.
        """
        options = self.columns.get(column)
        return replace(self, **options, columns={}) if options else self

    def numbers_may_have(self, mark: str) -> bool:
        """Return whether texts of other types than VARCHAR may have a character, or any text that means NULL."""
        if mark not in (",", ";", "\t", "|"):
            return True
        dialects = [self, *(self.of(column) for column in self.columns)]
        options = [getattr(one, name) for one in dialects for name in _VALUE_OPTIONS]
        return any(mark in text for one in options for text in ((one,) if isinstance(one, str) else one))

    def _check_structure(self) -> None:
        for name in ("delimiter", "quote", "escape"):
            value = getattr(self, name)
            if len(value) > 1 or value in ("\n", "\r", "\0"):
                raise ValueError(f"{name}={value!r} must be one character, and no line end.")
        if not self.delimiter:
            raise ValueError("delimiter='' must be one character.")
        if self.delimiter in (self.quote, self.escape):
            raise ValueError(f"delimiter={self.delimiter!r} must differ from quote and escape.")
        if self.escape and (not self.quote or self.escape == self.quote):
            raise ValueError("escape: leave it out if there are no quotes, or quotes are escaped by doubling them.")
        if self.skip < 0 or self.footer < 0:
            raise ValueError("skip and footer are numbers of lines.")
        if self.comment and re.search(r"[\r\n]", self.comment):
            raise ValueError(f"comment={self.comment!r} must be within a line.")
        if self.short_rows not in ("reject", "fill"):
            raise ValueError(f"short_rows={self.short_rows!r} must be reject or fill.")
        try:
            "".encode(self.encoding)  # LookupError also for those of bytes, such as base64
            codecs.getincrementaldecoder(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding={self.encoding!r} is not known. Take one of Python's, such as cp1252."
            ) from None

    def _check_values(self) -> None:
        for name in ("symbols", "null_values", "true_values", "false_values"):
            value = getattr(self, name)
            if isinstance(value, str) or any(not isinstance(one, str) or re.search("[\r\n]", one) for one in value):
                raise ValueError(f"{name}={value!r} must be a tuple of texts without line ends.")
            object.__setattr__(self, name, tuple(value))
        if not re.fullmatch(r"[^\w\s+-]", self.decimal) or re.match(r"[\r\n0-9+-]", self.thousands):
            raise ValueError(f"decimal={self.decimal!r}, thousands={self.thousands!r} cannot be marks in numbers.")
        if len(self.thousands) > 1 or self.decimal == self.thousands:
            raise ValueError("decimal and thousands must be different characters.")
        if any(not one.strip() or re.search(r"[0-9+.,-]", one) for one in self.symbols):
            raise ValueError(f"symbols={self.symbols!r} must have no digits, signs or marks of numbers.")
        if bool(self.true_values) != bool(self.false_values):
            raise ValueError("true_values and false_values: declare both.")
        if {one.lower() for one in self.true_values} & {one.lower() for one in self.false_values}:
            raise ValueError("true_values and false_values must differ.")
        for kind in ("date", "time", "timestamp"):
            if form := getattr(self, f"{kind}_format"):
                try:
                    format_pattern(form, kind)
                except ValueError as error:
                    raise ValueError(f"{kind}_format={form!r}: {error}") from None


_VALUE_OPTIONS = {one.name for one in fields(CsvDialect)} - {
    *("delimiter", "quote", "escape", "encoding", "header", "skip", "footer", "comment"),
    *("trailing_delimiter", "short_rows", "columns"),
}


def format_pattern(form: str, kind: str) -> str:
    """Return the regular expression of a format's texts.

    Args:
        form: such as `%d.%m.%Y %H:%M`.
        kind: `date`, `time` or `timestamp`.

    Raises:
        ValueError: a directive is unknown, is there twice or does not belong there, or one is missing.
    """
    known = {
        "date": _DATE_DIRECTIVES,
        "time": _TIME_DIRECTIVES,
        "timestamp": _DATE_DIRECTIVES | _TIME_DIRECTIVES | _ZONE_DIRECTIVES,
    }[kind]
    parts = re.split(r"%(.)", form, flags=re.DOTALL)
    directives = [one for one in parts[1::2] if one != "%"]
    if unknown := [one for one in directives if one not in known]:
        raise ValueError(f"%{unknown[0]} is not supported. Use {', '.join(f'%{one}' for one in known)}.")
    for either in ("Yy", "mbB", "d", "HI", "M", "S", "f", "p", "z"):
        if len([one for one in directives if one in either]) > 1:
            raise ValueError(f"%{either[0]} is there twice.")
    for either in _REQUIRED[kind]:
        if not set(either) & set(directives):
            raise ValueError(f"%{either[0]} is missing.")
    if ("I" in directives) != ("p" in directives):
        raise ValueError("%I and %p need each other.")
    pattern = re.escape(parts[0])
    for at in range(1, len(parts), 2):
        before, directive, after = parts[at - 1], parts[at], parts[at + 1]
        digits = known.get(directive, "%")
        if (not before and at > 1) or (not after and at + 2 < len(parts)):
            digits = digits.replace("{1,2}", "{2}")  # `2026111` would have two meanings in %Y%m%d
        pattern += digits + re.escape(after)
    return pattern
