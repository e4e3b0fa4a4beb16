"""Descriptions of columns: what kind of content, its range, how much of it is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb

from include.sql import identifier

_AT_ONCE = 50  # columns to aggregate in one query
_LISTED = 12  # different values to list, at most
_EXAMPLES = 3
_SAMPLE, _SAMPLE_CELLS = 2_000, 1_000_000
_SHOWN = 40  # characters of a value
_LEAST_SHARE = 5  # rows for each value, before a short list is taken for the whole


@dataclass(frozen=True)
class Profile:
    """What a column holds.

    Attributes:
        filled: how many rows have a value.
        rows: how many rows there are.
        least: the smallest value, as text.
        most: the largest value.
        values: its values in order of frequency, all of them if `listed`, and else some.
        listed: whether these are all, and few enough for their number of rows to be a list.
    """

    rows: int
    filled: int
    least: str
    most: str
    values: tuple[str, ...] = ()
    listed: bool = False


def profile(connection: duckdb.DuckDBPyConnection, rows: str, types: Mapping[str, str]) -> dict[str, Profile]:
    """Return the profile of each column.

    Args:
        connection: a database with the rows.
        rows: their relation, with the contract's types.
        types: of the columns.
    """
    found: dict[str, Profile] = {}
    for names in _batches(list(types)):
        parts = []
        for name in names:
            v = identifier(name)
            parts.append(f"count({v}), min({v})::varchar, max({v})::varchar")
        row = connection.execute(f"select count(*), {', '.join(parts)} from {rows}").fetchone()
        assert row
        for at, name in enumerate(names):
            filled, least, most = row[1 + 3 * at : 4 + 3 * at]
            found[name] = Profile(row[0], filled, least or "", most or "")
    texts = [name for name, type_ in types.items() if type_ == "VARCHAR" and found[name].filled]
    for name, some in _samples(connection, rows, texts).items():
        # A sample tells most columns of free text from lists.
        if len(some) > _LISTED:
            found[name] = replace(found[name], values=tuple(some[:_EXAMPLES]))
        else:
            found[name] = _listed(connection, rows, name, found[name])
    return found


def _samples(connection: duckdb.DuckDBPyConnection, rows: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the different values that the first rows have in some columns; one query, as there may be thousands."""
    if not names:
        return {}
    size = max(_SAMPLE_CELLS // len(names), 100)
    query = f"select {', '.join(map(identifier, names))} from {rows} limit {min(size, _SAMPLE)}"
    columns = zip(*connection.execute(query).fetchall(), strict=True)
    return {
        name: list(dict.fromkeys(value for value in values if value is not None))
        for name, values in zip(names, columns, strict=True)
    }


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]


def _listed(connection: duckdb.DuckDBPyConnection, rows: str, name: str, known: Profile) -> Profile:
    v = identifier(name)
    query = f"select {v}, count(*) from {rows} where {v} is not null group by 1 order by 2 desc, 1 limit {_LISTED + 1}"
    counted = connection.execute(query).fetchall()
    values = tuple(value for value, _ in counted)
    few = len(values) <= _LISTED and known.filled >= _LEAST_SHARE * len(values) and len(values) > 1
    listed = few and counted[-1][1] > 1 and all(len(value) <= _SHOWN for value in values)
    return replace(known, values=values, listed=listed)


def describe(column: str, type_: str, known: Profile, *, is_key: bool, is_personal: bool, note: str = "") -> str:
    """Return a column's description.

    Args:
        column: its name in the file.
        type_: its type.
        known: its profile.
        is_key: whether it is part of the table's key.
        is_personal: whether its values may not be shown.
        note: why it is not of another type.
    """
    text = f"{'Key, as' if is_key else 'As'} delivered in `{column}`: {_content(type_, known, is_personal)}"
    missing = known.rows - known.filled
    if missing and known.filled:
        text += f"; {_share(missing, known.rows)} are NULL"
    return f"{text}; {note}." if note else f"{text}."


def _content(type_: str, known: Profile, is_personal: bool) -> str:
    if not known.filled:
        return "always NULL"
    if is_personal:
        return "personal data"
    kind, bounds = _kind(type_), f" from {known.least[:_SHOWN]} to {known.most[:_SHOWN]}"
    if type_ == "VARCHAR":
        shown = ", ".join(f"`{' '.join(value[:_SHOWN].split())}`" for value in known.values if value.strip())
        if known.listed:
            return f"one of {shown}"
        examples = [f"`{' '.join(one[:_SHOWN].split())}`" for one in known.values[:_EXAMPLES] if one.strip()]
        return f"{kind} such as {', '.join(examples)}" if examples else kind
    if type_ == "BOOLEAN":
        return kind if known.least != known.most else f"always {known.least}"
    return f"always {known.least}" if known.least == known.most else kind + bounds


def _kind(type_: str) -> str:
    if type_.startswith("DECIMAL"):
        scale = type_.rstrip(")").split(",")[1]
        return f"numbers with {scale} decimals" if scale != "0" else "whole numbers"
    kinds = {"BIGINT": "whole numbers", "DOUBLE": "numbers", "BOOLEAN": "true or false", "DATE": "dates"}
    return kinds.get(type_, "text" if type_ == "VARCHAR" else "times")


def _share(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if 1 <= share <= 99 else f"{part:,} of {whole:,}"
