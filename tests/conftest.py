"""What `make` exports, also for a pytest that is started without it; and which tests share a worker."""

import os

import pytest

from include.settings import airflow_env

NAME = airflow_env()["WAREHOUSE_NAME"]
LOAD = "load.jaffle_shop"  # the task of the first source
os.environ["WAREHOUSE_NAME"] = NAME


def unchecked(_: object) -> None:
    """For `warehouse.publish`, where a test is about something else than what may be published."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker, and those of the pages, which share an Airflow."""
    pages = ("test_access", "test_browser")
    for item in items:
        group = "pages" if item.path.stem in pages else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
