"""Keys of tables, and the relationships between tables that come together.

A key is proposed only if its name says so and all rows bear it out; uniqueness alone proves nothing. So the number of
columns to look at is small, whatever the width of the file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import duckdb

from include.dlt_pipelines.propose.names import entity, singular, snake_case
from include.sql import identifier

MIN_ROWS = 5  # of a table, for its values to prove anything
_SURE_ROWS = 20  # for a name that may mean a number of things
_CANDIDATES = 8  # columns to combine, at most
_CHANCE = 5  # pairs expected twice by chance; fewer, and their absence proves nothing
_ABLE = re.compile("VARCHAR|DATE|TIMESTAMP.*|.*INT(EGER)?")
_KEY = re.compile(
    r"(^|_)(id|ids|key|code|sku|uuid|guid|isin|iban|ean|gtin|isbn|number|no|nr|num|nummer|numero|kennung|schluessel|rowid)$"
    r"|(key|id)$|^(id|code|key)_|(^|_)iso_?(alpha)?_?[23]?$|(^|_)alpha_?[23]$"
)
_COUNTS = re.compile(r"(^|_)(code|number|no|nr|num|nummer|numero)$")  # may count something, too
_NOT_KEY = re.compile(r"paid$|valid$|void$|grid$|solid$|fluid$|bid$|mid$|covid$|humid$|acid$|raid$|phone|fax|monkey$")
# With a key, these number or date its parts: the lines of an order, the stops of a trip, the years of a country.
_PART = re.compile(
    r"(^|_)(line|item|position|pos|sequence|seq|rank|part|version|step|year|month|quarter|week|date|day|hour|period|time"
    r"|country|jahr|monat|datum|annee|mois|anno|ano|mes|fecha)(_(no|nr|num|number|id|key|code|on|at))?$"
    r"|linenumber$|sequence$"
)
# Of these, one may be all that a row is about.
_WHOLE = re.compile(r"(^|_)(year|month|quarter|week|date|day|country|jahr|monat|datum|annee|mois|anno|mes|fecha)$")


@dataclass(frozen=True)
class Relationship:
    """All values of a table's column are values of another table's key."""

    table: str
    column: str
    to_table: str
    to_column: str


def find_key(
    connection: duckdb.DuckDBPyConnection, rows: str, table: str, types: Mapping[str, str], nullable: Sequence[str]
) -> tuple[str, ...]:
    """Return the columns that identify a row; none unless their names say so and there are enough rows.

    Args:
        connection: a database with the rows.
        rows: their relation.
        table: the table's name.
        types: of its columns, by name.
        nullable: columns that have NULLs, or that no key may have, such as persons' names.
    """
    able = {name: snake_case(name) for name, type_ in types.items() if _ABLE.fullmatch(type_) and name not in nullable}
    named = [name for name in able if _KEY.search(able[name]) and not _NOT_KEY.search(able[name])]
    named.sort(key=lambda name: _rank(able[name], table))
    count = _count(connection, f"select count(*) from {rows}")
    if count < MIN_ROWS:
        return ()
    for name in named[:_CANDIDATES]:
        if (count >= _SURE_ROWS or not _COUNTS.search(able[name])) and _unique(connection, rows, (name,), count):
            return (name,)
    parts = [name for name in able if name not in named and _PART.search(able[name])]
    if parts[:1] == list(types)[:1] and _WHOLE.search(able[parts[0]]) and _unique(connection, rows, (parts[0],), count):
        return (parts[0],)  # a row for each day
    several = [*named[:_CANDIDATES], *parts[:_CANDIDATES]]
    distinct = {name: _distinct(connection, rows, name) for name in several}
    for one, other in combinations(several, 2):
        # Were they unrelated, this many pairs would be there twice.
        repeated = count**2 / (2 * distinct[one] * distinct[other])
        if repeated >= _CHANCE and _unique(connection, rows, (one, other), count):
            return (one, other)
    return ()


def find_relationships(
    connection: duckdb.DuckDBPyConnection, tables: Mapping[str, Mapping[str, str]], keys: Mapping[str, tuple[str, ...]]
) -> list[Relationship]:
    """Return the relationships between tables: a column named like another table's key, with no other values.

    Args:
        connection: a database with the tables, under their names.
        tables: the columns' types, by table.
        keys: the key of each table.
    """
    parents = {table: key for table in tables if (key := _reference(connection, table, tables[table], keys[table]))}
    found = []
    for table, columns in tables.items():
        for column, type_ in columns.items():
            if keys[table] == (column,):
                continue
            fitting = [
                parent
                for parent, key in parents.items()
                if parent != table
                and type_ == tables[parent][key]
                and _refers(column, parent, key)
                and (parents.get(table) != column or keys[parent])
            ]
            # Of several, the one that the column is named after.
            fitting.sort(key=lambda parent: (_rank(snake_case(column), parent) > 1, not keys[parent]))
            for parent in fitting:
                if _contained(connection, (table, column), (parent, parents[parent])):
                    found.append(Relationship(table, column, parent, parents[parent]))
                    break
    return found


def _reference(
    connection: duckdb.DuckDBPyConnection, table: str, types: Mapping[str, str], key: tuple[str, ...]
) -> str:
    """Return the column that other tables may refer to: the key, or the first column if it could be one."""
    if key:
        return key[0] if len(key) == 1 else ""
    first = next(iter(types))
    name, rows = snake_case(first), identifier(table)
    able = _ABLE.fullmatch(types[first]) and _KEY.search(name) and not _NOT_KEY.search(name)
    filled = f"select count(*) - count({identifier(first)}) from {rows}"
    if not able or _count(connection, filled):
        return ""
    return first if _unique(connection, rows, (first,), _count(connection, f"select count(*) from {rows}")) else ""


def _rank(name: str, table: str) -> int:
    """Return in which order to try names of keys: `id`, then the table's own, then the others by position."""
    one = singular(entity(table)).replace("_", "")
    own = {one + end for end in ("id", "key", "code", "no", "nr", "number", "uuid")}
    bare = re.sub(r"^[a-z]{1,2}_", "", name).replace("_", "")
    if name in ("id", "uuid", "guid", "key"):
        return 0
    return 1 if name.replace("_", "") in own or bare in own else 2


def _refers(column: str, parent: str, key: str) -> bool:
    """Return whether a column's name says that it is the key of a table."""
    name, target, one = snake_case(column), snake_case(key), singular(entity(parent))
    if target in ("id", "key", "code", "uuid"):
        return name in (f"{one}_{target}", f"{one}{target}", f"{entity(parent)}_{target}") or name.endswith(
            f"_{one}_{target}"
        )
    # c_custkey and o_custkey: the prefix is the table's.
    bare = [re.sub(r"^[a-z]{1,2}_(?=.{4})", "", text) for text in (name, target)]
    return name == target or bare[0] == bare[1] or name.endswith(f"_{target}")


def _unique(connection: duckdb.DuckDBPyConnection, rows: str, names: tuple[str, ...], count: int) -> bool:
    columns = ", ".join(map(identifier, names))
    few = f"(select {columns} from {rows} limit 10000)"
    for relation, size in ((few, min(count, 10_000)), (rows, count)):
        if _count(connection, f"select count(*) from (select distinct {columns} from {relation})") < size:
            return False
    return True


def _distinct(connection: duckdb.DuckDBPyConnection, rows: str, name: str) -> int:
    return max(1, _count(connection, f"select count(distinct {identifier(name)}) from {rows}"))


def _contained(connection: duckdb.DuckDBPyConnection, child: tuple[str, str], parent: tuple[str, str]) -> bool:
    values = f"select {identifier(child[1])} as v from {identifier(child[0])} where {identifier(child[1])} is not null"
    known = f"select {identifier(parent[1])} from {identifier(parent[0])}"
    if not _count(connection, f"select count(*) from (select v from ({values}) limit 1)"):
        return False
    return not _count(connection, f"select count(*) from ({values}) where v not in ({known})")


def _count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row
    return int(row[0])
