"""A DAG that finishes after its deadline."""

import time
from datetime import timedelta

from airflow.sdk import DAG, task
from alerts import AlertNotifier, deadline

from include.settings import warehouse_name

with DAG(
    dag_id="late",
    schedule=None,
    deadline=deadline(warehouse_name(), after=timedelta(seconds=1)),
    on_success_callback=AlertNotifier("recovered"),
):

    @task
    def wait() -> None:
        time.sleep(12)

    wait()
