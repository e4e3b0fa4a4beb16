"""Whether what was published has an unusual shape, compared with the releases before it.

A delivery of half the rows, or of all of them twice, or with a column that is suddenly empty, passes every test of a
single row.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import duckdb

from include.runs import artifacts
from include.settings import REJECTED_ROWS, is_audit, warehouse_name
from include.sql import identifier
from include.warehouse.connection import time_limit
from include.warehouse.targets import target
from include.warehouse.targets.base import Release

# Unusual is less than half or more than twice of what each of the last releases had, by at least so many rows or
# distinct values; or a share of NULLs that is further away by this much, of at least so many rows.
FACTOR = 2
LEAST_ROWS = 50
LEAST_DISTINCT = 3
NULL_SHARE = 0.1
RELEASES = 5
# A larger release is compared by its numbers of rows alone.
SECONDS = 30.0
SHOWN = 5  # per table
# Technical tables and columns grow and shrink on their own.


def check(release: Release, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Keep the shape of a release with its run's artifacts, and return what is unusual about it, by table.

    Args:
        release: a kept release.
        manifest: dbt's; a model or source table with `meta: {shape_check: false}` is left out.

    Raises:
        duckdb.Error: the release cannot be read.
        OSError: the artifacts cannot be written.
    """
    found = measure(release)
    before = [one for one in target().list_releases() if one.created_at < release.created_at][:RELEASES]
    earlier = [known for one in before if (known := artifacts.shape_of(one.run_id))]
    off = {
        f"{one['schema']}.{one.get('alias') or one.get('identifier')}"
        for one in (*manifest["nodes"].values(), *manifest.get("sources", {}).values())
        if one.get("config", {}).get("meta", one.get("meta", {})).get("shape_check") is False
    }
    unusual = {}
    for table, shape in found.items():
        if table not in off and (texts := list(_unusual(shape, [one[table] for one in earlier if table in one]))):
            more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
            unusual[table] = "; ".join([*texts[:SHOWN], *more])
    artifacts.keep_shape(release.run_id, found, unusual)
    return unusual


def measure(release: Release) -> dict[str, artifacts.Shape]:
    """Return the shape of each table of a release, by `schema.table`; without columns if that takes too long.

    Raises:
        duckdb.Error: it cannot be read.
    """
    with target().open_release(release) as connection:
        connection.execute("set memory_limit = '512MB'")
        counts = {
            table: rows
            for table, rows in target().count_rows(connection).items()
            if table[0] != "warehouse"
            and not is_audit(table[0])
            and not table[1].startswith("_dlt")
            and table[1] != REJECTED_ROWS
        }
        found = {".".join(table): artifacts.Shape(rows, {}) for table, rows in counts.items()}
        deadline = time.monotonic() + SECONDS
        with suppress(duckdb.InterruptException, duckdb.OutOfMemoryException), time_limit(connection, SECONDS):
            for table, rows in counts.items():
                if time.monotonic() > deadline:  # interrupted between two queries
                    break
                found[".".join(table)] = artifacts.Shape(rows, _columns(connection, *table))
        return found


def _columns(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> dict[str, tuple[int, int]]:
    relation = identifier(warehouse_name(), schema, table)
    names = [one[0] for one in connection.execute(f"describe {relation}").fetchall() if not one[0].startswith("_")]
    if not names:
        return {}
    wanted = ", ".join(
        f"count(*) - count({name}), approx_count_distinct({name})" for name in (identifier(one) for one in names)
    )
    numbers = connection.execute(f"select {wanted} from {relation}").fetchall()[0]
    return {name: (numbers[2 * at], numbers[2 * at + 1]) for at, name in enumerate(names)}


def _unusual(shape: artifacts.Shape, earlier: Sequence[artifacts.Shape]) -> Iterator[str]:
    rows = [one.rows for one in earlier]
    has_other_rows = _is_far(shape.rows, rows, LEAST_ROWS)
    if has_other_rows:
        yield f"{shape.rows:,} rows {_before(rows, '{:,}'.format)}"
    for name, (nulls, distinct) in shape.columns.items():
        known = [one for one in earlier if one.rows and name in one.columns]
        if not known or not shape.rows:
            continue
        share, shares = nulls / shape.rows, [one.columns[name][0] / one.rows for one in known]
        away = max(min(shares) - share, share - max(shares))
        if away > NULL_SHARE and away * shape.rows >= LEAST_ROWS:
            yield f"{name} is NULL in {_percent(share)} of the rows {_before(shares, _percent)}"
            continue
        values = [one.columns[name][1] for one in known]
        if not has_other_rows and _is_far(distinct, values, LEAST_DISTINCT):
            plural = "value" if distinct == 1 else "values"
            yield f"{name} has {distinct:,} distinct {plural} {_before(values, '{:,}'.format)}"


def _is_far(number: int, earlier: Sequence[int], least: int) -> bool:
    if not earlier:
        return False
    low, high = min(earlier), max(earlier)
    nearest = low if number < low else high
    return (number * FACTOR < low or number > high * FACTOR) and abs(number - nearest) >= least


def _before(earlier: Sequence[Any], shown: Callable[[Any], str]) -> str:
    low, high = shown(min(earlier)), shown(max(earlier))
    releases = f"the last {len(earlier)} releases" if len(earlier) > 1 else "the release before"
    return f"({low}{f' to {high}' if high != low else ''} in {releases})"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
