"""A running Dagster: webserver and daemon with defaults, runs launched over GraphQL."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks.common import PEERS, PROJECT, csv_files, project_env, run, scratch
from testing.airflow_processes import interrupt_with_parent
from testing.targets import free_port

FILE = PROJECT / "benchmarks" / "peers" / "dagster_project.py"
LAUNCH = """mutation ($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector, runConfigData: {}}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status creationTime endTime } } }"
WORKSPACE = """{ workspaceOrError { ... on Workspace { locationEntries {
  loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
SELECTOR = {"repositoryLocationName": FILE.name, "repositoryName": "__repository__", "pipelineName": "jaffle_shop"}


class Dagster:
    """One Dagster deployment and its processes."""

    @contextmanager
    def running(self) -> Iterator["Dagster"]:
        with scratch("dagster") as root:
            (root / "home").mkdir()
            (root / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
            env = project_env(root, csv_files(0))
            env |= {"DAGSTER_HOME": str(root / "home"), "PATH": f"{PEERS}{os.pathsep}{os.environ['PATH']}"}
            dbt = [PEERS / "dbt", "--quiet", "parse", "--profiles-dir", PROJECT / "include" / "dbt_project"]
            run(dbt, env, PROJECT / "include" / "dbt_project")
            self.port, self.log = free_port(), root / "dagster.log"
            processes = []
            try:
                with self.log.open("wb") as log:
                    for words in (
                        ["dagster-webserver", "-h", "127.0.0.1", "-p", str(self.port)],
                        ["dagster-daemon", "run"],
                    ):
                        command = [str(PEERS / words[0]), *words[1:], "-f", str(FILE)]
                        processes.append(
                            subprocess.Popen(
                                command, env=env, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True,
                                preexec_fn=interrupt_with_parent,
                            )
                        )  # fmt: skip
                self._wait_until_loaded()
                yield self
            finally:
                for process in processes:
                    process.send_signal(signal.SIGINT)
                for process in processes:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(20)
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def _wait_until_loaded(self) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(OSError, KeyError):
                entries = self._query(WORKSPACE, {})["workspaceOrError"]["locationEntries"]
                if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
                    for entry in entries:
                        if entry["locationOrLoadError"]["__typename"] == "PythonError":
                            raise RuntimeError(f"Dagster cannot load: {entry['locationOrLoadError']['message']}")
                    time.sleep(5)  # the daemon's first loop
                    return
            time.sleep(0.5)
        raise RuntimeError(f"Dagster did not start:\n{self.log.read_text()[-3000:]}")

    def _query(self, query: str, variables: dict[str, Any]) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        url = f"http://127.0.0.1:{self.port}/graphql"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def run_once(self) -> float:
        """Launch a run and wait for it to end; return the seconds from launch to the end time that Dagster reports."""
        launched = time.time()
        answer = self._query(LAUNCH, {"selector": SELECTOR})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise RuntimeError(f"Dagster did not launch the run: {answer}")
        while True:
            found = self._query(STATUS, {"id": answer["run"]["runId"]})["runOrError"]
            if found["status"] == "SUCCESS":
                return float(found["endTime"]) - launched
            if found["status"] in ("FAILURE", "CANCELED"):
                raise RuntimeError(f"the run ended as {found['status']}:\n{self.log.read_text()[-5000:]}")
            time.sleep(0.3)
