"""Airflow's LocalExecutor, for which the death of a worker is otherwise the end of some task, or of all."""

import os

from airflow.executors.local_executor import LocalExecutor


class WatchfulLocalExecutor(LocalExecutor):
    """LocalExecutor that ends its scheduler when one of its workers was killed.

    In Airflow 3.3 the task that the worker had just taken stays queued for ever, and a worker that was waiting for one
    takes the queue's lock with it, so that no other gets any. Whatever starts the scheduler again (supervisord,
    docker) mends both: the new one queues anew what the old one left.
    """

    def start(self) -> None:
        """Start without workers, as they come with the tasks."""
        super().start()
        self._known: set[int] = set()

    def sync(self) -> None:
        """Do what LocalExecutor does, which drops the dead from `workers`, and look who is missing."""
        super().sync()
        if killed := self._known - self.workers.keys():
            self.log.error("Worker %s was killed. The scheduler ends, to be started again.", killed)
            os._exit(1)  # end() would wait for workers that wait for the lock
        self._known = set(self.workers)
