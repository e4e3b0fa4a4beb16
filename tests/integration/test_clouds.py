"""The models on an emulator of Snowflake, and on a distributed engine: `make test-clouds`."""

import csv
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
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
# Unit tests make temporary tables, which cannot be named with their database there.
SNOWFLAKE_SHIM = """
{% macro snowflake__create_table_temporary_sql(relation, compiled_code) %}
create or replace transient table {{ relation }} as ({{ compiled_code }})
{% endmacro %}
"""
TYPES = {"id": "bigint", "user_id": "bigint", "order_id": "bigint", "order_date": "date", "amount": "bigint"}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.skipif(not EMULATOR.exists(), reason="needs make test-clouds"),
]


# Reads from stdin: the files to load, then the query whose rows to print.
SPARK = """
import json, sys
from pyspark.sql import SparkSession
spark, order = SparkSession.builder.getOrCreate(), json.load(sys.stdin)
spark.sql("create database if not exists jaffle_shop_raw")
for table, path in order["load"].items():
    spark.read.parquet(path).write.saveAsTable(f"jaffle_shop_raw.{table}")
for query in order["queries"]:
    print(json.dumps([[None if value is None else str(value) for value in row] for row in spark.sql(query).collect()]))
"""


def dbt(
    folder: Path,
    target: str,
    extra: dict[str, Any],
    *words: str,
    project: Path = DBT_PROJECT,
    python: str | Path = sys.executable,
) -> tuple[str, dict[str, int]]:
    """Run dbt with the project's own profile and what the test adds to it; return its output, and what passed."""
    profiles = yaml.safe_load((DBT_PROJECT / "profiles.yml").read_text())
    profiles["analytics"]["outputs"] = {target: profiles["analytics"]["outputs"].get(target, {}) | extra}
    (folder / "profiles.yml").write_text(yaml.safe_dump(profiles))
    command = [Path(python).with_name("dbt"), *words, "--target", target, "--target-path", folder / "target"]
    done = subprocess.run(
        [*command, "--profiles-dir", folder, "--no-use-colors"],
        cwd=project,
        env=os.environ | {"DBT_LOG_PATH": str(folder / "logs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    results = json.loads((folder / "target" / "run_results.json").read_text())["results"] if words[0] == "build" else []
    passed = Counter(one["unique_id"].split(".")[0] for one in results if one["status"] in ("success", "pass"))
    return done.stdout, {kind: passed[kind] for kind in ("model", "test", "unit_test")}


def with_macro(folder: Path, macro: str) -> Path:
    """Return a copy of the dbt project with another macro."""
    shutil.copytree(DBT_PROJECT, folder, ignore=shutil.ignore_patterns("target", "logs"))
    (folder / "macros" / "emulator.sql").write_text(macro)
    return folder


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


def test_snowflake_builds_the_classic_marts_and_their_tests_pass(snowflake: dict[str, Any], tmp_path: Path) -> None:
    project = with_macro(tmp_path / "project", SNOWFLAKE_SHIM)
    # Their sums are a cent off there, past 2^53 cents.
    inexact = ("lifetime_value_is_the_exact_sum_of_payments", "payments_add_up_exactly_by_method")
    _, passed = dbt(tmp_path, "snowflake", snowflake, "build", "--exclude", *inexact, project=project)
    assert passed == {"model": 5, "test": 21, "unit_test": 4}
    connector: Any = importlib.import_module("snowflake.connector")
    oracle = duckdb.connect()
    oracle.execute(CLASSIC.format(data=DATA))
    with connector.connect(**snowflake) as connection, connection.cursor() as cursor:
        for mart in ("customers", "orders"):
            expected = oracle.execute(f"from classic_{mart} order by 1").fetchall()
            assert cursor.execute(f"select * from marts.{mart} order by 1").fetchall() == expected


def test_sail_builds_the_classic_marts_and_their_tests_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver and workers that speak Spark Connect. Its tables belong to a session, so it is no target."""
    python, port = PROJECT / ".venv-sail" / "bin" / "python", targets.free_port()
    monkeypatch.setenv("SPARK_REMOTE", f"sc://127.0.0.1:{port}/;session_id={uuid.uuid4()};user_id=test")
    service = targets.Service(
        [python.with_name("sail"), "spark", "server", "--port", port],
        lambda: socket.create_connection(("127.0.0.1", port), 1).close(),
        stderr=subprocess.DEVNULL,
        env=os.environ | {"SAIL_MODE": "local-cluster"},
        cwd=tmp_path,  # where it keeps tables
    )

    def spark(load: dict[str, str], *queries: str) -> list[list[list[str | None]]]:
        order = json.dumps({"load": load, "queries": queries})
        done = subprocess.run([python, "-c", SPARK], input=order, stdout=subprocess.PIPE, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    try:
        files = {path.stem: str(tmp_path / f"{path.stem}.parquet") for path in DATA.glob("raw_*.csv")}
        for name, file in files.items():
            rows = f"select *, '{time.time()}' as _dlt_load_id from read_csv({literal(DATA / name)} || '.csv')"
            duckdb.sql(rows).write_parquet(file)
        spark(files)
        profile = {"type": "spark", "method": "session", "schema": "main", "host": "none", "threads": 1}
        _, passed = dbt(tmp_path, "spark", profile, "build", python=python)
        assert passed == {"model": 5, "test": 21, "unit_test": 6}
        found = spark({}, *(f"select * from marts.{mart} order by 1" for mart in ("customers", "orders")))
    finally:
        service.stop()
    oracle = duckdb.connect()
    oracle.execute(CLASSIC.format(data=DATA))
    for mart, rows in zip(("customers", "orders"), found, strict=True):
        expected = oracle.execute(f"from classic_{mart} order by 1").fetchall()
        assert rows == [[None if value is None else str(value) for value in row] for row in expected]


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
