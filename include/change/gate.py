"""The gate: a release that changes too much of a mart waits for a person before readers see it.

Off unless `PUBLISH_GATE` is set: a share in percent. `include/warehouse` keeps the release that waits; why it does, and
who decided what and why, is kept with its run.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import duckdb

from include import provenance
from include.change.databases import Database, compare_databases, find_database, of_release
from include.change.diff import TableDiff, is_summed
from include.change.report import Report, summarize
from include.errors import PipelineError, storage_errors
from include.runs import artifacts
from include.settings import MARTS_SCHEMA
from include.sql import identifier
from include.warehouse import hold
from include.warehouse.errors import PublishError, WarehouseError, first_line
from include.warehouse.paths import release_id
from include.warehouse.targets import target
from include.warehouse.targets.base import Gate, Release, find_waiting

SETTING = "PUBLISH_GATE"
_SECONDS = 600.0  # what takes longer to compare waits
_MEMORY = "512MB"
_LONGEST_NOTE = 500
_SHOWN = 10
_NOISE = 1e-9  # of a sum of floats, by the order of its rows


class WaitsForApprovalError(PipelineError):
    """A release was made, and waits for a person; readers see the one before."""

    runbook = "A release waits for approval"


@dataclass(frozen=True)
class Decision:
    """What the gate said of a run's release, and what a person decided.

    Attributes:
        state: `waiting` also if another release has taken its place.
        reasons: why it waits, a line each.
        by: who decided.
        note: why.
        at: when, ISO time.
    """

    state: Literal["waiting", "approved", "refused"]
    reasons: tuple[str, ...]
    by: str = ""
    note: str = ""
    at: str = ""


def limit() -> float | None:
    """Return the share in percent above which a release waits; None: none does.

    Raises:
        WarehouseError: the setting is no number from 0 to 100.
    """
    value = os.environ.get(SETTING, "").strip()
    if not value:
        return None
    if re.fullmatch(r"\d{1,3}(\.\d+)?", value) and float(value) <= 100:
        return float(value)
    raise WarehouseError(f"{SETTING} is a share in percent, such as 20, from 0 to 100, not {value!r}.")


def for_release(manifest: Path) -> Gate:
    """Return the gate that `Target.publish` takes.

    Args:
        manifest: dbt's manifest of the release.

    Raises:
        WarehouseError: as `limit`.
    """
    percent = limit()

    def gate(new: Release) -> bool:
        try:
            return percent is not None and must_wait(new, manifest, percent)
        except storage_errors() as error:
            raise PublishError(f"What it changes could not be kept: {error}. Readers see no change.") from error

    return gate


def must_wait(new: Release, manifest: Path, percent: float) -> bool:
    """Compare a release that is not shown yet with what readers see, and keep the result with its run.

    Args:
        new: the release.
        manifest: path of dbt's manifest of it.
        percent: what `limit` returned.

    Raises:
        OSError: the result cannot be kept; nothing was shown.
    """
    published = target().published_release()
    if published is None:
        return False
    before, after = find_database(published.id), replace(of_release(new), manifest_path=manifest)
    try:
        tables = tuple(compare_databases(before, after, seconds=_SECONDS, memory=_MEMORY))
        reasons = tuple(_reasons(tables, before, after, percent))
    except (duckdb.Error, WarehouseError) as error:
        tables, reasons = (), (f"it could not be compared with what readers see: {first_line(error)}",)
    if reasons:
        artifacts.keep_difference(new.run_id, Report(before.title, after.title, tables).to_json())
        _keep(new.run_id, Decision("waiting", reasons))
    return bool(reasons)


def _reasons(tables: Sequence[TableDiff], before: Database, after: Database, percent: float) -> Iterator[str]:
    marts = [one for one in tables if one.relation.split(".")[0] == MARTS_SCHEMA]
    with before.opened() as old, after.opened() as new:
        for table in marts:
            for what, part, whole in _shares(table, old, new):
                if part and (not whole or 100 * part > percent * whole):
                    share = f"{100 * part / whole:.4g} %" if whole else "all"
                    yield f"{table.relation}: {share} of {what}: {summarize(table)}"
                    break


def _shares(
    table: TableDiff, before: duckdb.DuckDBPyConnection, after: duckdb.DuckDBPyConnection
) -> Iterator[tuple[str, float, float]]:
    """Yield what differs of a table, how much of it, and how much there was."""
    rows = table.rows_before or 0
    if table.status == "failed":
        yield "it, as far as is known", 1, 1
    elif table.status == "removed":
        yield "its rows", max(rows, 1), max(rows, 1)
    elif table.status == "changed":
        keyed = table.added + table.removed + (table.changed or 0)
        yield "its rows", keyed if table.key else max(table.added, table.removed), rows
        columns, sums = _read(before, table.relation)
        yield "its columns", sum(one.status not in ("added", "changed") for one in table.columns), max(columns, 1)
        new_sums = _read(after, table.relation)[1]
        for name in (one for one in sums if one in new_sums):
            (old, old_size), (new, new_size) = sums[name], new_sums[name]
            by = abs(new - old)
            yield f"the sum of {name}", by if by > _NOISE * max(old_size, new_size) else 0, abs(old)


def _read(connection: duckdb.DuckDBPyConnection, relation: str) -> tuple[int, dict[str, tuple[float, float]]]:
    """Return how many columns a table has, and the sum of each that has one, with the sum of its absolute values.

    Of all of them, also those whose sums the difference does not show: the gate says no more than a share.
    """
    schema, table = relation.split(".", 1)
    columns = target().columns_of(connection, schema, table)
    summed = [name for name, data_type in columns if is_summed(name, data_type)]
    numbers = [f"cast({identifier(name)} as double)" for name in summed]
    wanted = [
        f"coalesce(fsum({sign}({number})) filter (isfinite({number})), 0)" for number in numbers for sign in ("", "abs")
    ]
    found = connection.execute(f"select {', '.join(wanted) or 0} from {identifier(schema, table)}").fetchone() or ()
    return len(columns), dict(zip(summed, zip(found[::2], found[1::2], strict=False), strict=False))


def decision_of(run_id: str) -> Decision | None:
    """Return what was decided about a run's release; None if it did not have to wait."""
    try:
        raw = json.loads(artifacts.decision_of(run_id))
        return Decision(**{**raw, "reasons": tuple(raw["reasons"])})
    except (ValueError, TypeError, KeyError):
        return None


def decide(release_or_run_id: str, *, approved: bool, note: str, by: str = "") -> Release:
    """Show readers the release that waits, or remove it; keep who decided, and why.

    Args:
        release_or_run_id: the release that is meant.
        approved: whether to show it.
        note: why, in a few words.
        by: who decided; default this process's user.

    Returns:
        The release.

    Raises:
        ValueError: there is no note.
        UnknownReleaseError: it does not wait (any more).
        ReleaseHeldError: a rollback holds, so nothing can be approved.
        WarehouseError: as `Target.approve`.
        OSError: the decision cannot be kept; nothing was changed.
    """
    note = " ".join(note.split())[:_LONGEST_NOTE]
    if not note:
        raise ValueError("Say why: a decision needs a note.")
    waiting = find_waiting(target().waiting_release(), release_or_run_id)
    if approved:
        hold.check()
    earlier = decision_of(waiting.run_id)
    decided = Decision(
        "approved" if approved else "refused",
        earlier.reasons if earlier else (),
        by or provenance.current().started_by,
        note,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # First: whoever is killed between the two decides again.
    _keep(waiting.run_id, decided)
    return target().approve(waiting.id) if approved else target().refuse(waiting.id)


def waits(run_id: str) -> WaitsForApprovalError:
    """Return the error that says so of a run's release."""
    decision = decision_of(run_id)
    reasons = list(decision.reasons if decision else ())
    more = [f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    lines = [
        f"The release {release_id(run_id)} waits for approval, as it changes more than {os.environ.get(SETTING)} %:",
        *reasons[:_SHOWN],
        *more,
        "Readers still see the release before. Approve or refuse it on the page Releases of the Warehouse section, or: "
        f'make approve ID={release_id(run_id)} NOTE="..." (or make refuse). The next run takes its place.',
    ]
    return WaitsForApprovalError("\n".join(lines))


def _keep(run_id: str, decision: Decision) -> None:
    artifacts.keep_decision(run_id, json.dumps(asdict(decision), indent=2) + "\n")
