"""What `make` exports, also for a pytest that is started without it."""

import os

from include.settings import airflow_env

NAME = airflow_env()["WAREHOUSE_NAME"]
LOAD = "load.jaffle_shop"  # the task of the first source
os.environ["WAREHOUSE_NAME"] = NAME


def unchecked(_: object) -> None:
    """For `warehouse.publish`, where a test is about something else than what may be published."""
