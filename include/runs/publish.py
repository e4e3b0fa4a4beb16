"""Publish what was built, if all of the dbt project is current and has passed."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import duckdb

from include.change import gate, views
from include.errors import storage_errors
from include.runs import artifacts, shape
from include.runs.build_graph import BuildGraph
from include.settings import REJECTED_ROWS, warehouse_name
from include.warehouse import builds, hold
from include.warehouse.errors import NotReadyError, PublishError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release

logger = logging.getLogger(__name__)


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
        include.change.gate.WaitsForApprovalError: it was made, and waits for a person.
        include.warehouse.hold.ReleaseHeldError: a rollback holds.
        include.warehouse.NotReadyError: a node is not current or has not passed.
        include.warehouse.errors.WarehouseError: as `Target.publish`.
    """
    manifest = json.loads(manifest_file.read_text())
    graph = BuildGraph(manifest, selected)
    if not graph.nodes:
        raise NotReadyError(f"Not published: {manifest_file} has no models. Regenerate it: dbt parse.")

    def check(connection: duckdb.DuckDBPyConnection) -> None:
        builds.check_current(connection, graph.nodes)
        if missing := sorted(graph.must_exist - {".".join(found) for found in target().relations(connection)}):
            raise NotReadyError(
                f"Not published: {', '.join(missing[:5])} was built, but is not in the database any more: dropped by "
                "hand, or, in PostgreSQL, a view whose table was replaced. Clear the tasks that build it."
            )
        hold.check()

    def clean(connection: duckdb.DuckDBPyConnection) -> None:
        for relation in builds.drop_unknown(connection, set(graph.relations.values())):
            logger.warning("Dropped %s: no longer built by any model or test of the project", relation)
        for schema, table in target().relations(connection):
            if table == REJECTED_ROWS:
                builds.drop_rejects_of_failed_loads(connection, schema)
        views.forget_catalog(connection, warehouse_name())

        try:  # now, so that a full disk fails the task before readers see anything new
            artifacts.keep_manifest(manifest_file, run_id)
        except storage_errors() as error:
            raise PublishError(f"The manifest could not be kept: {error}. Readers see no change.") from error

    release = target().publish(run_id, check, clean, gate.for_release(manifest_file))
    artifacts.prune()
    if not release.published:
        raise gate.waits(run_id)
    try:
        shape.check(release, manifest)
    except storage_errors(duckdb.Error) as error:  # readers see the release already
        logger.warning("What was published could not be compared with earlier releases: %s", error)
    return release
