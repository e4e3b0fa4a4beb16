"""A DAG that finishes after its deadline."""

import time
from datetime import timedelta

from airflow.sdk import DAG, DeadlineAlert, SyncCallback, task
from on_call import AlertNotifier, Queued

with DAG(
    dag_id="late",
    schedule=None,
    deadline=DeadlineAlert(
        reference=Queued(),
        interval=timedelta(seconds=1),
        callback=SyncCallback(AlertNotifier, kwargs={"kind": "late"}),
    ),
    on_success_callback=AlertNotifier("recovered"),
):

    @task
    def wait() -> None:
        time.sleep(12)

    wait()
