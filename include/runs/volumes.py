"""Whether what was published has an unusual number of rows, compared with the releases before it.

A delivery of half the rows, or of all of them twice, passes every test of a single row.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from include import warehouse
from include.warehouse.connection import count_rows

# Unusual is less than half or more than twice the rows of each of the last releases, by at least so many rows.
FACTOR = 2
LEAST_DIFFERENCE = 50
RELEASES = 5
# Technical tables grow and shrink on their own.
_TECHNICAL = ("warehouse.", "audit.")


def unusual(snapshot: warehouse.Snapshot, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of a snapshot with an unusual number of rows, and what is unusual about each.

    Args:
        snapshot: a kept snapshot.
        manifest: dbt's; a model or source table with `meta: {volume_check: false}` is left out.

    Raises:
        duckdb.Error: a snapshot cannot be read.
    """
    before = [one for one in warehouse.list_snapshots() if one.created_at < snapshot.created_at][:RELEASES]
    earlier = [_rows(one) for one in before]
    off = {
        f"{one['schema']}.{one.get('alias') or one.get('identifier')}"
        for one in (*manifest["nodes"].values(), *manifest.get("sources", {}).values())
        if one.get("config", {}).get("meta", one.get("meta", {})).get("volume_check") is False
    }
    found = {}
    for table, rows in sorted(_rows(snapshot).items()):
        known = [counts[table] for counts in earlier if table in counts]
        schema, name = table.split(".", 1)
        if not known or table in off or name.startswith("_dlt") or name == "rejected_rows":
            continue
        if f"{schema}.".startswith(_TECHNICAL):
            continue
        least, most = min(known), max(known)
        nearest = least if rows < least else most
        if (rows * FACTOR < least or rows > most * FACTOR) and abs(rows - nearest) >= LEAST_DIFFERENCE:
            usual = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            of = f"the last {len(known)} releases" if len(known) > 1 else "the release before"
            found[table] = f"{rows:,} rows; {of} had {usual}"
    return found


def _rows(snapshot: warehouse.Snapshot) -> Mapping[str, int]:
    return _count(replace(snapshot, published=False))


@lru_cache(maxsize=64)
def _count(snapshot: warehouse.Snapshot) -> Mapping[str, int]:
    with warehouse.open_snapshot(snapshot) as connection:
        return {f"{schema}.{table}": rows for (schema, table), rows in count_rows(connection).items()}
