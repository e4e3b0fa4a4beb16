"""What can be compared: a kept release or a database file, with what the dbt project says of its tables."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from include.change.diff import Key, Side, TableDiff, compare
from include.duckdb_session import open_duckdb
from include.runs import project
from include.settings import warehouse_name
from include.sql import identifier
from include.warehouse.connection import spill_config
from include.warehouse.errors import UnknownReleaseError
from include.warehouse.paths import release_id
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse.targets.database_file import attach_statement, encryption_key

MEMORY = "1GB"


@dataclass(frozen=True)
class Database:
    """A database to compare.

    Attributes:
        id: release id, or path.
        title: what it is, for people.
        attach: returns the SQL that attaches it, read-only, under a name; it may contain secrets.
        manifest_path: dbt's manifest of its tables, or None.
        is_release: whether it is a release of this warehouse.
        path: its file, if it has one.
    """

    id: str
    title: str
    attach: Callable[[str], list[str]]
    manifest_path: Path | None
    is_release: bool = False
    path: Path | None = None

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Dbt's manifest; empty if there is none."""
        return dict(json.loads(project.read_manifest(self.manifest_path))) if self.manifest_path else {}

    def side(self, catalog: str) -> Side:
        """Return what `compare` wants to know of it.

        Args:
            catalog: the name it is attached under.
        """
        dbt = project.of_manifest(self.manifest) if self.manifest else project.Project()

        def is_open(relation: str, column: str) -> bool:
            return dbt.is_open(dbt.node_of(*relation.split(".", 1)), column)

        return Side(catalog, keys_of(self.manifest), is_open, not self.is_release or target().keeps_types)

    @contextlib.contextmanager
    def opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open it for reading as readers do: under the warehouse's name, as the default catalog."""
        with open_duckdb() as connection:
            for statement in self.attach(warehouse_name()):
                connection.execute(statement)
            connection.execute(f"use {identifier(warehouse_name())}")
            yield connection


def find_database(reference: str | None = None) -> Database:
    """Return a kept release by id or run id, or a database file by path.

    Args:
        reference: default what readers see.

    Raises:
        UnknownReleaseError: there is no such release or file, or nothing is published.
        WarehouseError: the releases cannot be listed.
    """
    if reference is None:
        release = target().published_release()
        if release is None:
            raise UnknownReleaseError(
                f"Nothing is published as {target().published_location()} yet. Compare with a published file from "
                "elsewhere: BASE=file (make preview) or A=file (make diff)."
            )
        return of_release(release)
    path = Path(reference).expanduser()
    if path.is_file():
        return of_file(path.resolve(), f"the file {path.name}", project.manifest_path(None))
    known = target().list_releases()
    waiting = target().waiting_release()
    for release in [*known, *([waiting] if waiting else [])]:
        if reference in (release.id, release.run_id) or release_id(reference) == release.id:
            return of_release(release)
    kept = ", ".join(release.id for release in known) or "none"
    raise UnknownReleaseError(f"There is neither a release nor a file {reference!r}. Kept releases: {kept}.")


def find_before(database: Database) -> Database:
    """Return the release before another one; for the one that waits, what readers see.

    Raises:
        UnknownReleaseError: none is kept.
    """
    releases = target().list_releases()
    if (waiting := target().waiting_release()) and waiting.location == (str(database.path) if database.path else ""):
        return find_database()
    ids = [release.id for release in releases]
    at = ids.index(database.id) + 1 if database.id in ids else 0
    if at >= len(releases):
        raise UnknownReleaseError(f"No release before {database.id} is kept: nothing to compare it with.")
    return of_release(releases[at])


def of_release(release: Release) -> Database:
    """Return a release of this warehouse."""

    def attach(name: str) -> list[str]:
        return target().attach_statements(release, name=name)

    title = f"release {release.created_at:%Y-%m-%d %H:%M} UTC"
    path = Path(release.location) if Path(release.location).is_file() else None
    return Database(release.id, title, attach, project.manifest_path(release.run_id), is_release=True, path=path)


def of_file(path: Path, title: str, manifest: Path | None) -> Database:
    """Return a database file; encrypted ones are read with the warehouse's key."""

    def attach(name: str) -> list[str]:
        return [attach_statement(path, "read_only", key=encryption_key() if is_encrypted(path) else "", name=name)]

    return Database(str(path), title, attach, manifest, path=path)


def is_encrypted(path: Path) -> bool:
    """Whether a database file can be read with a key only; a sample of an encrypted warehouse, for one, is not."""
    with open_duckdb() as connection:
        try:
            connection.execute(attach_statement(path, "read_only", key="", name="found"))
        except duckdb.Error as error:
            return "without a key" in str(error)
    return False


def compare_databases(
    before: Database, after: Database, *, seconds: float = math.inf, memory: str = MEMORY
) -> list[TableDiff]:
    """Compare two databases; see `diff.compare`.

    Args:
        before: the first one.
        after: the second one.
        seconds: time limit.
        memory: DuckDB's memory limit; what needs more is spilled to the warehouse's disk.

    Raises:
        duckdb.Error: one of them cannot be read.
    """
    if before.id == after.id:
        return []
    # What is encrypted at rest is not spilled in the clear.
    config = {**spill_config(), "temp_file_encryption": bool(os.environ.get("WAREHOUSE_ENCRYPTION_KEY"))}
    with open_duckdb(config=config) as connection:
        connection.execute(f"set memory_limit = '{memory}'")
        for database, name in ((before, "before"), (after, "after")):
            for statement in database.attach(name):
                connection.execute(statement)
        return compare(connection, before.side("before"), after.side("after"), seconds=seconds)


def keys_of(manifest: dict[str, Any]) -> dict[str, list[Key]]:
    """Return the columns that identify a row, by relation, from what dbt tests and enforces.

    Args:
        manifest: dbt's, decoded; may be empty.
    """
    nodes = {**manifest.get("nodes", {}), **manifest.get("sources", {})}
    found: dict[str, list[Key]] = {}

    def add(node: dict[str, Any], columns: Sequence[str]) -> None:
        relation = f"{node['schema']}.{node.get('alias') or node.get('identifier')}"
        if columns and all(isinstance(one, str) for one in columns):
            found.setdefault(relation, []).append(tuple(columns))

    for test in manifest.get("nodes", {}).values():
        node = nodes.get(test.get("attached_node") or "")
        metadata = test.get("test_metadata") or {}
        if node is None or (test.get("config") or {}).get("where"):  # unique among some of the rows only
            continue
        if metadata.get("name") == "unique" and test.get("column_name"):
            add(node, [str(test["column_name"]).strip('"')])
        elif metadata.get("name") == "unique_combination_of_columns":
            add(node, (metadata.get("kwargs") or {}).get("combination_of_columns") or [])
    for node in nodes.values():
        for constraint in node.get("constraints") or []:
            if constraint.get("type") == "primary_key":
                add(node, constraint.get("columns") or [])
        for column in (node.get("columns") or {}).values():
            if any(one.get("type") == "primary_key" for one in column.get("constraints") or []):
                add(node, [column["name"]])
        if node["resource_type"] == "model" and (key := (node.get("config") or {}).get("unique_key")):
            add(node, [key] if isinstance(key, str) else key)
    return found
