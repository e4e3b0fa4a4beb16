"""Sail as a cluster: a driver, and workers that are processes of their own. Clients speak Spark Connect.

Sail starts workers as threads of the driver (`local-cluster`), or as pods of Kubernetes. `_Kubernetes` answers the two
requests that Sail makes there, and starts each pod's command with the pod's own environment.
"""

import contextlib
import http.server
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import psutil
import yaml

from testing import targets

DBT_PROJECT = targets.PROJECT / "include" / "dbt_project"
PYTHON = targets.PROJECT / ".venv-sail" / "bin" / "python"
_SAIL = PYTHON.with_name("sail")
WORKERS = 2
_SETTINGS = {
    "SAIL_MODE": "kubernetes-cluster",
    "SAIL_CLUSTER__WORKER_INITIAL_COUNT": str(WORKERS),
    "SAIL_CLUSTER__WORKER_MAX_COUNT": str(WORKERS),
    "SAIL_CLUSTER__WORKER_TASK_SLOTS": "16",  # a large query asks for so many at once
    "SAIL_EXECUTION__DEFAULT_PARALLELISM": "4",
    # How soon a worker that says nothing counts as lost; two minutes by default.
    "SAIL_CLUSTER__WORKER_HEARTBEAT_INTERVAL_SECS": "1",
    "SAIL_CLUSTER__WORKER_HEARTBEAT_TIMEOUT_SECS": "30",
    "SAIL_CLUSTER__WORKER_MAX_IDLE_TIME_SECS": "900",
    "RUST_LOG": "warn",
}
# Reads statements from stdin; prints the rows of each, or its error.
_CLIENT = """
import json, sys
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
for statement in json.load(sys.stdin):
    try:
        done = spark.sql(statement)  # what is no query has run by now, and may return what the client cannot read
        rows = done.collect() if statement.startswith("select") else []
        print(json.dumps([[None if value is None else str(value) for value in row] for row in rows]))
    except PySparkException as error:
        print(json.dumps(str(error)))
"""
Rows = list[list[str | None]]


class _Kubernetes(http.server.ThreadingHTTPServer):
    """As much of the API as Sail uses: create a pod, delete all pods."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Pods)
        self.pods: list[subprocess.Popen[bytes]] = []
        self.config = folder / "kubeconfig"
        place = {"server": f"http://127.0.0.1:{self.server_port}"}
        contexts = [{"name": "test", "context": {"cluster": "test", "user": "test"}}]
        users: list[object] = [{"name": "test", "user": {}}]
        config: dict[str, object] = {"current-context": "test", "contexts": contexts, "users": users}
        self.config.write_text(json.dumps(config | {"clusters": [{"name": "test", "cluster": place}]}))
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Pods(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Kubernetes

    def do_POST(self) -> None:
        pod = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = {one["name"]: one.get("value", "127.0.0.1") for one in pod["spec"]["containers"][0]["env"]}
        given["SAIL_CLUSTER__WORKER_LISTEN_HOST"] = "127.0.0.1"
        self.server.pods.append(subprocess.Popen([_SAIL, "worker"], env=os.environ | given, stderr=subprocess.DEVNULL))
        self._answer(pod)

    def do_DELETE(self) -> None:
        self._answer({"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def _answer(self, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Cluster:
    """A driver and its workers. A session has workers of its own, so clients share one, by its id."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._kubernetes, self._port = _Kubernetes(folder), targets.free_port()
        self.service = targets.Service(
            [_SAIL, "spark", "server", "--port", self._port],
            lambda: socket.create_connection(("127.0.0.1", self._port), 1).close(),
            stderr=subprocess.DEVNULL,
            env=os.environ | _SETTINGS | {"KUBECONFIG": str(self._kubernetes.config)} | dict(env),
            cwd=folder,
        )

    @property
    def workers(self) -> list["subprocess.Popen[bytes]"]:
        """Return the processes of all workers so far, in the order in which they were started."""
        return self._kubernetes.pods

    def remote(self, session: str) -> str:
        """Return the address of a session, for `SPARK_REMOTE`."""
        return f"sc://127.0.0.1:{self._port}/;session_id={session};user_id=test"

    def attempt(self, session: str, statements: Sequence[str]) -> list[Rows | str]:
        """Run statements in a process of their own; return the rows of each, as text, or its error."""
        done = subprocess.run(
            [PYTHON, "-c", _CLIENT],
            input=json.dumps(statements),
            env=os.environ | {"SPARK_REMOTE": self.remote(session)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def query(self, session: str, statements: Sequence[str]) -> list[Rows]:
        """Run statements, of which none may fail, in a process of their own; return the rows of each, as text."""
        found = []
        for statement, rows in zip(statements, self.attempt(session, statements), strict=True):
            assert isinstance(rows, list), f"{statement}: {rows}"
            found.append(rows)
        return found

    def spent(self) -> tuple[list[float], float]:
        """Return the CPU seconds that each living worker has used, and those of the driver."""
        living = [worker for worker in self.workers if worker.poll() is None]
        times = [psutil.Process(process.pid).cpu_times() for process in (*living, self.service.process)]
        *workers, driver = (one.user + one.system for one in times)
        return workers, driver

    def stop(self) -> None:
        self.service.stop()
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self._kubernetes.shutdown()
        self._kubernetes.server_close()


@contextlib.contextmanager
def cluster(folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Start Sail with two workers, which keep what they write in a folder."""
    started = Cluster(folder, env or {})
    try:
        yield started
    finally:
        started.stop()


class Project:
    """The dbt project in a session of a cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.session = cluster, folder, str(uuid.uuid4())

    def load(self, data: Path) -> None:
        """Make the raw tables of a folder's CSV files."""
        statements = ["create database if not exists jaffle_shop_raw"]
        for path in data.glob("raw_*.csv"):
            file = self.folder / f"{path.stem}.parquet"
            duckdb.read_csv(str(path)).project(f"*, '{time.time()}' as _dlt_load_id").write_parquet(str(file))
            statements.append(f"create table jaffle_shop_raw.{path.stem} as select * from parquet.`{file}`")
        self.query(*statements)

    def query(self, *statements: str) -> list[Rows]:
        return self.cluster.query(self.session, statements)

    def dbt(self, *words: str) -> tuple[list[object], dict[str, str]]:
        """Return a command of dbt, and its environment; it runs in the project's folder."""
        profile = {"type": "spark", "method": "session", "schema": "main", "host": "none", "threads": 1}
        profiles = {"analytics": {"outputs": {"spark": profile}}}
        (self.folder / "profiles.yml").write_text(yaml.safe_dump(profiles))
        command = [PYTHON.with_name("dbt"), *words, "--target", "spark", "--no-use-colors"]
        places = ["--target-path", self.folder / "target", "--profiles-dir", self.folder]
        remote = {"SPARK_REMOTE": self.cluster.remote(self.session)}
        return [*command, *places], os.environ | remote | {"DBT_LOG_PATH": str(self.folder / "logs")}
