"""dbt's documentation site for the published state: its page, and a catalog read from the published file."""

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from include.patches import dbt_docs_page
from include.runs.project import Project
from include.settings import warehouse_name
from include.warehouse_catalog import published
from include.warehouse_catalog.published import State, Table


def page() -> str:
    """Return dbt's page, without its requests for files that don't exist.

    Raises:
        FileNotFoundError: the installed dbt has no documentation page.
    """
    found = importlib.util.find_spec("dbt.task.docs")
    if found is None or found.origin is None:
        raise FileNotFoundError("dbt's documentation page is not installed")
    return dbt_docs_page.without_failing_requests(
        Path(found.origin).with_name("index.html").read_text(encoding="utf-8")
    )


def catalog(state: State | None, project: Project) -> dict[str, Any]:
    """Return what `dbt docs generate` would write as `catalog.json` (its schema v1) for the published file."""
    tables = {(one.schema.lower(), one.name.lower()): one for one in state.tables} if state else {}
    sizes = published.sizes(state) if state else {}
    nodes: dict[str, Any] = {}
    sources: dict[str, Any] = {}
    for node in project.nodes.values():
        if table := tables.get((node.schema.lower(), node.table.lower())):
            (sources if node.kind == "source" else nodes)[node.unique_id] = _entry(
                node.unique_id, table, sizes.get((table.schema, table.name))
            )
    return {
        "metadata": {
            "dbt_schema_version": "https://schemas.getdbt.com/dbt/catalog/v1.json",
            "generated_at": (state.release.created_at if state else datetime.now(UTC)).isoformat(),
            "env": {},
        },
        "nodes": nodes,
        "sources": sources,
        "errors": None,
    }


def _entry(unique_id: str, table: Table, size: int | None) -> dict[str, Any]:
    stats = {"has_stats": _stat("has_stats", "Has Stats?", table.rows is not None, "Whether there are statistics")}
    if table.rows is not None:
        stats["row_count"] = _stat("row_count", "Row Count", table.rows, "Rows in the published release")
    if size is not None:
        stats["bytes"] = _stat("bytes", "Size", size, "Bytes in the published release")
    kind = "BASE TABLE" if table.kind == "table" else "VIEW"
    return {
        "unique_id": unique_id,
        "metadata": {
            "type": kind,
            "database": warehouse_name(),
            "schema": table.schema,
            "name": table.name,
            "comment": None,
            "owner": None,
        },
        "columns": {
            column.name: {"type": column.type, "index": at, "name": column.name, "comment": None}
            for at, column in enumerate(table.columns, 1)
        },
        "stats": stats,
    }


def _stat(name: str, label: str, value: object, description: str) -> dict[str, Any]:
    return {"id": name, "label": label, "value": value, "include": name != "has_stats", "description": description}
