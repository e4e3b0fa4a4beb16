"""What the targets with a server have in common, beside what all targets have."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.warehouse.errors import UnknownReleaseError, WarehouseLockedError
from include.warehouse.targets import target
from testing import targets
from testing.project import unchecked

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["ducklake", "postgres"])
def running(request: pytest.FixtureRequest) -> Iterator[targets.Target]:
    with targets.started(request.param) as target:
        yield target


@pytest.fixture
def _empty(running: targets.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Select an empty warehouse."""
    for name, value in running.new(tmp_path).items():
        monkeypatch.setenv(name, value)


def build(generation: int) -> None:
    """Build in several transactions, so the warehouse is inconsistent in between."""
    with target().open_working() as connection:
        connection.execute(
            "drop schema if exists staging cascade"
        )  # in PostgreSQL, a table with a view cannot be replaced
        for schema in ("staging", "marts"):
            connection.execute(f"create schema if not exists {schema}")
        connection.execute(f"create or replace table marts.customers as select {generation} as g from range(1000)")
        connection.execute(f"create or replace table marts.small as select {generation} as g from range(3)")
        connection.execute("create or replace view staging.seen as from marts.customers")
        connection.execute(f"create or replace table marts.only_{generation % 3} as select {generation} as g")
        connection.execute(f"drop table if exists marts.only_{(generation + 1) % 3}")


READ = """
select list_distinct([(select min(g) from marts.customers), (select max(g) from staging.seen),
    (select min(g) from marts.small), (select split(release_id, '-')[2]::int from warehouse.release)]),
    (select count(*) from marts.customers)
"""


def read() -> list[tuple[object, ...]]:
    with target().open_release() as reader:
        return reader.execute(READ).fetchall()


@pytest.mark.usefixtures("_empty")
def test_rollback_and_restore() -> None:
    for generation in (1, 2):
        build(generation)
        target().publish(f"run-{generation}", unchecked)
    target().rollback("run-1")
    assert read() == [([1], 1000)]
    build(3)
    assert "run-1" in target().restore()
    with target().open_working() as connection:
        assert connection.execute("select distinct g from staging.seen").fetchall() == [(1,)]
        tables = [name for schema, name in target().relations(connection) if schema == "marts"]
    assert tables == ["customers", "only_1", "small"]
    with pytest.raises(UnknownReleaseError, match=r"run-9.*Kept: run-2, run-1"):
        target().rollback("run-9")


@pytest.mark.usefixtures("_empty")
def test_a_second_writer_waits_and_then_names_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_LOCK_TIMEOUT", "1")
    with target().open_working(), pytest.raises(WarehouseLockedError, match=f"PID {os.getpid()}.*127.0.0.1"):
        target().publish("run", unchecked)
    with target().open_working():  # the lock ends with its holder
        pass
