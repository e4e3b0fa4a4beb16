"""Names and texts in SQL, quoted as DuckDB wants them."""


def literal(value: object) -> str:
    """Return a value's text as an SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def identifier(*parts: str) -> str:
    """Return a name, or a dotted one of several parts, that SQL takes as it is."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)
