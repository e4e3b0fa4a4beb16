"""The models on an emulator of Snowflake: `make test-clouds`."""

import csv
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
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


def dbt(
    folder: Path,
    target: str,
    extra: dict[str, Any],
    *words: str,
    project: Path = DBT_PROJECT,
) -> tuple[str, dict[str, int]]:
    """Run dbt with the project's own profile and what the test adds to it; return its output, and what passed."""
    profiles = yaml.safe_load((DBT_PROJECT / "profiles.yml").read_text())
    profiles["analytics"]["outputs"] = {target: profiles["analytics"]["outputs"].get(target, {}) | extra}
    (folder / "profiles.yml").write_text(yaml.safe_dump(profiles))
    command = [Path(sys.executable).with_name("dbt"), *words, "--target", target, "--target-path", folder / "target"]
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
