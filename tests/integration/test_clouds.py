"""The models on Snowflake, as far as an emulator goes, and compiled for BigQuery: `make test-clouds`."""

import csv
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlfluff
import yaml

from include.sql import literal
from testing import targets
from testing.classic import CLASSIC

PROJECT = Path(__file__).resolve().parents[2]
DBT_PROJECT = PROJECT / "include" / "dbt_project"
DATA = PROJECT / "include" / "data"
EMULATOR = PROJECT / ".venv-emulator" / "bin" / "fakesnow"
TYPES = {"id": "bigint", "user_id": "bigint", "order_id": "bigint", "order_date": "date", "amount": "bigint"}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.skipif(not EMULATOR.exists(), reason="needs make test-clouds"),
]


def dbt(folder: Path, target: str, extra: dict[str, Any], *words: str) -> str:
    """Run dbt with the project's own profile and what the test adds to it."""
    profiles = yaml.safe_load((DBT_PROJECT / "profiles.yml").read_text())
    profiles["analytics"]["outputs"] = {target: profiles["analytics"]["outputs"][target] | extra}
    (folder / "profiles.yml").write_text(yaml.safe_dump(profiles))
    command = [Path(sys.executable).with_name("dbt"), *words, "--target", target, "--target-path", folder / "target"]
    done = subprocess.run(
        [*command, "--profiles-dir", folder, "--no-use-colors"],
        cwd=DBT_PROJECT,
        env=os.environ | {"DBT_LOG_PATH": str(folder / "logs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def snowflake() -> Iterator[dict[str, Any]]:
    """An emulator of Snowflake with the raw tables; how to connect to it."""
    connector: Any = importlib.import_module("snowflake.connector")
    port = targets.free_port()
    service = targets.Service(
        [EMULATOR, "--server", "--port", port],
        lambda: socket.create_connection(("127.0.0.1", port), 1).close(),
        stderr=subprocess.DEVNULL,
    )
    try:
        place = {"account": "emulator", "host": "127.0.0.1", "port": port, "protocol": "http"}
        place |= {"user": "test", "password": "test", "database": "ANALYTICS"}
        with connector.connect(**place) as connection, connection.cursor() as cursor:
            cursor.execute("create database if not exists analytics")
            cursor.execute("create schema analytics.jaffle_shop_raw")
            for path in DATA.glob("raw_*.csv"):
                names, *rows = csv.reader(path.read_text().splitlines())
                columns = ", ".join(f"{name} {TYPES.get(name, 'varchar')}" for name in names)
                cursor.execute(f"create table analytics.jaffle_shop_raw.{path.stem} ({columns})")
                sql = [[literal(value) if value else "null" for value in row] for row in rows]
                values = ", ".join(f"({', '.join(row)})" for row in sql)
                cursor.execute(f"insert into analytics.jaffle_shop_raw.{path.stem} values {values}")
        yield place
    finally:
        service.stop()


def test_snowflake_builds_the_classic_marts_and_its_data_tests_pass(snowflake: dict[str, Any], tmp_path: Path) -> None:
    # The emulator refuses the temporary tables of unit tests.
    output = dbt(tmp_path, "snowflake", snowflake, "build", "--exclude-resource-type", "unit_test")  # and two hooks
    assert "PASS=28 WARN=0 ERROR=0 SKIP=0" in output, output
    connector: Any = importlib.import_module("snowflake.connector")
    oracle = duckdb.connect()
    oracle.execute(CLASSIC.format(data=DATA))
    with connector.connect(**snowflake) as connection, connection.cursor() as cursor:
        for mart in ("customers", "orders"):
            expected = oracle.execute(f"from classic_{mart} order by 1").fetchall()
            assert cursor.execute(f"select * from marts.{mart} order by 1").fetchall() == expected


SETTINGS = {
    "snowflake": {"account": "none", "database": "analytics"},
    "bigquery": {"method": "oauth-secrets", "token": "none", "project": "analytics"},
}


@pytest.mark.parametrize("target", SETTINGS)
def test_models_and_tests_compile_to_sql_of_that_dialect(target: str, tmp_path: Path) -> None:
    dbt(tmp_path, target, SETTINGS[target], "compile", "--no-introspect", "--no-populate-cache")
    compiled = list((tmp_path / "target" / "compiled").rglob("*.sql"))
    assert len(compiled) == 5 + 21
    for path in compiled:
        sqlfluff.parse(path.read_text(), dialect=target)
