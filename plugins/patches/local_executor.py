"""LocalExecutor that recovers from killed workers, looks when there is something to see, and needs no log server.

What: a subclass that overrides what executors are to override, named by `[core] executor` in airflow.env.
Why, first: a task just taken by a killed worker stays queued forever, and a worker killed while waiting for a task
    takes the queue's lock with it, so that no other worker gets any. Restarting the scheduler (supervisord, docker)
    fixes both: the new one requeues what the old one left.
Why, second: the first process start blocks until the fork server has imported everything in `mp_forkserver_preload`.
    LocalExecutor does this in the scheduler loop, with the first task. If it takes longer than
    `scheduler_health_check_threshold`, the scheduler counts as dead, and its task is reset and started twice.
Why, third: while tasks run, the scheduler looks at all unfinished ones ten times a second, which takes 0.03 s with a
    hundred: as much as their processes need. So it looks once tasks have ended, and hands out several that will share
    a process (plugins/task_processes.py): they wait here, two of a DAG are with workers. It looks again when two are
    left, so that the process is never without one.
Why, fourth: LocalExecutor does not count the tasks that it has given to workers, so `[core] parallelism` limits none.
Why, fifth: Airflow asks a log server for the log of a running task, also where the file can be read. There is none
    here: the log opened with an error of port 8793, and each look added 79 lines to the api-server's log.
Why, sixth: the workers of a scheduler that was killed wait for a task for ever, and with them the process that they
    were forked from: 0.2 GB for each such kill, which may have been for want of memory.
Reported: not for a killed worker; other deadlocks of this executor: https://github.com/apache/airflow/issues/67870
    (closed) and https://github.com/apache/airflow/issues/70526 (open). Fourth: https://github.com/apache/airflow/pull/71914
    (open).
Since: Airflow 3.3, Python 3.11.
Remove once LocalExecutor replaces a killed worker together with its task and its lock, preloads as it starts, counts
    its tasks, wakes the scheduler and does not outlive it; and Airflow reads a running task's log from its file.
"""

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

from airflow.executors.local_executor import LocalExecutor
from airflow.executors.workloads import ExecuteTask
from task_processes import RESIDENT

AHEAD = 16  # tasks that the scheduler may hand out beyond those that can run; it takes at most so many at once
WITH_WORKERS = 2  # of a DAG's tasks that share a process: one runs, the next one is ready
LOOK_SECONDS = 1.0  # for what is new meanwhile: a run, a cleared task


class _Workloads(SimpleQueue[Any]):
    """What workers get their tasks from; whoever waits for one learns that the scheduler is gone."""

    def get(self) -> Any:
        """Return the next one.

        Raises:
            EOFError: there is none, and the scheduler has ended; a worker ends, too.
        """
        scheduler, queue = multiprocessing.parent_process(), cast(Any, self)
        with queue._rlock:
            if scheduler and queue._reader not in wait([queue._reader, scheduler.sentinel]):
                raise EOFError
            return ForkingPickler.loads(queue._reader.recv_bytes())


class WatchfulLocalExecutor(LocalExecutor):
    """LocalExecutor that exits the scheduler if a worker was killed, and blocks it only while nothing happens."""

    def start(self) -> None:
        """Start without workers, which come with the tasks, and let the fork server preload in the background."""
        super().start()
        if not self.is_mp_using_fork:  # else they are there, and have theirs
            self.activity_queue = _Workloads(ctx=multiprocessing.get_context())
        self._known: set[int] = set()
        self._sharing: set[Any] = set()  # keys of tasks, given to workers, that share a process
        # A no-op process: ensure_running() would not wait for the preload.
        self._preload = threading.Thread(target=multiprocessing.Process(daemon=True).start, daemon=True)
        self._preload.start()

    @property
    def slots_available(self) -> int:
        """Return how many more tasks the scheduler may hand out; no more than `parallelism` run."""
        return int(super().slots_available) + AHEAD

    @property
    def slots_occupied(self) -> int:
        """Return what is to be taken from `parallelism` for that number."""
        return int(super().slots_occupied) - AHEAD

    def heartbeat(self) -> None:
        """Hand out tasks, which starts workers, as soon as the fork server is ready; called on every scheduler loop.

        Return once a task has ended, if any run, but with tasks of its process left only when those are few; or after
        `LOOK_SECONDS`.
        """
        if self._preload.is_alive():
            return
        self._sharing &= self.running
        super().heartbeat()
        until = time.monotonic() + LOOK_SECONDS
        while self.running and not self._is_look_due() and time.monotonic() < until:
            time.sleep(0.02)
            self.sync()
            self.trigger_tasks(self.parallelism - len(self.running))

    def _is_look_due(self) -> bool:
        left = Counter(key.dag_id for key in self._sharing if key in self.running)
        left.update(key.dag_id for key, workload in self.queued_tasks.items() if workload.ti.queue == RESIDENT)
        ended: Iterable[Any] = self.event_buffer
        return any(key not in self._sharing or left[key.dag_id] <= WITH_WORKERS for key in ended)

    def order_queued_tasks_by_priority(self) -> list[Any]:
        """Return the tasks that may be given to workers, the most urgent first."""
        with_workers, found = Counter(key.dag_id for key in self._sharing if key in self.running), []
        for key, workload in super().order_queued_tasks_by_priority():
            if workload.ti.queue == RESIDENT:
                with_workers[key.dag_id] += 1
                if with_workers[key.dag_id] > WITH_WORKERS:
                    continue
            found.append((key, workload))
        return found

    def _process_workloads(self, workload_list: Sequence[Any]) -> None:
        self.running.update(workload.key for workload in workload_list)
        tasks = [one for one in workload_list if isinstance(one, ExecuteTask)]
        self._sharing.update(task.key for task in tasks if task.ti.queue == RESIDENT)
        super()._process_workloads(workload_list)  # type: ignore[no-untyped-call]

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
