"""Read the views of an attached database under another catalog name than the one in their SQL.

Publish takes the catalog out of it (`forget_catalog`); this is for the working database, and for what remains. A view
stores the catalog's name. Attached under another one it fails; with another database attached under that name,
it silently reads the wrong tables. So its SQL is rewritten, with that of the views it reads, and put into a schema of
the in-memory catalog.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb

from include.sql import identifier

_NAME = r'(?:"(?:[^"]|"")*"|[^\s".(;]+)'
_CREATE_VIEW = re.compile(
    rf"CREATE VIEW {_NAME}(?:\.{_NAME})*(?P<columns>\s*\((?:{_NAME}(?:,\s*)?)+\))?\s+AS\s+(?P<select>.*?);?\s*",
    re.DOTALL,
)


class UnsupportedViewError(Exception):
    """The view's SQL cannot be rewritten."""


class Views:
    """The views of one attached DuckDB database, readable under the catalog name that it has here."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, catalog: str) -> None:
        """Look up the views; none is created yet.

        Args:
            connection: an in-memory connection to which the database is attached.
            catalog: the name it is attached under.
        """
        self._connection, self._catalog = connection, catalog
        found = connection.execute(
            "select schema_name, view_name, sql from duckdb_views() where database_name = $1 and not internal"
            " union all select schema_name, table_name, null from duckdb_tables() where database_name = $1",
            [catalog],
        ).fetchall()
        self._known = {(schema.lower(), name.lower()): (schema, name) for schema, name, _ in found}
        # Those of a lake and of PostgreSQL can be read under any name.
        kind = connection.execute("select type from duckdb_databases() where database_name = ?", [catalog]).fetchone()
        self._is_file = kind == ("duckdb",)
        self._sql = {(schema, name): sql for schema, name, sql in found if sql and self._is_file}
        self._created: set[tuple[str, str]] = set()

    def is_stored(self, schema: str, name: str) -> bool:
        """Return whether it is a table in a DuckDB file, which knows its number of rows."""
        return self._is_file and (schema, name) not in self._sql

    def readable(self, schema: str, name: str) -> str:
        """Return the name by which a table or view is read on this connection, quoted.

        Raises:
            UnsupportedViewError: the SQL of the view, or of one that it reads, cannot be rewritten.
            duckdb.Error: it reads what does not exist.
        """
        return identifier(*self._place(schema, name))

    def _place(self, schema: str, name: str) -> tuple[str, str, str]:
        key = (schema, name)
        if key not in self._sql:
            return self._catalog, schema, name
        place = ("memory", f"{self._catalog}.{schema}", name)
        if key not in self._created:
            matched = _CREATE_VIEW.fullmatch(self._sql[key])
            if not matched:
                raise UnsupportedViewError(f"the SQL of the view {schema}.{name} cannot be read")
            select = self._rewritten(schema, name, matched["select"])
            self._connection.execute(f"create schema if not exists {identifier(*place[:2])}")
            self._connection.execute(
                f"create or replace view {identifier(*place)}{matched['columns'] or ''} as {select}"
            )
            self._created.add(key)
        return place

    def _rewritten(self, schema: str, name: str, select: str) -> str:
        tree = _parsed(self._connection, select)
        if tree.get("error"):
            raise UnsupportedViewError(
                f"the SQL of the view {schema}.{name} cannot be rewritten: {tree.get('error_message', 'unknown')}"
            )
        with_names = _with_names(tree)
        for node in _nodes(tree):
            self._retarget(node, schema, with_names)
        row = self._connection.execute("select json_deserialize_sql(cast(? as json))", [json.dumps(tree)]).fetchone()
        return str(row[0]) if row else ""

    def _retarget(self, node: dict[str, Any], own_schema: str, with_names: set[str]) -> None:
        if node.get("type") == "BASE_TABLE":
            schema, name = node["schema_name"], node["table_name"]
            if not schema and name.lower() in with_names:
                return
            found = self._find(schema or own_schema, name) or (None if schema else self._find("main", name))
            if found:
                place = self._place(*found)
                node["catalog_name"], node["schema_name"], node["table_name"] = place
                node["qualified_name"] = {"path": place}  # of DuckDB 2, which 1.5 ignores
        elif node.get("type") == "COLUMN_REF":  # the table keeps its name, so what is in front of it can go
            names = node["column_names"]
            if len(names) > 3 and self._find(names[1], names[2]):
                node["column_names"] = names[2:]
            elif len(names) > 2 and self._find(names[0], names[1]):
                node["column_names"] = names[1:]
        elif node.get("class") == "FUNCTION" and node.get("catalog", "") not in ("", "system", "temp"):
            node["catalog"] = self._catalog
            node["qualified_name"] = {"path": [self._catalog, node["schema"], node["function_name"]]}

    def _find(self, schema: str, name: str) -> tuple[str, str] | None:
        return self._known.get((schema.lower(), name.lower()))


def forget_catalog(connection: duckdb.DuckDBPyConnection, catalog: str) -> None:
    """Take a DuckDB file's own name out of its views, so that they work whatever it is attached as.

    DuckDB looks for the tables of a view without it in the view's own catalog. What it cannot write again as the same
    query stays as it is; so does what names a schema that is called like the file.

    Args:
        connection: with the file's tables in a catalog.
        catalog: its name.
    """
    found = connection.execute(
        "select schema_name, view_name, sql from duckdb_views() join duckdb_databases() using (database_name)"
        " where database_name = $1 and type = 'duckdb' and not duckdb_views.internal"
        " and (contains(lower(sql), lower($1) || '.') or contains(lower(sql), lower($1) || '\".'))",
        [catalog],
    ).fetchall()
    for schema, name, sql in found:
        matched = _CREATE_VIEW.fullmatch(sql)
        tree = _parsed(connection, matched["select"]) if matched else {"error": True}
        if matched and not tree.get("error") and _without_catalog(tree, catalog.lower()):
            select = connection.execute("select json_deserialize_sql(cast(? as json))", [json.dumps(tree)]).fetchall()
            if _without_places(_parsed(connection, select[0][0])) == _without_places(tree):
                view = f"{identifier(catalog, schema, name)}{matched['columns'] or ''}"
                with contextlib.suppress(duckdb.Error):  # a view of somebody's, on a table that is gone
                    connection.execute(f"create or replace view {view} as {select[0][0]}")


def _without_catalog(tree: dict[str, Any], catalog: str) -> bool:
    """Take a catalog out of a query; return whether it was there."""
    changed = False
    for node in _nodes(tree):
        if node.get("type") == "BASE_TABLE" and node["catalog_name"].lower() == catalog:
            if node["schema_name"].lower() in ("", catalog):
                return False
            node["catalog_name"], changed = "", True
            node.pop("qualified_name", None)
        elif (
            node.get("type") == "COLUMN_REF" and len(names := node["column_names"]) > 3 and names[0].lower() == catalog
        ):
            node["column_names"], changed = names[1:], True
        elif node.get("class") == "FUNCTION" and node.get("catalog", "").lower() == catalog:
            node["catalog"], changed = "", True
            node.pop("qualified_name", None)
    return changed


def _without_places(tree: Any) -> Any:
    """Return a query without where in the text each part was."""
    if isinstance(tree, dict):
        return {
            name: _without_places(one) for name, one in tree.items() if name not in ("query_location", "qualified_name")
        }
    return [_without_places(one) for one in tree] if isinstance(tree, list) else tree


def tables_of(connection: duckdb.DuckDBPyConnection, sql: str) -> set[str]:
    """Return the tables and views that a query names, as `schema.name` in lower case; none if it is no SELECT."""
    tree = _parsed(connection, sql)
    with_names = _with_names(tree)
    found = [node for node in _nodes(tree) if node.get("type") == "BASE_TABLE"]
    return {
        f"{node['schema_name'] or 'main'}.{node['table_name']}".lower()
        for node in found
        if node["schema_name"] or node["table_name"].lower() not in with_names
    }


def _parsed(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    row = connection.execute("select cast(json_serialize_sql(?) as varchar)", [sql]).fetchone()
    return dict(json.loads(row[0])) if row else {"error": True}


def _with_names(tree: dict[str, Any]) -> set[str]:
    entries = ((node.get("cte_map") or {}).get("map") or [] for node in _nodes(tree))
    return {str(one["key"]).lower() for some in entries for one in some}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    todo = [tree]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield one
            todo += one.values()
        elif isinstance(one, list):
            todo += one
