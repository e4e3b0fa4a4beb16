"""Quote SQL identifiers and string literals for DuckDB."""

import re

# In a type's text: a quoted name of a field; an ENUM; what some engines do not have. A space follows a name.
_IN_TYPE = re.compile(
    r""""(?:[^"]|"")*"|(?P<enum>ENUM)\((?:'(?:[^']|'')*'(?:, )?)*\)|(?P<integer>\bU?HUGEINT\b(?! ))"""
    r"""|(?P<interval>\bINTERVAL\b(?! ))|(?P<time>\bTIME WITH TIME ZONE\b)|(?P<nanoseconds>\bTIMESTAMP_NS\b(?! ))"""
)


def literal(value: object) -> str:
    """Return a value as an SQL string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def escaped_literal(value: object) -> str:
    """Return a value as a string literal of SQL in which a backslash escapes, as in BigQuery."""
    escapes = {ord("\\"): r"\\", ord("'"): r"\'", ord("\n"): r"\n", ord("\r"): r"\r"}
    return f"'{str(value).translate(escapes)}'"


def identifier(*parts: str) -> str:
    """Return a quoted identifier, dotted if it has several parts."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def exact_type(type_: str, *as_text: str) -> str:
    """Return the type in which an engine without integers of 128 bits keeps a DuckDB type's values: often the same.

    Args:
        type_: of a column, nested or not.
        as_text: which it cannot keep either: `enum`, `interval`, `time`, `nanoseconds`.
    """

    def kept(found: re.Match[str]) -> str:
        if found["integer"]:
            return "DECIMAL(38,0)"
        return "VARCHAR" if any(found[kind] for kind in as_text) else found[0]

    return _IN_TYPE.sub(kept, type_)


def parquet_type(type_: str) -> str:
    """Return the type in which Parquet keeps the values of a DuckDB type.

    DuckDB 1.5 writes integers of 128 bits as DOUBLE, intervals without microseconds, and times without their zone.
    """
    return exact_type(type_, "interval", "time")
