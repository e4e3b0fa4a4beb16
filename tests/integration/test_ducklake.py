"""What only a lake has: readers that stay attached, a role of their own, a catalog that can be away.

The tests of load, build graph and publish run on it with `make test-targets`, a whole Airflow with `make test-long`.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psycopg
import pytest

from include.duckdb_session import open_duckdb
from include.warehouse import builds
from include.warehouse.copy_from import copy_from
from include.warehouse.errors import PublishError, WarehouseError
from include.warehouse.targets import ducklake, pg_releases, target
from testing import targets
from testing.project import NAME, unchecked
from tests.integration.test_servers import READ, build, read

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def lake() -> Iterator[targets.DuckLake]:
    with targets.started("ducklake") as target:
        assert isinstance(target, targets.DuckLake)
        yield target


@pytest.fixture(autouse=True)
def server(lake: targets.DuckLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> targets.Postgres:
    """Select an empty lake, and return the server of its catalog."""
    for name, value in {**lake.new(tmp_path), "WAREHOUSE_KEEP_RELEASES": "3"}.items():
        monkeypatch.setenv(name, value)
    return lake.postgres


@pytest.mark.long
def test_deletes_are_not_lost_if_a_transaction_is_open_while_releases_are_published() -> None:
    build(1)
    with target().open_working() as connection:
        connection.execute("create table marts.kept as select range as n from range(100)")
    target().publish("run-1", unchecked)
    with open_duckdb() as other:  # as a long dbt task, which takes no lock
        ducklake._open(other, ducklake._attach_working())
        other.begin()
        assert other.execute("select count(*) from marts.kept").fetchall() == [(100,)]
        for generation in range(2, 7):
            with target().open_working() as connection:
                connection.execute(f"delete from marts.kept where n = {generation}")
            build(generation)
            target().publish(f"run-{generation}", unchecked)
        with contextlib.suppress(duckdb.Error):  # refused as a conflict, or done; not done on old data
            other.execute("delete from marts.kept where n = 50")
            other.commit()
    with target().open_working() as connection:
        left = connection.execute("select count(*), count(*) filter (n between 2 and 6) from marts.kept").fetchall()
    assert left in ([(95, 0)], [(94, 0)])


def test_files_that_no_version_needs_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    build(1)
    target().publish("run-1", unchecked)
    written = next(Path(os.environ["DUCKLAKE_DATA"]).rglob("*.parquet"))
    written.with_name("left-over.parquet").write_bytes(written.read_bytes())
    assert target().tidy() == 0, "it may be that of a task"
    monkeypatch.setattr(ducklake, "_ORPHANED", "0 seconds")
    assert target().tidy() == 1 and read() == [([1], 1000)]


@pytest.mark.long
def test_readers_see_whole_releases_also_while_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ducklake, "_LONGEST", "0 seconds")
    build(1)
    target().publish("run-1", unchecked)
    stop, seen, wrong = threading.Event(), {1: set[int](), 20: set[int]()}, list[object]()

    def keep_reading(queries: int) -> None:
        try:
            while not stop.is_set():
                with target().open_release() as reader:
                    for _ in range(queries):
                        ((generations, rows),) = reader.execute(READ).fetchall()
                        seen[queries].update(generations)
                        time.sleep(0.05)  # leaves the publisher a core
                        if (len(generations), rows) != (1, 1000):
                            wrong.append((generations, rows))
        except duckdb.Error as error:
            wrong.append(error)

    threads = [threading.Thread(target=keep_reading, args=(queries,)) for queries in seen]
    for thread in threads:
        thread.start()
    try:
        for generation in range(2, 6):
            build(generation)
            target().publish(f"run-{generation}", unchecked)
            if generation % 2 == 0:
                target().rollback(f"run-{generation - 1}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(len(generations) > 1 for generations in seen.values()), seen
    assert [one.id for one in target().list_releases()] == ["run-5", "run-4", "run-3"]
    # Versions that no release needs are gone; those of the kept ones and what came after are not.
    with target().open_working() as connection:
        versions = connection.execute(f"select count(*) from ducklake_snapshots('{NAME}')").fetchone()
    assert versions and versions[0] < 3 * 12
    for kept in ("run-3", "run-4", "run-5"):
        target().rollback(kept)
        assert read() == [([int(kept[-1])], 1000)]


@pytest.mark.long
def test_small_files_are_merged_and_each_release_stays_as_it_was() -> None:
    query, kept = "from marts.deliveries order by all", {}
    with contextlib.ExitStack() as stack:
        for generation in range(1, 7):
            build(generation)
            with target().open_working() as connection:
                connection.execute("create table if not exists marts.deliveries (n integer, part integer)")
                for part in range(5):
                    connection.execute(f"insert into marts.deliveries select range, {part} from range({generation})")
                connection.execute(f"delete from marts.deliveries where n = {generation} - 2 and part = 3")
                kept[f"run-{generation}"] = connection.execute(query).fetchall()
            if generation == 5:  # reads on, while the files that it uses are merged
                reader = stack.enter_context(target().open_release())
                reader.begin()
                assert reader.execute(query).fetchall() == kept["run-4"]
            target().publish(f"run-{generation}", unchecked)
        assert reader.execute(query).fetchall() == kept["run-4"]
    with target().open_working() as connection:
        files = connection.execute(f"from ducklake_list_files('{NAME}', 'deliveries', schema => 'marts')").fetchall()
    assert len(files) < 6 * 5 / 2
    for release in target().list_releases():
        target().rollback(release.id)
        for shown in (None, release):
            with target().open_release(shown) as reader:
                assert reader.execute(query).fetchall() == kept[release.id]


def test_the_reader_role_sees_the_releases_and_nothing_else(server: targets.Postgres, tmp_path: Path) -> None:
    with server.connect() as connection:
        connection.execute(f"create role {pg_releases.reader_role()} login password 'only here'")
    build(1)
    target().publish("run-1", unchecked)
    build(2)
    with psycopg.connect(os.environ["DUCKLAKE_CATALOG"]) as connection:
        database = connection.info.dbname
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:*:only here\n")
    passfile.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(passfile))
        patch.setenv("DUCKLAKE_CATALOG", server.conninfo(database, pg_releases.reader_role()))
        assert read() == [([1], 1000)]
        with pytest.raises(WarehouseError, match="permission denied"):
            target().rollback("run-1")
        with duckdb.connect() as connection, pytest.raises(duckdb.Error, match="permission denied"):
            for statement in ducklake.prepare_statements():
                connection.execute(statement)
            connection.execute(ducklake._attach_working())
    with server.connect() as connection:
        connection.execute(f"drop owned by {pg_releases.reader_role()}")


def test_a_catalog_that_is_away_is_a_failure_worth_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUCKLAKE_CATALOG", "host=127.0.0.1 port=1 user=nobody dbname=lake")
    for use in (target().list_releases, lambda: target().open_working().__enter__(), lambda: target().rollback("run")):
        with pytest.raises(WarehouseError, match=r"cannot be reached.*port 1 failed: Connection refused") as raised:
            use()
        assert raised.value.retryable


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DUCKLAKE_CATALOG", "", "needs DUCKLAKE_CATALOG, such as: host="),
        ("DUCKLAKE_CATALOG", "host=db dbname=lake password=s3cret", "must not contain a password: use PGPASSWORD"),
        ("DUCKLAKE_CATALOG", "nonsense", "not a libpq connection string"),
        ("WAREHOUSE_ENCRYPTION_KEY", "0123456789abcdef", "does not encrypt its files: unset WAREHOUSE_ENCRYPTION_KEY"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WarehouseError, match=message) as raised, target().open_working():
        pass
    assert "s3cret" not in str(raised.value)


def test_a_warehouse_moves_to_a_lake_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def use(target: str, folder: str) -> None:
        monkeypatch.setenv("DBT_TARGET", target)
        monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / folder))

    use("duckdb", "data")
    build(1)
    with target().open_working() as connection:
        builds.record_load(connection, "run", {"raw.orders": "files"})
    target().publish("run-1", unchecked)
    use("ducklake", "data")
    assert copy_from("duckdb").startswith("Copied run-1 from ")
    with target().open_working() as connection:
        assert [load.run_id for load in builds.loads(connection)] == ["run"]
    target().publish("run-1", unchecked)
    assert read() == [([1], 1000)]
    with pytest.raises(WarehouseError, match="has 6 tables and views already"):
        copy_from("duckdb")
    with pytest.raises(WarehouseError, match="nothing to copy"):
        copy_from("ducklake")
    use("duckdb", "elsewhere")
    copy_from("ducklake")
    target().publish("run-1", unchecked)
    assert read() == [([1], 1000)]


@pytest.mark.long
def test_a_file_that_is_gone_stops_the_publish(tmp_path: Path) -> None:
    build(1)
    target().publish("run-1", unchecked)
    build(2)
    for file in (tmp_path / "lake").rglob("customers/*.parquet"):
        if file.stat().st_mtime_ns == max(one.stat().st_mtime_ns for one in file.parent.iterdir()):
            file.unlink()
            break
    with pytest.raises(PublishError, match=r"run-2, cannot be read.*Nothing changes for readers"):
        target().publish("run-2", unchecked)
    assert read() == [([1], 1000)]
