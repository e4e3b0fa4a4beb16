"""What the person on call relies on: alerts, retries, clearing any task, concurrent runs."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import duckdb
import psutil
import pytest

from scripts.airflow_api import Api
from testing.airflow_processes import RUN_SECONDS, Airflow, Deployment, Run
from testing.classic import count_differences_from_classic
from testing.project import LOAD, NAME, PROJECT
from tests.e2e.conftest import SECRET, Receiver

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

UNUSUAL = "What was published is unusual"


def marts(deployment: Deployment) -> list[list[tuple[Any, ...]]]:
    with duckdb.connect(str(deployment.published), read_only=True) as connection:
        return [connection.execute(f"from marts.{mart} order by all").fetchall() for mart in ("customers", "orders")]


@pytest.fixture(autouse=True)
def alerts(receiver: Receiver) -> list[dict[str, str]]:
    receiver.alerts.clear()
    return receiver.alerts


@pytest.fixture(scope="module")
def green(airflow: Airflow) -> Run:
    airflow.deployment.restore_data()
    # Failures that other files' tests left open would raise a recovery alert in the middle of the next test.
    shutil.rmtree(airflow.deployment.warehouse / "alerts", ignore_errors=True)
    run = airflow.trigger(NAME)
    assert run.state == "success", run.tasks()
    return run


def test_a_duplicate_order_stops_the_run_at_its_test_alerts_once_and_clearing_load_recovers_with_a_warning(
    green: Run, airflow: Airflow, deployment: Deployment, receiver: Receiver
) -> None:
    before = deployment.published.read_bytes()
    deployment.append("raw_orders", "7,1,2018-01-01,placed")
    run = airflow.trigger(NAME)
    assert run.state == "failed"
    task = "transform.stg_orders.test"
    states = run.tasks()
    assert states[LOAD] == states["transform.stg_orders.run"] == "success"
    assert states[task] == "failed"
    for below in ("transform.orders.run", "transform.customers.run", "transform.orders.test", "publish"):
        assert states[below] == "upstream_failed", below
    assert run.tries(task) == 1, "a retry on the same data would fail again"
    log = run.log(task)
    assert "Got 1 result" in log
    assert "unique_stg_orders_order_id: 1 failing row: unique_field=7, n_records=2" in log
    assert deployment.published.read_bytes() == before
    alert = receiver.wait_for(lambda one: one["title"] == f"{NAME} failed: {task}")
    assert "unique_stg_orders_order_id: 1 failing row: unique_field=7, n_records=2" in alert["message"]
    assert f"Readers see: release {green.result('publish')['release']}" in alert["message"]
    assert f"{airflow.url}/dags/{NAME}/runs/" in alert["message"] and "try 1 of 4" in alert["message"]
    assert 'Runbook: "A test failed"' in alert["message"]

    # The failing rows that the alert names stay available until the test passes.
    assert "audit.unique_stg_orders_order_id" in deployment.command("failures")
    folder = next((deployment.warehouse / "artifacts").glob(f"*{run.id[-15:-6].replace(':', '-')}*"))
    kept = json.loads((folder / f"{task}.failures.json").read_text())
    assert [failure["sample"] for failure in kept.values()] == [[[7, 2]]]

    # The fixed file has more than twice the published rows: that is published, with a warning.
    deployment.restore_data()
    for number in range(150):
        deployment.append("raw_orders", f"{1000 + number},1,2018-01-01,placed")
    run.clear(LOAD)
    assert set(run.tasks().values()) == {"success"}
    assert [len(rows) for rows in marts(deployment)] == [100, 249]
    assert count_differences_from_classic(deployment.published, deployment.data_dir) == {"customers": 0, "orders": 0}
    recovered = receiver.wait_for(lambda one: one["title"] == f"{NAME} has recovered")
    assert task in recovered["message"]
    assert [one["title"] for one in receiver.alerts].count(alert["title"]) == 1
    warning = receiver.wait_for(lambda one: one["title"] == f"{NAME} passed with warnings: publish")
    assert "marts.orders: 249 rows (" in warning["message"]
    assert f'Runbook: "{UNUSUAL}"' in warning["message"]
    assert f"\n## {UNUSUAL}\n" in (PROJECT / "docs" / "runbook.md").read_text()
    titles = [one["title"] for one in receiver.alerts if one["title"] != "/alive"]  # the scheduler's ping
    assert len(titles) == 3, titles
    assert "No test has failing rows" in deployment.command("failures")


def test_a_bad_row_alert_has_file_line_and_reason_but_no_row_text_and_no_secret(
    green: Run, airflow: Airflow, deployment: Deployment, receiver: Receiver
) -> None:
    number = deployment.append("raw_customers", "x,Ann,Lee")
    run = airflow.trigger(NAME)
    alert = receiver.wait_for(lambda one: one["title"] == f"{NAME} failed: {LOAD}")
    assert f"raw_customers.csv:{number}: column id: id: not a valid BIGINT" in alert["message"]
    assert "Ann" not in alert["message"]
    log = run.log(LOAD)
    assert "could not be delivered to every target" in log, "the second target is closed"
    assert SECRET not in log and SECRET not in json.dumps(receiver.alerts)


@pytest.fixture
def lock_holder(deployment: Deployment) -> Iterator[psutil.Process]:
    """A process outside Airflow that holds the working database's lock."""
    path = deployment.warehouse / f"{NAME}.duckdb"
    script = (
        f"import duckdb, sys; connection = duckdb.connect({str(path)!r}); print('held', flush=True); sys.stdin.read()"
    )
    process = psutil.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()


def test_a_run_survives_killed_workers_and_tasks_and_waits_for_a_foreign_lock_without_an_alert(
    green: Run, airflow: Airflow, lock_holder: psutil.Process, alerts: list[dict[str, str]]
) -> None:
    idle = airflow.processes.titled("LocalExecutor: <idle>")
    assert idle
    for worker in idle:
        worker.kill()
    run = airflow.start(NAME)
    run.wait_for_running(LOAD)
    deadline = time.monotonic() + RUN_SECONDS
    while f"PID {lock_holder.pid}" not in run.log(LOAD):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    lock_holder.send_signal(signal.SIGKILL)
    killed = run.kill_running("transform.")
    run.wait()
    assert run.state == "success", run.tasks()
    assert run.tries(killed) > 1
    assert not [alert for alert in alerts if "failed" in alert["title"]]


def test_publish_alone_updates_the_assets_that_other_dags_are_scheduled_on(
    green: Run, airflow: Airflow, deployment: Deployment
) -> None:
    def events() -> list[str]:
        query = f"source_dag_id={NAME}&source_run_id={quote(green.id)}"
        return [one["source_task_id"] for one in airflow.call("GET", f"/api/v2/assets/events?{query}")["asset_events"]]

    airflow.wait_for_dag("on_orders")
    assets = airflow.call("GET", f"/api/v2/assets?dag_ids={NAME}")["assets"]
    assert {one["name"] for one in assets} == {f"{NAME}.marts.customers", f"{NAME}.marts.orders"}
    before = events()
    assert set(before) == {"publish"}
    green.clear("transform.orders.run", downstream=False)
    assert events() == before, "a model alone changes nothing for readers"
    green.clear("publish")
    assert len(events()) == len(before) + len(assets)
    # The tests' Airflow starts no scheduled runs: the update waits.
    waiting = airflow.call("GET", "/api/v2/dags/on_orders/assets/queuedEvents")["queued_events"]
    assert [one["dag_id"] for one in waiting] == ["on_orders"]


def test_a_late_run_sends_an_alert_and_another_when_it_ends(airflow: Airflow, receiver: Receiver) -> None:
    airflow.wait_for_dag("late")
    run = airflow.trigger("late")
    late = receiver.wait_for(lambda one: one["title"] == "late is late")
    assert "Not finished by its deadline" in late["message"] and run.id in late["message"]
    receiver.wait_for(lambda one: one["title"] == "late has recovered")


def test_every_task_can_be_cleared_alone_in_any_order(green: Run, deployment: Deployment) -> None:
    fresh = marts(deployment)
    tasks = sorted(green.tasks())
    random.Random(3).shuffle(tasks)
    assert len(tasks) > 10
    for task in tasks:
        green.clear(task, downstream=False)
        assert green.state == "success", (task, green.log(task))
        assert green.tries(task) > 1
        assert marts(deployment) == fresh, task


@pytest.mark.skipif(os.environ.get("TASKS_PER_PROCESS") == "1", reason="each task has a process of its own")
def test_dbt_tasks_share_a_process_until_it_is_killed_or_a_file_of_the_project_changes(
    green: Run, airflow: Airflow
) -> None:
    tasks = ("transform.stg_orders.run", "transform.orders.run")

    def process_of(task: str) -> int:
        green.clear(task, downstream=False)
        assert green.state == "success", green.log(task)
        found = airflow.call("GET", f"{green.path}/taskInstances/{task}")
        return int(found["pid"])

    first, second = map(process_of, tasks)
    assert first == second, green.log(tasks[1])
    assert "dbt reuses the project parsed in memory" in green.log(tasks[1])
    psutil.Process(first).kill()
    after_kill = process_of(tasks[0])
    assert after_kill != first
    (PROJECT / "include" / "queries" / "inactive_customers.sql").touch()
    assert process_of(tasks[0]) not in (first, after_kill)


def test_clearing_publish_does_not_publish_a_newer_runs_half_built_data(
    green: Run, airflow: Airflow, deployment: Deployment
) -> None:
    before = deployment.published.read_bytes()
    deployment.append("raw_orders", "7,1,2018-01-01,placed")
    newer = airflow.trigger(NAME)
    assert newer.state == "failed"
    green.clear("publish")
    assert green.state == "failed"
    log = green.log("publish")
    assert f"the data that run {newer.id} loaded" in log and "unique_stg_orders_order_id: failed" in log
    assert "Clear `load` with downstream" in log
    assert deployment.published.read_bytes() == before

    deployment.restore_data()
    green.clear(LOAD)
    assert green.state == "success", green.tasks()


@pytest.mark.long
def test_runs_of_a_warehouse_take_turns_while_another_ones_goes_on_beside_them(
    green: Run, airflow: Airflow, deployment: Deployment
) -> None:
    """Backfill runs start together, alongside the manual one: `max_active_runs` does not apply to them."""
    fresh = marts(deployment)
    airflow.wait_for_dag("second")
    wanted = {"dag_id": NAME, "from_date": "2026-02-01", "to_date": "2026-02-01", "max_active_runs": 2}
    deadline = time.monotonic() + RUN_SECONDS
    airflow.call("POST", "/api/v2/backfills", wanted)
    runs = [airflow.start(NAME)]
    second = airflow.start("second")
    while len(runs) < 2:
        assert time.monotonic() < deadline
        found = airflow.call("GET", f"/api/v2/dags/{NAME}/dagRuns?run_type=backfill")["dag_runs"]
        runs[1:] = [Run(airflow, NAME, one["dag_run_id"]) for one in found]
        time.sleep(0.3)
    for run in (*runs, second):
        assert run.wait().state == "success", (run.id, run.tasks())
    turns = sorted(run.span(LOAD, "publish") for run in runs)
    assert turns[0][1] <= turns[1][0], turns
    beside = second.span(LOAD, "publish")
    assert beside[0] < turns[-1][1] and turns[0][0] < beside[1], "neither warehouse waited for the other"
    assert marts(deployment) == fresh

    own = deployment.warehouse / "second"
    with duckdb.connect(str(own / "published" / "second.duckdb"), read_only=True) as connection:
        assert connection.execute("select run_id from warehouse.release").fetchall() == [(second.id,)]
        assert connection.execute("select count(*) from marts.orders").fetchall() == [(99,)]
    with duckdb.connect(str(deployment.published), read_only=True) as connection:
        assert connection.execute("select run_id from warehouse.release").fetchall()[0][0] in {run.id for run in runs}
    assert len(list((own / "artifacts").iterdir())) == 1


@pytest.mark.long
def test_a_backfill_is_created_while_the_scheduler_writes_and_a_cancelled_one_can_be_cleared(
    airflow: Airflow,
) -> None:
    # Only one at a time; Airflow ends that of another test some time after its last run.
    mine, deadline = f"/api/v2/backfills?dag_id={NAME}", time.monotonic() + 120
    while any(one["completed_at"] is None for one in airflow.call("GET", mine)["backfills"]):
        assert time.monotonic() < deadline
        time.sleep(1)
    busy = airflow.start(NAME)
    for month in range(3, 7):
        days = {"from_date": f"2026-0{month}-01", "to_date": f"2026-0{month}-20", "max_active_runs": 1}
        made = airflow.call("POST", "/api/v2/backfills", {"dag_id": NAME, **days})
        airflow.call("PUT", f"/api/v2/backfills/{made['id']}/cancel")
    busy.wait()
    found = airflow.call("GET", f"/api/v2/dags/{NAME}/dagRuns?run_type=backfill&state=failed&limit=100")["dag_runs"]
    assert len(found) > 60, "20 for each, of which the first may have started"
    run = Run(airflow, NAME, found[-1]["dag_run_id"])
    run.clear(LOAD)
    assert run.state == "success"


def test_a_timed_out_task_stops_releases_the_lock_and_is_not_retried(airflow: Airflow, deployment: Deployment) -> None:
    airflow.wait_for_dag("slow")
    run = airflow.trigger("slow")
    assert run.tasks() == {"slow": "failed"}
    assert run.tries("slow") == 1
    log = run.log("slow")
    assert "START sql table model" in log and "Timeout" in log
    # Fails if the task's process still holds the lock.
    assert "No test has failing rows" in deployment.command("failures")


@pytest.mark.long
def test_tasks_that_ask_for_more_slots_than_their_pool_has_get_all_of_them(airflow: Airflow) -> None:
    pool = "/api/v2/pools/duckdb_writer"
    airflow.call("PATCH", f"{pool}?update_mask=slots", {"name": "duckdb_writer", "slots": 1, "include_deferred": False})
    try:
        assert airflow.trigger(NAME).state == "success"
    finally:
        airflow.call(
            "PATCH", f"{pool}?update_mask=slots", {"name": "duckdb_writer", "slots": 2, "include_deferred": False}
        )


@pytest.mark.long
def test_somebody_else_hears_from_a_scheduler_that_works(airflow: Airflow, receiver: Receiver) -> None:
    receiver.wait_for(lambda one: one["title"] == "/alive")
    status, body = Api(airflow.url).request("GET", "/ready/")
    assert (status, json.loads(body)) == (200, {"database": "healthy", "scheduler": "healthy"})
