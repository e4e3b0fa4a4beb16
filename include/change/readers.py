"""Who reads a table that differs, and whether that still works: exposures, queries, dashboards, served tables."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import yaml

from include.change.report import Reader
from include.change.views import tables_of
from include.settings import MARTS_SCHEMA, REPOSITORY_ROOT, warehouse_name
from include.sql import identifier
from include.warehouse.errors import first_line

_QUERIES = REPOSITORY_ROOT / "include" / "queries"
_DASHBOARDS = REPOSITORY_ROOT / "bi" / "assets"  # an optional part


@dataclass(frozen=True)
class _Query:
    """A query of somebody's; `part` names it among others of the same reader."""

    sql: str
    part: str = ""


def find_readers(
    manifest: Mapping[str, Any],
    relations: Collection[str],
    before: duckdb.DuckDBPyConnection,
    after: duckdb.DuckDBPyConnection,
) -> list[Reader]:
    """Return what reads any of some tables.

    A query is checked by planning it, without running it. What did not work before either is no reader's loss, and so
    not said to be broken.

    Args:
        manifest: dbt's, decoded.
        relations: the tables that differ, as `schema.name`.
        before: what readers see, as its default catalog.
        after: what they would see, likewise.

    Returns:
        The broken ones first.
    """
    wanted = {one.lower() for one in relations}
    found = list(_exposures(manifest, wanted))
    for kind, name, queries in (*_saved_queries(), *_datasets()):
        errors, reads = [], False
        for query in queries:
            if tables_of(before, query.sql) & wanted:
                reads = True
                error = _error(after, query.sql)
                if error and not _error(before, query.sql):
                    errors.append(f"{query.part}: {error}" if query.part else error)
        if reads:
            found.append(Reader(kind, name, error="; ".join(errors)))
    found += _served(wanted)
    return sorted(found, key=lambda one: not one.error)


def _served(wanted: Collection[str]) -> Iterator[Reader]:
    """Marts that are copied to a database server, for readers that nobody knows here."""
    if url := os.environ.get("SERVE_URL"):
        address = urlsplit(url)
        place = f"{address.hostname}{address.path}"  # without the user
        for relation in sorted(one for one in wanted if one.split(".")[0] == MARTS_SCHEMA):
            yield Reader("served table", f"{warehouse_name()}_{relation}", place)


def _exposures(manifest: Mapping[str, Any], wanted: Collection[str]) -> Iterator[Reader]:
    nodes = {**manifest.get("nodes", {}), **manifest.get("sources", {})}
    for one in manifest.get("exposures", {}).values():
        parents = [nodes[id_] for id_ in one["depends_on"]["nodes"] if id_ in nodes]
        read = {f"{node['schema']}.{node.get('alias') or node.get('identifier')}".lower() for node in parents}
        if read & set(wanted):
            owner = one.get("owner") or {}
            yield Reader(one["type"], one.get("label") or one["name"], owner.get("name") or owner.get("email") or "")


def _saved_queries() -> Iterator[tuple[str, str, list[_Query]]]:
    for path in sorted(_QUERIES.glob("*.sql")):
        yield "query", path.name, [_Query(path.read_text())]


def _datasets() -> Iterator[tuple[str, str, list[_Query]]]:
    """The columns and metrics that dashboards' charts are made of."""
    charts: dict[str, list[str]] = {}
    for path in sorted(_DASHBOARDS.glob("charts/*.yaml")):
        chart = _yaml(path)
        charts.setdefault(str(chart.get("dataset_uuid")), []).append(str(chart.get("slice_name")))
    for path in sorted(_DASHBOARDS.glob("datasets/**/*.yaml")):
        dataset = _yaml(path)
        table = identifier(*(str(dataset[one]) for one in ("schema", "table_name") if dataset.get(one)))
        source = f"({dataset['sql']})" if dataset.get("sql") else table
        parts = [
            *(
                (one.get("expression") or identifier(one["column_name"]), one["column_name"])
                for one in dataset["columns"]
            ),
            *((one["expression"], f"metric {one['metric_name']}") for one in dataset.get("metrics") or []),
        ]
        queries = [_Query(f"select {expression} from {source} as dataset", part) for expression, part in parts]
        names = ", ".join(charts.get(str(dataset.get("uuid")), []))
        yield "dashboard data set", f"{dataset['table_name']} of {names}" if names else dataset["table_name"], queries


def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()) or {})


def _error(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return why a query cannot be planned; empty if it can."""
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            return "not one SELECT"
        connection.execute(f"explain {sql}")
    except duckdb.Error as error:
        return first_line(error).split("LINE 1")[0].strip()
    return ""
