#!/bin/sh
# `[core] parallelism` limits nothing that LocalExecutor runs or is given.
#
# apache-airflow 3.3.2, Python 3.11, Linux.
# Guess: an executor with parallelism 2 that has given two tasks to workers has no slot left.
# Seen:  it still reports two free slots and nothing running, so the scheduler hands it two more in each of its loops,
#        and the metrics executor.running_tasks and executor.open_slots never change. Pools and DAGs are the only limits.
# Why:   LocalExecutor puts tasks on its queue and never into `running`, of which slots are computed; other executors do.
#        Known: https://github.com/apache/airflow/pull/71914 (open).
# Remedy: limit by pools; or a subclass that adds what it gets in `_process_workloads` to `self.running`.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
"$dir/venv/bin/uv" pip install -q --python "$dir/venv/bin/python" apache-airflow==3.3.2
cat > "$dir/slots.py" <<'EOF'
import multiprocessing
import uuid

from airflow.executors.local_executor import LocalExecutor
from airflow.executors.workloads import ExecuteTask
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.task import TaskInstanceDTO

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    executor = LocalExecutor(parallelism=2)
    executor.start()
    executor._check_workers = lambda: None  # no worker is needed to see it
    given = 0
    for _ in range(3):  # as the scheduler does: as many as there are slots
        for _ in range(executor.slots_available):
            given += 1
            task = TaskInstanceDTO(
                id=uuid.uuid4(), dag_version_id=uuid.uuid4(), dag_id="dag", run_id="run", task_id=f"task_{given}",
                try_number=1, map_index=-1, pool_slots=1, queue="default", priority_weight=1,
            )
            executor.queue_workload(
                ExecuteTask(ti=task, dag_rel_path="dag.py", bundle_info=BundleInfo(name="none"), token="", log_path=None),
                None,
            )
        executor.heartbeat()
        print(f"given: {given}, running: {len(executor.running)}, slots left: {executor.slots_available}")
EOF
export AIRFLOW_HOME="$dir/home" AIRFLOW__CORE__LOAD_EXAMPLES=False
"$dir/venv/bin/python" "$dir/slots.py" > "$dir/log" 2>&1 || { tail -20 "$dir/log"; exit 1; }
sed -n 's/^given/  given/p' "$dir/log"
grep -q "given: 6, running: 0, slots left: 2" "$dir/log" || { echo "CHANGED: it counts its tasks"; exit 1; }
