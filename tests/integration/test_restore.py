"""`make backup` and `make restore-backup` of a warehouse on each target, with its real servers, but without Docker.

A program takes Docker's place and runs on this machine what would run in the containers.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from include.warehouse.errors import WarehouseError
from include.warehouse.targets import target
from testing import targets
from testing.project import NAME, PROJECT, unchecked

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.not_on("bigquery", "snowflake", reason="make backup does not cover a service"),
]

DOCKER = """#!{python}
import os, sys
words = sys.argv[sys.argv.index("--env-file") + 2:]
metadata = dict(PGHOST="127.0.0.1", PGPORT="{port}", PGUSER="postgres", PGPASSWORD="{password}", PGDATABASE="airflow")
os.environ["PATH"] = "{binaries}:" + os.environ["PATH"]
if os.environ.get("FAILS") and os.environ["FAILS"] in words:
    sys.exit("error: " + os.environ["FAILS"] + " fails, for the test")
if words[:2] == ["config", "--services"]:
    print("postgres api-server scheduler dag-processor triggerer")
elif words[0] == "run":
    program = words[words.index("pg-client") + 1:] if "pg-client" in words else words[words.index("init") + 1:]
    os.execvp(program[0] if program[0] != "python" else sys.executable, program)
elif words[0] == "exec":
    program = words[words.index("postgres") + 1:]
    program = [word.replace("--username=airflow", "--username=postgres") for word in program]
    os.execvpe(program[0], program, os.environ | metadata)
elif words[0] == "logs":
    print("the log of init")
"""


@pytest.fixture(scope="module")
def metadata() -> Iterator[targets.Postgres]:
    """Airflow's metadata, as far as a backup looks at it."""
    with targets.postgres() as server:
        with server.connect() as connection:
            connection.execute("create database airflow")
        with server.connect("airflow") as connection:
            connection.execute("create table alembic_version as select '1' as version_num")
        yield server


class Deployment:
    """The commands of a deployment whose containers are this machine's processes."""

    def __init__(self, folder: Path, metadata: targets.Postgres) -> None:
        self.folder, self.backup = folder, folder / "backup"
        (folder / "bin").mkdir()
        docker = folder / "bin" / "docker"
        names = {"python": sys.executable, "port": metadata.port, "password": metadata.password}
        docker.write_text(DOCKER.format(binaries=targets.binaries(), **names))
        docker.chmod(0o755)

    def make(self, command: str, fails: str = "") -> "subprocess.CompletedProcess[str]":
        environ = os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FAILS": fails}
        words = ["make", "-s", command, f"DIR={self.backup}", f"ENV_FILE={self.folder / 'env'}"]
        return subprocess.run(words, cwd=PROJECT, env=environ, text=True, capture_output=True, timeout=600)


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: targets.Postgres) -> Deployment:
    data = tmp_path / "volume"
    data.mkdir()
    monkeypatch.setenv("WAREHOUSE_DIR", str(data))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    if "://" not in os.environ.get("DUCKLAKE_DATA", "://"):
        monkeypatch.delenv("DUCKLAKE_DATA")
    if passfile := os.environ.get("PGPASSFILE"):  # a container has the password in its environment
        monkeypatch.setenv("PGPASSWORD", Path(passfile).read_text().strip().split(":")[-1])
        monkeypatch.delenv("PGPASSFILE")
    return Deployment(tmp_path, metadata)


def publish(run_id: str, rows: int) -> None:
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts")
        connection.execute(f"create or replace table marts.orders as select range as id from range({rows})")
    target().publish(run_id, unchecked)
    (Path(os.environ["WAREHOUSE_DIR"]) / "artifacts").mkdir(exist_ok=True)


def published() -> list[tuple[Any, ...]]:
    """Return what a reader sees, opened as one does."""
    with duckdb.connect() as reader:
        for statement in target().attach_statements(name="seen"):
            reader.execute(statement)
        return reader.execute("select count(*), sum(id) from seen.marts.orders").fetchall()


def is_file() -> bool:
    return os.environ.get("DBT_TARGET", "duckdb") in ("duckdb", "encrypted")


def destroy(deployment: Deployment) -> None:
    """Leave what a new machine has: an empty volume, a server without the warehouse; a bucket keeps its files."""
    data = Path(os.environ["WAREHOUSE_DIR"])
    shutil.rmtree(data)
    data.mkdir()
    if is_file():
        return
    on_a_lake = os.environ["DBT_TARGET"] == "ducklake"
    home = os.environ["DUCKLAKE_CATALOG"] if on_a_lake else f"dbname={os.environ['PGDATABASE']}"
    with psycopg.connect(home, autocommit=True) as connection:
        for schema in (NAME, f"{NAME}_working"):
            connection.execute(f"drop schema if exists {schema} cascade")
        if not on_a_lake:
            query = "select datname from pg_database where starts_with(datname, %s)"
            for (name,) in connection.execute(query, [f"{os.environ['PGDATABASE']}_"]).fetchall():
                connection.execute(f'drop database "{name}" with (force)')


def test_a_backup_is_restored_where_nothing_is_left(deployment: Deployment) -> None:
    refused = deployment.make("backup")
    assert "nothing is published yet" in refused.stderr, refused.stderr
    assert not deployment.backup.exists()
    publish("first", 10)
    saved = deployment.make("backup")
    assert saved.returncode == 0, saved.stderr
    publish("second", 20)
    replaced = deployment.make("restore-backup")
    assert replaced.returncode == 0, replaced.stderr
    assert published() == [(10, 45)]
    destroy(deployment)
    with contextlib.suppress(duckdb.Error, WarehouseError):
        assert not published()
    restored = deployment.make("restore-backup")
    assert restored.returncode == 0, restored.stderr
    assert published() == [(10, 45)] and [one.run_id for one in target().list_releases()] == ["first"]
    publish("third", 30)  # the next run goes on from there
    assert published() == [(30, 435)]
    assert deployment.make("backup").returncode == 0


def test_a_restore_that_fails_at_any_step_changes_nothing(deployment: Deployment) -> None:
    publish("first", 10)
    assert deployment.make("backup").returncode == 0
    publish("second", 20)
    for step in ("createdb", "swap", "up") if is_file() else ("pg_restore", "aside", "switch", "up"):
        failed = deployment.make("restore-backup", fails=step)
        assert failed.returncode, failed.stdout
        assert published() == [(20, 190)], step
    publish("third", 30)
    assert published() == [(30, 435)]


def test_a_backup_of_a_lake_without_all_of_its_files_fails(deployment: Deployment) -> None:
    if os.environ.get("DBT_TARGET") != "ducklake" or "DUCKLAKE_DATA" in os.environ:
        pytest.skip("about a lake in the volume")
    publish("first", 10)
    (lost, *_) = (Path(os.environ["WAREHOUSE_DIR"]) / "lake").rglob("*.parquet")
    lost.unlink()
    failed = deployment.make("backup")
    assert failed.returncode and f"files of the lake are missing, such as {lost.name}" in failed.stderr
