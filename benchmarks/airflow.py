"""A running Airflow to measure: this project's, or one with Airflow's and Cosmos's defaults."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import PROJECT, SCRATCH
from include.settings import warehouse_name
from testing.airflow_processes import Deployment, interrupt_with_parent

# Where a dbt task's time goes: each phase ends at the first log line that contains this text.
PHASES = (
    ("process start", "::group::Pre Execute"),
    ("imports, plugins", "Filling up the DagBag"),
    ("DAG parse", "Worker startup parse complete"),
    ("before dbt", "Running with dbt="),
    ("dbt start, adapter", "Registered adapter:"),
    ("dbt parse", "Found "),
    ("dbt run", "Done. "),
)

RUN_SECONDS = 3600
# Kinds of processes, by the first that is found in their command line.
PROCESSES = {
    "scheduler": r"airflow scheduler",
    "api-server": r"api[-_]server|gunicorn|uvicorn",
    "dag-processor": r"dag-processor",
    "tasks": r"airflow worker -- (?!LocalExecutor)",
    "workers": r"airflow worker -- LocalExecutor|multiprocessing",
}


@dataclass
class Timed:
    """One run: seconds to its end, when it was triggered, its tasks by start time, CPU seconds by kind of process."""

    seconds: float
    triggered: float
    tasks: list[dict[str, Any]]
    cpu: dict[str, float]

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu.values())

    def dbt_tasks(self) -> list[dict[str, Any]]:
        return [task for task in self.tasks if task["task_id"].startswith("transform.")]


class Site:
    """One Airflow deployment and its processes."""

    def __init__(
        self, name: str, stock_mode: str | None = None, project: Path = PROJECT, python: str = sys.executable
    ) -> None:
        """Prepare a deployment; with `stock_mode` (local, watcher) it uses only defaults."""
        root = SCRATCH / f"airflow-{name}-{os.getpid()}"
        root.mkdir(parents=True)
        self.deployment = Deployment(root, project, probes=False, python=python)
        env = self.deployment.env
        env["WAREHOUSE_KEEP_RELEASES"] = "2"
        self.stock_mode = stock_mode
        if stock_mode:
            kept = ("LOAD_EXAMPLES", "DAGS_ARE_PAUSED", "API__HOST", "TELEMETRY", "DAGS_FOLDER")
            for line in (PROJECT / "airflow.env").read_text().splitlines():
                setting = line.split("=")[0]
                if setting.startswith(("AIRFLOW__", "DBT_")) and not any(word in setting for word in kept):
                    del env[setting]
            env.pop("OPENLINEAGE_DISABLED", None)
            env.pop("AIRFLOW__CORE__PLUGINS_FOLDER", None)
            env["AIRFLOW__CORE__DAGS_FOLDER"] = str(PROJECT / "benchmarks" / "peers" / "airflow_dags")
            env["BENCH_EXECUTION_MODE"] = stock_mode

    @contextmanager
    def running(self) -> Iterator["Site"]:
        """Initialise and start it; leave no process or file behind."""
        triggerer = None
        try:
            self.deployment.initialise()
            with self.deployment.running() as self.airflow:
                if self.stock_mode == "watcher":  # its sensors are deferrable
                    url = f"{self.airflow.url}/execution/"
                    triggerer = subprocess.Popen(
                        ["airflow", "triggerer", "--skip-serve-logs"],
                        env={**self.deployment.env, "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": url},
                        stdout=(self.deployment.root / "triggerer.log").open("wb"),
                        stderr=subprocess.STDOUT,
                        preexec_fn=interrupt_with_parent,
                    )
                yield self
        finally:
            if triggerer:
                triggerer.terminate()
                triggerer.wait(60)
            shutil.rmtree(self.deployment.root, ignore_errors=True)

    def run_once(self) -> Timed:
        """Trigger a run over REST and wait for it to end.

        Raises:
            RuntimeError: the run failed or did not end in time.
        """
        call = self.airflow.call
        before, triggered = self.cpu_seconds(), time.time()
        run_id = call("POST", f"/api/v2/dags/{warehouse_name()}/dagRuns", {"logical_date": None})["dag_run_id"]
        path = f"/api/v2/dags/{warehouse_name()}/dagRuns/{urllib.parse.quote(run_id)}"
        # To answer for a run, Airflow reads all of its tasks, in CPU seconds that are measured.
        active = ("scheduled", "queued", "running")
        while self._count(path, *active) or (found := call("GET", path))["state"] in active:
            if time.time() > triggered + RUN_SECONDS:
                raise RuntimeError(f"{run_id} has not ended")
            time.sleep(0.5)
        tasks = self.airflow.task_instances(path)
        if found["state"] == "failed":
            failed = [task["task_id"] for task in tasks if task["state"] == "failed"]
            raise RuntimeError(f"{run_id} failed: {failed}; logs in {self.deployment.root}")
        for task in tasks:
            task["path"], task["run_id"] = path, run_id
            task["start"], task["end"] = stamp(task["start_date"]), stamp(task["end_date"])
        tasks.sort(key=lambda task: task["start"])
        return Timed(stamp(found["end_date"]) - triggered, triggered, tasks, self._cpu_since(before))

    def count_dbt_tasks(self) -> int:
        found = self.airflow.call("GET", f"/api/v2/dags/{warehouse_name()}/tasks")["tasks"]
        return sum(task["task_id"].startswith("transform.") for task in found)

    def sample(self, tasks: int) -> tuple[float, dict[str, float]]:
        """Start a run, and end it once it has run so many more tasks than load, freshness and the first of dbt.

        Return the seconds and the CPU seconds by kind of process that these took.
        """
        call = self.airflow.call
        run_id = call("POST", f"/api/v2/dags/{warehouse_name()}/dagRuns", {"logical_date": None})["dag_run_id"]
        path = f"/api/v2/dags/{warehouse_name()}/dagRuns/{urllib.parse.quote(run_id)}"
        self._wait_for(path, 3)
        started, before = time.monotonic(), self.cpu_seconds()
        first = self._wait_for(path, 3)
        last = self._wait_for(path, first + tasks)
        seconds, used = time.monotonic() - started, self._cpu_since(before)
        call("PATCH", path, {"state": "failed"})
        share = tasks / (last - first)
        return seconds * share, {kind: one * share for kind, one in used.items()}

    def _wait_for(self, path: str, tasks: int) -> int:
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            if (found := self._count(path, "success")) >= tasks:
                return found
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} has run {found} tasks; logs in {self.deployment.root}")
            time.sleep(2)  # the api-server answers in CPU seconds that are measured

    def _count(self, path: str, *states: str) -> int:
        query = "&".join(f"state={state}" for state in states)
        return int(self.airflow.call("GET", f"{path}/taskInstances?limit=1&{query}")["total_entries"])

    def _cpu_since(self, before: Counter[str]) -> dict[str, float]:
        after = self.cpu_seconds()
        return {kind: after[kind] - before[kind] for kind in after}

    def cpu_seconds(self) -> Counter[str]:
        """Return what each kind of process has used, with its ended children."""
        found: Counter[str] = Counter(dict.fromkeys((*PROCESSES, "others"), 0.0))  # type: ignore[arg-type]
        for process in self.airflow.processes.alive():
            with suppress(psutil.NoSuchProcess):
                words, times = " ".join(process.cmdline()), process.cpu_times()
                kind = next((kind for kind, text in PROCESSES.items() if re.search(text, words)), "others")
                found[kind] += times.user + times.system
                # A worker's children are its tasks.
                ended = "tasks" if kind == "workers" else kind
                found[ended] += times.children_user + times.children_system
        return found

    def kept_workers(self, timed: Timed) -> int:
        """Return how many of a run's tasks kept their worker for over half a second after their end."""
        ends = {task["id"]: task["end"] for task in timed.tasks}
        log = (self.deployment.root / "airflow" / "logs" / "scheduler.log").read_text(errors="replace")
        found = re.findall(r"^(\S+) .*Workload finished.* workload_id=(\S+)", re.sub(r"\x1b\[[\d;]*m", "", log), re.M)
        return sum(stamp(when) > ends[id_] + 0.5 for when, id_ in found if id_ in ends)

    def split(self, timed: Timed) -> dict[str, float]:
        """Split the seconds of a run's tasks into parts; the gaps are when no task runs."""
        parts = dict.fromkeys(("scheduler gaps", "load", "publish", *(name for name, _ in PHASES)), 0.0)
        parts |= {"dbt nodes": 0.0, "after dbt": 0.0, "waiting for the task before": 0.0}
        parts["scheduler gaps"], at = timed.seconds, 0.0
        for task in timed.tasks:
            parts["scheduler gaps"] -= max(0.0, task["end"] - max(at, task["start"]))
            at = max(at, task["end"])
        for task in timed.tasks:
            if (part := task["task_id"].split(".")[0]) in ("load", "publish"):
                parts[part] += task["end"] - task["start"]
                continue
            at, left = task["start"], list(PHASES)
            lines = self.log(task)
            for line in lines:
                # A process that has run another task skips some.
                reached = [number for number, (_, text) in enumerate(left) if text in line["event"]]
                if reached and line.get("timestamp"):
                    now = max(at, stamp(line["timestamp"]))
                    parts[left[reached[0]][0]] += now - at
                    at = now
                    del left[: reached[0] + 1]
            parts["after dbt"] += task["end"] - at
            nodes = self.node_seconds(task)
            parts["dbt nodes"] += nodes
            parts["dbt run"] -= nodes
            waited = waited_seconds(lines)
            parts["waiting for the task before"] += waited
            parts["before dbt"] -= waited
        return parts

    def node_seconds(self, task: dict[str, Any]) -> float:
        """Return the seconds from the start of the task's first dbt node to the end of its last."""
        for path in self.deployment.warehouse.glob(f"artifacts/*/{task['task_id']}.json"):
            if task["start"] <= path.stat().st_mtime <= task["end"]:  # not another run's
                results = json.loads(path.read_text())["results"]
                times = [timing for result in results for timing in result["timing"] if timing["completed_at"]]
                if times:
                    ends = [stamp(timing["completed_at"]) for timing in times]
                    return max(ends) - min(stamp(timing["started_at"]) for timing in times)
        return 0.0

    def log(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        path = f"{task['path']}/taskInstances/{task['task_id']}/logs/1?full_content=true"
        return [line for line in self.airflow.call("GET", path)["content"] if isinstance(line, dict)]

    def overhead(self, task: dict[str, Any]) -> float:
        """Return what a task costs beside its dbt nodes and its wait."""
        return float(task["end"] - task["start"] - self.node_seconds(task) - waited_seconds(self.log(task)))

    def parse_seconds(self) -> float:
        """Have the DAG file parsed, with no run active; return how long it took, as the dag-processor reports it."""
        parsed = since = self.airflow.call("GET", f"/api/v2/dags/{warehouse_name()}")
        self.airflow.call("PUT", f"/api/v2/parseDagFile/{since['file_token']}")
        deadline = time.monotonic() + 180
        while parsed["last_parsed_time"] == since["last_parsed_time"]:
            if time.monotonic() > deadline:
                raise RuntimeError("the dag-processor has not parsed the DAG file for three minutes")
            time.sleep(1)
            parsed = self.airflow.call("GET", f"/api/v2/dags/{warehouse_name()}")
        return float(parsed["last_parse_duration"])

    def dag_processor_bytes(self) -> int:
        """Return the current resident memory of the dag-processor and its children."""
        total = 0
        for process in self.airflow.processes.alive():
            try:
                if "dag-processor" in process.cmdline():
                    total += process.memory_info().rss + sum(
                        c.memory_info().rss for c in process.children(recursive=True)
                    )
            except psutil.NoSuchProcess:
                continue
        return total


def waited_seconds(log: list[dict[str, Any]]) -> float:
    """Return how long a task waited for its turn to write, after it had started."""
    found = (re.match(r"Waited ([\d.]+) s for the task", line["event"]) for line in log)
    return sum(float(match[1]) for match in found if match)


def stamp(text: str) -> float:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment.timestamp()
