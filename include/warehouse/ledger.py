"""What the working database holds: whose data, and which dbt nodes have been built and tested on them.

Tasks can be cleared in any order, alone, in any run. So publish does not believe in colours: it reads here what has
happened to the very data that it is about to show to readers.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb

from include.warehouse.errors import NotReadyError

PASSED = ("success", "pass", "warn")
NO_LOAD = (
    "Not published: nothing was loaded into the working database since it was made or restored. "
    "Clear `load` with downstream."
)
_NODES_SHOWN = 5


@dataclass(frozen=True)
class Loaded:
    """The load whose data the database holds.

    Attributes:
        run_id: the run that loaded them.
        loaded_at: when, UTC.
        data: the same for two loads of the same files.
    """

    run_id: str
    loaded_at: datetime
    data: str


def record_load(connection: duckdb.DuckDBPyConnection, run_id: str, data: str) -> None:
    """Write down whose data the database holds from now on; call it in the transaction that changes them.

    Args:
        connection: the working database.
        run_id: the run that loads.
        data: identifies what is loaded.
    """
    connection.execute("create schema if not exists warehouse")
    connection.execute(
        "create or replace table warehouse.load as"
        " select ?::varchar as run_id, ?::timestamptz as loaded_at, ?::varchar as data",
        [run_id, datetime.now(UTC), data],
    )


def forget_load(connection: duckdb.DuckDBPyConnection) -> None:
    """Make a database wait for a load: until then publish refuses it, and a run that is under way can't end green.

    Args:
        connection: a database that takes the working one's place.
    """
    connection.execute("drop table if exists warehouse.load")


def loaded(connection: duckdb.DuckDBPyConnection) -> Loaded | None:
    """Return whose data a working or published database holds, or None where no load has been recorded."""
    if not _exists(connection, "load"):
        return None
    row = connection.execute("select run_id, epoch_us(loaded_at), data from warehouse.load").fetchone()
    return Loaded(row[0], datetime.fromtimestamp(row[1] / 1e6, UTC), row[2]) if row else None


def record_nodes(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    results: Iterable[tuple[str, str, str]],
    descendants: Callable[[str], Iterable[str]],
) -> None:
    """Write down what became of dbt nodes.

    Args:
        connection: the working database.
        run_id: the run in which it happened.
        results: dbt's unique id, its status and its compiled code for each node.
        descendants: returns the unique ids below one; a model that was built from new code makes what was built on it
            before count no more.
    """
    load = loaded(connection)
    connection.begin()
    connection.execute("create schema if not exists warehouse")
    connection.execute(
        "create table if not exists warehouse.node (node varchar primary key, status varchar, data varchar,"
        " code varchar, run_id varchar, finished_at timestamptz)"
    )
    for node, status, compiled in results:
        code = hashlib.sha256(compiled.encode()).hexdigest()
        old = connection.execute("select code from warehouse.node where node = ?", [node]).fetchone()
        if old and old[0] != code:
            connection.execute("delete from warehouse.node where list_contains(?, node)", [list(descendants(node))])
        connection.execute(
            "insert or replace into warehouse.node values (?, ?, ?, ?, ?, ?)",
            [node, status, load.data if load else "", code, run_id, datetime.now(UTC)],
        )
    connection.commit()


def check_ready(connection: duckdb.DuckDBPyConnection, nodes: Sequence[str]) -> None:
    """Make sure that every dbt node has passed on the data that the database holds.

    Args:
        connection: the working database.
        nodes: dbt's unique ids of all models and tests that readers rely on.

    Raises:
        NotReadyError: names those that have failed or have not run, and what to do.
    """
    load = loaded(connection)
    if load is None:
        raise NotReadyError(NO_LOAD)
    passed: dict[str, str] = {}
    if _exists(connection, "node"):
        rows = connection.execute("select node, status from warehouse.node where data = ?", [load.data]).fetchall()
        passed = dict(rows)
    problems = [
        f"{node.split('.')[2]}: {passed.get(node, 'has not run on these data')}"
        for node in sorted(nodes, key=lambda node: node not in passed)  # what failed is told before what waits for it
        if passed.get(node) not in PASSED
    ]
    if problems:
        more = [f"... and {len(problems) - _NODES_SHOWN} more"] if len(problems) > _NODES_SHOWN else []
        raise NotReadyError(
            "\n".join(
                [
                    f"Not published: the working database holds the data that run {load.run_id} loaded at "
                    f"{load.loaded_at:%Y-%m-%d %H:%M:%S} UTC, and not every model and test has passed on them:",
                    *problems[:_NODES_SHOWN],
                    *more,
                    "Clear `load` with downstream, in this run or in that one; or clear the tasks named here.",
                ]
            )
        )


def _exists(connection: duckdb.DuckDBPyConnection, table: str) -> bool:
    found = connection.execute(
        "select 1 from duckdb_tables() where database_name = current_catalog() and schema_name = 'warehouse'"
        " and table_name = ?",
        [table],
    )
    return found.fetchone() is not None
