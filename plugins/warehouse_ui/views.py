"""Data for the pages and the JSON API, from Airflow's metadata, the run artifacts and the published file.

One function per page. Personal data is masked here, so that neither pages nor API can leak it.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
from airflow.models.dag import DagModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from include.change.databases import compare_databases, find_database
from include.change.diff import TableDiff
from include.change.gate import Decision, decision_of
from include.change.releases import difference_of
from include.change.report import describe, summarize
from include.runs import artifacts, project
from include.runs.artifacts import FAILED, Failure, Result
from include.runs.project import Node, Project, Test
from include.settings import MARTS_SCHEMA
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import lineage, published
from include.warehouse_catalog.files import MASK
from include.warehouse_catalog.published import Profile, State, Table, TableProfile
from warehouse_ui.access import DAG_ID
from warehouse_ui.history import Run, last_runs

GRID_RUNS = 30
HITS = 200
# For a comparison that a visitor waits for, in the api-server.
_SECONDS, _MEMORY = 10.0, "256MB"


@dataclass(frozen=True)
class ReleaseView:
    """A kept release.

    Attributes:
        code: the commit that made it, or empty.
        started_by: who started its run, or empty.
        changes: change in row counts since the previous release, by table; None for the oldest.
        decision: if it had to wait for a person: why, who decided, and why so.
    """

    id: str
    run_id: str
    created_at: datetime
    size_bytes: int
    published: bool
    code: str = ""
    started_by: str = ""
    changes: dict[str, int] | None = None
    decision: Decision | None = None


@dataclass(frozen=True)
class Freshness:
    """The age of the published data, against the freshness limits of dbt's sources.

    Attributes:
        status: fresh, late or stale; empty if no source sets limits.
    """

    status: str
    loaded_at: datetime
    age_seconds: float
    warn_after_seconds: float | None
    error_after_seconds: float | None


@dataclass(frozen=True)
class Problem:
    """Why readers see nothing newer: the runs that failed since the last green one.

    Attributes:
        run: the last of them.
        runs: how many there are.
        since: when the first of them started.
        load_errors: why loads failed in the last one, without values from rows.
        failed: dbt nodes that failed in the last one: unique id, and a name or what it checks.
    """

    run: Run
    runs: int
    since: datetime | None
    load_errors: list[str]
    failed: list[tuple[str, str]]


@dataclass(frozen=True)
class Overview:
    """The state of the warehouse at a glance.

    Attributes:
        problem: None if the last run that ended was green.
        runs: newest first.
        next_run: when the scheduler starts the next one; None while the DAG is paused.
        tests: number of tests of the published run by status.
        unusual: published tables with an unusual shape, and what is unusual about each.
    """

    problem: Problem | None
    release: ReleaseView | None
    freshness: Freshness | None
    tables: int
    rows: int
    tests: dict[str, int]
    next_run: datetime | None
    runs: list[Run]
    unusual: dict[str, str]


@dataclass(frozen=True)
class TestState:
    """A test and its last result."""

    unique_id: str
    title: str
    name: str
    description: str
    column: str
    severity: str
    kind: str
    status: str
    failures: int | None
    run_id: str


@dataclass(frozen=True)
class TableView:
    """A table of the published database, with its dbt metadata.

    Attributes:
        bytes: size on disk; None for a view, and for a moment after a publish.
    """

    schema: str
    name: str
    kind: str
    rows: int | None
    bytes: int | None
    description: str
    owner: str
    materialized: str
    tags: tuple[str, ...]
    tests: dict[str, int]


@dataclass(frozen=True)
class Hit:
    """Something that a search found.

    Attributes:
        kind: table, column or test.
        text: its description.
        unique_id: a test's id.
    """

    kind: str
    title: str
    text: str
    schema: str = ""
    table: str = ""
    unique_id: str = ""


@dataclass(frozen=True)
class ColumnView:
    """A column.

    Attributes:
        masked: whether its values are hidden from this visitor.
        sources: schema, table and column of what its values are made of, as far as it is known.
    """

    name: str
    type: str
    description: str
    contains_pii: bool
    masked: bool
    tests: list[TestState]
    sources: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class TablePage:
    """Everything about one table except its profile.

    Attributes:
        unusual: what is unusual about it in this release, or empty.
        releases: its number of rows in the kept releases that have it, oldest first.
    """

    table: TableView
    unusual: str
    releases: list[int]
    columns: list[ColumnView]
    tests: list[TestState]
    sample: list[tuple[str | None, ...]]
    sample_error: str
    depends_on: list[str]
    used_by: list[str]


@dataclass(frozen=True)
class GridRow:
    """A test and its status in each of the last runs; empty if it did not run."""

    test: TestState
    statuses: list[str]


@dataclass(frozen=True)
class RejectedRow:
    """A line of a file that could not be loaded."""

    table_name: str
    file: str
    line: int | None
    column_name: str | None
    reason: str
    text: str


@dataclass(frozen=True)
class Quality:
    """Tests over the last runs, oldest run first, and rejected rows.

    Attributes:
        rejected_run: the last run with a load failed by rejected rows, if no run has succeeded since.
        rejected_source: the source of that load, or one of them.
    """

    runs: list[Run]
    tests: list[GridRow]
    rejected_run: str
    rejected_source: str
    rejected_by_run: list[RejectedRow]
    rejected_published: list[RejectedRow]


@dataclass(frozen=True)
class TestPage:
    """One test in one run."""

    test: TestState
    task_id: str
    message: str
    seconds: float
    failing_rows: int | None
    columns: tuple[str, ...]
    masked: tuple[str, ...]
    sample: tuple[tuple[str | None, ...], ...]
    sql: str
    run_ids: list[str]


def read_state() -> tuple[State | None, Project]:
    """Return the published state and the dbt project it was built with.

    Raises:
        include.warehouse.errors.WarehouseError: the published file cannot be read.
    """
    state = published.current()
    return state, project.of_run(state.release.run_id if state else None)


def overview(session: Session, limit: int) -> Overview:
    """Return the state of the warehouse at a glance, with up to `limit` runs."""
    state, dbt = read_state()
    runs = last_runs(session, limit)
    next_run = session.scalar(
        select(DagModel.next_dagrun_create_after).where(DagModel.dag_id == DAG_ID, DagModel.is_paused.is_(False))
    )
    problem = _problem(runs, dbt)
    if state is None:
        return Overview(problem, None, None, 0, 0, {}, next_run, runs, {})
    results = artifacts.test_results_of(state.release.run_id)
    return Overview(
        problem,
        _release(state.release),
        _freshness(state, dbt),
        len(state.tables),
        sum(table.rows or 0 for table in state.tables if table.kind == "table"),
        _count(result.status for result in results.values()),
        next_run,
        runs,
        artifacts.unusual_in(state.release.run_id),
    )


def _problem(runs: Sequence[Run], dbt: Project) -> Problem | None:
    ended = [run for run in runs if run.state in ("success", "failed")]
    failed = list(itertools.takewhile(lambda run: run.state == "failed", ended))
    if not failed:
        return None
    last = failed[0]
    results = [result for result in artifacts.results_of(last.run_id) if result.status in (*FAILED, "stale")]
    names = {one.unique_id: one.title for one in dbt.tests.values()}
    names |= {one.unique_id: one.name for one in dbt.nodes.values()}
    return Problem(
        last,
        len(failed),
        failed[-1].started_at,
        [load.error for load in artifacts.loads_of(last.run_id) if load.error],
        [
            (one.unique_id, names.get(one.unique_id, one.unique_id.split(".")[2]))
            for one in results
            if one.status != "warn"
        ],
    )


def tables() -> list[TableView]:
    """Return every table of the published database."""
    state, dbt = read_state()
    if state is None:
        return []
    results = artifacts.test_results_of(state.release.run_id)
    sizes = published.sizes(state)
    return [_table(table, dbt.node_of(table.schema, table.name), dbt, results, sizes) for table in state.tables]


def schema_order(schema: str) -> tuple[int, str]:
    """Return a sort key: the marts first, then what they are built from."""
    return {MARTS_SCHEMA: 0, "staging": 1}.get(schema, 2), schema


def search(words: str) -> list[Hit]:
    """Return the tables, columns and tests whose name or description has all of these words; those by name first."""
    state, dbt = read_state()
    wanted = words.lower().split()
    if state is None or not wanted:
        return []
    hits = []
    for table in state.tables:
        node = dbt.node_of(table.schema, table.name)
        name = f"{table.schema}.{table.name}"
        hits.append(Hit("table", name, node.description if node else "", table.schema, table.name))
        for column in table.columns:
            known = node.columns.get(column.name.lower()) if node else None
            text = known.description if known else ""
            hits.append(Hit("column", f"{name}.{column.name}", text, table.schema, table.name))
    hits += [Hit("test", one.title, one.description, unique_id=one.unique_id) for one in dbt.tests.values()]
    kinds = ("table", "column", "test")

    def has(text: str) -> bool:
        return all(word in text.lower() for word in wanted)

    found = [hit for hit in hits if has(f"{hit.title} {hit.text}")]
    found.sort(key=lambda hit: (not has(hit.title), kinds.index(hit.kind), schema_order(hit.schema), hit.title))
    return found[:HITS]


def table_page(schema: str, name: str, sees_all: bool) -> TablePage | None:
    """Return one table, or None if it doesn't exist.

    Args:
        schema: its exact schema.
        name: its exact name.
        sees_all: whether the visitor may see personal data.
    """
    state, dbt = read_state()
    table = state.table(schema, name) if state else None
    if state is None or table is None:
        return None
    run_id = state.release.run_id
    results = artifacts.test_results_of(run_id)
    node = dbt.node_of(schema, name)
    names = {one.name.lower() for one in table.columns}
    by_column: dict[str, list[TestState]] = {}
    for test in dbt.tests_of(node.unique_id) if node else ():
        of_column = node is not None and test.node == node.unique_id and test.column.lower() in names
        by_column.setdefault(test.column.lower() if of_column else "", []).append(
            _test(test, results.get(test.unique_id), run_id)
        )
    built = next((one for one in artifacts.results_of(run_id) if node and one.unique_id == node.unique_id), None)
    sources = lineage.columns(artifacts.compiled_sql(run_id, built), state) if built else {}
    columns = [
        replace(
            _column(one, dbt, node, by_column.get(one.name.lower(), []), sees_all),
            sources=sources.get(one.name.lower(), ()),
        )
        for one in table.columns
    ]
    sample: list[tuple[str | None, ...]] = []
    error = ""
    try:
        sample = [
            tuple(MASK if column.masked else value for column, value in zip(columns, row, strict=True))
            for row in published.sample(table)
        ]
    except duckdb.Error as problem:
        error = str(problem).splitlines()[0]
    own = node.unique_id if node else ""
    return TablePage(
        _table(table, node, dbt, results, published.sizes(state)),
        artifacts.unusual_in(run_id).get(f"{schema}.{name}", ""),
        _rows_of_releases(f"{schema}.{name}"),
        columns,
        by_column.get("", []),
        sample,
        error,
        [one for one in (node.depends_on if node else ()) if one in dbt.nodes],
        [one.unique_id for one in dbt.nodes.values() if own in one.depends_on],
    )


def _rows_of_releases(table: str) -> list[int]:
    counts = [_counts(release) for release in reversed(target().list_releases())]
    return [one[table] for one in counts if table in one]


def table_profile(schema: str, name: str, sees_all: bool) -> TableProfile | None:
    """Return a profile of a table's columns, or None if the table doesn't exist."""
    state, dbt = read_state()
    table = state.table(schema, name) if state else None
    if table is None:
        return None
    node, found = dbt.node_of(schema, name), published.profile(table)
    if sees_all:
        return found
    return replace(
        found, columns=tuple(one if dbt.is_open(node, one.column) else _masked(one) for one in found.columns)
    )


def quality(session: Session, sees_all: bool) -> Quality:
    """Return every test over the last runs that ran tests, and the rejected rows."""
    state, dbt = read_state()
    runs = last_runs(session)
    with_results = [(run, found) for run in runs if (found := artifacts.test_results_of(run.run_id))][:GRID_RUNS]
    with_results.reverse()
    tests = dict(dbt.tests)
    for (
        _,
        found,
    ) in with_results:  # a test new in an unpublished run, or since removed, is not in the published manifest
        for unique_id in found.keys() - tests.keys():
            tests[unique_id] = _unknown_test(unique_id)
    rows = [row for test in tests.values() if (row := _grid_row(test, with_results))]
    rows.sort(
        key=lambda row: (row.test.status not in FAILED, not any(one in FAILED for one in row.statuses), row.test.title)
    )
    failed_loads = _last_failed_loads(runs)
    kept: list[dict[str, Any]] = []
    if state:
        try:
            kept = published.rejected_rows(state)
        except duckdb.Error:
            kept = []
    return Quality(
        [run for run, _ in with_results],
        rows,
        failed_loads[0].run_id if failed_loads else "",
        failed_loads[0].source if failed_loads else "",
        [_rejected(row, sees_all) for load in failed_loads for row in load.rejected],
        [_rejected(row, sees_all) for row in kept],
    )


def test_page(session: Session, unique_id: str, run_id: str, sees_all: bool) -> TestPage | None:
    """Return a test's result in one run, or None if there is none.

    Args:
        session: a session on Airflow's metadata.
        unique_id: the test's dbt unique id.
        run_id: the run; empty for the last run with a result.
        sees_all: whether the visitor may see personal data.
    """
    _, dbt = read_state()
    run_ids = [run.run_id for run in last_runs(session)]
    found = {one: result for one in run_ids if (result := artifacts.test_results_of(one).get(unique_id))}
    run_id = run_id or next(iter(found), "")
    if not run_id:
        return None
    result = found.get(run_id) or artifacts.test_results_of(run_id).get(unique_id)
    if result is None:
        return None
    test = dbt.tests.get(unique_id)
    failure: Failure = artifacts.failure_of(run_id, result)
    masked = () if sees_all else tuple(name for name in failure.columns if not dbt.is_open_in_test(test, name))
    sample = tuple(
        tuple(MASK if name in masked else value for name, value in zip(failure.columns, row, strict=False))
        for row in failure.sample
    )
    return TestPage(
        _test(test or _unknown_test(unique_id), result, run_id),
        result.task_id,
        result.message,
        result.seconds,
        failure.rows,
        failure.columns,
        masked,
        sample,
        failure.sql,
        list(found)[:GRID_RUNS],
    )


@dataclass(frozen=True)
class ChangeView:
    """How a table of a release differs from the release before; values of personal data are in none of it.

    Attributes:
        summary: in a line.
        details: columns and samples, a line each.
    """

    table: str
    summary: str
    details: tuple[str, ...]


def changes_of(run_id: str) -> list[ChangeView] | None:
    """Return what the release of a run changed for readers; None if that is not known."""
    found = difference_of(run_id)
    return _changes(found.tables) if found else None


def changes_by_rollback(release_id: str) -> list[ChangeView]:
    """Return how a kept release differs from what readers see, as far as that is known in a few seconds.

    Raises:
        WarehouseError: one of them is gone.
        duckdb.Error: one of them cannot be read.
    """
    return _changes(compare_databases(find_database(), find_database(release_id), seconds=_SECONDS, memory=_MEMORY))


def _changes(tables: Iterable[TableDiff]) -> list[ChangeView]:
    return [ChangeView(one.relation, summarize(one), tuple(describe(one))) for one in tables]


def waiting_release() -> ReleaseView | None:
    """Return the release that waits for a person; None if there is none."""
    found = target().waiting_release()
    return _release(found) if found else None


def releases() -> list[ReleaseView]:
    """Return the kept releases, newest first, each with its changes since the previous one."""
    kept = target().list_releases()
    counts = [_counts(release) for release in kept]
    views = []
    for at, release in enumerate(kept):
        changes = None
        if at + 1 < len(kept):
            new, old = counts[at], counts[at + 1]
            changes = {
                name: new.get(name, 0) - old.get(name, 0)
                for name in sorted(new.keys() | old.keys())
                if new.get(name, 0) != old.get(name, 0)
            }
        views.append(replace(_release(release), changes=changes))
    return views


def node_of_task(run_id: str, task_id: str) -> tuple[Node | None, list[Result]]:
    """Return the dbt node built by a task, if it is in the project, and the task's results in a run."""
    _, dbt = read_state()
    found = [result for result in artifacts.results_of(run_id) if result.task_id == task_id]
    # A node without tests has no group in Airflow: its task is `transform.NAME_run`.
    match = re.fullmatch(r"(?:.*\.)?(.+)[._](?:run|seed|snapshot|test)", task_id)
    made = next((dbt.nodes[one.unique_id] for one in found if one.unique_id in dbt.nodes), None)
    return made or next(
        (
            node
            for node in dbt.nodes.values()
            if match and match[1] in (node.name, node.table) and node.kind != "source"
        ),
        None,
    ), found


def _grid_row(test: Test, runs: Sequence[tuple[Run, dict[str, Result]]]) -> GridRow | None:
    last = next(((run, found[test.unique_id]) for run, found in reversed(runs) if test.unique_id in found), None)
    if last is None:
        return None
    statuses = [found[test.unique_id].status if test.unique_id in found else "" for _, found in runs]
    return GridRow(_test(test, last[1], last[0].run_id), statuses)


def _last_failed_loads(runs: Sequence[Run]) -> list[artifacts.Load]:
    """Return the loads failed by rejected rows in the last run that has any, unless a run has succeeded since."""
    for run in runs:
        if run.state == "success":
            return []
        if failed := [load for load in artifacts.loads_of(run.run_id) if load.rejected and load.error]:
            return failed
    return []


def _counts(release: Release) -> dict[str, int]:
    try:
        return published.table_counts(release)
    except duckdb.Error:  # pruned meanwhile
        return {}


def _release(release: Release) -> ReleaseView:
    return ReleaseView(
        release.id,
        release.run_id,
        release.created_at,
        release.size_bytes,
        release.published,
        release.made_by.text,
        release.made_by.started_by,
        decision=decision_of(release.run_id),
    )


def _freshness(state: State, dbt: Project) -> Freshness:
    loads = [load for load in artifacts.loads_of(state.release.run_id) if not load.error]
    loaded_at = min((datetime.fromisoformat(load.ended_at) for load in loads), default=state.release.created_at)
    age = (datetime.now(UTC) - loaded_at).total_seconds()
    limits = [node.freshness for node in dbt.nodes.values() if node.freshness]
    warn = min((one for limit in limits if (one := _seconds(limit.get("warn_after")))), default=None)
    error = min((one for limit in limits if (one := _seconds(limit.get("error_after")))), default=None)
    status = "" if warn is None and error is None else "fresh"
    if warn is not None and age > warn:
        status = "late"
    if error is not None and age > error:
        status = "stale"
    return Freshness(status, loaded_at, age, warn, error)


def _seconds(limit: dict[str, Any] | None) -> float | None:
    if not limit or not limit.get("count"):
        return None
    return timedelta(**{f"{limit['period']}s": float(limit["count"])}).total_seconds()


def _count(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def _table(
    table: Table, node: Node | None, dbt: Project, results: dict[str, Result], sizes: dict[tuple[str, str], int]
) -> TableView:
    tests = dbt.tests_of(node.unique_id) if node else []
    found = [results[test.unique_id].status if test.unique_id in results else "" for test in tests]
    return TableView(
        table.schema,
        table.name,
        table.kind,
        table.rows,
        sizes.get((table.schema, table.name)),
        node.description if node else "",
        node.owner if node else "",
        node.materialized if node else "",
        node.tags if node else (),
        _count(found),
    )


def _column(
    column: published.Column, dbt: Project, node: Node | None, tests: list[TestState], sees_all: bool
) -> ColumnView:
    known = node.columns.get(column.name.lower()) if node else None
    return ColumnView(
        column.name,
        column.type,
        known.description if known else "",
        bool(known and known.contains_pii),
        not (sees_all or dbt.is_open(node, column.name)),
        tests,
    )


def _masked(one: Profile) -> Profile:
    return replace(
        one, minimum=None if one.minimum is None else MASK, maximum=None if one.maximum is None else MASK, bins=()
    )


def _test(test: Test, result: Result | None, run_id: str) -> TestState:
    return TestState(
        test.unique_id,
        test.title,
        test.name,
        test.description,
        test.column,
        test.severity,
        test.kind,
        result.status if result else "",
        result.failures if result else None,
        run_id if result else "",
    )


def _unknown_test(unique_id: str) -> Test:
    name = unique_id.split(".")[2] if unique_id.count(".") >= 2 else unique_id
    kind = "unit" if unique_id.startswith("unit_test.") else ""
    return Test(unique_id, name, name.replace("_", " "), kind, False, "", "", "", (), "error")


def _rejected(row: dict[str, Any], sees_all: bool) -> RejectedRow:
    reason, text = str(row.get("reason") or ""), str(row.get("text") or "")
    return RejectedRow(
        str(row.get("table_name") or ""),
        str(row.get("file") or ""),
        row.get("line"),
        row.get("column_name"),
        reason if sees_all else artifacts.without_values(reason),
        text if sees_all else MASK,
    )
