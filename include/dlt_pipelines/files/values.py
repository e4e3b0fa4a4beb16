"""SQL for exact values: a text is a value of its type in the declared form, with nothing lost or guessed, or none.

DuckDB's casts round, guess and drop (`5.5`, `1_000`, `2018-1-1`, `infinity`, `+05:00`), so a text must also match its
type's form.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from include.dlt_pipelines.files.contract import TableContract
from include.dlt_pipelines.files.dialect import YEAR, CsvDialect, format_pattern
from include.sql import literal

_FRACTION = "([.][0-9]{0,%s}0*)?"
_DATE = f"{YEAR}-[0-9]{{2}}-[0-9]{{2}}"
_TIME = "([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}"
_TIMESTAMP = f"{_DATE}[ T]{_TIME}{_FRACTION}"
_ZONE = "(Z|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)"
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_ISO = {
    "DATE": _DATE,
    "TIME": _TIME + _FRACTION % 6,
    "TIMESTAMP_S": _TIMESTAMP % 0,
    "TIMESTAMP_MS": _TIMESTAMP % 3,
    "TIMESTAMP": _TIMESTAMP % 6,
    "TIMESTAMP WITH TIME ZONE": _TIMESTAMP % 6 + _ZONE,
}
# Texts as DuckDB prints a value have its form, except for those of years beyond four digits and of infinity. It is
# several times faster to compare them than to match a regular expression.
_PRINTED = {"DATE": "____-__-__", "TIMESTAMP": "____-__-__ __:__:__%"}


@dataclass(frozen=True)
class Value:
    """SQL of a column's value.

    Attributes:
        name: the column.
        value: its value; NULL also for a text that is none.
        valid: true if the text is empty, or is a value; otherwise false or NULL.
        parsed: the part of both that is the text's value; empty if there is none.
    """

    name: str
    value: str
    valid: str
    parsed: str = ""


def values(table: TableContract, texts: Mapping[str, str]) -> list[Value]:
    """Return the values of a table's columns.

    Args:
        table: its contract.
        texts: SQL of the text of each column, NULL if it is empty; without those that the file lacks.
    """
    return [
        value_of(name, type_, texts[name], table.dialect.of(name)) if name in texts else default_of(name, table)
        for name, type_ in table.columns.items()
    ]


def default_of(name: str, table: TableContract) -> Value:
    """Return the value of an optional column that a file lacks."""
    default = table.optional[name]
    return Value(name, f"cast({'null' if default is None else literal(default)} as {table.columns[name]})", "true")


def value_of(name: str, type_: str, text: str, dialect: CsvDialect) -> Value:
    """Return the value of a column.

    Args:
        name: the column.
        type_: its type.
        text: SQL of its text, NULL if it is empty.
        dialect: how the text writes values.
    """
    marks = ", ".join(map(literal, dialect.null_values))
    if type_ == "VARCHAR":
        return Value(name, f"case when {text} not in ({marks}) then {text} end" if marks else text, "true")
    value, valid = _typed(text, type_, dialect)
    if marks:
        missing = f"coalesce(trim({text}, ' ') in ({marks}), false)"
        valid = f"({text} is null or {missing} or {valid})"
        return Value(name, f"case when not {missing} then {value} end", valid, value)
    return Value(name, value, f"({text} is null or {valid})", value)


def _typed(text: str, type_: str, dialect: CsvDialect) -> tuple[str, str]:
    """Return a value, and the condition that its text is one."""
    if type_ == "BOOLEAN":
        return _boolean(text, dialect)
    if type_ == "DATE":
        return _moment(text, type_, dialect.date_format, "date")
    if type_ == "TIME":
        return _moment(text, type_, dialect.time_format, "time")
    if type_.startswith("TIMESTAMP"):
        return _moment(text, type_, dialect.timestamp_format, "timestamp")
    return _number(text, type_, dialect)


def _boolean(text: str, dialect: CsvDialect) -> tuple[str, str]:
    true = [one.lower() for one in dialect.true_values or ("true", "t", "1")]
    false = [one.lower() for one in dialect.false_values or ("false", "f", "0")]
    lists = [", ".join(map(literal, texts)) for texts in (true, false)]
    trimmed = f"lower(trim({text}, ' '))"
    value = f"case when {trimmed} in ({lists[0]}) then true when {trimmed} in ({lists[1]}) then false end"
    return value, f"{trimmed} in ({lists[0]}, {lists[1]})"


def _moment(text: str, type_: str, form: str, kind: str) -> tuple[str, str]:
    if not form:
        value = f"try_cast({text} as {type_})"
        valid = f"({value} is not null and {_matches(text, _ISO[type_])})"
        if type_ in _PRINTED:
            return value, f"({value}::varchar = {text} and {text} like {literal(_PRINTED[type_])}) or {valid}"
        return value, valid
    parsed = f"try_strptime({text}, {literal(form)})"  # it skips spaces around too
    value, valid = (
        f"try_cast({parsed} as {type_})",
        f"{parsed} is not null and {_matches(text, format_pattern(form, kind))}",
    )
    if type_ in ("TIMESTAMP_S", "TIMESTAMP_MS"):
        valid += f" and {value}::timestamp = {parsed}"
    return value, f"({valid})"


def _number(text: str, type_: str, dialect: CsvDialect) -> tuple[str, str]:
    plain = text
    for mark in (*sorted(dialect.symbols, key=len, reverse=True), dialect.thousands):
        if mark:
            plain = f"replace({plain}, {literal(mark)}, '')"
    if dialect.symbols:
        plain = f"replace({plain}, ' ', '')"
    if dialect.decimal != "." and type_ not in _INTEGERS:
        plain = f"replace({plain}, {literal(dialect.decimal)}, '.')"
    value = f"try_cast({plain} as {type_})"
    valid = f"{value} is not null and {_matches(text, _number_pattern(type_, dialect))}"
    printed = f"{value}::varchar = {text}"
    if type_ in ("FLOAT", "DOUBLE"):
        # These hold about 7 and 16 digits: the parsed value must print with the text's digits, but for outer zeros.
        digits = "trim(regexp_replace({}, '[eE].*|[^0-9]', '', 'g'), '0')"
        valid += f" and {digits.format(plain)} = {digits.format(f'{value}::varchar')}"
        printed = f"({printed} and isfinite({value}))"
    return value, f"{printed} or ({valid})" if plain == text else f"({valid})"


def _number_pattern(type_: str, dialect: CsvDialect) -> str:
    mark = re.escape(dialect.decimal)
    whole = "[0-9]+"
    if dialect.thousands:
        whole = f"([0-9]+|[0-9]{{1,3}}({re.escape(dialect.thousands)}[0-9]{{3}})+)"
    if decimal := re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", type_):
        scale = decimal[2]
        number = f"({whole}({mark}[0-9]{{0,{scale}}}0*)?|{mark}[0-9]{{1,{scale}}}0*)" if scale != "0" else ""
        number = number or f"{whole}({mark}0*)?"
    elif type_ in ("FLOAT", "DOUBLE"):
        number = f"({whole}({mark}[0-9]*)?|{mark}[0-9]+)([eE][+-]?[0-9]+)?"
    else:
        number = whole
    if not dialect.symbols:
        return f"[+-]?{number}"
    sign = "|".join(map(re.escape, dialect.symbols))
    return f"([+-]?(({sign}) ?)?{number}|({sign}) ?[+-]{number}|[+-]?{number} ?({sign}))"


def _matches(text: str, pattern: str) -> str:
    return f"regexp_full_match({text}, {literal(f' *({pattern}) *')})"
