"""The pipeline in a running Airflow, driven through the REST API."""

import hashlib
import json
import re
import socket
import urllib.error
from pathlib import Path

import duckdb
import pytest

from testing.airflow_processes import Airflow, Deployment, Run
from testing.classic import count_differences_from_classic
from testing.project import LOAD, NAME
from tests.e2e.conftest import Receiver

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]  # the first test waits for init, up and a run

BAD_PAYMENT = "114,1,coupon,not a number"
LOGIN_AND_HEALTH = {
    "/api/v2/auth/login",
    "/api/v2/auth/logout",
    "/api/v2/monitor/health",
    "/api/v2/version",
}


def rows_published(deployment: Deployment) -> dict[str, int]:
    with duckdb.connect(str(deployment.published), read_only=True) as connection:
        counts = {}
        for mart in ("customers", "orders"):
            counts[mart] = connection.execute(f"select count(*) from marts.{mart}").fetchall()[0][0]
        return counts


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def release_of(deployment: Deployment) -> str:
    with duckdb.connect(str(deployment.published), read_only=True) as connection:
        return str(connection.execute("select release_id from warehouse.release").fetchall()[0][0])


@pytest.fixture(scope="module")
def green(airflow: Airflow) -> Run:
    """The published state that tests start from: a run on the project's data plus one bad row, which it tolerates."""
    airflow.deployment.restore_data()
    airflow.deployment.append("raw_payments", BAD_PAYMENT)
    run = airflow.trigger(NAME, max_rejected_rows=1)
    airflow.deployment.restore_data()
    assert run.state == "success", run.tasks()
    return run


def test_a_run_publishes_the_same_marts_as_the_classic_models(green: Run, deployment: Deployment) -> None:
    assert set(green.tasks().values()) == {"success"}
    assert rows_published(deployment) == {"customers": 100, "orders": 99}
    assert count_differences_from_classic(deployment.published, deployment.data_dir) == {"customers": 0, "orders": 0}


def test_a_tolerated_bad_row_is_kept(green: Run, deployment: Deployment) -> None:
    loaded = green.result(LOAD)
    assert loaded["rows_rejected"] == 1
    with duckdb.connect(str(deployment.published), read_only=True) as connection:
        query = "select table_name, column_name, text from jaffle_shop_raw.rejected_rows where _dlt_load_id = ?"
        kept = connection.execute(query, [loaded["load_id"]]).fetchall()
    assert kept == [("raw_payments", "amount", BAD_PAYMENT)]


def test_the_load_and_each_dbt_task_write_their_artifacts(green: Run, deployment: Deployment) -> None:
    kept = {path.stem for folder in (deployment.warehouse / "artifacts").iterdir() for path in folder.iterdir()}
    assert {"load-jaffle_shop", "transform.stg_orders.run", "transform.stg_orders.test"} <= kept


def test_dbt_tasks_inherit_the_parsed_project(green: Run) -> None:
    for task in ("source_freshness", "transform.stg_orders.run", "transform.stg_orders.test"):
        assert "dbt reuses the project parsed in memory" in green.log(task), task


def test_a_bad_row_fails_the_load_and_leaves_the_published_file_untouched(
    green: Run, airflow: Airflow, deployment: Deployment
) -> None:
    before = sha256(deployment.published)
    number = deployment.append("raw_orders", "100,1,2018-13-45,placed")
    run = airflow.trigger(NAME)

    assert run.state == "failed"
    states = run.tasks()
    assert states.pop(LOAD) == "failed"
    assert set(states.values()) == {"upstream_failed"}
    assert run.tries(LOAD) == 1, "a retry would read the same file again"
    reported = next(line for line in run.log(LOAD).splitlines() if f"raw_orders.csv:{number}: " in line)
    assert "order_date: not a valid DATE" in reported and "2018-13-45" not in run.log(LOAD)
    rejected = deployment.working(
        "select line, column_name, text from jaffle_shop_raw.rejected_rows where text like '100,1,2018-13-45%'"
    )
    assert rejected == [(number, "order_date", "100,1,2018-13-45,placed")]
    assert sha256(deployment.published) == before


def test_rollback_publishes_an_older_release_and_lists_the_kept_ones_for_an_unknown_id(
    green: Run, airflow: Airflow, deployment: Deployment, receiver: Receiver
) -> None:
    older = green.result("publish")["release"]
    newer = "a-newer-one"
    deployment.command("publish", newer)
    assert release_of(deployment) == newer

    unknown = airflow.trigger(f"{NAME}_rollback", release="no-such-run")
    assert unknown.tasks() == {"list_releases": "success", "rollback": "failed"}
    log = unknown.log("rollback")
    assert "no-such-run" in log and older in log and newer in log
    assert release_of(deployment) == newer

    assert airflow.trigger(f"{NAME}_rollback", release=older).state == "success"
    assert release_of(deployment) == older

    # It holds until somebody releases it.
    run = airflow.trigger(NAME)
    assert run.state == "success" and run.tasks().pop("publish") == "skipped"
    assert release_of(deployment) == older
    alert = receiver.wait_for(lambda one: one["title"] == f"{NAME} passed with warnings: publish")
    assert f"admin rolled readers back to {older}, instead of {newer}" in alert["message"]
    assert airflow.trigger(f"{NAME}_rollback", release_hold=True).state == "success"
    run.clear("publish")
    assert run.tasks()["publish"] == "success" and release_of(deployment) == run.result("publish")["release"]


def test_make_run_uses_a_running_airflow_and_reports_a_failure(
    green: Run, airflow: Airflow, deployment: Deployment
) -> None:
    number = deployment.append("raw_customers", "x,Ann,Lee")
    code, output = deployment.run("run")

    assert code == 1
    assert airflow.url in output and "Starting Airflow" not in output
    assert f"Task {LOAD} failed" in output
    assert f"raw_customers.csv:{number}: " in output and "Ann" not in output
    assert "Fix the cause" in output


def test_task_processes_inherit_what_is_preloaded_and_nothing_of_another_target(
    airflow: Airflow, deployment: Deployment
) -> None:
    airflow.wait_for_dag("loaded_modules")
    run = airflow.trigger("loaded_modules")
    assert run.state == "success", run.log("look")
    found = run.result("look")
    assert not found["imported_here"]
    asked = deployment.env["AIRFLOW__SCHEDULER__MP_FORKSERVER_PRELOAD"].split(",")[:-1]
    assert [name for name in asked if name not in found["modules_before"]] == []
    targets = {f"include.warehouse.targets.{name}" for name in ("ducklake", "postgres", "pg_releases")}
    others = targets | {"duckdb_extensions", "psycopg", "s3fs"}
    assert others & set(found["modules_before"]) == set()


def test_only_the_login_page_is_served_without_a_login(airflow: Airflow) -> None:
    paths = airflow.call("GET", "/openapi.json")["paths"]
    assert len(paths) > 50
    answers = {}
    for path, methods in paths.items():
        for method in {"get", "post", "delete"} & methods.keys():
            url = re.sub(r"\{[^}]*\}", NAME, path)
            if path not in LOGIN_AND_HEALTH:
                answers[f"{method} {path}"] = airflow.request(method.upper(), url)[0]
    assert {call: status for call, status in answers.items() if status not in (401, 403)} == {}
    assert airflow.request("GET", "/auth/login")[0] == 200


def test_a_wrong_password_is_refused(airflow: Airflow) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        airflow.call("POST", "/auth/token", {"username": "admin", "password": "admin"})
    assert refused.value.code == 401


def test_every_process_listens_on_loopback_only(green: Run, airflow: Airflow) -> None:
    listening = airflow.processes.listening()
    assert int(airflow.url.rsplit(":", 1)[1]) in {port for _, port in listening}
    assert {address for address, _ in listening} <= {"127.0.0.1", "::1"}


def test_only_this_user_can_read_the_generated_password(airflow: Airflow, deployment: Deployment) -> None:
    home = deployment.root / "airflow"
    passwords = home / "simple_auth_manager_passwords.json.generated"
    assert passwords.stat().st_mode & 0o077 == 0 or home.stat().st_mode & 0o077 == 0
    assert len(json.loads(passwords.read_text())["admin"]) >= 16


def test_ctrl_c_stops_every_process_and_frees_the_port(airflow: Airflow) -> None:
    """Has to run last: it stops the Airflow that test_on_call.py uses too."""
    assert len(airflow.processes.alive()) > 5
    airflow.processes.interrupt()
    assert airflow.processes.alive() == set()
    assert "did not end" not in airflow.processes.output()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(airflow.url.rsplit(":", 1)[1])))
