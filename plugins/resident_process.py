"""A task process that runs one dbt task of a DAG after another; task_processes.py starts it.

It runs Airflow's own `task_runner.main()` for each. It ends after anything but a success, after a number of tasks,
after a minute without one, when its worker has ended, when a task leaves a thread behind, and when a file of the
project has changed: the next task starts another one. What a task may leave to the end of its process is undone here:
its environment, folder, signal handlers, context variables and timers.

Between tasks the working database stays open (include/dbt_session.py), but not for long: others may want it.
"""

import contextlib
import contextvars
import os
import socket
import struct
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from airflow.listeners import hookimpl
from airflow.sdk.execution_time import supervisor, task_runner
from airflow.sdk.listener import get_listener_manager
from patches import cosmos_garbage, cosmos_telemetry, task_runner_dag, task_runner_types
from setproctitle import setproctitle

from include import dbt_session

IDLE_SECONDS = 60.0
REST_SECONDS = 0.5  # without a task: then others may have the database
HOLD_SECONDS = 2.0  # or with tasks, between two of them
THREAD_SECONDS = 2.0  # how long a task's thread may outlive it

PROJECT = Path(__file__).resolve().parents[1]
_MADE = {"target", "logs", "data", "__pycache__"}  # folders that hold no code


def serve(listener: socket.socket, dag_id: str, tasks: int) -> NoReturn:
    """Run tasks, then end the process.

    Args:
        listener: workers connect to it, once for each task. This sends its PID as soon as it is ready, takes the task's
            stdout, stderr, requests and logs, and sends the exit code.
        dag_id: for the process's title.
        tasks: how many to run at most.
    """
    parent, seen = os.getppid(), _state_of_files()
    process = _Process()
    listener.settimeout(REST_SECONDS)
    for number in range(tasks):
        os.environ["TASK_OF_PROCESS"] = str(number)
        setproctitle(f"airflow worker -- resident: {dag_id} <idle>")
        control = _wait_for_worker(listener, parent)
        # The socket of an orphan may be another process's by now.
        if control is None or os.getppid() != parent or _state_of_files() != seen:
            break
        with control:
            try:
                control.sendall(struct.pack("i", os.getpid()))
                _, descriptors, _, _ = socket.recv_fds(control, 1, 4)
            except ConnectionError:
                continue
            if len(descriptors) < 4:  # its worker has died
                continue
            code, goes_on = process.run(descriptors)
            with contextlib.suppress(ConnectionError):
                control.sendall(bytes([code]))
        if not goes_on:
            break
        dbt_session.rest(after=HOLD_SECONDS)
    os._exit(0)


def _wait_for_worker(listener: socket.socket, parent: int) -> socket.socket | None:
    deadline = time.monotonic() + IDLE_SECONDS
    while os.getppid() == parent and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            control, _ = listener.accept()
            control.setblocking(True)
            return control
        dbt_session.rest()
    return None


class _Process:
    """This process's streams: descriptors that each task's sockets replace.

    So whatever keeps a stream or a logger beyond its task writes to the next task's.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)  # as a forked task's: kills reach what it has started
        self._nowhere = os.open(os.devnull, os.O_RDWR)
        supervisor._reset_signals()  # type: ignore[no-untyped-call]
        nowhere = [os.fdopen(os.dup(self._nowhere), "r+b", buffering=0) for _ in range(3)]
        supervisor._reopen_std_io_handles(*nowhere)  # type: ignore[no-untyped-call]
        self._log = os.dup(self._nowhere)
        supervisor._configure_logs_over_json_channel(self._log)
        supervisor.block_orm_access()  # type: ignore[no-untyped-call]
        dbt_session.start()
        task_runner_dag.apply()
        task_runner_types.apply()
        self._succeeded = _Succeeded()
        get_listener_manager().add_listener(self._succeeded)  # type: ignore[no-untyped-call]
        cosmos_telemetry.apply()
        cosmos_garbage.apply()

    def run(self, descriptors: list[int]) -> tuple[int, bool]:
        """Run the task at the other end of these; return its exit code, and whether this process can run another."""
        streams = (1, 2, 0, self._log)
        for ours, theirs in zip(streams, descriptors, strict=True):
            os.dup2(theirs, ours)
            os.close(theirs)
        environ, folder, before, code = dict(os.environ), Path.cwd(), set(threading.enumerate()), 0
        self._succeeded.yes = False
        try:
            contextvars.copy_context().run(task_runner.main)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # noqa: BLE001, the end of the task
            traceback.print_exc()
            code = 126
        finally:
            supervisor._reset_signals()  # type: ignore[no-untyped-call]
            left = set(threading.enumerate()) - before
            for thread in left:
                if isinstance(thread, threading.Timer):  # its time limit
                    thread.cancel()
                thread.join(THREAD_SECONDS)
            if left := {thread for thread in left if thread.is_alive()}:
                print(f"The task has left threads behind, so its process ends: {left}")
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environ)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            for ours in streams:
                os.dup2(self._nowhere, ours)
        return code & 0xFF, code == 0 and self._succeeded.yes and not left


class _Succeeded:
    """Airflow's listener for a task's success."""

    yes = False

    @hookimpl
    def on_task_instance_success(self) -> None:
        self.yes = True


def _state_of_files() -> int:
    """Return a number that changes with any file of the project that a task may have read."""
    return hash(tuple(_stats(PROJECT / folder) for folder in ("dags", "plugins", "include")))


def _stats(folder: str | Path) -> tuple[Any, ...]:
    with os.scandir(folder) as entries:
        return tuple(
            _stats(one.path) if one.is_dir() else _stat(one)
            for one in sorted(entries, key=lambda one: one.name)
            if one.name not in _MADE
        )


def _stat(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    try:
        found = entry.stat()
    except FileNotFoundError:  # a broken link, or just removed
        return entry.path, 0, 0
    return entry.path, found.st_mtime_ns, found.st_size
