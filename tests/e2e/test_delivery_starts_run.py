"""From a file renamed into place to what readers see, without anybody starting a run."""

import shutil
import time
from pathlib import Path

import duckdb
import pytest

from testing.airflow_processes import RUN_SECONDS, Deployment
from testing.project import NAME, Copy

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]


def test_a_delivery_starts_one_run_and_readers_see_it(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "project")
    copy.edit("dags/jaffle_shop.py", 'schedule="@daily"', f'schedule=when_delivered("{NAME}")')
    copy.edit("dags/jaffle_shop.py", "from elt import", "from deliveries import when_delivered\nfrom elt import")
    copy.file("dags/maintenance.py").unlink()  # a schedule of its own
    copy.run("dbt --quiet parse", "include/dbt_project")
    deployment = Deployment(tmp_path, copy.root, probes=False)
    deployment.env |= {"AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True", "TRIGGERER": "true"}
    outside = tmp_path / "outside"
    deployment.data_dir.rename(outside)
    deployment.data_dir.mkdir()
    deployment.initialise()

    def deliver(*names: str) -> None:
        for name in names:
            shutil.copy(outside / name, deployment.data_dir / f".{name}")
            (deployment.data_dir / f".{name}").rename(deployment.data_dir / name)

    with deployment.running() as airflow:

        def runs() -> list[dict[str, str]]:
            return list(airflow.call("GET", f"/api/v2/dags/{NAME}/dagRuns")["dag_runs"])

        def wait_for(number: int) -> None:
            deadline = time.monotonic() + RUN_SECONDS
            while [one["state"] for one in runs()] != ["success"] * number:
                assert time.monotonic() < deadline, runs()
                time.sleep(0.2)

        deliver("raw_customers.csv", "raw_orders.csv")
        time.sleep(5)
        assert runs() == [], "one file of the set is missing"
        deliver("raw_payments.csv")
        wait_for(1)
        with (outside / "raw_orders.csv").open("a") as file:
            file.write("100,1,2018-04-10,placed\n")
        started = time.monotonic()
        deliver("raw_customers.csv", "raw_payments.csv", "raw_orders.csv")
        wait_for(2)
        print(f"readers saw the delivery after {time.monotonic() - started:.1f} s")
        time.sleep(5)
        assert len(runs()) == 2, "one run for each set"
    with duckdb.connect(str(deployment.published), read_only=True) as connection:
        assert connection.execute("select count(*) from marts.orders").fetchall() == [(100,)]
