"""Where a model's columns come from, read from its compiled SQL by sqlglot."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import lineage
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import build_scope

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
    schema: dict[str, Any] = {warehouse_name(): {}}
    for table in state.tables:
        types = {column.name: column.type for column in table.columns}
        schema[warehouse_name()].setdefault(table.schema, {})[table.name] = types
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
