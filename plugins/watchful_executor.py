"""Airflow's LocalExecutor, for which the death of a worker is otherwise the end of some task, or of all."""

import multiprocessing
import os
import threading

from airflow.executors.local_executor import LocalExecutor


class WatchfulLocalExecutor(LocalExecutor):
    """LocalExecutor that ends its scheduler when one of its workers was killed, and never blocks it by a preload.

    In Airflow 3.3 the task that a killed worker had just taken stays queued for ever, and a worker that was waiting for
    one takes the queue's lock with it, so that no other gets any. Whatever starts the scheduler again (supervisord,
    docker) fixes both: the new one requeues what the old one left.

    Whoever first starts a process waits until the fork server has imported everything in `mp_forkserver_preload`.
    LocalExecutor does so from the scheduler's loop, with the first task. If that takes longer than
    `scheduler_health_check_threshold`, the scheduler counts as dead, and its task is reset and started twice.
    """

    def start(self) -> None:
        """Start without workers, as they come with the tasks; let the fork server preload meanwhile."""
        super().start()
        self._known: set[int] = set()
        # A process that does nothing, because ensure_running() does not wait for the preload.
        self._preload = threading.Thread(target=multiprocessing.Process(daemon=True).start, daemon=True)
        self._preload.start()

    def _check_workers(self) -> None:
        """Start workers for what is queued once the fork server is ready; the scheduler's loop calls this each time."""
        if not self._preload.is_alive():
            super()._check_workers()  # type: ignore[no-untyped-call]

    def sync(self) -> None:
        """Do what LocalExecutor does, which drops the dead from `workers`, and look who is missing."""
        super().sync()
        if killed := self._known - self.workers.keys():
            self.log.error("Worker %s was killed. The scheduler ends, to be started again.", killed)
            os._exit(1)  # end() would wait for workers that wait for the lock
        self._known = set(self.workers)
