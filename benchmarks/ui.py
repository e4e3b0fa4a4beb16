"""The Warehouse pages: response times over a large warehouse, and whether the api-server's memory grows."""

import argparse
import json
import os
import shutil
import sqlite3
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles

from benchmarks.common import Result, scratch
from include.runs import artifacts
from include.runs.manifest import current
from include.settings import warehouse_name
from include.warehouse import paths
from include.warehouse.targets import target
from testing.airflow_processes import Airflow, Deployment

ROW_BYTES = 37  # on disk per order, both large tables together
TIMES = 15
PAGES = {
    "/": 200,
    "/tables": 500,
    "/tables/marts/orders": 500,
    "/tables/staging/stg_orders": 500,
    "/lineage": 500,
    "/incident": 500,
    "/quality": 500,
    "/releases": 500,
    "/query": 500,
    "/dbt-docs/": 500,
    "/dbt-docs/catalog.json": 500,
    "/api/overview": 200,
}


def fill(rows: int) -> None:
    """Create a working database of incompressible values and publish it as two releases."""
    with target().open_working() as connection:
        connection.execute("create schema jaffle_shop_raw; create schema staging; create schema marts")
        connection.execute(
            "create table jaffle_shop_raw.raw_orders as select range as id, (hash(range) % 1000000)::bigint as user_id,"
            " date '2020-01-01' + (range % 2000)::integer as order_date,"
            " ['placed', 'shipped', 'completed', 'returned'][1 + (hash(range, 1) % 4)::bigint] as status,"
            f" md5(range::varchar) as _dlt_load_id from range({rows})"
        )
        connection.execute(
            "create view staging.stg_orders as select id as order_id, user_id as customer_id, order_date, status"
            " from jaffle_shop_raw.raw_orders"
        )
        amounts = ", ".join(
            f"((hash(order_id, {at}) % 100000)::double / 100)::decimal(38, 2) as {name}"
            for at, name in enumerate(("credit_card_amount", "coupon_amount", "bank_transfer_amount", "amount"))
        )
        connection.execute(f"create table marts.orders as select *, {amounts} from staging.stg_orders")
        connection.execute(
            "create table marts.customers as select distinct customer_id, null as first_name from marts.orders"
        )
    for run in ("older", "newer"):
        target().publish(run, lambda _: None)


def remember(home: Path, runs: int) -> None:
    """Write a run history: rows in Airflow's metadata, and artifacts generated from dbt's manifest."""
    manifest = json.loads(current().manifest.read_text())
    tests = [one for one in manifest["nodes"] if one.startswith("test.")]
    with sqlite3.connect(home / "airflow.db") as connection:
        connection.row_factory = sqlite3.Row
        template = dict(connection.execute("select * from dag_run limit 1").fetchone())
        tasks = [
            dict(row)
            for row in connection.execute("select * from task_instance where run_id = ?", [template["run_id"]])
        ]
        for at in range(runs):
            when = datetime.now(UTC) - timedelta(days=at + 1)
            run_id = f"scheduled__{when:%Y-%m-%dT%H:%M:%S}+00:00"
            stamp, end = f"{when:%Y-%m-%d %H:%M:%S.%f}", f"{when + timedelta(seconds=20 + at % 7):%Y-%m-%d %H:%M:%S.%f}"
            run = template | {"id": 10_000 + at, "run_id": run_id, "run_type": "scheduled", "logical_date": stamp}
            state = "failed" if at % 13 == 5 else "success"
            run |= {"run_after": stamp, "start_date": stamp, "end_date": end, "state": state, "queued_at": stamp}
            insert(connection, "dag_run", run)
            for number, task in enumerate(tasks):
                failed = state == "failed" and number == 0
                task |= {"id": f"{at:08x}-0000-7000-8000-{number:012x}", "run_id": run_id}
                task["state"] = "failed" if failed else "success"
                insert(connection, "task_instance", task)
            keep(run_id, tests, at)


def insert(connection: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    connection.execute(
        f"insert into {table} ({', '.join(row)}) values ({', '.join('?' * len(row))})", list(row.values())
    )


def keep(run_id: str, tests: list[str], at: int) -> None:
    folder = paths.run_artifacts_dir(run_id)
    folder.mkdir(parents=True)
    tables = {name: artifacts.TableLoad(1000 + at, int(at % 9 == 0)) for name in ("raw_orders", "raw_payments")}
    ended = datetime.now(UTC).isoformat()
    if at % 13 != 5:
        (folder / artifacts.MANIFEST).touch()  # it published
    artifacts.keep(artifacts.write_load(artifacts.Load(run_id, "jaffle_shop", ended_at=ended, tables=tables)))
    for test in tests:
        result = {
            "unique_id": test,
            "status": "pass",
            "failures": 0,
            "execution_time": 0.1,
            "compiled_code": "x" * 2000,
        }
        (folder / f"transform.{test.split('.')[2]}.json").write_text(json.dumps({"results": [result]}))


def ask(url: str, token: str) -> float:
    """Return how many milliseconds one full response took."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}", "Accept": "text/html"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return 1000 * (time.perf_counter() - started)


def memory(airflow: Airflow) -> float:
    """Return the api-server's unique memory (USS) in MiB; shared memory would be counted twice."""
    processes = [one for one in airflow.processes.alive() if "api" in " ".join(one.cmdline()[:3]).replace("-", "_")]
    return sum(one.memory_full_info().uss for one in processes) / 2**20


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=ui", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the published database")
    parser.add_argument("--runs", type=int, default=90, help="runs in the history")
    parser.add_argument("--requests", type=int, default=1000, help="requests to send while watching memory")
    options = parser.parse_args(arguments)
    result = Result("ui", vars(options))
    with scratch("ui") as root:
        deployment = Deployment(root)
        os.environ["WAREHOUSE_DIR"] = str(deployment.warehouse)
        deployment.initialise()
        fill(int(options.gigabytes * 2**30 / ROW_BYTES))
        result.notes.append(f"The published file is {paths.published_path().stat().st_size / 2**30:.2f} GiB.")
        shutil.rmtree(deployment.data_dir)
        with deployment.running() as airflow:
            # One real run is the template for the history; without CSV files it fails at once.
            airflow.trigger(warehouse_name())
            remember(root / "airflow", options.runs)
            measure(airflow, options.requests, result)
    result.save()


def measure(airflow: Airflow, requests: int, result: Result) -> None:
    url, token = f"{airflow.url}/warehouse", airflow.token
    ask(url + "/static/app.js", token)  # warms up the api-server
    rows = []
    for page, limit in PAGES.items():
        first = ask(url + page, token)
        later = [ask(url + page, token) for _ in range(TIMES)]
        slow = quantiles(later, n=20)[-1]
        rows.append([page, first, median(later), slow])
        result.check(f"ms of {page}, 95th percentile", slow, limit)
    result.table("Milliseconds for the full response", ("page", "first request", "median", "95th percentile"), rows)
    steps, pages = [memory(airflow)], list(PAGES)
    for number in range(requests):
        ask(url + pages[number % len(pages)], token)
        if (number + 1) % max(1, requests // 4) == 0:
            steps.append(memory(airflow))
    result.table("Unique memory (USS) of the api-server, MiB", ("after requests", "MiB"),
                 [[at * max(1, requests // 4), step] for at, step in enumerate(steps)])  # fmt: skip
    # The first quarter fills bounded caches; after that, memory must not grow.
    result.check("memory after all requests ÷ after the first quarter", steps[-1] / steps[1], 1.05)
