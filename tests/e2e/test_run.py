"""`make run` with no Airflow running: it starts one for the run, and waits for another `make run`."""

import shutil
import time
from pathlib import Path

import duckdb
import pytest

from testing.airflow_processes import RUN_SECONDS, Deployment, Processes
from testing.classic import count_differences_from_classic
from testing.project import LOAD, Copy

pytestmark = pytest.mark.e2e


def wait_for_output(processes: Processes, text: str) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while text not in processes.output():
        assert time.monotonic() < deadline, f"no {text!r} in:\n{processes.output()}"
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.timeout(2 * RUN_SECONDS)
def test_a_second_run_waits_for_a_failing_first_one_then_succeeds(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "own")  # in that of other tests, `make up` may run
    deployment.initialise()
    number = deployment.append("raw_orders", "100,1,yesterday,placed")
    first = deployment.start("run")
    second = None
    try:
        wait_for_output(first, "Starting Airflow")
        second = deployment.start("run")
        wait_for_output(second, f"Another run is in progress (PID {first.supervisor_pid()})")
        wait_for_output(first, f"Task {LOAD} failed")
        assert "Starting Airflow" not in second.output()
        deployment.restore_data()
        assert first.wait(RUN_SECONDS) == 1
        assert f"raw_orders.csv:{number}: " in first.output() and "Fix the cause" in first.output()
        assert first.alive() == set()

        assert second.wait(RUN_SECONDS) == 0, second.output()
        assert second.alive() == set()
        run_id = next(line for line in second.output().splitlines() if line.startswith("Run "))[4:]
        with duckdb.connect(str(deployment.published), read_only=True) as connection:
            assert connection.execute("select run_id from warehouse.release").fetchall() == [(run_id,)]
    finally:
        first.kill()
        if second:
            second.kill()


@pytest.mark.long
def test_a_run_needs_no_optional_part(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "project")
    for folder in ("plugins/warehouse_ui", "include/warehouse_catalog", "bi"):
        shutil.rmtree(copy.file(folder))
    targets = (f"include/warehouse/targets/{name}.py" for name in ("ducklake", "postgres", "pg_releases"))
    for file in ("plugins/alerts.py", *targets):
        copy.file(file).unlink()
    copy.run("dbt --quiet parse", "include/dbt_project")
    deployment = Deployment(tmp_path, copy.root, probes=False)
    deployment.initialise()
    code, output = deployment.run("run")
    assert code == 0, output
    assert count_differences_from_classic(deployment.published, deployment.data_dir) == {"customers": 0, "orders": 0}
