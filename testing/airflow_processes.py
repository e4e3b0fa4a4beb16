"""A real Airflow on this machine, as `make up` starts it, in folders of its own."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from include.settings import airflow_env
from include.warehouse.targets import target
from scripts.airflow_api import Api
from testing.project import NAME, PROJECT
from testing.targets import fetch_all, free_port

# Generous: they catch hangs, not slowness on a busy machine.
START_SECONDS = 300
RUN_SECONDS = 600
STOP_SECONDS = 120


@dataclass
class Deployment:
    """An AIRFLOW_HOME, a warehouse and a folder of CSV files under `root`.

    `project` may be a copy of the project; with `probes`, it also has the DAGs of testing/dags and the preload probe.
    `python` is another checkout's interpreter.
    """

    root: Path
    project: Path = PROJECT
    probes: bool = True
    python: str = sys.executable
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        settings = airflow_env(self.project)
        bundle = {"classpath": "airflow.dag_processing.bundles.local.LocalDagBundle"}
        bundles = [
            {"name": "dags-folder", **bundle, "kwargs": {"path": str(self.project / "dags")}},
            {"name": "e2e", **bundle, "kwargs": {"path": str(self.project / "testing" / "dags")}},
        ]
        preload = "AIRFLOW__SCHEDULER__MP_FORKSERVER_PRELOAD"
        # Drop whatever `make` or the developer exported for another deployment.
        outside = re.compile("AIRFLOW|WAREHOUSE|SOURCES__|DBT_|DLT_|DUCKLAKE_|SERVE_|DESTINATION__|COV_|MAKE")
        self.env = {
            **{name: value for name, value in os.environ.items() if not outside.match(name)},
            **settings,
            **{name: value for name, value in os.environ.items() if name == "TASKS_PER_PROCESS"},  # make test-forks
            "AIRFLOW_HOME": str(self.root / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.project / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.project / "plugins"),
            # No scheduled runs, only those that a test starts.
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
            "TRIGGERER": "false",
            # No test edits a DAG file, and parsing them all every 30 s takes half a core.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
            "DLT_PROJECT_DIR": str(self.project / "include" / "dlt_pipelines"),
            "SOURCES__JAFFLE_SHOP__DATA_DIR": str(self.data_dir),
            "WAREHOUSE_DIR": str(self.warehouse),
            "PYTHONPATH": str(self.project),
            "PATH": os.pathsep.join([str(Path(self.python).parent), os.environ["PATH"]]),
            "NO_COLOR": "1",
        }
        if self.probes:
            self.env[preload] += ",testing.preload_probe"
            self.env["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps(bundles)
        self.restore_data()

    @property
    def data_dir(self) -> Path:
        return self.root / "csv"

    @property
    def warehouse(self) -> Path:
        return self.root / "warehouse"

    @property
    def published(self) -> Path:
        return self.warehouse / "published" / f"{NAME}.duckdb"

    def restore_data(self) -> None:
        """Reset the CSV files to those that the project ships."""
        shutil.rmtree(self.data_dir, ignore_errors=True)
        shutil.copytree(PROJECT / "include" / "data", self.data_dir)

    def append(self, table: str, line: str) -> int:
        """Append a line to a CSV file and return its line number."""
        path = self.data_dir / f"{table}.csv"
        path.write_text(path.read_text() + line + "\n")
        return len(path.read_text().splitlines())

    @contextlib.contextmanager
    def selected(self) -> Iterator[None]:
        """Make `include.warehouse` use this deployment's warehouse, whatever its target."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.env.items():
                if re.match("WAREHOUSE_|DBT_TARGET|DUCKLAKE_|AWS_|PG|BIGQUERY_|GOOGLE_|SNOWFLAKE_", name):
                    patch.setenv(name, value)
            yield

    def working(self, query: str) -> list[tuple[Any, ...]]:
        """Run SQL on the working database, from another checkout; only when no task is running."""
        with self.selected(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("WAREHOUSE_SHARED", "1")
            with target().open_working() as connection:
                fetch_all(connection)
                return connection.execute(query).fetchall()

    def read(self, query: str) -> list[tuple[Any, ...]]:
        """Query what is published."""
        with self.selected(), target().open_release() as connection:
            return connection.execute(query).fetchall()

    def command(self, *words: str, module: str = "include.runs") -> str:
        """Run `python -m MODULE WORDS` and return its output."""
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, env=self.env, cwd=PROJECT, check=True, capture_output=True, text=True).stdout

    def start(self, *words: str, **env: str) -> "Processes":
        """Start `airflow_local.py WORDS` and return at once."""
        return Processes(self, words, {**self.env, **env})

    def run(self, *words: str, **env: str) -> tuple[int, str]:
        """Run `airflow_local.py WORDS` to completion; return its exit code and output."""
        processes = self.start(*words, **env)
        try:
            return processes.wait(RUN_SECONDS), processes.output()
        finally:
            processes.kill()

    def initialise(self) -> None:
        """Initialise Airflow's metadata, as `make run` and `make up` do first."""
        code, output = self.run("init")
        assert code == 0, output

    @contextlib.contextmanager
    def running(self) -> Iterator["Airflow"]:
        """Start Airflow, yield it once it is ready, and leave no process behind."""
        airflow = Airflow(self, free_port())
        try:
            airflow.wait_until_ready()
            yield airflow
        finally:
            airflow.processes.kill()


def interrupt_with_parent() -> None:
    """Have Linux interrupt this process when its parent dies without cleaning up, for example by SIGKILL."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)


class Processes:
    """One `airflow_local.py` and every process it started."""

    def __init__(self, deployment: Deployment, words: tuple[str, ...], env: dict[str, str]) -> None:
        self.deployment = deployment
        self._log = deployment.root / f"{'-'.join(words[:1])}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as out:
            self._popen = subprocess.Popen(
                [deployment.python, str(deployment.project / "scripts" / "airflow_local.py"), *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=env,
                cwd=deployment.project,
                start_new_session=True,
                preexec_fn=interrupt_with_parent,
            )
        self.pid = self._popen.pid
        self._sessions: dict[int, psutil.Process | None] = {self.pid: psutil.Process(self.pid)}
        self._seen: set[psutil.Process] = set()

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while self._popen.poll() is None and time.monotonic() < deadline:
            self.alive()  # records processes started in the meantime
            time.sleep(0.2)
        try:
            return self._popen.wait(0)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not ended after {seconds} s:\n{self.output()}") from None

    def titled(self, text: str) -> list[psutil.Process]:
        """Return the processes whose command line contains `text`."""
        return titled(self.alive(), text)

    def alive(self) -> set[psutil.Process]:
        """Return every running process started directly or indirectly: descendants and members of their sessions.

        A session outlives its leader, so orphans adopted by init are found too.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._popen.poll() is None:
                own = psutil.Process(self.pid)
                self._seen |= {own, *own.children(recursive=True)}
        for process in list(self._seen):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                self._seen |= set(process.children(recursive=True))
                if process.is_running():
                    self._know_session(os.getsid(process.pid))
        members: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                members.setdefault(os.getsid(process.pid), []).append(process)
        for session, leader in list(self._sessions.items()):
            # Linux gives the number of a session that has ended to another process, which may be anybody's.
            is_another = psutil.pid_exists(session) and not (leader and leader.is_running())
            if session not in members or is_another:
                del self._sessions[session]
            else:
                self._seen.update(members[session])
        return {process for process in self._seen if _runs(process)}

    def _know_session(self, session: int) -> None:
        if session not in self._sessions and session != os.getsid(0):
            leader = None
            with contextlib.suppress(psutil.NoSuchProcess):
                leader = psutil.Process(session)
            self._sessions[session] = leader

    def supervisor_pid(self) -> int:
        """Return the PID of the supervisor, the direct child of `airflow_local.py`."""
        children = psutil.Process(self.pid).children()
        return children[0].pid

    def listening(self) -> set[tuple[str, int]]:
        """Return the IP addresses and ports that any of the processes listens on, from /proc/net/tcp and tcp6."""
        found = set()
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN or (connection.type == 2 and not connection.raddr):
                        found.add((connection.laddr.ip, connection.laddr.port))
        return found

    def interrupt(self) -> int:
        """Send SIGINT to the foreground process group, like Ctrl-C in a terminal; return the exit code."""
        self.alive()
        os.killpg(self.pid, signal.SIGINT)
        return self.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Kill every process, whatever its state; does nothing if all have ended."""
        self.alive()
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                self.interrupt()
        deadline = time.monotonic() + STOP_SECONDS
        while (left := self.alive()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.2)
        self._popen.wait(5)


def titled(processes: Iterable[psutil.Process], text: str) -> list[psutil.Process]:
    """Return those whose command line contains `text`."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if text in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Airflow(Api):
    """`airflow_local.py up`, driven through its REST API with the generated login."""

    def __init__(self, deployment: Deployment, port: int) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.deployment = deployment
        self.processes = deployment.start("up", AIRFLOW__API__PORT=str(port))

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while "Ctrl-C stops it" not in self.processes.output():
            if time.monotonic() > deadline or self.processes.pid not in {p.pid for p in self.processes.alive()}:
                raise TimeoutError(f"Airflow did not start:\n{self.processes.output()}")
            time.sleep(0.2)
        passwords = self.deployment.root / "airflow" / "simple_auth_manager_passwords.json.generated"
        self.log_in("admin", json.loads(passwords.read_text())["admin"])

    def start(self, dag_id: str, **conf: object) -> "Run":
        """Start a run of a DAG, with `conf` as its params."""
        made = self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})
        return Run(self, dag_id, made["dag_run_id"])

    def trigger(self, dag_id: str, **conf: object) -> "Run":
        """Run a DAG to completion, with `conf` as its params."""
        return self.start(dag_id, **conf).wait()

    def wait_for_dag(self, dag_id: str) -> None:
        """Wait until the dag-processor has found a DAG: readiness only means that it has found the first one."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.call("GET", f"/api/v2/dags/{dag_id}")
                return
            except urllib.error.HTTPError as error:
                if error.code != 404 or time.monotonic() > deadline:
                    raise
            time.sleep(0.3)


@dataclass
class Run:
    """One DAG run."""

    airflow: Airflow
    dag_id: str
    id: str

    @property
    def path(self) -> str:
        return f"/api/v2/dags/{self.dag_id}/dagRuns/{urllib.parse.quote(self.id)}"

    def wait(self) -> "Run":
        deadline = time.monotonic() + RUN_SECONDS
        while self.state not in ("success", "failed"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.id} is still {self.state}: {self.tasks()}")
            time.sleep(0.3)
        return self

    @property
    def state(self) -> str:
        return str(self.airflow.call("GET", self.path)["state"])

    def tasks(self) -> dict[str, str]:
        """Return each task's state."""
        return {task["task_id"]: task["state"] for task in self.airflow.task_instances(self.path)}

    def tries(self, task_id: str) -> int:
        return int(self.airflow.call("GET", f"{self.path}/taskInstances/{task_id}")["try_number"])

    def log(self, task_id: str) -> str:
        """Return the log messages of a task's last try and the errors it raised, one per line."""
        path = f"{self.path}/taskInstances/{task_id}/logs/{self.tries(task_id)}?full_content=true"
        lines: list[str] = []
        for entry in self.airflow.call("GET", path)["content"]:
            lines.append(entry["event"] if isinstance(entry, dict) else entry)
            if isinstance(entry, dict):
                lines += [f"{one['exc_type']}: {one['exc_value']}" for one in entry.get("error_detail") or []]
        return "\n".join(lines)

    def result(self, task_id: str) -> Any:
        """Return a task's return value."""
        path = f"{self.path}/taskInstances/{task_id}/xcomEntries/return_value"
        return self.airflow.call("GET", path)["value"]

    def span(self, first: str, last: str) -> tuple[str, str]:
        """Return when the first task started and when the last one ended."""
        tasks = {task: self.airflow.call("GET", f"{self.path}/taskInstances/{task}") for task in (first, last)}
        return tasks[first]["start_date"], tasks[last]["end_date"]

    def wait_for_running(self, prefix: str) -> str:
        """Wait until a task whose id starts with `prefix` is running, and return its id."""
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            for task, state in self.tasks().items():
                if state == "running" and task.startswith(prefix):
                    return task
            assert time.monotonic() < deadline, self.tasks()
            time.sleep(0.1)

    def kill_running(self, prefix: str) -> str:
        """SIGKILL the process of a running task whose id starts with `prefix`, and return the task's id."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            task_id = self.wait_for_running(prefix)
            title = f"airflow worker -- {self.airflow.call('GET', f'{self.path}/taskInstances/{task_id}')['id']}"
            for process in self.airflow.processes.titled(title):
                process.suspend()
                if title not in " ".join(process.cmdline()):  # it runs another task by now
                    process.resume()
                    continue
                process.kill()
                while (state := self.tasks()[task_id]) == "running":
                    time.sleep(0.1)
                if state != "success":  # it had not reported its end
                    return task_id
        raise TimeoutError(f"no process of a running task {prefix}*")

    def clear(self, task_id: str, downstream: bool = True) -> "Run":
        """Clear a task, as the UI does, and wait for the run to end."""
        self.clear_tasks([task_id], downstream)
        return self.wait()

    def clear_tasks(self, task_ids: list[str], downstream: bool = True) -> None:
        """Clear tasks, as the UI does."""
        body = {
            "dry_run": False,
            "dag_run_id": self.id,
            "task_ids": task_ids,
            "include_downstream": downstream,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.airflow.call("POST", f"/api/v2/dags/{self.dag_id}/clearTaskInstances", body)
