"""A distributed engine, which speaks Spark Connect: the models on two workers of Sail. Part of `make test-clouds`."""

import json
import subprocess
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include.generate_data import generate
from testing import sail, targets
from testing.classic import CLASSIC

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT / "include" / "data"
MOTO = PROJECT / ".venv-moto" / "bin" / "moto_server"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.skipif(not (sail.PYTHON.exists() and MOTO.exists()), reason="needs make test-clouds"),
]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[sail.Project]:
    with sail.cluster(tmp_path) as cluster:
        yield sail.Project(cluster, tmp_path)


def test_the_models_build_on_two_workers_and_their_tests_pass(project: sail.Project) -> None:
    project.load(DATA)
    before, _ = project.cluster.spent()
    assert len(before) == sail.WORKERS
    build = start(project, "build")
    output, _ = build.communicate()
    assert build.returncode == 0, output
    results = json.loads((project.folder / "target" / "run_results.json").read_text())["results"]
    passed = Counter(one["unique_id"].split(".")[0] for one in results if one["status"] in ("success", "pass"))
    assert [passed[kind] for kind in ("model", "test", "unit_test")] == [5, 21, 6]
    spent = [now - was for now, was in zip(project.cluster.spent()[0], before, strict=False)]
    assert min(spent) > max(spent) / 4, spent  # both had a part
    compare(project, DATA, "select * from {} order by 1")


def test_a_worker_killed_in_a_model_costs_attempts_and_no_row(project: sail.Project, tmp_path: Path) -> None:
    """A dbt task is tried again: so is this build, whose models are all tables or views."""
    data = tmp_path / "csv"
    generate(data, 20_000, 400_000, 450_000)
    project.load(data)
    first, _ = project.cluster.workers
    build, before = start(project, "run"), project.cluster.spent()[0][0]
    while project.cluster.spent()[0][0] < before + 0.1 and build.poll() is None:
        time.sleep(0.02)
    assert build.poll() is None, "over before a worker was killed"
    first.kill()
    first.wait()
    build.communicate()
    for _ in range(10):
        attempt = start(project, "run")
        output, _ = attempt.communicate()
        if attempt.returncode == 0:
            break
        time.sleep(10)
    assert attempt.returncode == 0, output
    compare(project, data, "select count(*), sum(customer_id) from {}")


def start(project: sail.Project, *words: str) -> "subprocess.Popen[str]":
    command, env = project.dbt(*words)
    return subprocess.Popen(list(map(str, command)), cwd=sail.DBT_PROJECT, env=env, stdout=subprocess.PIPE, text=True)


def compare(project: sail.Project, data: Path, query: str) -> None:
    """Ask the engine and DuckDB, of both marts, made of the same files."""
    oracle = duckdb.connect()
    oracle.execute(CLASSIC.format(data=data))
    found = project.query(*(query.format(f"marts.{mart}") for mart in ("customers", "orders")))
    for mart, rows in zip(("customers", "orders"), found, strict=True):
        expected = oracle.execute(query.format(f"classic_{mart}")).fetchall()
        assert rows == [[None if value is None else str(value) for value in row] for row in expected]


@pytest.fixture
def glue(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server with the API of AWS Glue; Sail's settings for it, on which one process does everything."""
    place = f"http://127.0.0.1:{targets.free_port()}"
    service = targets.Service(
        [MOTO, "-p", place.rsplit(":", 1)[1]],
        lambda: urllib.request.urlopen(f"{place}/moto-api/", timeout=5).close(),
        stderr=subprocess.DEVNULL,
    )
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    catalog = f'[{{name="sail", type="glue", region="us-east-1", endpoint_url="{place}"}}]'
    try:
        yield keys | {"SAIL_CATALOG__LIST": catalog, "SAIL_MODE": "local"}
    finally:
        service.stop()


# By what Sail says, in version 0.7.2. Once it does one of them, docs/scaling.md has to say so.
REFUSED = {
    "create or replace table marts.orders using delta as select 2 as id": "does not support REPLACE",
    "create or replace view marts.latest as select 1 as id": "does not support REPLACE for views",
    "alter table marts.orders rename to marts.renamed": "unsupported ALTER TABLE operation",
    "alter table marts.orders add columns (more int)": "unsupported ALTER TABLE operation",
    "create table marts.clone shallow clone marts.orders": "found shallow",
    "drop table marts.orders purge": "does not support PURGE",
}


def test_a_catalog_keeps_tables_for_other_sessions_and_after_a_restart(tmp_path: Path, glue: dict[str, str]) -> None:
    """But of what dbt does, it refuses to replace tables and views."""
    with sail.cluster(tmp_path, glue) as cluster:
        cluster.query(
            str(uuid.uuid4()),
            [
                "create database default",
                "create database marts",
                "create table marts.orders using delta as select 1 as id, cast(0.1 as decimal(38, 2)) as amount",
                # Each alone in its file would be read rounded: findings/sail-reads-a-constant-decimal….sh
                "insert into marts.orders values (2, 9007199254740993.01), (3, 1), (4, 2)",
                "update marts.orders set amount = 0.3 where id = 1",
                "delete from marts.orders where id = 4",
                "create table marts.rebuilt using delta as select 1 as old",
                "drop table marts.rebuilt",
                "create table marts.rebuilt using delta as select 2 as new",
                "create view marts.latest as select id from marts.orders",
            ],
        )
        refused = dict(zip(REFUSED, cluster.attempt(str(uuid.uuid4()), list(REFUSED)), strict=True))
    assert all(isinstance(refused[one], str) and reason in refused[one] for one, reason in REFUSED.items()), refused
    queries = {
        "select * from marts.orders order by id": [["1", "0.30"], ["2", "9007199254740993.01"], ["3", "1.00"]],
        "select * from marts.orders version as of 0": [["1", "0.10"]],
        "select * from marts.rebuilt": [["2"]],
        "select * from marts.latest order by id": [["1"], ["2"], ["3"]],
    }
    with sail.cluster(tmp_path, glue) as restarted:
        assert restarted.query(str(uuid.uuid4()), list(queries)) == list(queries.values())
