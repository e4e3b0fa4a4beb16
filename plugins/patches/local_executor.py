"""LocalExecutor that recovers from killed workers, looks when there is something to see, and needs no log server.

What: a subclass that overrides public methods only, named by `[core] executor` in airflow.env.
Why, first: a task just taken by a killed worker stays queued forever, and a worker killed while waiting for a task
    takes the queue's lock with it, so that no other worker gets any. Restarting the scheduler (supervisord, docker)
    fixes both: the new one requeues what the old one left.
Why, second: the first process start blocks until the fork server has imported everything in `mp_forkserver_preload`.
    LocalExecutor does this in the scheduler loop, with the first task. If it takes longer than
    `scheduler_health_check_threshold`, the scheduler counts as dead, and its task is reset and started twice.
Why, third: while tasks run, the scheduler looks at all unfinished ones ten times a second, which takes 0.03 s with a
    hundred: as much as their processes need. It has something to do once one ends.
Why, fourth: Airflow asks a log server for the log of a running task, also where the file can be read. There is none
    here: the log opened with an error of port 8793, and each look added 79 lines to the api-server's log.
Reported: not for a killed worker; other deadlocks of this executor: https://github.com/apache/airflow/issues/67870
    (closed) and https://github.com/apache/airflow/issues/70526 (open).
Since: Airflow 3.3, Python 3.11.
Remove once LocalExecutor replaces a killed worker together with its task and its lock, preloads as it starts, and
    wakes the scheduler; and Airflow reads a running task's log from its file.
"""

import multiprocessing
import os
import threading
import time
from typing import Any

from airflow.executors.local_executor import LocalExecutor

LOOK_SECONDS = 1.0  # for what is new meanwhile: a run, a cleared task


class WatchfulLocalExecutor(LocalExecutor):
    """LocalExecutor that exits the scheduler if a worker was killed, and blocks it only while nothing happens."""

    def start(self) -> None:
        """Start without workers, which come with the tasks, and let the fork server preload in the background."""
        super().start()
        self._known: set[int] = set()
        # A no-op process: ensure_running() would not wait for the preload.
        self._preload = threading.Thread(target=multiprocessing.Process(daemon=True).start, daemon=True)
        self._preload.start()

    def heartbeat(self) -> None:
        """Hand out tasks, which starts workers, as soon as the fork server is ready; called on every scheduler loop.

        Return once one of the tasks has ended, if any run, or after `LOOK_SECONDS`.
        """
        if self._preload.is_alive():
            return
        super().heartbeat()
        running, until = len(self.running), time.monotonic() + LOOK_SECONDS
        while 0 < running <= len(self.running) and time.monotonic() < until:
            time.sleep(0.02)
            self.sync()

    def sync(self) -> None:
        """Sync as LocalExecutor does, which drops dead workers from `workers`, then check which are missing."""
        super().sync()
        if killed := self._known - self.workers.keys():
            self.log.error("Worker %s was killed. Exiting, so that the scheduler is restarted.", killed)
            os._exit(1)  # end() would wait for workers stuck on the lock
        self._known = set(self.workers)

    def get_task_log(self, ti: Any, try_number: int) -> tuple[list[str], list[str]]:
        """Return nothing but where the log is: its file, which Airflow reads too, is all there is."""
        return ["The task runs on the machine that has the file of its log."], []
