"""Break a running Airflow at random: each run ends green after at most one clear, and readers never notice.

CHAOS_FAULTS sets the number of faults, CHAOS_RUNS the least number of runs, CHAOS_SEED repeats a sequence, CHAOS_KINDS
chooses faults by parts of their names (with commas), TASKS_PER_PROCESS=1 forks a process for each task,
CHAOS_WORKERS hands the tasks to that many Celery workers on a lake; `make chaos` is the long version.
"""

import contextlib
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from include.warehouse.targets import target
from testing import targets
from testing.airflow_processes import Airflow, Run
from testing.celery_processes import Redis, Worker, connect, deliver, machine, parse, redis
from testing.classic import count_differences
from testing.project import LOAD, NAME, PROJECT
from tests.chaos import faults, project
from tests.e2e.conftest import Receiver

FAULTS = int(os.environ.get("CHAOS_FAULTS", "4"))
RUNS = int(os.environ.get("CHAOS_RUNS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
WORKERS = int(os.environ.get("CHAOS_WORKERS", "0"))
KINDS = os.environ.get("CHAOS_KINDS", "")
RUN_SECONDS = 600
MISSES = 5  # a run may end before its fault strikes
DISK_MB = 60  # two warehouses

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 + (FAULTS + RUNS) * 120)]


@pytest.fixture(scope="module")
def broker() -> Iterator[Redis | None]:
    with redis() if WORKERS else contextlib.nullcontext() as broker:
        yield broker


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    yield receiver
    receiver.shutdown()


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, target: targets.Target, broker: Redis | None, receiver: Receiver
) -> Iterator[Airflow]:
    root = tmp_path_factory.mktemp("chaos")
    where = {"path": f"json://127.0.0.1:{receiver.server_port}"}
    connection = {"conn_type": "apprise", "extra": {"config": [where]}}
    if broker:
        assert isinstance(target, targets.DuckLake), "workers need --target ducklake-s3"
        deployment = machine(root)
        connect(deployment, target, broker)
        parse(deployment)
    else:
        deployment = project.deploy(root)
        deployment.env |= {**target.new(root), "WAREHOUSE_DIR": str(deployment.warehouse)}
    deployment.env |= {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(faults.HEARTBEAT_TIMEOUT),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "WAREHOUSE_LOCK_TIMEOUT": str(faults.LOCK_TIMEOUT),
        "WAREHOUSE_KEEP_RELEASES": "2",
        "AIRFLOW_CONN_APPRISE_DEFAULT": json.dumps(connection),
    }
    deployment.warehouse.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(deployment.warehouse)]
    small = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        deployment.initialise()
        with deployment.running() as airflow:
            if not broker:
                airflow.wait_for_dag(project.DELIVERED)
            yield airflow
    finally:
        if small:
            subprocess.run(["umount", "-l", str(deployment.warehouse)], check=True)


@pytest.fixture(scope="module")
def workers(airflow: Airflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, targets.Service]]:
    names = [f"worker {number}" for number in range(1, WORKERS + 1)]
    started = {name: Worker(name.replace(" ", "-"), tmp_path_factory.mktemp("worker"), airflow) for name in names}
    yield {name: worker.service for name, worker in started.items()}
    for worker in started.values():
        worker.service.kill()


@pytest.fixture
def reader(airflow: Airflow, tmp_path: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    stop = tmp_path / "stop"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.reader", str(stop)],
        env=airflow.deployment.env,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )

    def finish() -> dict[str, Any]:
        stop.touch()
        return dict(json.loads(process.communicate(timeout=60)[0]))

    yield finish
    process.kill()


class Chaos:
    """Starts runs, injects a few faults into each, and counts recoveries."""

    def __init__(
        self,
        airflow: Airflow,
        target: targets.Target,
        broker: Redis | None,
        workers: dict[str, targets.Service],
        alerts: list[dict[str, str]],
    ) -> None:
        self.airflow, self.remote = airflow, bool(workers)
        self.loads = [LOAD] if workers else list(project.LOADS)
        small = shutil.disk_usage(airflow.deployment.warehouse).total <= DISK_MB << 20
        brokers = {"redis": broker.service} if broker else {}
        resident = target.name == "duckdb" and airflow.deployment.env.get("TASKS_PER_PROCESS", "1") != "1"
        self.faults = faults.all_faults(target, brokers, workers, small, resident, alerts)
        self.chance = random.Random(SEED)
        self.deliveries: list[Path] = []
        self.injected: Counter[str] = Counter()
        self.recovered: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.cleared = self.runs = 0

    def patiently(self, call: Callable[[], Any]) -> Any:
        """Call the API until it answers: the api-server may be what was killed."""
        deadline = time.monotonic() + 300
        while True:
            try:
                return call()
            except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def keep_delivery(self) -> None:
        kept = self.airflow.deployment.root / f"delivery-{len(self.deliveries)}"
        shutil.copytree(self.airflow.deployment.data_dir, kept)
        self.deliveries.append(kept)

    def run(self, kinds: list[str]) -> None:
        """Start a run on new files, inject these faults, and check that it ends green."""
        self.deliveries.clear()
        for old in self.airflow.deployment.root.glob("delivery-*"):
            shutil.rmtree(old)
        faults.deliver(self.airflow.deployment.data_dir, self.chance)
        if self.remote:
            deliver(self.airflow.deployment)
        self.keep_delivery()
        run: Run = self.patiently(lambda: self.airflow.start(NAME))
        done: list[str] = []
        for kind in kinds:
            self.inject(kind, run, done)
        state = self.wait(run)
        self.wait_for_backfills()
        tasks = self.patiently(run.tasks)
        if state == "failed" or "rollback that holds" in done:  # readers see the old release; publish may be skipped
            self.cleared += 1
            first = [task for task, state in tasks.items() if state == "failed"] or ["publish"]
            self.patiently(lambda: run.clear_tasks(self.loads if self.lost(done) else first))
            state = self.wait(run)
        assert state == "success", (kinds, self.patiently(run.tasks), self.failures(run))
        with self.airflow.deployment.selected(), target().open_release() as connection:
            unlike = [count_differences(connection, delivery) for delivery in self.deliveries]
        assert {"customers": 0, "orders": 0} in unlike, (kinds, unlike)
        if not self.remote:
            self.wait_for_deliveries()
            seen = project.sold(self.airflow.deployment, NAME)
            assert seen.items() <= project.delivered(self.airflow.deployment).items(), (kinds, seen)
        self.recovered.update(done)
        self.runs += 1

    def inject(self, kind: str, run: Run, done: list[str]) -> None:
        break_it = self.faults[kind]
        time.sleep(self.chance.uniform(0, 6))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.patiently(lambda: run.state) in ("queued", "running"):
            try:
                break_it(self.airflow, self.chance)
            except faults.NothingToBreakError:
                time.sleep(0.1)
                continue
            self.injected[kind] += 1
            done.append(kind)
            if kind == "files replaced":
                self.keep_delivery()
            return
        self.missed[kind] += 1
        assert self.missed[kind] <= self.injected[kind] + MISSES, f"found nothing to break for {kind!r}"

    @staticmethod
    def lost(done: list[str]) -> bool:
        """Whether what the run had built is not there any more: by damage, or by another run's load."""
        return bool({"corrupted database", "backfill", "one source loaded by another run"} & set(done))

    def wait_for_backfills(self) -> None:
        """Wait until the runs of backfills have ended, however."""
        path = f"/api/v2/dags/{NAME}/dagRuns?run_type=backfill&state=running&state=queued&limit=1"
        deadline = time.monotonic() + RUN_SECONDS
        while self.patiently(lambda: self.airflow.call("GET", path))["dag_runs"]:
            assert time.monotonic() < deadline, self.airflow.call("GET", path)
            time.sleep(0.5)

    def wait_for_deliveries(self) -> None:
        """Wait until readers see whatever was delivered; a run that a delivery started may need one clear."""
        path = f"/api/v2/dags/{project.DELIVERED}/dagRuns?order_by=-run_after&limit=1"
        deadline, cleared = time.monotonic() + RUN_SECONDS, ""
        while not project.has_seen_all(self.airflow.deployment):
            runs = self.patiently(lambda: self.airflow.call("GET", path))["dag_runs"]
            if runs and runs[0]["state"] == "failed" and runs[0]["dag_run_id"] != cleared:
                cleared = runs[0]["dag_run_id"]
                run = Run(self.airflow, project.DELIVERED, cleared)
                self.patiently(functools.partial(run.clear_tasks, [project.LOADS[1]]))
                self.cleared += 1
            assert time.monotonic() < deadline, (runs, project.delivered(self.airflow.deployment))
            time.sleep(0.5)

    def wait(self, run: Run) -> str:
        deadline = time.monotonic() + RUN_SECONDS
        while (state := self.patiently(lambda: run.state)) not in ("success", "failed"):
            assert time.monotonic() < deadline, (state, self.patiently(run.tasks))
            time.sleep(0.5)
        return str(state)

    def failures(self, run: Run) -> dict[str, str]:
        tasks = self.patiently(run.tasks)
        return {task: run.log(task)[-1500:] for task, state in tasks.items() if state == "failed"}


def test_every_run_recovers_and_readers_never_notice(
    airflow: Airflow,
    target: targets.Target,
    broker: Redis | None,
    workers: dict[str, targets.Service],
    reader: Callable[[], dict[str, Any]],
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chaos = Chaos(airflow, target, broker, workers, receiver.alerts)
    chaos.run([])
    kinds = [kind for kind in chaos.faults if any(part in kind for part in KINDS.split(","))]
    while (left := chaos.injected.total() < FAULTS) or chaos.runs < RUNS:
        # Use every kind once before repeating any.
        waiting = [kind for kind in kinds if chaos.injected[kind] == min(chaos.injected[one] for one in kinds)]
        chaos.run(chaos.chance.sample(waiting, min(len(waiting), chaos.chance.randint(1, 3))) if left else [])
        with capsys.disabled(), contextlib.suppress(OSError):
            faults_so_far = f"{chaos.injected.total()} of {FAULTS} faults"
            print(f"{chaos.runs} runs, {faults_so_far}, {chaos.cleared} runs cleared", flush=True)
    reads = reader()
    with capsys.disabled():
        print(f"\nseed {SEED}; {chaos.runs} runs, {chaos.cleared} needed a clear; reads: {reads}")
        for kind in sorted(chaos.injected):
            print(f"  {kind:<32} recovered {chaos.recovered[kind]} of {chaos.injected[kind]}")
    assert chaos.recovered == chaos.injected
    assert reads["error"] == reads["inconsistent"] == 0, reads
    assert reads["right"] > 10
