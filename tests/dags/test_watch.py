"""What is noticed between runs."""

import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

pytestmark = pytest.mark.dags


@pytest.fixture
def watch(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend("plugins")
    import watch

    return watch


def ask(watch: Any) -> tuple[int, dict[str, str]]:
    answer = TestClient(watch.ready).get("/")
    return answer.status_code, answer.json()


def test_a_database_that_hangs_is_not_ready(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any) -> None:
        time.sleep(600)

    monkeypatch.setattr(watch, "_look_at", hang)
    monkeypatch.setattr(watch, "_ANSWER_SECONDS", 0.1)
    assert ask(watch) == (503, {"database": "gone", "scheduler": "gone"})


def test_a_database_without_a_scheduler_is_not_ready(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    monkeypatch.setattr(SchedulerJobRunner, "most_recent_job", lambda **_: None)
    assert ask(watch) == (503, {"database": "healthy", "scheduler": "gone"})


def test_a_disk_that_fills_is_told_once(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from include.warehouse import disk

    told: list[str] = []
    texts = iter(["", "full", "full", "", "full"])
    monkeypatch.setattr(watch, "_alert", told.append)
    monkeypatch.setattr(disk, "shortage", lambda: next(texts))
    looks = watch.Watch()
    for _ in range(5):
        looks.check_disk()
    assert told == ["full", "full"]
