"""Start task processes: one forked for each task, or one that runs one dbt task of a DAG after another.

Airflow's hook for this is a coordinator (`[sdk] coordinators`, `queue_to_coordinator`), which airflow.env names. It
keeps Airflow's own supervisor, so logs, heartbeats, retries, callbacks, time limits and kills are Airflow's.

A forked process is isolated, but imports plugins, parses the DAG and starts dbt for a task that may take a twentieth of
that. A *resident* process (resident_process.py) does all this once: a worker hands it the next task's four sockets, and
whichever worker has a task may. Airflow learns that a task has started when the process is ready for it. If that takes
longer than `BUSY_SECONDS`, the task gets a process of its own, and waits for its turn to write there (`begin_turn`).

`TASKS_PER_PROCESS=1` forks a process for each task. So do tasks outside the queue `RESIDENT`, and Celery's workers.
"""

import contextlib
import enum
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import structlog
from airflow.configuration import AIRFLOW_HOME
from airflow.sdk.configuration import conf
from airflow.sdk.execution_time.coordinator import BaseCoordinator
from airflow.sdk.execution_time.supervisor import NeverRaised, ProcessTracker
from patches.supervisor_wait import TaskProcess

from include.settings import dbt_target

RESIDENT = "resident"  # the queue of the tasks that share a process
BUSY_SECONDS = 20.0  # also starting takes its time on a busy machine

_started: set[int] = set()  # resident processes that this one has to reap


def tasks_per_process() -> int:
    """Return how many tasks a resident process runs: `TASKS_PER_PROCESS`, default 1, a process for each task.

    Raises:
        ValueError: it is not a whole number of at least 1.
    """
    value = os.environ.get("TASKS_PER_PROCESS") or "1"
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"TASKS_PER_PROCESS must be a whole number of at least 1, not {value!r}.")
    return int(value)


def dbt_queue() -> str:
    """Return the queue for dbt tasks: `RESIDENT` if they can share a process, otherwise Airflow's default.

    They can if one executor on this machine runs them all, and if only one may write the warehouse anyway.
    """
    local = conf.get("core", "executor").endswith("LocalExecutor")
    one_writer = dbt_target() in ("duckdb", "encrypted")
    as_user = conf.get("core", "default_impersonation", fallback="")
    shared = tasks_per_process() > 1 and local and one_writer and not as_user
    return RESIDENT if shared else str(conf.get("operators", "default_queue"))


class TaskProcesses(BaseCoordinator):
    """Airflow's coordinator: runs a task in the DAG's resident process, or in one forked for it."""

    def execute_task(self, *, what: Any, **kwargs: Any) -> BaseCoordinator.ExecutionResult:
        """Run a task to its end; see `BaseCoordinator`."""
        found = _resident_process(what.dag_id) if what.queue == RESIDENT and tasks_per_process() > 1 else None
        if found:
            process: TaskProcess = ResidentTask.start(what=what, control=found[0], pid=found[1], **kwargs)
        else:
            process = TaskProcess.start(what=what, **kwargs)
        exit_code = process.wait()
        return self.ExecutionResult(exit_code, process.final_state)


class _Died(enum.IntEnum):
    """The exit code of a process that was killed, with the name that Airflow logs."""

    SIGKILL = -signal.SIGKILL


class _Tracker(ProcessTracker):
    """One task in a resident process, which is no child of this one.

    The process writes the task's exit code to `control` and goes on; if it dies instead, the kernel closes `control`.
    """

    ProcessNotFound = NeverRaised
    TimeoutExpired = TimeoutError

    def __init__(self, pid: int, control: socket.socket, sockets: list[socket.socket]) -> None:
        """Track what is not started yet.

        Args:
            pid: the process, which waits for a task.
            control: the connection to it.
            sockets: the task's ends of those that its supervisor has.
        """
        self._pid, self._control, self._sockets = pid, control, sockets
        self._exit_code: int | None = None

    def start(self) -> None:
        """Have the process run the task, if it does not do so yet."""
        if self._sockets:
            with contextlib.suppress(ConnectionError):  # it has just died: `wait` says so
                socket.send_fds(self._control, [b"t"], [one.fileno() for one in self._sockets])
            self._drop_sockets()

    def _drop_sockets(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets = []

    @property
    def pid(self) -> int:
        return self._pid

    def send_signal(self, s: signal.Signals) -> None:
        if self._sockets:  # the process does not have the task, and waits for another
            self._drop_sockets()
            self._control.close()
            self._exit_code = _Died.SIGKILL
            return
        with contextlib.suppress(TimeoutError):
            self.wait(0)
        if self._exit_code is None:  # otherwise it runs another task by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, s)

    def wait(self, timeout: float | None) -> int:
        if self._exit_code is None:
            self._control.settimeout(None if timeout is None else max(timeout, 1e-6))
            try:
                code = self._control.recv(1)
            except ConnectionError:
                code = b""
            self._exit_code = code[0] if code else _Died.SIGKILL
            self._control.close()
        return self._exit_code


@attrs.define(kw_only=True)
class ResidentTask(TaskProcess):
    """Airflow's supervisor of a task in a resident process."""

    @classmethod
    def start(  # type: ignore[override]
        cls,
        *,
        what: Any,
        dag_rel_path: Any,
        bundle_info: Any,
        control: socket.socket,
        pid: int,
        logger: Any = None,
        sentry_integration: str = "",
        **kwargs: Any,
    ) -> "ResidentTask":
        """Hand the task to the process at the other end of `control`."""
        pairs = [socket.socketpair() for _ in range(4)]
        stdout, stderr, requests, logs = (here for here, _ in pairs)
        tracker = _Tracker(pid, control, [there for _, there in pairs])
        self = cls(
            id=what.id,
            pid=pid,
            stdin=requests,
            process=tracker,
            process_log=logger or structlog.get_logger(logger_name="task").bind(),
            **kwargs,
        )
        self._register_pipe_readers(stdout, stderr, requests, logs, data={})
        self._on_child_started(
            ti=what, dag_rel_path=dag_rel_path, bundle_info=bundle_info, sentry_integration=sentry_integration
        )
        return self

    def send_msg(self, *words: Any, **options: Any) -> None:
        """Send a message to the task; the first one says what it is, once Airflow wants it to start."""
        tracker: Any = self._process
        tracker.start()
        super().send_msg(*words, **options)


def _resident_process(dag_id: str) -> tuple[socket.socket, int] | None:
    """Return a connection to the DAG's resident process, which is ready for a task, and its PID.

    It is started if there is none. None if it is busy, or if it cannot be started.
    """
    _reap()
    deadline = time.monotonic() + BUSY_SECONDS
    with contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            with _folder() as folder:
                control = _connect(folder / dag_id) or _start(folder, dag_id)
            control.settimeout(left)
            with contextlib.suppress(ConnectionError, TimeoutError):
                if greeting := control.recv(4):
                    return control, struct.unpack("i", greeting)[0]
            control.close()  # it has just ended, or it is busy
            _reap()
    return None


def _reap() -> None:
    for pid in list(_started):
        with contextlib.suppress(ChildProcessError):
            if not os.waitpid(pid, os.WNOHANG)[0]:
                continue
        _started.discard(pid)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Yield a short path of the folder of sockets, whose addresses have at most 107 bytes."""
    folder = Path(AIRFLOW_HOME) / "task-processes"
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _connect(address: Path) -> socket.socket | None:
    control = socket.socket(socket.AF_UNIX)
    try:
        control.connect(str(address))
    except (FileNotFoundError, ConnectionRefusedError):
        control.close()
        return None
    return control


def _start(folder: Path, dag_id: str) -> socket.socket:
    """Start the DAG's resident process, unless another worker just has; return a connection to it."""
    lock = os.open(folder / f"{dag_id}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if control := _connect(folder / dag_id):
            return control
        with socket.socket(socket.AF_UNIX) as listener:
            (folder / dag_id).unlink(missing_ok=True)
            listener.bind(str(folder / dag_id))
            listener.listen()
            if not (pid := os.fork()):
                try:
                    os.close(lock)
                    import resident_process

                    resident_process.serve(listener, dag_id, tasks_per_process())
                finally:
                    os._exit(1)
        _started.add(pid)
        if control := _connect(folder / dag_id):
            return control
        raise ConnectionError
    finally:
        os.close(lock)
