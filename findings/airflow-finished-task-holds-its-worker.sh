#!/bin/sh
# A task that has ended can hold its worker for five more seconds.
#
# apache-airflow 3.3.2, Python 3.11, Linux.
# Guess: the supervisor of a task, and with it the executor's slot, is free as soon as the task's process has ended.
# Seen:  some tasks that do nothing take 5 s longer than others: on a quiet machine about one in four, on a busy one most.
# Why:   the supervisor (task-sdk, `_monitor_subprocess`) waits for events on the task's sockets, at most
#        `[workers] min_heartbeat_interval`. If it handles the closing of the last one while the process is still ending, no
#        event follows, and it sleeps for the whole interval before it looks again.
# Remedy: AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL=1
#
# Real supervisors and task processes; the answers of the api-server come from a function.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3.11 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
"$dir/venv/bin/uv" pip install -q --python "$dir/venv/bin/python" apache-airflow==3.3.2

mkdir "$dir/dags"
cat > "$dir/dags/quick.py" <<'EOF'
from airflow.sdk import dag, task


@dag(schedule=None)
def quick():
    @task
    def nothing():
        pass

    nothing()


quick()
EOF
cat > "$dir/supervise.py" <<'EOF'
import sys
import time
import uuid

import httpx
from airflow.executors.workloads import TaskInstance
from airflow.executors.workloads.base import BundleInfo
from airflow.sdk.api.client import Client
from airflow.sdk.execution_time.supervisor import supervise_task

START = "2026-01-01T00:00:00Z"
NONE = dict.fromkeys(("data_interval_start", "data_interval_end", "end_date", "partition_key"))
RUN = NONE | {
    "dag_id": "quick", "run_id": "run", "run_type": "manual", "state": "running", "clear_number": 0, "conf": {},
    "logical_date": START, "start_date": START, "run_after": START, "consumed_asset_events": [],
}


def answer(request):
    is_start = request.url.path.endswith("/run")
    return httpx.Response(200, json={"dag_run": RUN, "max_tries": 0, "should_retry": False} if is_start else {})


client = Client(base_url="http://api-server", token="", transport=httpx.MockTransport(answer))
seconds = []
while len(seconds) < int(sys.argv[1]) and (len(seconds) < 5 or max(seconds) - min(seconds) < 4.5):
    task = TaskInstance(
        id=uuid.uuid4(), dag_version_id=uuid.uuid4(), dag_id="quick", run_id="run", task_id="nothing", try_number=1,
        map_index=-1, pool_slots=1, queue="default", priority_weight=1,
    )
    started = time.monotonic()
    bundle = BundleInfo(name="dags-folder")
    code = supervise_task(ti=task, bundle_info=bundle, dag_rel_path="quick.py", token="", client=client)
    assert code == 0, code
    seconds.append(time.monotonic() - started)
print("SECONDS", *(f"{one:.2f}" for one in sorted(seconds)))
EOF
export AIRFLOW_HOME="$dir/home" AIRFLOW__CORE__DAGS_FOLDER="$dir/dags" AIRFLOW__CORE__LOAD_EXAMPLES=False

# Runs at most $1 tasks, at least five; prints the seconds of each; succeeds if one took 4.5 s more than another.
one_is_held() {
    "$dir/venv/bin/python" "$dir/supervise.py" "$1" > "$dir/log" 2>&1 || { tail -20 "$dir/log"; exit 1; }
    if grep -q "Dag not found" "$dir/log"; then tail -20 "$dir/log"; exit 1; fi
    sed -n 's/^SECONDS /  seconds: /p' "$dir/log"
    sed -n 's/^SECONDS //p' "$dir/log" | awk '{ exit !($NF - $1 > 4.5) }'
}
echo "As installed, with an interval of 5 s:"
one_is_held 40 || { echo "CHANGED: no task held its worker"; exit 1; }
echo "With an interval of 1 s:"
export AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL=1
if one_is_held 5; then echo "CHANGED: the interval is not what they wait for"; exit 1; fi
