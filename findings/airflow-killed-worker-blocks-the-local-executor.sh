#!/bin/sh
# One killed worker of the LocalExecutor blocks all workers that replace it.
#
# apache-airflow 3.3.2, Python 3.11, Linux.
# Guess: LocalExecutor reaps a worker that was killed (by the OOM killer, for example) and starts another, which goes on.
# Seen:  it starts another, which takes no task: each stays queued until the scheduler is restarted.
# Why:   idle workers wait in `SimpleQueue.get()`, and the one that waits for the pipe holds the queue's lock. The lock is
#        a semaphore that nobody releases if its holder is killed.
# Remedy: an executor that ends the scheduler if a worker is gone; its supervisor starts both again, and tasks are requeued.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
"$dir/venv/bin/uv" pip install -q --python "$dir/venv/bin/python" apache-airflow==3.3.2

cat > "$dir/kill.py" <<'EOF'
import os
import signal
import sys
import time

from airflow.executors.local_executor import LocalExecutor


def takes_work(kill: bool) -> bool:
    executor = LocalExecutor(parallelism=1)
    executor.start()
    time.sleep(2)
    for worker in executor.workers.values():
        if kill:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    executor.activity_queue.put(None)  # the message by which the executor ends a worker: any other would need a DAG
    executor._unread_messages.value = 1
    executor.sync()  # as in each loop of the scheduler: reaps the killed one and starts another
    assert len(executor.workers) == 1
    deadline = time.monotonic() + 10
    while not executor.activity_queue.empty() and time.monotonic() < deadline:
        time.sleep(0.1)
    for worker in executor.workers.values():
        worker.kill()
    return executor.activity_queue.empty()


untouched, killed = takes_work(kill=False), takes_work(kill=True)
print(f"a worker takes a message: {untouched}; the one after a killed worker: {killed}")
sys.exit(not (untouched and not killed))
EOF
AIRFLOW_HOME="$dir" "$dir/venv/bin/python" "$dir/kill.py" 2>&1 | tail -n 1 | tee "$dir/out"
grep -q "a worker takes a message: True; the one after a killed worker: False" "$dir/out"
