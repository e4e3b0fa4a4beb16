"""A distributed engine, which speaks Spark Connect: the models on two workers of Sail. Part of `make test-clouds`."""

import json
import os
import subprocess
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import psutil
import pytest
import yaml

from include.sql import literal
from testing import sail, targets
from testing.classic import CLASSIC

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT / "include" / "data"
DBT_PROJECT = PROJECT / "include" / "dbt_project"
MOTO = PROJECT / ".venv-moto" / "bin" / "moto_server"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.skipif(not (sail.PYTHON.exists() and MOTO.exists()), reason="needs make test-clouds"),
]


@dataclass
class Engine:
    """A session of a cluster, and a folder for files."""

    cluster: sail.Cluster
    folder: Path
    session: str

    def load(self, rows: dict[str, str]) -> None:
        """Make the raw tables of queries for DuckDB."""
        statements = ["create database if not exists jaffle_shop_raw"]
        for table, query in rows.items():
            file = self.folder / f"{table}.parquet"
            duckdb.sql(f"select *, '{time.time()}' as _dlt_load_id from ({query})").write_parquet(str(file))
            statements.append(f"create table jaffle_shop_raw.{table} as select * from parquet.`{file}`")
        self.query(*statements)

    def query(self, *statements: str) -> list[sail.Rows]:
        return self.cluster.query(self.session, statements)

    def start_dbt(self, *words: str) -> "subprocess.Popen[str]":
        profile = {"type": "spark", "method": "session", "schema": "main", "host": "none", "threads": 1}
        profiles = {"analytics": {"outputs": {"spark": profile}}}
        (self.folder / "profiles.yml").write_text(yaml.safe_dump(profiles))
        command = [sail.PYTHON.with_name("dbt"), *words, "--target", "spark", "--no-use-colors"]
        remote = {"SPARK_REMOTE": self.cluster.remote(self.session)}
        return subprocess.Popen(
            [*command, "--target-path", self.folder / "target", "--profiles-dir", self.folder],
            cwd=DBT_PROJECT,
            env=os.environ | remote | {"DBT_LOG_PATH": str(self.folder / "logs")},
            stdout=subprocess.PIPE,
            text=True,
        )

    def passed(self, dbt: "subprocess.Popen[str]") -> dict[str, int]:
        """Wait for dbt, which must succeed; return how many nodes of each kind passed."""
        output, _ = dbt.communicate()
        assert dbt.returncode == 0, output
        results = json.loads((self.folder / "target" / "run_results.json").read_text())["results"]
        return Counter(one["unique_id"].split(".")[0] for one in results if one["status"] in ("success", "pass"))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with sail.cluster(tmp_path) as cluster:
        yield Engine(cluster, tmp_path, str(uuid.uuid4()))


def used(worker: "subprocess.Popen[bytes]") -> float:
    """Return the CPU seconds that a worker has used."""
    times = psutil.Process(worker.pid).cpu_times()
    return times.user + times.system


def test_the_models_build_on_two_workers_and_their_tests_pass(engine: Engine) -> None:
    engine.load({path.stem: f"from read_csv({literal(path)})" for path in DATA.glob("raw_*.csv")})
    before = [used(worker) for worker in engine.cluster.workers]
    assert len(before) == sail.WORKERS
    passed = engine.passed(engine.start_dbt("build"))
    assert [passed[kind] for kind in ("model", "test", "unit_test")] == [5, 21, 6]
    spent = [used(worker) - was for worker, was in zip(engine.cluster.workers, before, strict=True)]
    assert min(spent) > max(spent) / 4, spent  # both had a part
    oracle = duckdb.connect()
    oracle.execute(CLASSIC.format(data=DATA))
    found = engine.query(*(f"select * from marts.{mart} order by 1" for mart in ("customers", "orders")))
    for mart, rows in zip(("customers", "orders"), found, strict=True):
        expected = oracle.execute(f"from classic_{mart} order by 1").fetchall()
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
