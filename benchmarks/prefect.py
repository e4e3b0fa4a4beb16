"""A running Prefect: a server and the process that serves the flow, with defaults; runs are started over REST."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.airflow import stamp
from benchmarks.common import PEERS, PROJECT, csv_files, project_env, run, scratch
from testing.airflow_processes import interrupt_with_parent
from testing.targets import free_port

FILE = PROJECT / "benchmarks" / "peers" / "prefect_project.py"


class Prefect:
    """One Prefect deployment and its processes."""

    @contextmanager
    def running(self) -> Iterator["Prefect"]:
        with scratch("prefect") as root:
            port, self.log = free_port(), root / "prefect.log"
            self._api = f"http://127.0.0.1:{port}/api"
            env = project_env(root, csv_files(0))
            env |= {
                "PATH": f"{PEERS}{os.pathsep}{os.environ['PATH']}",
                "PREFECT_HOME": str(root / "home"),
                "PREFECT_API_URL": self._api,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DBT_TARGET_PATH": str(root / "target"),
            }
            dbt = [PEERS / "dbt", "--quiet", "parse", "--profiles-dir", PROJECT / "include" / "dbt_project"]
            run(dbt, env, PROJECT / "include" / "dbt_project")
            server = [PEERS / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
            processes = []
            try:
                with self.log.open("wb") as log:
                    for command, path in (
                        (server, "/health"),
                        ([PEERS / "python", FILE], "/deployments/name/jaffle_shop/jaffle_shop"),
                    ):
                        processes.append(
                            subprocess.Popen(
                                command, env=env, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True,
                                preexec_fn=interrupt_with_parent,
                            )
                        )  # fmt: skip
                        self._wait_for(path)
                self._deployment = self._call("/deployments/name/jaffle_shop/jaffle_shop")["id"]
                yield self
            finally:
                for process in reversed(processes):
                    process.send_signal(signal.SIGINT)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(20)
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def _wait_for(self, path: str) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(OSError):
                self._call(path)
                return
            time.sleep(0.5)
        raise RuntimeError(f"Prefect did not start:\n{self.log.read_text()[-3000:]}")

    def _call(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._api + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run_once(self) -> float:
        """Start a run of the deployment; return the seconds from there to the end time that Prefect reports."""
        started = time.time()
        made = self._call(f"/deployments/{self._deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        while True:
            found = self._call(f"/flow_runs/{made['id']}")
            if found["state_type"] == "COMPLETED":
                return stamp(found["end_time"]) - started
            if found["state_type"] in ("FAILED", "CRASHED", "CANCELLED"):
                raise RuntimeError(f"the run ended as {found['state_type']}:\n{self.log.read_text()[-5000:]}")
            time.sleep(0.3)
