"""Quote SQL identifiers and string literals for DuckDB."""


def literal(value: object) -> str:
    """Return a value as an SQL string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def identifier(*parts: str) -> str:
    """Return a quoted identifier, dotted if it has several parts."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)
