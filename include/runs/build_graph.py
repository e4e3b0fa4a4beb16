"""The manifest's nodes that must be current before publish; counterpart of `dbt_project/macros/build_graph.sql`."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from include.errors import storage_errors
from include.runs import artifacts, shape
from include.warehouse import builds
from include.warehouse.errors import NotReadyError, PublishError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release

logger = logging.getLogger(__name__)

_IN_DATABASE = ("model", "seed", "snapshot")


class BuildGraph:
    """The nodes of a manifest, with the digests and parents that dbt records for them.

    Attributes:
        manifest: dbt's `manifest.json`, decoded.
    """

    def __init__(self, manifest: dict[str, Any], selected: Iterable[str] | None = None) -> None:
        """Wrap a manifest.

        Args:
            manifest: dbt's `manifest.json`, decoded.
            selected: unique ids of the models, seeds, snapshots and data tests that count, where another DAG has the
                others; a unit test counts with its model.
        """
        self.manifest = manifest
        self._selected = None if selected is None else set(selected)
        self._codes: dict[str, str] = {}

    @cached_property
    def nodes(self) -> list[builds.Node]:
        """All models, seeds, snapshots, data tests and unit tests that must be current."""
        wanted = [
            id_
            for id_, node in self.manifest["nodes"].items()
            if node["resource_type"] in (*_IN_DATABASE, "test") and not self._is_inlined(id_)
        ]
        return [
            builds.Node(id_, self.code(id_), tuple(self._parents(id_)))
            for id_ in (*wanted, *self.manifest["unit_tests"])
            if self._counts(id_)
        ]

    @cached_property
    def relations(self) -> dict[str, str]:
        """The tables of those nodes, including the tests' audit tables, as `schema.table`, by unique id."""
        ids = {node.id for node in self.nodes} & self.manifest["nodes"].keys()
        nodes = {id_: self.manifest["nodes"][id_] for id_ in ids}
        return {id_: f"{node['schema']}.{node['alias']}" for id_, node in nodes.items()}

    def code(self, id_: str) -> str:
        """Return the digest of a node's definition: its SQL, config, macros and inlined ephemeral models.

        Args:
            id_: dbt unique id of a node or unit test.
        """
        if id_ not in self._codes:
            self._codes[id_] = hashlib.md5(self._definition(id_).encode(), usedforsecurity=False).hexdigest()
        return self._codes[id_]

    def _definition(self, id_: str) -> str:
        if unit_test := self.manifest["unit_tests"].get(id_):
            return str(unit_test["checksum"]) + self.code(unit_test["depends_on"]["nodes"][0])
        node = self.manifest["nodes"][id_]
        macros: dict[str, str] = {}
        todo = list(node["depends_on"]["macros"])
        of_dbt = ("dbt", f"dbt_{self.manifest['metadata']['adapter_type']}")
        for name in todo:
            if name not in macros and name.split(".")[1] not in of_dbt and (macro := self.manifest["macros"].get(name)):
                macros[name] = macro["macro_sql"]
                todo += macro["depends_on"]["macros"]
        inlined = [self.code(parent) for parent in node["depends_on"].get("nodes", []) if self._is_inlined(parent)]
        checksum, contract = node["checksum"]["checksum"], node.get("contract")
        parts = [node["raw_code"], checksum, node["config"], contract, node.get("test_metadata"), macros, inlined]
        return json.dumps(parts, sort_keys=True)

    def _is_inlined(self, id_: str) -> bool:
        node = self.manifest["nodes"].get(id_)
        return bool(node) and node["config"].get("materialized") == "ephemeral"

    def _parents(self, id_: str) -> list[str]:
        found: list[str] = []
        for parent in self.manifest["nodes"].get(id_, {}).get("depends_on", {}).get("nodes", []):
            if source := self.manifest["sources"].get(parent):
                found.append(f"{source['schema']}.{source['identifier']}")
            elif self._is_inlined(parent):
                found += self._parents(parent)
            else:
                found.append(parent)
        return found

    def _counts(self, id_: str) -> bool:
        if self._selected is None or id_ in self._selected:
            return True
        unit_test = self.manifest["unit_tests"].get(id_)
        return bool(unit_test) and unit_test["depends_on"]["nodes"][0] in self._selected


def publish(run_id: str, manifest_file: Path, selected: Iterable[str] | None = None) -> Release:
    """Publish the working database if every node of the manifest is current in it and has passed.

    Relations no longer in the manifest are dropped first, so that a removed model's table does not stay published.

    Args:
        run_id: the run that publishes; a copy of the manifest is kept with its artifacts.
        manifest_file: dbt's manifest.
        selected: as for `BuildGraph`.

    Returns:
        The published release.

    Raises:
        include.warehouse.NotReadyError: a node is not current or has not passed.
        include.warehouse.errors.WarehouseError: as `Target.publish`.
    """
    manifest = json.loads(manifest_file.read_text())
    graph = BuildGraph(manifest, selected)
    if not graph.nodes:
        raise NotReadyError(f"Not published: {manifest_file} has no models. Regenerate it: dbt parse.")

    def check(connection: duckdb.DuckDBPyConnection) -> None:
        builds.check_current(connection, graph.nodes)
        # Of a test, the failing rows: there is no table if it passed.
        built = {one for id_, one in graph.relations.items() if manifest["nodes"][id_]["resource_type"] != "test"}
        if missing := sorted(built - {".".join(found) for found in target().relations(connection)}):
            raise NotReadyError(
                f"Not published: {', '.join(missing[:5])} was built, but is not in the database any more: dropped by "
                "hand, or, in PostgreSQL, a view whose table was replaced. Clear the tasks that build it."
            )

    def clean(connection: duckdb.DuckDBPyConnection) -> None:
        for relation in _drop_unknown(connection, graph.relations):
            logger.warning("Dropped %s: no longer built by any model or test of the project", relation)

        try:  # now, so that a full disk fails the task before readers see anything new
            artifacts.keep_manifest(manifest_file, run_id)
        except storage_errors() as error:
            raise PublishError(f"The manifest could not be kept: {error}. Readers see no change.") from error

    release = target().publish(run_id, check, clean)
    artifacts.prune()
    try:
        shape.check(release, manifest)
    except storage_errors(duckdb.Error) as error:  # readers see the release already
        logger.warning("What was published could not be compared with earlier releases: %s", error)
    return release


def _drop_unknown(connection: duckdb.DuckDBPyConnection, relations: Mapping[str, str]) -> list[str]:
    schemas = {relation.split(".")[0] for relation in relations.values()}
    return builds.drop_unknown(connection, relations.values(), relations.keys(), schemas)
