"""What is noticed between runs."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

pytestmark = pytest.mark.dags


@pytest.fixture
def watch(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import airflow.settings  # noqa: F401, which puts plugins/ on the path

    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "plugins")  # if an earlier test had other settings
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
    monkeypatch.setattr(watch, "_alert", lambda reason, runbook: told.append(reason))
    monkeypatch.setattr(disk, "shortage", lambda: next(texts))
    looks = watch.Watch()
    for _ in range(5):
        looks.check_disk()
    assert told == ["full", "full"]


def test_an_old_backup_is_told_once_until_there_is_a_newer_one(
    watch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    monkeypatch.setattr(watch, "_alert", lambda reason, runbook: told.append(f"{runbook}: {reason}"))
    looks, mark = watch.Watch(), tmp_path / "artifacts" / "last-backup"
    looks.check_backup()
    assert told == [], "off"
    monkeypatch.setenv("BACKUP_DAYS", "2")
    for _ in range(2):
        looks.check_backup()
    assert told == ["The last backup is old: There is no backup yet, and BACKUP_DAYS=2. Make one: make backup DIR=…"]
    mark.parent.mkdir()
    mark.touch()
    looks.check_backup()
    os.utime(mark, (0, time.time() - 3 * 86_400))
    for _ in range(2):
        looks.check_backup()
    assert len(told) == 2 and "The last backup is 3.0 days old" in told[1]
    monkeypatch.setenv("BACKUP_DAYS", "daily")
    with pytest.raises(ValueError, match="BACKUP_DAYS must be a whole number"):
        looks.check_backup()
