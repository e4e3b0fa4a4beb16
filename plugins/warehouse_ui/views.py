"""Data for the pages and the JSON API, from Airflow's metadata, the run artifacts and the published file.

One function per page. Personal data is masked here, so that neither pages nor API can leak it.
"""

import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
from airflow.models.asset import AssetModel, DagScheduleAssetReference
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
from include.settings import MARTS_SCHEMA, REJECTED_ROWS, in_warehouse
from include.warehouse import disk
from include.warehouse.disk import Disk
from include.warehouse.errors import UnknownReleaseError, WarehouseError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import lineage, published
from include.warehouse_catalog.files import MASK
from include.warehouse_catalog.published import Profile, State, Table, TableProfile
from warehouse_ui.access import dag_id
from warehouse_ui.history import Run, last_runs

logger = logging.getLogger(__name__)

GRID_RUNS = 30
HITS = 200
# For a comparison that a visitor waits for, in the api-server.
_SECONDS, _MEMORY = 10.0, "256MB"
_comparing = threading.BoundedSemaphore(1)


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
        cause_since: when the first of those started that failed as the last one did.
        published_nothing: whether the last one is green, but its `publish` was marked as success.
        load_errors: why loads failed in the last one, without values from rows.
        failed: dbt nodes that failed in the last one: unique id, and a name or what it checks.
    """

    run: Run
    runs: int
    since: datetime | None
    cause_since: datetime | None
    published_nothing: bool
    load_errors: list[str]
    failed: list[tuple[str, str]]


@dataclass(frozen=True)
class Overview:
    """The state of the warehouse at a glance.

    Attributes:
        problem: None if the last run that ended was green.
        loaded_by: the run that loaded what readers see, by table.
        rows_rejected: rows rejected by the loads that readers see.
        rows_read: rows in the files of those loads.
        schedule: when runs start, in words.
        runs: newest first.
        next_run: when the scheduler starts the next one; None while the DAG is paused.
        tests: number of tests of the published run by status.
        unusual: published tables with an unusual shape, and what is unusual about each.
        disk: the warehouse's; None before there is a folder.
    """

    problem: Problem | None
    release: ReleaseView | None
    freshness: Freshness | None
    tables: int
    rows: int
    tests: dict[str, int]
    schedule: str
    next_run: datetime | None
    runs: list[Run]
    unusual: dict[str, str]
    loaded_by: dict[str, str] = field(default_factory=dict)
    rows_rejected: int = 0
    rows_read: int = 0
    disk: Disk | None = None


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

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """What it can be filtered by."""
        failed = any(self.tests.get(one) for one in ("fail", "error", "runtime error"))
        state = (
            "failed" if failed else "warned" if self.tests.get("warn") else "passed" if self.tests.get("pass") else ""
        )
        return {
            "schema": (self.schema,),
            "owner": (self.owner,) if self.owner else (),
            "tag": self.tags,
            "state": (state or ("not run" if self.tests else "no tests"),),
        }


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
class ReleaseRows:
    """A table's number of rows in a kept release."""

    release_id: str
    rows: int
    published: bool


@dataclass(frozen=True)
class TableChange:
    """What a kept release changed in a table.

    Attributes:
        rows: None if the release does not have it.
        summary: compared with the release before; empty if nothing differs, None if that is not known.
    """

    release_id: str
    created_at: datetime
    published: bool
    rows: int | None
    summary: str | None


@dataclass(frozen=True)
class TableVersion:
    """A table as a run published it.

    Attributes:
        loaded_at: when that run had loaded its data; None if it loaded none.
        tests: number of the table's tests in that run by status.
    """

    run_id: str
    at: datetime
    rows: int
    loaded_at: datetime | None
    tests: dict[str, int]


@dataclass(frozen=True)
class ColumnHistory:
    """A column in each of a table's versions; None where the table did not have it, or it was not measured.

    Attributes:
        nulls: share of NULLs.
        distinct: distinct values, approximately.
    """

    name: str
    nulls: list[float | None]
    distinct: list[int | None]

    @property
    def changes(self) -> bool:
        """Whether any two of them differ."""
        return len(set(self.nulls)) > 1 or len(set(self.distinct)) > 1


@dataclass(frozen=True)
class TableHistory:
    """A table over the last runs that published it, oldest first."""

    schema: str
    name: str
    versions: list[TableVersion]
    columns: list[ColumnHistory]


@dataclass(frozen=True)
class TablePage:
    """Everything about one table except its profile.

    Attributes:
        unusual: what is unusual about it in this release, or empty.
        releases: its number of rows in the kept releases that have it, oldest first.
        changes: by the kept releases, newest first.
    """

    table: TableView
    unusual: str
    releases: list[ReleaseRows]
    columns: list[ColumnView]
    tests: list[TestState]
    sample: list[tuple[str | None, ...]]
    sample_error: str
    depends_on: list[str]
    used_by: list[str]
    changes: list[TableChange] = field(default_factory=list)


@dataclass(frozen=True)
class GridRow:
    """A test and its status in each of the last runs; empty if it did not run.

    Attributes:
        test: with its last result.
        is_current: whether that is from the last run; if not, that run has not reached the test.
    """

    test: TestState
    statuses: list[str]
    is_current: bool


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
class RejectedGroup:
    """Rows rejected for the same kind of reason.

    Attributes:
        reason: without values.
        examples: the first few.
    """

    table_name: str
    column_name: str
    reason: str
    rows: int
    examples: list[RejectedRow]


@dataclass(frozen=True)
class Rejected:
    """Rejected rows of one or more loads.

    Attributes:
        run_id: the run that they failed; empty if they were tolerated.
        source: the source of that load.
        rows: how many.
        rows_read: rows in the files.
        counted: rows that the groups are made of, if not all.
    """

    run_id: str
    source: str
    rows: int
    rows_read: int
    groups: list[RejectedGroup]
    counted: int


@dataclass(frozen=True)
class Quality:
    """Tests over the last runs, oldest run first, and rejected rows.

    Attributes:
        failed_loads: of each source whose last load was failed by rejected rows.
        tolerated: of the loads that readers see; None if there are none.
        earlier: kept from loads before those.
        files: the tables that hold all of them, for users who may see personal data.
    """

    runs: list[Run]
    tests: list[GridRow]
    failed_loads: list[Rejected]
    tolerated: Rejected | None
    earlier: list[RejectedGroup]
    files: list[str]


@dataclass(frozen=True)
class TestRun:
    """A test's result in a run."""

    run_id: str
    started_at: datetime | None
    status: str
    failures: int | None


@dataclass(frozen=True)
class TestPage:
    """One test in one run.

    Attributes:
        table: schema and name of the table that it tests; None if that is not known.
        downstream: unique ids of what is built from that table.
        message: what dbt says, in words.
        row_columns: the tested table's columns, if the failing rows have only the tested one.
        rows_with: the table's first rows with those values.
        history: newest first.
    """

    test: TestState
    task_id: str
    message: str
    seconds: float
    failing_rows: int | None
    columns: tuple[str, ...]
    masked: tuple[str, ...]
    sample: tuple[tuple[str | None, ...], ...]
    sql: str
    table: tuple[str, str] | None
    owner: str
    owner_email: str
    downstream: list[str]
    row_columns: tuple[str, ...]
    rows_masked: tuple[str, ...]
    rows_with: tuple[tuple[str | None, ...], ...]
    history: list[TestRun]


def read_state() -> tuple[State | None, Project]:
    """Return the published state and the dbt project it was built with.

    Raises:
        include.warehouse.errors.WarehouseError: the published file cannot be read.
    """
    state = published.current()
    return state, project.of_run(state.release.run_id if state else None)


def loads_seen(state: State) -> list[artifacts.Load]:
    """Return the loads of what readers see: a release's run need not have loaded its data."""
    runs = dict.fromkeys(state.loads.values()) or {state.release.run_id: None}
    return [load for run_id in runs for load in artifacts.loads_of(run_id) if not load.error]


def results_seen(state: State) -> dict[str, Result]:
    """Return the test results of what readers see: its run's or, published by hand, those of the run that loaded it."""
    runs = (*dict.fromkeys(state.loads.values()), state.release.run_id)
    return {name: one for run_id in runs for name, one in artifacts.test_results_of(run_id).items()}


def overview(session: Session, limit: int) -> Overview:
    """Return the state of the warehouse at a glance, with up to `limit` runs."""
    state, dbt = read_state()
    runs = last_runs(session, limit)
    schedule, next_run = _schedule(session)
    problem = _problem(runs, dbt)
    if state is None:
        return Overview(problem, None, None, 0, 0, {}, schedule, next_run, runs, {}, disk=disk.look())
    results, loads = results_seen(state), loads_seen(state)
    rejected = sum(load.rows_rejected for load in loads)
    return Overview(
        problem,
        _release(state.release),
        _freshness(state, dbt),
        len(state.tables),
        sum(table.rows or 0 for table in state.tables if table.kind == "table"),
        _count(result.status for result in results.values()),
        schedule,
        next_run,
        runs,
        artifacts.unusual_in(state.release.run_id),
        {name.split(".", 1)[1]: run_id for name, run_id in state.loads.items()},
        rejected,
        rejected + sum(load.rows_loaded for load in loads),
        disk.look(),
    )


def _schedule(session: Session) -> tuple[str, datetime | None]:
    """Return when runs start, in words, and the next start; None while the DAG is paused."""
    row = session.execute(
        select(
            DagModel.timetable_description,
            DagModel.timetable_summary,
            DagModel.next_dagrun_create_after,
            DagModel.is_paused,
        ).where(DagModel.dag_id == dag_id())
    ).first()
    if row is None:
        return "", None
    description, summary, next_run, is_paused = row
    return str(description or summary or ""), None if is_paused else next_run


def _problem(runs: Sequence[Run], dbt: Project) -> Problem | None:
    failed = list(itertools.takewhile(lambda run: not run.is_green, [run for run in runs if run.ended]))
    if not failed:
        return None
    last = failed[0]
    same = list(itertools.takewhile(lambda run: cause(run) == cause(last), failed))
    results = [result for result in artifacts.results_of(last.run_id) if result.status in (*FAILED, "stale")]
    names = {one.unique_id: one.title for one in dbt.tests.values()}
    names |= {one.unique_id: one.name for one in dbt.nodes.values()}
    return Problem(
        last,
        len(failed),
        failed[-1].started_at,
        same[-1].started_at,
        last.state == "success",
        [load.error for load in artifacts.loads_of(last.run_id) if load.error],
        [
            (one.unique_id, names.get(one.unique_id, one.unique_id.split(".")[2]))
            for one in results
            if one.status != "warn"
        ],
    )


def cause(run: Run) -> tuple[str, frozenset[str], frozenset[str]]:
    """Return what two runs have in common that failed for the same reason: tasks, and dbt's nodes."""
    failed = {one.unique_id for one in artifacts.results_of(run.run_id) if one.status in ("fail", "error")}
    return run.state, frozenset(run.failed_tasks), frozenset(failed)


def tables() -> list[TableView]:
    """Return every table of the published database."""
    state, dbt = read_state()
    if state is None:
        return []
    results = results_seen(state)
    sizes = published.sizes(state)
    return [_table(table, dbt.node_of(table.schema, table.name), dbt, results, sizes) for table in state.tables]


def sizes_wait() -> bool:
    """Return whether the tables' sizes are still being computed."""
    state, _ = read_state()
    return state is not None and not published.sizes_known(state)


def schema_order(schema: str) -> tuple[int, str]:
    """Return a sort key: the marts first, then what they are built from."""
    return {MARTS_SCHEMA: 0, "staging": 1}.get(schema, 2), schema


def node_states(state: State | None, dbt: Project) -> dict[str, str]:
    """Return `bad` or `warn` for the nodes whose tests are, in what readers see."""
    found: dict[str, str] = {}
    results = results_seen(state) if state else {}
    for test in dbt.tests.values():
        status = results[test.unique_id].status if test.unique_id in results else ""
        if status in FAILED and found.get(test.node) != "bad":
            found[test.node] = "warn" if status == "warn" else "bad"
    return found


def projects_together(
    session: Session, warehouses: Sequence[str], may_see: Callable[[str], bool]
) -> tuple[Project, dict[str, str]]:
    """Return the dbt projects of several warehouses as one, and `node_states` of it.

    Unique ids and names have the warehouse in front. A DAG that starts when a table is published is a node between
    that table and, if it fills one of the warehouses, the sources of that.

    Args:
        session: a session on Airflow's metadata.
        warehouses: their names.
        may_see: whether the visitor may see a DAG.
    """
    found: Any = session.execute(
        select(DagScheduleAssetReference.dag_id, AssetModel.name).join(
            AssetModel, AssetModel.id == DagScheduleAssetReference.asset_id
        )
    ).all()
    starts = [(dag, asset) for dag, asset in found if may_see(dag)]
    nodes: dict[str, Node] = {}
    states: dict[str, str] = {}
    tables: dict[str, str] = {}
    for name in warehouses:
        with in_warehouse(name):
            state, dbt = read_state()
        started = (f"dag:{name}",) if any(dag == name for dag, _ in starts) else ()
        for one in dbt.nodes.values():
            above = started if one.kind == "source" else tuple(f"{name}:{parent}" for parent in one.depends_on)
            own = f"{name}:{one.unique_id}"
            nodes[own] = replace(one, unique_id=own, name=f"{name}.{one.name}", depends_on=above)
            tables[f"{name}.{one.schema}.{one.table}"] = own
        states |= {f"{name}:{one}": kind for one, kind in node_states(state, dbt).items()}
    for dag in sorted({dag for dag, asset in starts if asset in tables}):
        above = tuple(tables[asset] for other, asset in starts if other == dag and asset in tables)
        nodes[f"dag:{dag}"] = Node(f"dag:{dag}", dag, "dag", "", "", "", "", "", (), above, {}, None)
    return Project(nodes, {}), states


def table_order(schema: str, table: str) -> tuple[int, str, str]:
    """Return a sort key: the marts first, and last what the machinery keeps."""
    order, _ = schema_order(schema)
    internal = schema == "warehouse" or table.startswith("_dlt_") or table == REJECTED_ROWS
    return (3 if internal else order), schema, table


def most_useful(state: State | None, dbt: Project) -> Node | None:
    """Return the mart that exposures and other models read most, of those the largest; None if nothing is published."""
    rows = {(one.schema, one.name): one.rows or 0 for one in state.tables} if state else {}
    used: dict[str, int] = {}
    for node in dbt.nodes.values():
        for parent in node.depends_on:
            used[parent] = used.get(parent, 0) + (10 if node.kind == "exposure" else 1)

    def usefulness(node: Node) -> tuple[bool, int, int, str]:
        is_mart = node.schema == MARTS_SCHEMA
        return is_mart, used.get(node.unique_id, 0), rows[node.schema, node.table], node.table

    offered = [one for one in dbt.nodes.values() if one.kind != "source" and (one.schema, one.table) in rows]
    return max(offered, key=usefulness, default=None)


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
    results = results_seen(state)
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
    kept = [(release, _counts(release)) for release in target().list_releases()]
    return TablePage(
        _table(table, node, dbt, results, published.sizes(state)),
        artifacts.unusual_in(run_id).get(f"{schema}.{name}", ""),
        [
            ReleaseRows(release.id, rows[f"{schema}.{name}"], release.published)
            for release, rows in reversed(kept)
            if f"{schema}.{name}" in rows
        ],
        columns,
        by_column.get("", []),
        sample,
        error,
        [one for one in (node.depends_on if node else ()) if one in dbt.nodes],
        [one.unique_id for one in dbt.nodes.values() if own in one.depends_on],
        [_table_change(release, rows.get(f"{schema}.{name}"), f"{schema}.{name}") for release, rows in kept],
    )


def _table_change(release: Release, rows: int | None, table: str) -> TableChange:
    known = difference_of(release.run_id)
    found = next((one for one in known.tables if one.relation == table), None) if known else None
    summary = None if known is None else summarize(found) if found else ""
    return TableChange(release.id, release.created_at, release.published, rows, summary)


def table_history(session: Session, schema: str, name: str) -> TableHistory | None:
    """Return a table over the last runs that published it; None if none of them has.

    Args:
        session: a session on Airflow's metadata.
        schema: its exact schema.
        name: its exact name.
    """
    _, dbt = read_state()
    node = dbt.node_of(schema, name)
    own = {one.unique_id for one in dbt.tests_of(node.unique_id)} if node else set()
    times = {run.run_id: run.started_at for run in last_runs(session) if run.started_at and run.is_green}
    times |= {one.run_id: one.created_at for one in target().list_releases() if one.run_id not in times}
    versions: list[TableVersion] = []
    shapes: list[artifacts.Shape] = []
    for run_id, at in sorted(times.items(), key=lambda one: one[1], reverse=True):
        if len(versions) == GRID_RUNS:
            break
        shape = artifacts.shape_of(run_id).get(f"{schema}.{name}")
        if shape is None:
            continue
        results = artifacts.test_results_of(run_id)
        loads = [datetime.fromisoformat(one.ended_at) for one in artifacts.loads_of(run_id) if not one.error]
        tests = _count(results[one].status for one in own if one in results)
        versions.append(TableVersion(run_id, at, shape.rows, max(loads, default=None), tests))
        shapes.append(shape)
    if not versions:
        return None
    names = dict.fromkeys(column for shape in shapes for column in shape.columns)
    versions.reverse()
    shapes.reverse()
    return TableHistory(schema, name, versions, [_column_history(column, shapes) for column in names])


def _column_history(name: str, shapes: Sequence[artifacts.Shape]) -> ColumnHistory:
    known = [(one.rows, one.columns.get(name)) for one in shapes]
    nulls = [found[0] / rows if found and rows else None for rows, found in known]
    return ColumnHistory(name, nulls, [found[1] if found else None for _, found in known])


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
    """Return every test over the last runs, and the rejected rows."""
    state, dbt = read_state()
    all_runs = last_runs(session)
    runs = all_runs[:GRID_RUNS][::-1]
    results = [artifacts.test_results_of(run.run_id) for run in runs]
    tests = dict(dbt.tests)
    for found in results:  # a test new in an unpublished run, or since removed, is not in the published manifest
        for unique_id in found.keys() - tests.keys():
            tests[unique_id] = _unknown_test(unique_id)
    rows = [row for test in tests.values() if (row := _grid_row(test, runs, results))]
    rows.sort(
        key=lambda row: (
            not (row.is_current and row.test.status in FAILED),
            row.test.status not in FAILED,
            not any(one in FAILED for one in row.statuses),
            row.test.title,
        )
    )
    failed = [rejected_of(load, sees_all) for load in _failed_loads(all_runs)]
    tolerated, earlier = _kept_rejected(state, sees_all) if state else (None, [])
    tables = [f"{one.schema}.{one.name}" for one in state.tables if one.name == REJECTED_ROWS] if state else []
    return Quality(runs, rows, failed, tolerated, earlier, tables if sees_all else [])


def rejected_of(load: artifacts.Load, sees_all: bool) -> Rejected:
    """Group the rejected rows of a load that they have failed, of which its summary has the first."""
    groups: dict[tuple[str, str, str], list[RejectedRow]] = {}
    for row in load.rejected:
        one = _rejected(row, sees_all)
        key = (one.table_name, one.column_name or "", artifacts.without_values(str(row.get("reason") or "")))
        groups.setdefault(key, []).append(one)
    made = [RejectedGroup(*key, len(rows), rows[: published.EXAMPLES]) for key, rows in groups.items()]
    read = sum(table.rows_loaded + table.rows_rejected for table in load.tables.values())
    made.sort(key=lambda one: -one.rows)
    return Rejected(load.run_id, load.source, load.rows_rejected, read, made, len(load.rejected))


def _kept_rejected(state: State, sees_all: bool) -> tuple[Rejected | None, list[RejectedGroup]]:
    """Return the rejected rows of the loads that readers see, and those kept from earlier ones."""
    loads = loads_seen(state)
    try:
        found = published.rejected_groups(state, [load.load_id for load in loads if load.load_id])
    except duckdb.Error as error:  # most likely not in time
        logger.warning("The rejected rows cannot be read: %s", error)
        found = []
    groups: dict[bool, list[RejectedGroup]] = {True: [], False: []}
    for one in found:
        examples = [
            _rejected({**row, "table_name": one["table_name"], "column_name": one["column_name"]}, sees_all)
            for row in one["examples"]
        ]
        groups[bool(one["is_current"])].append(
            RejectedGroup(one["table_name"], one["column_name"] or "", one["reason"] or "", one["rows"], examples)
        )
    rejected = sum(load.rows_rejected for load in loads)
    if not rejected:
        return None, groups[False]
    read = rejected + sum(load.rows_loaded for load in loads)
    counted = sum(one.rows for one in groups[True])
    return Rejected("", "", rejected, read, groups[True], counted), groups[False]


def test_page(session: Session, unique_id: str, run_id: str, sees_all: bool) -> TestPage | None:
    """Return a test's result in one run, or None if there is none.

    Args:
        session: a session on Airflow's metadata.
        unique_id: the test's dbt unique id.
        run_id: the run; empty for the last run with a result.
        sees_all: whether the visitor may see personal data.
    """
    _, dbt = read_state()
    runs = last_runs(session)
    found = {run.run_id: one for run in runs if (one := artifacts.test_results_of(run.run_id).get(unique_id))}
    run_id = run_id or next(iter(found), "")
    if not run_id:
        return None
    result = found.get(run_id) or artifacts.test_results_of(run_id).get(unique_id)
    if result is None:
        return None
    test = dbt.tests.get(unique_id)
    node = dbt.nodes.get(test.node) if test else None
    failure: Failure = artifacts.failure_of(run_id, result)
    masked = () if sees_all else tuple(name for name in failure.columns if not dbt.is_open_in_test(test, name))
    rows_masked = () if sees_all else tuple(name for name in failure.row_columns if not dbt.is_open(node, name))
    return TestPage(
        _test(test or _unknown_test(unique_id), result, run_id),
        result.task_id,
        in_words(result.message),
        result.seconds,
        failure.rows,
        failure.columns,
        masked,
        _mask(failure.columns, failure.sample, masked),
        failure.sql,
        (node.schema, node.table) if node else None,
        node.owner if node else "",
        node.owner_email if node else "",
        [one.unique_id for one in dbt.descendants([node.unique_id])] if node else [],
        failure.row_columns,
        rows_masked,
        _mask(failure.row_columns, failure.rows_with, rows_masked),
        [
            TestRun(run.run_id, run.started_at, found[run.run_id].status, found[run.run_id].failures)
            for run in runs
            if run.run_id in found
        ][:GRID_RUNS],
    )


def _mask(
    columns: Sequence[str], rows: Sequence[Sequence[str | None]], masked: Sequence[str]
) -> tuple[tuple[str | None, ...], ...]:
    return tuple(
        tuple(MASK if name in masked else value for name, value in zip(columns, row, strict=False)) for row in rows
    )


def in_words(message: str) -> str:
    """Return dbt's message on a test in plain words: `Got 2 results, configured to fail if != 0`."""
    match = re.fullmatch(r"Got (\d+) results?, configured to (fail|warn) if (.+)", message.strip())
    if not match:
        return message
    rows, verb, limit = int(match[1]), match[2], match[3].strip()
    allowed = "none is allowed" if limit in ("!= 0", "!=0", "<>0", ">0", "> 0") else f"it {verb}s if that is {limit}"
    return f"{rows:,} failing row{'s' if rows != 1 else ''}; {allowed}"


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


def changes_between(older: str, newer: str) -> list[ChangeView]:
    """Return how two kept releases differ, as far as that is known in a few seconds.

    Raises:
        WarehouseError: one of them is not kept, or others are being compared.
        duckdb.Error: one of them cannot be read.
    """
    kept = [one.id for one in target().list_releases()]
    for one in (older, newer):
        if one not in kept:
            raise UnknownReleaseError(f"There is no release {one}. Kept: {', '.join(kept)}.")
    if not _comparing.acquire(timeout=_SECONDS):
        raise WarehouseError("Other releases are being compared; try again in a moment.")
    try:
        return _changes(compare_databases(find_database(older), find_database(newer), seconds=_SECONDS, memory=_MEMORY))
    finally:
        _comparing.release()


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


def own_changes(changes: dict[str, int]) -> list[tuple[str, int]]:
    """Return what to show of a release's changes: without the machinery's tables, the marts first."""
    shown = [one for one in changes.items() if not one[0].startswith("warehouse.") and "._dlt_" not in one[0]]
    return sorted(shown, key=lambda one: (*schema_order(one[0].split(".")[0]), one[0]))


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


def _grid_row(test: Test, runs: Sequence[Run], results: Sequence[dict[str, Result]]) -> GridRow | None:
    ran = [(run, found[test.unique_id]) for run, found in zip(runs, results, strict=True) if test.unique_id in found]
    if not ran:
        return None
    statuses = [found[test.unique_id].status if test.unique_id in found else "" for found in results]
    run, result = ran[-1]
    return GridRow(_test(test, result, run.run_id), statuses, run is runs[-1])


def _failed_loads(runs: Sequence[Run]) -> list[artifacts.Load]:
    """Return each source's last load, if rejected rows have failed it, up to the last green run."""
    last: dict[str, artifacts.Load] = {}
    for run in runs:
        for load in artifacts.loads_of(run.run_id):
            last.setdefault(load.source, load)
        if run.state == "success":
            break
    return [load for load in last.values() if load.rejected and load.error]


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
    loads = [datetime.fromisoformat(load.ended_at) for load in loads_seen(state)]
    loaded_at = min(loads, default=state.release.created_at)
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
