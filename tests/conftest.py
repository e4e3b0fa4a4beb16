"""What `make` exports, also for a pytest that is started without it; and which tests share a worker."""

import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from include.settings import airflow_env

NAME = airflow_env()["WAREHOUSE_NAME"]
LOAD = "load.jaffle_shop"  # the task of the first source
os.environ["WAREHOUSE_NAME"] = NAME


def unchecked(_: object) -> None:
    """For `warehouse.publish`, where a test is about something else than what may be published."""


_SHARED = {
    "test_on_call.py": "pipeline",
    "test_pipeline.py": "pipeline",
    "test_access.py": "pages",
    "test_browser.py": "pages",
}


class _Scheduling(LoadFileScheduling):
    """One worker for each file, and for files that share an Airflow."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _SHARED.get(file.rsplit("/", 1)[-1], file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Replace xdist's `loadfile`."""
    return _Scheduling(config, log)
