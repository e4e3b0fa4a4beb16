"""LocalExecutor that recovers from killed workers, which otherwise leave some or all tasks stuck."""

import multiprocessing
import os
import threading

from airflow.executors.local_executor import LocalExecutor


class WatchfulLocalExecutor(LocalExecutor):
    """LocalExecutor that exits the scheduler if a worker was killed, and never blocks it on the preload.

    In Airflow 3.3, a task just taken by a killed worker stays queued forever, and a worker killed while waiting for a
    task takes the queue's lock with it, so that no other worker gets any. Restarting the scheduler (supervisord,
    docker) fixes both: the new one requeues what the old one left.

    The first process start blocks until the fork server has imported everything in `mp_forkserver_preload`.
    LocalExecutor does this in the scheduler loop, with the first task. If it takes longer than
    `scheduler_health_check_threshold`, the scheduler counts as dead, and its task is reset and started twice.
    """

    def start(self) -> None:
        """Start without workers, which come with the tasks, and let the fork server preload in the background."""
        super().start()
        self._known: set[int] = set()
        # A no-op process: ensure_running() would not wait for the preload.
        self._preload = threading.Thread(target=multiprocessing.Process(daemon=True).start, daemon=True)
        self._preload.start()

    def _check_workers(self) -> None:
        """Start workers for queued tasks once the fork server is ready; called on every scheduler loop."""
        if not self._preload.is_alive():
            super()._check_workers()  # type: ignore[no-untyped-call]

    def sync(self) -> None:
        """Sync as LocalExecutor does, which drops dead workers from `workers`, then check which are missing."""
        super().sync()
        if killed := self._known - self.workers.keys():
            self.log.error("Worker %s was killed. Exiting, so that the scheduler is restarted.", killed)
            os._exit(1)  # end() would wait for workers stuck on the lock
        self._known = set(self.workers)
