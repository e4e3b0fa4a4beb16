"""A forkserver preload that takes longer than the scheduler's health check threshold."""

import time
from pathlib import Path

import pytest

from testing.airflow_processes import Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]

THRESHOLD_SECONDS = 10


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """One of its own: the others' may be running in this worker."""
    deployment = Deployment(tmp_path_factory.mktemp("preload"))
    deployment.initialise()
    return deployment


def test_a_slow_preload_neither_stops_the_scheduler_nor_starts_a_task_twice(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    preload_may_end = tmp_path / "preload may end"
    for name, value in {
        "AIRFLOW__SCHEDULER__MP_FORKSERVER_PRELOAD": "testing.held_preload,testing.preload_probe",
        "PRELOAD_MAY_END": str(preload_may_end),
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": str(THRESHOLD_SECONDS),
        # Airflow records each heartbeat with the next one, so the recorded one is up to two intervals old.
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "1",
    }.items():
        monkeypatch.setitem(deployment.env, name, value)
    with deployment.running() as airflow:
        airflow.wait_for_dag("loaded_modules")
        run = airflow.start("loaded_modules")
        waiting_until = time.monotonic() + 2 * THRESHOLD_SECONDS
        while time.monotonic() < waiting_until:
            assert airflow.call("GET", "/api/v2/monitor/health")["scheduler"]["status"] == "healthy"
            time.sleep(0.5)
        assert run.tasks() == {"look": "queued"}
        preload_may_end.touch()
        run.wait()
        assert run.tasks() == {"look": "success"}
        assert run.tries("look") == 1
        assert not run.result("look")["imported_here"]
    log = (deployment.root / "airflow" / "logs" / "scheduler.log").read_text()
    assert "Reset the following" not in log and "Heartbeat recovered" not in log
