"""Names in the staging model: snake case, in ASCII, unique, and no words of SQL."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import duckdb
from anyascii import anyascii

NAME = re.compile(r"[a-z][a-z0-9_]*")
_ENDINGS = r"[.](gz|bz2|zst|zip|csv|tsv|tab|txt|dat|tbl|psv|data|parquet|jsonl|ndjson|json|xlsx)$"


def snake_case(text: str) -> str:
    """Return a name in snake case; accents are folded and other scripts are transliterated.

    Args:
        text: any text, such as `Währung (EUR)`, which becomes `wahrung_eur`.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", anyascii(text))
    return re.sub(r"[^a-z0-9]+", "_", words.lower().replace("'", "")).strip("_")


def table_name(path: Path) -> str:
    """Return the name of a file's table: `Sales 2026.CSV` has `sales_2026`.

    Args:
        path: the file, with any name.
    """
    name = path.name
    while (shorter := re.sub(_ENDINGS, "", name, flags=re.IGNORECASE)) != name:
        name = shorter
    name = snake_case(name)
    return name if NAME.fullmatch(name) else f"table_{name}".rstrip("_")


def entity(table: str) -> str:
    """Return what a table's rows are, in the plural: `orders` for `raw_orders`."""
    return table.removeprefix("raw_") or table


def singular(plural: str) -> str:
    """Return one of several: `category` for `categories`."""
    if plural.endswith("ies") and len(plural) > 4:
        return f"{plural[:-3]}y"
    if plural.endswith(("sses", "shes", "ches", "xes")):
        return plural[:-2]
    return plural if not plural.endswith("s") or plural.endswith(("ss", "us", "is", "news")) else plural[:-1]


def words(name: str) -> str:
    """Return a name as words."""
    return name.replace("_", " ")


@cache
def keywords(category: str = "%") -> frozenset[str]:
    """Return DuckDB's keywords of a category, such as `reserved`."""
    with duckdb.connect() as connection:
        query = "select keyword_name from duckdb_keywords() where keyword_category like ?"
        return frozenset(name for (name,) in connection.execute(query, [category]).fetchall())


@cache
def unusable() -> frozenset[str]:
    """Return the keywords that cannot be selected as a column without quotes; more than the reserved ones."""

    def fails(word: str) -> bool:
        try:
            return not duckdb.extract_statements(f"select {word} from t")
        except duckdb.Error:
            return True

    return keywords("reserved") | {word for word in keywords() if fails(word)}


def staged_names(table: str, columns: Iterable[str]) -> list[str]:
    """Return the columns' names in the staging model, in order.

    Args:
        table: the raw table.
        columns: names as in the contract.
    """
    one = singular(entity(table))
    taken: set[str] = set()
    staged = []
    for column in columns:
        name = snake_case(column) or "column"
        if name == "id":
            name = f"{one}_id"
        # A column keeps its name if it needs no quotes; a new name may not be any keyword.
        if name[0].isdigit() or name in unusable() or (name != column and name in keywords()):
            name = f"{one}_{name}"
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        staged.append(unique)
    return staged
