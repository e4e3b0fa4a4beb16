"""Which columns a query's columns come from, and which it reads at all, found in its SQL by sqlglot."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import lineage
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import build_scope, traverse_scope

from include.settings import warehouse_name
from include.warehouse_catalog.published import State

logger = logging.getLogger(__name__)

Source = tuple[str, str, str]  # schema, table, column


@lru_cache(maxsize=256)
def columns(sql: str, state: State) -> Mapping[str, tuple[Source, ...]]:
    """Return, for each column of a query in lower case, the columns of tables that its values are made of.

    Filters, joins and groupings that decide only which rows there are do not count.

    Args:
        sql: one SELECT, as dbt compiled it.
        state: the published state, whose tables say what `*` stands for.

    Returns:
        An empty mapping if sqlglot cannot read the SQL.
    """
    schema = _schema(state)
    found = {}
    try:
        query: Any = sqlglot.parse_one(sql, dialect="duckdb")
        query = qualify(query, schema=schema, dialect="duckdb", validate_qualify_columns=False, identify=False)
        scope = build_scope(query)
        for name in query.named_selects:
            nodes = lineage(name, query, schema=schema, scope=scope, dialect="duckdb").walk()
            leaves = {
                (node.source.db, node.source.name, node.name.split(".")[-1].strip('"'))
                for node in nodes
                if isinstance(node.source, exp.Table) and not node.downstream
            }
            found[name.lower()] = tuple(sorted(leaves))
    except (SqlglotError, ValueError, KeyError) as error:
        logger.info("No column lineage: %s", error)
    return found


def columns_read(sql: str, state: State) -> frozenset[Source] | None:
    """Return every column of a table that a query reads, for its values or to choose, join or group rows.

    Args:
        sql: one SELECT.
        state: the published state.

    Returns:
        None if that is not certain: a column, a table or the SQL itself is not understood.
    """
    known = {(warehouse_name(), one.schema.lower(), one.name.lower()) for one in state.tables}
    found = set()
    try:
        query: Any = sqlglot.parse_one(sql, dialect="duckdb")
        query = qualify(query, schema=_schema(state), dialect="duckdb", identify=False)
        if any(map(_names_no_columns, query.walk())):
            return None
        for scope in traverse_scope(query):
            tables = {name: one for name, one in scope.sources.items() if isinstance(one, exp.Table)}
            if any((one.catalog, one.db.lower(), one.name.lower()) not in known for one in tables.values()):
                return None
            for column in scope.columns:
                if column.table not in scope.sources:
                    return None
                if column.table in tables:
                    table = tables[column.table]
                    found.add((table.db, table.name, column.name))
    except (SqlglotError, ValueError, KeyError) as error:
        logger.info("Columns read are not known: %s", error)
        return None
    return frozenset(found)


def _names_no_columns(node: exp.Expr) -> bool:
    """Return whether something reads columns without naming them: a row as a value, `columns()`, a `*` that is left."""
    is_star = isinstance(node, exp.Star) and not isinstance(node.parent, exp.Count)
    return is_star or isinstance(node, (exp.TableColumn, exp.Columns))


def _schema(state: State) -> dict[str, Any]:
    schema: dict[str, Any] = {warehouse_name(): {}}
    for table in state.tables:
        types = {column.name: column.type for column in table.columns}
        schema[warehouse_name()].setdefault(table.schema, {})[table.name] = types
    return schema
