"""What each release changed for readers: found out when it is published, and kept with its run."""

import logging

import duckdb

from include.change.databases import compare_databases, find_before, of_release
from include.change.report import Report, summarize
from include.errors import storage_errors
from include.runs import artifacts
from include.warehouse.errors import UnknownReleaseError, WarehouseError
from include.warehouse.targets.base import Release

logger = logging.getLogger(__name__)

SECONDS = 30.0
_MEMORY = "512MB"


def keep_difference(release: Release) -> dict[str, str]:
    """Compare a new release with the one before, and keep the result.

    A failure is only logged: readers see the release already.

    Args:
        release: the new release; the result is kept with its run's artifacts.

    Returns:
        How each table that differs does so, in a line.
    """
    try:
        after = of_release(release)
        before = find_before(after)
        tables = tuple(compare_databases(before, after, seconds=SECONDS, memory=_MEMORY))
        artifacts.keep_difference(release.run_id, Report(before.title, after.title, tables).to_json())
    except UnknownReleaseError:  # the first one
        return {}
    except storage_errors(duckdb.Error, WarehouseError, ValueError, KeyError) as error:
        logger.warning("%s could not be compared with the release before: %s", release.id, error)
        return {}
    for table in tables:
        logger.info("%s: %s", table.relation, summarize(table))
    return {table.relation: summarize(table) for table in tables}


def difference_of(run_id: str) -> Report | None:
    """Return what the release of a run changed for readers; None if that is not known."""
    return Report.from_json(artifacts.difference_of(run_id))
