"""What only a warehouse in PostgreSQL has: a database for each release, a role for readers, views that hang on tables.

The tests of load, build graph and publish run on it with `make test-targets`, a whole Airflow with `make test-long`.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from include.runs.build_graph import BuildGraph
from include.warehouse import builds
from include.warehouse.copy_from import copy_from
from include.warehouse.errors import NotReadyError, WarehouseError
from include.warehouse.targets import pg_releases, postgres, target
from testing import targets
from testing.project import unchecked
from tests.integration.test_servers import build, read

pytestmark = [pytest.mark.integration, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def running() -> Iterator[targets.InPostgres]:
    with targets.started("postgres") as target:
        assert isinstance(target, targets.InPostgres)
        yield target


@pytest.fixture(autouse=True)
def server(running: targets.InPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> targets.Postgres:
    """Select an empty warehouse, and return its server."""
    for name, value in {**running.new(tmp_path), "WAREHOUSE_KEEP_RELEASES": "3"}.items():
        monkeypatch.setenv(name, value)
    return running.postgres


def databases() -> set[str]:
    """The databases of this warehouse, without what their names have in common."""
    with psycopg.connect("") as connection:
        name = postgres.working_database()
        rows = connection.execute("select datname from pg_database where starts_with(datname, %s)", [name]).fetchall()
    return {row[0].removeprefix(name) for row in rows}


def test_readers_see_whole_releases_and_only_the_kept_ones_stay() -> None:
    build(1)
    target().publish("run-1", unchecked)
    stop, seen, wrong = threading.Event(), set[int](), list[object]()

    def keep_reading() -> None:
        try:
            while not stop.is_set():
                ((generations, rows),) = read()
                seen.update(generations)  # type: ignore[call-overload]
                if (len(generations), rows) != (1, 1000):  # type: ignore[arg-type]
                    wrong.append((generations, rows))
        except Exception as error:  # noqa: BLE001, the test shows it
            wrong.append(error)

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        for generation in range(2, 6):
            build(generation)
            target().publish(f"run-{generation}", unchecked)
            if generation % 2 == 0:
                target().rollback(f"run-{generation - 1}")
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert len(seen) > 1
    assert [one.id for one in target().list_releases()] == ["run-5", "run-4", "run-3"]
    assert databases() == {"", "-3", "-4", "-5"}


def test_the_reader_role_sees_the_releases_and_nothing_else(server: targets.Postgres, tmp_path: Path) -> None:
    with server.connect() as connection:
        connection.execute(f"create role {pg_releases.reader_role()} login password 'only here'")
    build(1)
    new = target().publish("run-1", unchecked)
    release = f"{postgres.working_database()}-{new.location}"
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:*:only here\n")
    passfile.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(passfile))
        patch.setenv("PGUSER", pg_releases.reader_role())
        with psycopg.connect(dbname=release) as connection:
            assert connection.execute("select count(*) from marts.customers").fetchone() == (1000,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("delete from marts.customers")
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(dbname=postgres.working_database())
        with pytest.raises(WarehouseError, match="permission denied"):
            target().rollback("run-1")
    with server.connect() as connection:
        connection.execute(f'revoke connect on database "{release}" from {pg_releases.reader_role()}')


def test_a_session_in_the_working_database_does_not_stop_a_publish() -> None:
    build(1)
    with psycopg.connect(dbname=postgres.working_database()) as forgotten:
        forgotten.execute("select count(*) from marts.customers")
        target().publish("run-1", unchecked)
        with pytest.raises(psycopg.OperationalError):
            forgotten.execute("select 1")
    assert read() == [([1], 1000)]


def test_a_publish_that_fails_or_is_killed_leaves_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    build(1)
    target().publish("run-1", unchecked)
    build(2)
    calls = []

    def fails_on_the_copy(connection: object) -> None:
        calls.append(connection)
        if len(calls) == 2:
            raise NotReadyError("Not this one.")

    with pytest.raises(NotReadyError):
        target().publish("run-2", fails_on_the_copy)
    assert databases() == {"", "-1"}
    with psycopg.connect("", autocommit=True) as connection:  # as a kill after the copy leaves it
        connection.execute(f'create database "{postgres.working_database()}-2"')
    target().publish("run-2", unchecked)
    assert databases() == {"", "-1", "-2"}
    assert read() == [([2], 1000)]


def test_a_warehouse_with_a_longer_name_is_not_taken_for_a_release() -> None:
    others = {f"{postgres.working_database()}{end}" for end in ("_2", "_restored", "X1")}
    with psycopg.connect("", autocommit=True) as connection:
        for other in others:
            connection.execute(f'create database "{other}"')
    build(1)
    target().publish("run-1", unchecked)
    target().restore()
    with psycopg.connect("") as connection:
        left = {name for (name,) in connection.execute("select datname from pg_database").fetchall()}
    assert others <= left


def test_a_load_of_the_same_columns_keeps_the_views_on_its_table() -> None:
    columns = {"id": "utinyint", "name": "varchar"}
    with target().open_working() as connection:
        target().replace_table(connection, "raw", "t", columns)
        connection.execute("insert into raw.t values (1, 'a')")
        connection.execute("create view main.v as select id from raw.t")
        connection.begin()
        target().replace_table(connection, "raw", "t", columns)
        connection.execute("insert into raw.t values (2, 'b')")
        connection.rollback()
        assert connection.execute("from main.v").fetchall() == [(1,)]
        target().replace_table(connection, "raw", "t", columns)
        assert connection.execute("from main.v").fetchall() == []
        target().replace_table(connection, "raw", "t", columns | {"more": "date"})
    with target().open_working() as connection:
        assert ("main", "v") not in target().relations(connection)


def test_a_manifest_parsed_for_the_default_target_will_do(tmp_path: Path) -> None:
    """The image's is."""
    codes = []
    for name in ("duckdb", "postgres"):
        options = ["--project-dir", "include/dbt_project", "--profiles-dir", "include/dbt_project", "--target", name]
        options += ["--target-path", str(tmp_path / name), "--log-path", str(tmp_path)]
        subprocess.run(["dbt", "--quiet", "parse", *options], cwd=ROOT, check=True)
        graph = BuildGraph(json.loads((tmp_path / name / "manifest.json").read_text()))
        codes.append({node.id: (node.code, node.parents) for node in graph.nodes})
    assert codes[0] == codes[1]


TIME_LIMIT = """
import sys
from dbt.cli.main import dbtRunner
from datetime import timedelta
import turns
turns._set_time_limit(timedelta(seconds=3))
done = dbtRunner().invoke(["run", "--project-dir", sys.argv[1], "--profiles-dir", "include/dbt_project"])
sys.exit(bool(done.success))
"""


def test_a_time_limit_cancels_the_query(tmp_path: Path) -> None:
    with target().open_working():
        pass
    project = Path(shutil.copytree(ROOT / "testing" / "slow_project", tmp_path / "slow"))
    (project / "models" / "slow.sql").write_text("{{ config(materialized='table') }} select 1 as i from pg_sleep(900)")
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/plugins", "AIRFLOW_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-c", TIME_LIMIT, str(project)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert "canceling statement due to user request" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_server_that_is_away_is_a_failure_worth_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    for use in (target().list_releases, lambda: target().open_working().__enter__(), lambda: target().rollback("run")):
        with pytest.raises(WarehouseError, match=r"cannot be reached.*port 1 failed: Connection refused") as raised:
            use()
        assert raised.value.retryable


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PGDATABASE", "", "needs PGDATABASE"),
        ("PGDATABASE", "a" * 50, "63 characters at most: choose a shorter PGDATABASE"),
        ("WAREHOUSE_ENCRYPTION_KEY", "0123456789abcdef", "does not encrypt its files: unset WAREHOUSE_ENCRYPTION_KEY"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WarehouseError, match=message), target().open_working():
        pass


def test_a_warehouse_moves_to_postgres_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def use(target: str, folder: str) -> None:
        monkeypatch.setenv("DBT_TARGET", target)
        monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / folder))

    use("duckdb", "data")
    build(1)
    with target().open_working() as connection:
        builds.record_load(connection, "run", {"raw.orders": "files"})
    target().publish("run-1", unchecked)
    use("postgres", "data")
    assert copy_from("duckdb").startswith("Copied run-1 from ")
    with target().open_working() as connection:
        assert [load.run_id for load in builds.loads(connection)] == ["run"]
    target().publish("run-1", unchecked)
    use("duckdb", "elsewhere")
    copy_from("postgres")
    target().publish("run-1", unchecked)
    with target().open_release() as reader:  # its views come with the next run
        assert reader.execute("select sum(g) from marts.customers").fetchall() == [(1000,)]
        assert set(target().relations(reader).values()) == {"table"}
