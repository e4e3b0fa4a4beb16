"""The Warehouse pages: response times over a large warehouse, and whether the api-server's memory grows.

The warehouse has a table of many rows, one of many columns, and models with their tests, of which each run left one
file per task, as real runs do.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import sqlite3
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import quote

from benchmarks.common import Result, scratch
from include.change.releases import keep_difference
from include.runs import artifacts, shape
from include.runs.manifest import current
from include.settings import warehouse_name
from include.warehouse import paths
from include.warehouse.targets import target
from testing.airflow_processes import Airflow, Deployment

TIMES = 30
LAYERS = 8
TESTS_PER_MODEL = 3
# Of older runs, no page reads the results of single tasks.
RUNS_WITH_RESULTS = 40
RUNS = 90  # as in plugins/warehouse_ui/history.py
PAGES = {
    "/": 500,
    "/warehouses": 500,
    "/tables": 500,
    "/tables?q=model_01": 500,
    "/tables/marts/orders": 500,
    "/tables/marts/wide": 500,
    "/tables/marts/orders/history": 500,
    "/tables/marts/wide/history": 500,
    "/tables/marts/model_0700": 500,
    "/tables/staging/stg_orders": 500,
    "/lineage": 500,
    "/lineage?q=model_0400": 500,
    "/incident": 500,
    "/incident?run_id=RED": 500,
    "/quality": 500,
    "/tests/test.analytics.unique_model_0700": 500,
    "/releases": 500,
    "/releases/NEWER/changes": 500,
    "/query": 500,
    "/connect": 500,
    "/tokens": 500,
    "/dbt-docs/": 500,
    "/dbt-docs/catalog.json": 500,
    "/api/overview": 500,
}


def fill(rows: int, models: int, columns: int) -> None:
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
        wide = ", ".join(f"hash(range, {at}) % 1000 as column_{at:03}" for at in range(columns))
        connection.execute(f"create table marts.wide as select {wide} from range(100000)")
        for at in range(models):
            connection.execute(f"create table marts.model_{at:04} as select range as id, {at} as n from range(100)")
    manifest = gzip.compress(json.dumps(project(models, columns)).encode(), 3)
    for run in ("older", "newer"):
        published = target().publish(run, lambda _: None)
        paths.run_artifacts_dir(run).mkdir(parents=True, exist_ok=True)
        (paths.run_artifacts_dir(run) / artifacts.MANIFEST).write_bytes(manifest)
        keep_shape(run)
        keep_difference(published)


def project(models: int, columns: int) -> dict[str, Any]:
    """Return the sample's manifest with more models in layers, each with tests."""
    manifest: dict[str, Any] = json.loads(current().manifest.read_text())
    nodes = manifest["nodes"]
    model = nodes["model.analytics.orders"]
    test = next(one for name, one in nodes.items() if name.startswith("test.analytics.unique_orders"))
    layer = max(1, models // LAYERS)
    names = [*(f"model_{at:04}" for at in range(models)), "wide"]
    for at, name in enumerate(names):
        unique_id = f"model.analytics.{name}"
        above = [names[at - layer], names[at - layer + 1]] if layer <= at < models else []
        parents = [f"model.analytics.{one}" for one in above] or ["source.analytics.jaffle_shop.raw_orders"]
        own = ["id", "n"] if name != "wide" else [f"column_{one:03}" for one in range(columns)]
        documented = {one: {"name": one, "description": f"The {one} of {name}.", "meta": {}} for one in own}
        changes = {"unique_id": unique_id, "name": name, "alias": name, "columns": documented}
        nodes[unique_id] = model | changes | {"depends_on": {"macros": [], "nodes": parents}}
        for number, kind in enumerate(("unique", "not_null", "accepted_values")[:TESTS_PER_MODEL]):
            one = f"test.analytics.{kind}_{name}"
            metadata = test["test_metadata"] | {"name": kind}
            changes = {"unique_id": one, "name": f"{kind}_{name}", "column_name": own[number % len(own)]}
            changes |= {"attached_node": unique_id, "depends_on": {"macros": [], "nodes": [unique_id]}}
            nodes[one] = test | changes | {"test_metadata": metadata}
    return manifest


def keep_shape(run: str) -> None:
    """Keep the shape of what a run published: that of the newest release, which all runs share."""
    newest = target().list_releases()[0]
    artifacts.keep_shape(run, shape.measure(newest), {})


def remember(home: Path, runs: int, models: int, columns: int) -> str:
    """Write a run history, in Airflow's metadata and as artifacts; return the id of the last red run."""
    tests: dict[str, list[str]] = {}
    for name, node in project(models, columns)["nodes"].items():
        if name.startswith("test.") and node.get("attached_node"):
            tests.setdefault(node["attached_node"].split(".")[-1], []).append(name)
    shapes = (paths.run_artifacts_dir("newer") / "shape.json").read_text()
    red = ""
    with sqlite3.connect(home / "airflow.db") as connection:
        connection.row_factory = sqlite3.Row
        template = dict(connection.execute("select * from dag_run limit 1").fetchone())
        tasks = [
            dict(row)
            for row in connection.execute("select * from task_instance where run_id = ?", [template["run_id"]])
        ]
        names = {f"transform.{model}.{kind}" for model in tests for kind in ("run", "test")}
        models_tasks = [tasks[-1] | {"task_id": name} for name in sorted(names - {one["task_id"] for one in tasks})]
        for at in range(runs):
            when = datetime.now(UTC) - timedelta(days=at + 1)
            run_id = f"scheduled__{when:%Y-%m-%dT%H:%M:%S}+00:00"
            stamp, end = f"{when:%Y-%m-%d %H:%M:%S.%f}", f"{when + timedelta(seconds=20 + at % 7):%Y-%m-%d %H:%M:%S.%f}"
            run = template | {
                "id": 10_000 + runs - at,
                "run_id": run_id,
                "run_type": "scheduled",
                "logical_date": stamp,
            }
            state = "failed" if at % 13 == 0 else "success"
            run |= {"run_after": stamp, "start_date": stamp, "end_date": end, "state": state, "queued_at": stamp}
            insert(connection, "dag_run", run)
            red = red or (run_id if state == "failed" else "")
            # No page reads the tasks of older runs.
            every = tasks + models_tasks if at < RUNS else tasks
            rows = [
                task
                | {"id": f"{at:08x}-0000-7000-8000-{number:012x}", "run_id": run_id}
                | {"state": "failed" if state == "failed" and number == 0 else "success"}
                for number, task in enumerate(every)
            ]
            insert(connection, "task_instance", *rows)
            keep(run_id, tests if at < RUNS_WITH_RESULTS else {}, at)
            if at < RUNS_WITH_RESULTS and state != "failed":
                (paths.run_artifacts_dir(run_id) / "shape.json").write_text(shapes)
    return red


def insert(connection: sqlite3.Connection, table: str, *rows: dict[str, object]) -> None:
    names = list(rows[0])
    connection.executemany(
        f"insert into {table} ({', '.join(names)}) values ({', '.join('?' * len(names))})",
        [[row[name] for name in names] for row in rows],
    )


def keep(run_id: str, tests: dict[str, list[str]], at: int) -> None:
    folder = paths.run_artifacts_dir(run_id)
    folder.mkdir(parents=True)
    tables = {name: artifacts.TableLoad(1000 + at, int(at % 9 == 0)) for name in ("raw_orders", "raw_payments")}
    ended = datetime.now(UTC).isoformat()
    if at % 13 != 0:
        (folder / artifacts.MANIFEST).touch()  # it published
    artifacts.keep(artifacts.write_load(artifacts.Load(run_id, "jaffle_shop", ended_at=ended, tables=tables)))
    rest = {"status": "pass", "failures": 0, "execution_time": 0.1, "compiled_code": "x" * 2000}
    for model, own in tests.items():
        for task, names in (("run", [f"model.analytics.{model}"]), ("test", own)):
            results = {"results": [{"unique_id": one, **rest} for one in names]}
            (folder / f"transform.{model}.{task}.json").write_text(json.dumps(results))


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
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the largest table")
    parser.add_argument("--models", type=int, default=800, help="models beside the sample's")
    parser.add_argument("--columns", type=int, default=200, help="columns of the widest table")
    parser.add_argument("--runs", type=int, default=400, help="runs in the history")
    parser.add_argument("--requests", type=int, default=1000, help="requests to send while watching memory")
    options = parser.parse_args(arguments)
    result = Result("ui", vars(options))
    with scratch("ui") as root:
        deployment = Deployment(root)
        os.environ["WAREHOUSE_DIR"] = str(deployment.warehouse)
        deployment.initialise()
        fill(options.rows, options.models, options.columns)
        result.notes.append(f"The published file is {paths.published_path().stat().st_size / 2**30:.2f} GiB.")
        shutil.rmtree(deployment.data_dir)
        with deployment.running() as airflow:
            # One real run is the template for the history; without CSV files it fails at once.
            airflow.trigger(warehouse_name())
            red = remember(root / "airflow", options.runs, options.models, options.columns)
            known = {"RED": quote(red), "NEWER": target().list_releases()[0].id}
            measure(airflow, options.requests, result, known)
    result.save()


def measure(airflow: Airflow, requests: int, result: Result, known: dict[str, str]) -> None:
    """Ask for each page; `known` has what stands for the words in capitals in their addresses."""
    url, token = f"{airflow.url}/warehouse", airflow.token
    ask(url + "/static/app.js", token)  # warms up the api-server
    rows = []
    for page, limit in PAGES.items():
        address = re.sub("RED|NEWER", lambda word: known[word[0]], url + page)
        first = ask(address, token)
        later = [ask(address, token) for _ in range(TIMES)]
        slow = quantiles(later, n=20)[-1]
        rows.append([page, first, median(later), slow])
        result.check(f"ms of {page}, 95th percentile", slow, limit)
    result.table("Milliseconds for the full response", ("page", "first request", "median", "95th percentile"), rows)
    steps, pages = [memory(airflow)], list(PAGES)
    for number in range(requests):
        ask(re.sub("RED|NEWER", lambda word: known[word[0]], url + pages[number % len(pages)]), token)
        if (number + 1) % max(1, requests // 4) == 0:
            steps.append(memory(airflow))
    result.table("Unique memory (USS) of the api-server, MiB", ("after requests", "MiB"),
                 [[at * max(1, requests // 4), step] for at, step in enumerate(steps)])  # fmt: skip
    # The first quarter fills bounded caches; after that, memory must not grow.
    result.check("memory after all requests ÷ after the first quarter", steps[-1] / steps[1], 1.05)
