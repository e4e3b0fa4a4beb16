"""Airflow for real: init once for all tests, `up` once for a module."""

import socket
from collections.abc import Iterator

import pytest

from tests.e2e.airflow_processes import Airflow, Deployment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Folders with an initialised Airflow and the project's data, and nothing running."""
    deployment = Deployment(tmp_path_factory.mktemp("e2e"))
    code, output = deployment.run("init")
    assert code == 0, output
    return deployment


@pytest.fixture(scope="module")
def airflow(deployment: Deployment) -> Iterator[Airflow]:
    """A running Airflow."""
    airflow = Airflow(deployment, free_port())
    try:
        airflow.wait_until_ready()
        yield airflow
    finally:
        airflow.processes.kill()


@pytest.fixture(autouse=True)
def _project_data(deployment: Deployment) -> None:
    deployment.restore_data()
