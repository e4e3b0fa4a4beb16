"""A task in a process that it shares: what its supervisor learns of it, and when the process is too old for another."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.dags, pytest.mark.usefixtures("airflow_home")]


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as process:
        yield process
        process.kill()


def tracked(pid: int) -> tuple[Any, socket.socket]:
    from task_processes import _Tracker

    ours, theirs = socket.socketpair()
    tracker = _Tracker(pid, ours, [socket.socketpair()[0]])
    tracker.start()
    assert len(socket.recv_fds(theirs, 1, 4)[1]) == 1
    return tracker, theirs


def test_a_task_that_goes_on_is_told_from_one_that_has_ended_or_was_killed() -> None:
    tracker, process = tracked(os.getpid())
    with pytest.raises(tracker.TimeoutExpired):
        tracker.wait(0)
    process.send(bytes([3]))
    assert tracker.wait(0) == tracker.wait(None) == 3

    tracker, process = tracked(os.getpid())
    process.close()
    assert tracker.wait(0) == -signal.SIGKILL
    assert tracker.wait(0).name == "SIGKILL", "Airflow logs it"


def test_a_signal_for_a_task_reaches_its_process_only_while_it_runs_this_task(
    other: subprocess.Popen[bytes],
) -> None:
    tracker, process = tracked(other.pid)
    process.send(bytes([0]))
    tracker.send_signal(signal.SIGKILL)
    assert other.poll() is None, "it runs another task by now"

    tracker, process = tracked(other.pid)
    tracker.send_signal(signal.SIGKILL)
    assert other.wait(10) == -signal.SIGKILL


def test_a_task_that_airflow_no_longer_wants_leaves_its_process_alive_for_the_next_one(
    other: subprocess.Popen[bytes],
) -> None:
    from task_processes import _Tracker

    ours, process = socket.socketpair()
    tracker = _Tracker(other.pid, ours, [socket.socketpair()[0]])
    tracker.send_signal(signal.SIGKILL)
    assert tracker.wait(0) == -signal.SIGKILL
    assert socket.recv_fds(process, 1, 4)[1] == [], "it was given nothing"
    assert other.poll() is None


def test_each_file_that_a_task_may_have_read_changes_the_state_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resident_process

    made = tmp_path / "include" / "dbt_project" / "target" / "manifest.json"
    files = [tmp_path / name for name in ("dags/shop.py", "plugins/a/b.py", "include/dbt_project/models/m.sql")]
    for file in (*files, made):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    monkeypatch.setattr(resident_process, "PROJECT", tmp_path)
    seen = {resident_process._state_of_files()}
    for file in files:
        file.write_text("another")
        seen.add(resident_process._state_of_files())
        file.with_name("new.sql").write_text("")
        seen.add(resident_process._state_of_files())
    files[0].unlink()
    seen.add(resident_process._state_of_files())
    assert len(seen) == 8
    made.write_text("another")
    assert resident_process._state_of_files() in seen, "what dbt makes is not code"


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_number_of_tasks_that_makes_no_sense_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from task_processes import tasks_per_process

    monkeypatch.setenv("TASKS_PER_PROCESS", value)
    with pytest.raises(ValueError, match="TASKS_PER_PROCESS must be a whole number"):
        tasks_per_process()


@pytest.mark.parametrize(
    ("name", "value", "queue"),
    [
        ("TASKS_PER_PROCESS", "500", "resident"),
        ("TASKS_PER_PROCESS", "1", "default"),
        ("DBT_TARGET", "encrypted", "resident"),
        ("DBT_TARGET", "ducklake", "default"),
        ("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor", "default"),
        ("AIRFLOW__CORE__DEFAULT_IMPERSONATION", "someone", "default"),
    ],
)
def test_dbt_tasks_share_a_process_where_one_machine_runs_them_and_one_may_write(
    name: str, value: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from task_processes import dbt_queue

    monkeypatch.setenv("TASKS_PER_PROCESS", "500")
    monkeypatch.setenv(name, value)
    assert dbt_queue() == queue
