"""The build graph: what each table of the working database was built from, and which tests passed on it.

    warehouse.builds    one row per load of a table, build of a model or run of a test; the latest counts

A node is current if it was built from the current code and the current builds of its parents. Publish compares these
records; it does not rely on task states, clocks or task order. A load records its tables in the transaction that
changes them; dbt does the same for models in a post-hook, and for tests at the end of each command
(`include/dbt_warehouse/macros/build_graph.sql`).
"""

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import duckdb

from include import provenance
from include.provenance import Provenance
from include.settings import REJECTED_ROWS, warehouse_name
from include.sql import identifier
from include.warehouse.errors import NotReadyError
from include.warehouse.targets import target

CREATE = """
create schema if not exists warehouse;
create table if not exists warehouse.builds (
    version bigint,         -- orders the rows of one node; a clock could be wrong
    node varchar,           -- dbt's unique id; `schema.table` of a table that was loaded
    build_id varchar,       -- changes when what the node holds may have changed; null: nothing
    code varchar,           -- digest of its definition
    parents varchar,        -- JSON: the build ids that it was built from, by node
    passed boolean,
    stateful boolean,       -- what it holds depends on earlier builds too
    relation varchar,       -- `schema.table` in the database
    run_id varchar,         -- the run that loaded it
    recorded_at timestamptz
)
"""
_NODES_SHOWN = 5
_OLD_TABLES = ("snapshot", "load", "node")  # in place of which earlier versions had `release` and `builds`
_LEFT_BY_DBT = re.compile("__dbt_(tmp|backup).*$")
_NO_LOAD = (
    "Not published: nothing was loaded into the working database since it was created or restored. "
    "Clear `load` with downstream."
)


@dataclass(frozen=True)
class Node:
    """A node that must be current before publish.

    Attributes:
        id: as recorded.
        code: digest of its current definition.
        parents: ids of its parents.
    """

    id: str
    code: str
    parents: tuple[str, ...]

    @property
    def name(self) -> str:
        """Short name, for messages."""
        return _name(self.id)


@dataclass(frozen=True)
class Build:
    """The latest record of a node; attributes as in `CREATE`."""

    node: str
    version: int
    build_id: str | None
    code: str
    parents: Mapping[str, str]
    passed: bool
    stateful: bool
    relation: str
    run_id: str
    recorded_at: datetime

    @property
    def is_load(self) -> bool:
        """Whether a load recorded it, not dbt."""
        return self.node == self.relation


def recorded(connection: duckdb.DuckDBPyConnection, only: str = "true") -> dict[str, Build]:
    """Return the latest record of each node of a working or published database, by node.

    Args:
        connection: the database.
        only: SQL condition that selects the nodes.
    """
    try:
        rows = connection.execute(
            "select node, version, build_id, coalesce(code, ''), coalesce(parents, '{}'), passed,"
            " coalesce(stateful, false), coalesce(relation, ''), coalesce(run_id, ''), epoch_us(recorded_at)"
            f" from warehouse.builds where {only}"
            " qualify row_number() over (partition by node order by version desc) = 1"
        ).fetchall()
    except duckdb.CatalogException:  # nothing recorded yet
        return {}
    return {
        row[0]: Build(
            node=row[0],
            version=row[1],
            build_id=row[2],
            code=row[3],
            parents=json.loads(row[4]),
            passed=row[5],
            stateful=row[6],
            relation=row[7],
            run_id=row[8],
            recorded_at=datetime.fromtimestamp(row[9] / 1e6, UTC),
        )
        for row in rows
    }


def loads(connection: duckdb.DuckDBPyConnection) -> list[Build]:
    """Return the latest load of each table in a working or published database, newest first; not rejected rows."""
    found = (one for one in recorded(connection, "node = relation").values() if one.build_id and one.run_id)
    return sorted(found, key=lambda one: one.version, reverse=True)


def record_load(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    tables: Mapping[str, str],
    *,
    stateful: bool = False,
    codes: Mapping[str, str] | None = None,
) -> None:
    """Record a load; call it in the transaction that changes the tables.

    Args:
        connection: the working database.
        run_id: the run that loads.
        tables: build id by `schema.table`; equal for equal data under an equal contract.
        stateful: whether the tables also hold rows from earlier loads.
        codes: digests of their contracts, where there are any.
    """
    connection.execute(CREATE)
    codes = codes or {}
    now = datetime.now(UTC)
    loaded = [
        Build(one, 0, build, codes.get(one, ""), {}, True, stateful, one, run_id, now) for one, build in tables.items()
    ]
    _append(connection, loaded)


def forget_loads(connection: duckdb.DuckDBPyConnection) -> None:
    """Invalidate a database's loads: publish refuses it, even from a run in progress, until it is loaded again.

    Args:
        connection: a database about to replace the working one.
    """
    connection.execute(CREATE)
    _append(connection, [replace(one, build_id=None, passed=False, run_id="") for one in loads(connection)])


def _append(connection: duckdb.DuckDBPyConnection, builds: Sequence[Build]) -> None:
    """Record builds as the latest of their nodes: with a new version, and the current time."""
    if not builds:
        return
    row = connection.execute("select max(version) from warehouse.builds").fetchone()
    # A new or restored working database continues the published version numbers; otherwise it would look older.
    version = max(row[0] if row and row[0] else 0, max(_published_versions().values(), default=0)) + 1
    connection.executemany(
        "insert into warehouse.builds (version, node, build_id, code, parents, passed, stateful, relation, run_id,"
        " recorded_at) values (?, ?, ?, ?, ?, ?, ?, ?, nullif(?, ''), now())",
        [
            (
                *(version, one.node, one.build_id, one.code, json.dumps(one.parents), one.passed, one.stateful),
                *(one.relation, one.run_id),
            )
            for one in builds
        ],
    )


def _published_versions() -> dict[str, int]:
    """Return the version of each published load; empty if nothing is published or the file is unreadable."""
    if target().published_version():
        with suppress(duckdb.Error), target().open_release(builds_only=True) as reader:
            return {load.node: load.version for load in loads(reader)}
    return {}


def check_current(connection: duckdb.DuckDBPyConnection, nodes: Sequence[Node]) -> None:
    """Check that every node was built from its current code and parents, and has passed.

    Args:
        connection: the working database.
        nodes: all nodes that readers rely on.

    Raises:
        NotReadyError: a node is not current; names it, the reason, and what to do.
    """
    known = recorded(connection)
    last = loads(connection)
    if not last and any(_is_table(parent) for node in nodes for parent in node.parents):
        raise NotReadyError(_NO_LOAD)
    # Failed and changed nodes come before those that merely wait for them.
    problems = sorted(
        (problem[0], f"{node.name}: {problem[1]}") for node in nodes if (problem := _problem(node, known))
    )
    if not problems:
        return
    holds = (
        f"the working database holds the data that run {last[0].run_id} loaded at "
        f"{last[0].recorded_at:%Y-%m-%d %H:%M:%S} UTC, and "
        if last
        else ""
    )
    clear = "Clear `load` with downstream, in this run or in that one; or clear" if last else "Clear"
    more = [f"... and {len(problems) - _NODES_SHOWN} more"] if len(problems) > _NODES_SHOWN else []
    raise NotReadyError(
        "\n".join(
            [
                f"Not published: {holds}not every model and test is current{' with it' if last else ''}:",
                *(text for _, text in problems[:_NODES_SHOWN]),
                *more,
                f"{clear} the tasks of the nodes listed here, with downstream.",
            ]
        )
    )


def _problem(node: Node, known: Mapping[str, Build]) -> tuple[int, str] | None:
    """Return the first reason why a node is not current, with its rank; None if it is current."""
    mine = known.get(node.id)
    if mine is None:
        return 3, "has not run"
    if mine.code != node.code:
        return 1, "was changed since it last ran"
    if not mine.passed:
        return 0, "failed"
    for parent in node.parents:
        now = known.get(parent)
        if now is None or now.build_id is None:
            return 2, f"reads {_name(parent)}, which has not been loaded or built"
        if mine.parents.get(parent) != now.build_id:
            return 4, f"ran before {_name(parent)} was last loaded or built"
    return None


def _is_table(node: str) -> bool:
    """Return whether a node is a loaded table, `schema.table`, not one of dbt's ids."""
    return node.count(".") == 1


def _name(node: str) -> str:
    parts = node.split(".")  # a unit test's id has the model name before the test name
    return node if len(parts) < 3 else parts[3 if parts[0] == "unit_test" else 2]


def check_not_older(connection: duckdb.DuckDBPyConnection) -> None:
    """Refuse to move readers back, for example if the working file was replaced by an older copy.

    Args:
        connection: the working database.

    Raises:
        NotReadyError: readers already see a later load of one of its tables.
    """
    theirs = _published_versions()
    for load in loads(connection):
        if theirs.get(load.node, 0) > load.version:
            raise NotReadyError(
                f"Not published: readers see a later load of {load.node} than the working database holds, which is "
                f"that of run {load.run_id}. Clear `load` with downstream to load the current files; to show readers "
                "an older state on purpose, use the rollback DAG or `make rollback`."
            )


def revert_unpublished(connection: duckdb.DuckDBPyConnection, source_schema: str) -> list[str]:
    """Revert stateful tables to their published state if a run that did not publish has changed them since.

    Otherwise rows that a bad delivery left in a dbt snapshot, an incremental model or a merged table would be published
    by the next green run. Tables rebuilt in full by each run don't need this.

    Args:
        connection: the working database, no transaction open.
        source_schema: the schema about to be loaded; other sources' schemas stay, as this run has just loaded them.

    Returns:
        The reverted tables, as `schema.table`.
    """
    mine = {
        one.node: one
        for one in recorded(connection).values()
        if one.stateful and (not one.is_load or one.relation.startswith(f"{source_schema}."))
    }
    if not mine:
        return []
    name, is_published = f"{warehouse_name()}_published", bool(target().published_version())
    theirs: dict[str, Build] = {}
    if is_published:
        with target().open_release(builds_only=True) as reader:
            theirs = recorded(reader)
    published = {
        node: replace(
            theirs.get(node, replace(one, build_id=None, code="", parents={}, passed=False)),
            stateful=True,
            relation=one.relation,
        )
        for node, one in mine.items()
    }
    changed = [one for one in mine.values() if published[one.node].build_id != one.build_id]
    if not changed:
        return []
    if is_published:
        for statement in target().attach_statements(name=name):
            connection.execute(statement)
    try:
        with target().transaction(connection):
            for one in changed:
                _revert(connection, one.relation, name if published[one.node].build_id else None)
            _append(connection, [published[one.node] for one in changed])
    finally:
        if is_published:
            connection.execute(f"detach {name}")
    return [one.relation for one in changed]


def _revert(connection: duckdb.DuckDBPyConnection, relation: str, published: str | None) -> None:
    schema, table = relation.split(".", 1)
    if published:
        source = identifier(published, schema, table)
        described = connection.execute(f"describe from {source}").fetchall()
        target().replace_table(connection, schema, table, {row[0]: row[1] for row in described})
        connection.execute(f"insert into {identifier(warehouse_name(), schema, table)} from {source}")
    else:
        target().drop(connection, schema, table)


def drop_unknown(connection: duckdb.DuckDBPyConnection, known: Collection[str]) -> list[str]:
    """Drop relations that dbt built and does not build any more, so that they do not stay published.

    Tables that dbt has no record of, such as a log that a hook writes, are not dropped.

    Args:
        connection: the working database.
        known: the dbt project's relations, as `schema.table`.

    Returns:
        The dropped relations, as `schema.table`.
    """
    found = connection.execute(
        "select distinct relation, node = relation from warehouse.builds where coalesce(relation, '') != ''"
    ).fetchall()
    loaded = {relation for relation, is_load in found if is_load}
    built = {relation for relation, is_load in found if not is_load}
    dropped = []
    for (schema, table), kind in target().relations(connection).items():
        relation = f"{schema}.{table}"
        of = _LEFT_BY_DBT.sub("", relation)  # a command that was killed
        if of in built and (relation not in known or of != relation) and relation not in loaded:
            target().drop(connection, schema, table, kind, cascade=False)
            dropped.append(relation)
    return dropped


def stamp(
    connection: duckdb.DuckDBPyConnection, release_id: str, run_id: str, made_by: Provenance | None = None
) -> datetime:
    """Write into the database which release it becomes, and prune.

    Args:
        connection: the working database.
        release_id: the id of the release.
        run_id: the run that publishes it.
        made_by: what made it; default the code that runs now.

    Returns:
        The creation time.

    Raises:
        NotReadyError: the code is not what was committed, and `PUBLISH_DIRTY_TREE` refuses that.
    """
    created_at, made_by = datetime.now(UTC), made_by or provenance.current()
    if made_by.is_dirty and os.environ.get("PUBLISH_DIRTY_TREE") == "refuse":
        raise NotReadyError(
            f"Not published: the code differs from its commit {made_by.commit[:10]}, and PUBLISH_DIRTY_TREE=refuse. "
            "Commit or undo the changes (git status), then clear this task."
        )
    with target().transaction(connection):
        prune(connection)
        connection.execute(
            "create or replace table warehouse.release as"
            " select ?::varchar as release_id, ?::varchar as run_id, ?::timestamptz as created_at,"
            " ?::varchar as provenance",
            [release_id, run_id, created_at, made_by.to_json()],
        )
        for old in _OLD_TABLES:
            target().drop(connection, "warehouse", old)
    return created_at


def prune(connection: duckdb.DuckDBPyConnection) -> None:
    """Delete records superseded by later ones of the same node."""
    connection.execute(CREATE)
    connection.execute(
        "delete from warehouse.builds as old where exists"
        " (select 1 from warehouse.builds as new where new.node = old.node and new.version > old.version)"
    )


def drop_rejects_of_failed_loads(connection: duckdb.DuckDBPyConnection, schema: str) -> int:
    """Drop the rejected rows of loads that have rejected too many, so loaded nothing; return their number.

    Args:
        connection: the working database.
        schema: a source's.
    """
    if not target().columns_of(connection, schema, "_dlt_loads"):
        return 0
    target().fetch(connection, schema, (REJECTED_ROWS, "_dlt_loads").__contains__)
    rejected, loads = identifier(schema, REJECTED_ROWS), identifier(schema, "_dlt_loads")
    row = connection.execute(
        f"delete from {rejected} where _dlt_load_id not in (select load_id from {loads})"
    ).fetchone()
    return int(row[0]) if row else 0
