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


class _Scheduling(LoadFileScheduling):
    """One worker for each file, and for the pages, whose files share an Airflow."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "pages" if file.endswith(("test_access.py", "test_browser.py")) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Replace xdist's `loadfile`."""
    return _Scheduling(config, log)
