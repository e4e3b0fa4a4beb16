"""The faults. Each breaks something in a running Airflow, and returns once any lasting damage is undone."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil

from include.generate_data import generate
from include.settings import tasks_at_once
from include.warehouse.targets import target
from testing import targets
from testing.airflow_processes import Airflow, Run, titled
from testing.project import NAME
from tests.chaos import project

HEARTBEAT_TIMEOUT = 10  # seconds; airflow.env has 60, which would make each such fault six times as long
LOCK_TIMEOUT = 5


class NothingToBreakError(Exception):
    """The fault's target does not exist right now."""


TITLES = {
    # The task instance's id follows; it starts with its timestamp.
    "task": "airflow worker -- 0",
    "worker": "airflow worker -- LocalExecutor: 0",
    "idle worker": "airflow worker -- LocalExecutor: <idle>",
    "resident process": "airflow worker -- resident",  # between two tasks; while it runs one, it is a "task"
    "scheduler": "airflow scheduler",
    "dag-processor": "airflow dag-processor",
    "api-server": "airflow api_server",
    "triggerer": "airflow triggerer",
}


def _one(kind: str, workers: Iterable[targets.Service], airflow: Airflow, chance: random.Random) -> psutil.Process:
    found = airflow.processes.titled(TITLES[kind])
    found += [process for worker in workers for process in titled(worker.children(), TITLES[kind])]
    if not found:
        raise NothingToBreakError(kind)
    return chance.choice(found)


def killed(
    kind: str, number: signal.Signals, workers: Iterable[targets.Service], airflow: Airflow, chance: random.Random
) -> psutil.Process:
    process = _one(kind, workers, airflow, chance)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
    return process


def out_of_memory(kind: str, workers: Iterable[targets.Service], airflow: Airflow, chance: random.Random) -> None:
    """Leave a process hardly any memory for a while. The other way to run out of it is a kill by the kernel."""
    process = _one(kind, workers, airflow, chance)
    with contextlib.suppress(psutil.NoSuchProcess):
        before = process.rlimit(psutil.RLIMIT_AS)
        most = process.memory_info().vms + chance.randrange(4 << 20)
        process.rlimit(psutil.RLIMIT_AS, (most, before[1]))
        time.sleep(chance.uniform(1, 4))
        process.rlimit(psutil.RLIMIT_AS, before)


def stopped(kind: str, workers: Iterable[targets.Service], airflow: Airflow, chance: random.Random) -> None:
    process = killed(kind, signal.SIGSTOP, workers, airflow, chance)
    time.sleep(HEARTBEAT_TIMEOUT * 1.5)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)


def disk_full(airflow: Airflow, chance: random.Random) -> None:
    """Fill the warehouse's small disk for a few seconds."""
    filler = airflow.deployment.warehouse / "filler"
    # Unbuffered: closing the file would flush the buffer and fail again.
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)
    time.sleep(chance.uniform(2, 8))
    filler.unlink()


def foreign_lock(airflow: Airflow, chance: random.Random) -> None:
    """Hold the working database's lock, for less or more time than tasks wait for it."""
    seconds = chance.uniform(1, LOCK_TIMEOUT * 2)
    script = (
        "import sys, time\nfrom include.warehouse.targets import target\n"
        "with target().open_working(60): time.sleep(float(sys.argv[1]))"
    )
    env = airflow.deployment.env | {"WAREHOUSE_SHARED": "1"}  # from another checkout
    subprocess.run([sys.executable, "-c", script, str(seconds)], env=env, timeout=120)


def files_replaced(airflow: Airflow, chance: random.Random) -> None:
    """Deliver new files properly: each renamed into place when complete."""
    deliver(airflow.deployment.data_dir, chance)


def deliver(data_dir: Path, chance: random.Random) -> None:
    generate(data_dir, order_count=chance.randrange(50, 200), seed=chance.randrange(1000))


def corrupted(airflow: Airflow, chance: random.Random) -> None:
    """Overwrite the start of the working database; once tasks have hit it, repair it as the runbook says."""
    working = airflow.deployment.warehouse / f"{NAME}.duckdb"
    if not working.exists():
        raise NothingToBreakError("working database")
    with working.open("r+b") as file:
        file.write(os.urandom(12288))
    time.sleep(chance.uniform(1, 4))
    deadline = time.monotonic() + 120
    while True:
        try:
            airflow.deployment.command("restore", module="include.warehouse")
            break
        except subprocess.CalledProcessError as error:
            assert time.monotonic() < deadline, error.stderr
        time.sleep(0.5)
    for damaged in working.parent.glob(f"{working.name}.damaged-*"):
        damaged.unlink()  # they would fill the small disk


def gone_for_a_while(service: targets.Service, airflow: Airflow, chance: random.Random) -> None:
    """Kill a server that tasks need, and start it again."""
    service.kill()
    time.sleep(chance.uniform(0, 4))
    service.start()


def pool_too_small(airflow: Airflow, chance: random.Random) -> None:
    """Have an operator lower the pool below what a load or a publish asks for, until some task waits for it, and on."""
    pool, slots = "duckdb_writer", tasks_at_once("duckdb_writer")
    if slots < 2:
        raise NothingToBreakError(pool)

    def resize(number: int) -> None:
        path = f"/api/v2/pools/{pool}?update_mask=slots"
        airflow.call("PATCH", path, {"name": pool, "slots": number, "include_deferred": False})

    resize(1)
    try:
        time.sleep(chance.uniform(5, 40))  # the scheduler looks every 20 s
    finally:
        _until_answered(functools.partial(resize, slots))


def rolled_back(airflow: Airflow, chance: random.Random) -> None:
    """Roll readers back to the release before, which holds, and release the hold a while later."""
    with airflow.deployment.selected():
        older = [one.id for one in target().list_releases() if not one.published]
    if not older:
        raise NothingToBreakError("older release")
    airflow.deployment.command("rollback", older[0], module="include.warehouse")
    time.sleep(chance.uniform(2, 20))
    airflow.deployment.command("release-hold", module="include.warehouse")


def backfill(airflow: Airflow, chance: random.Random) -> None:
    """Create a backfill beside the run, which takes turns with it, and sometimes cancel it."""
    day = f"2026-{chance.randint(1, 9):02}-{chance.randint(1, 28):02}"
    body = {"dag_id": NAME, "from_date": day, "to_date": day, "reprocess_behavior": "completed"}
    try:
        made = airflow.call("POST", "/api/v2/backfills", {**body, "max_active_runs": 1})
    except urllib.error.HTTPError as error:
        if error.code != 409:  # another one is not done yet
            raise
        raise NothingToBreakError("backfill") from error
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, 5))
        _until_answered(lambda: airflow.call("PUT", f"/api/v2/backfills/{made['id']}/cancel"))


def _until_answered(call: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            call()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def one_source_by_another_run(airflow: Airflow, chance: random.Random) -> None:
    """Clear the load of one source in a run that has ended, beside the run that loads both."""
    path = f"/api/v2/dags/{NAME}/dagRuns"
    ended = airflow.call("GET", f"{path}?run_type=backfill&state=success&state=failed&limit=100")["dag_runs"]
    if not ended:  # there is one once a backfill is done; it need not have run
        backfill(airflow, chance)
        for run in airflow.call("GET", f"{path}?run_type=backfill&limit=100")["dag_runs"]:
            airflow.call(
                "PATCH", f"{path}/{urllib.parse.quote(run['dag_run_id'])}?update_mask=state", {"state": "failed"}
            )
        raise NothingToBreakError("ended run")
    run = Run(airflow, NAME, chance.choice(ended)["dag_run_id"])
    run.clear_tasks([chance.choice(project.LOADS)])


def delivery(airflow: Airflow, chance: random.Random) -> None:
    """Deliver a set of files one by one, and break what waits for them in between."""
    for table in chance.sample(["sales", "stores"], 2):
        project.deliver(airflow.deployment, table, chance)
        with contextlib.suppress(NothingToBreakError, psutil.NoSuchProcess):
            process = killed(
                "triggerer", chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]), (), airflow, chance
            )
            time.sleep(chance.uniform(0, HEARTBEAT_TIMEOUT))
            process.resume()


def late_delivery(alerts: list[dict[str, str]], airflow: Airflow, chance: random.Random) -> None:
    """Deliver a file of a set, kill what waits for the other one, and deliver that once an alert has told of it."""
    path = f"/api/v2/dags/{project.DELIVERED}/dagRuns?state=running&state=queued&limit=1"
    if airflow.call("GET", path)["dag_runs"] or not project.has_seen_all(airflow.deployment):
        raise NothingToBreakError("a drop folder without new files")
    first, second = chance.sample(["sales", "stores"], 2)
    alerts.clear()
    project.deliver(airflow.deployment, first, chance)
    with contextlib.suppress(NothingToBreakError):
        time.sleep(chance.uniform(0, project.DEADLINE.seconds))
        killed("triggerer", signal.SIGKILL, (), airflow, chance)
    deadline = time.monotonic() + 300
    while not any(f"nothing yet for {second}" in one["message"] for one in alerts):
        assert time.monotonic() < deadline, (second, alerts)
        time.sleep(0.2)
    project.deliver(airflow.deployment, second, chance)


Fault = Callable[[Airflow, random.Random], object]


def all_faults(
    target: targets.Target,
    brokers: Mapping[str, targets.Service],
    workers: Mapping[str, targets.Service],
    small: bool,
    resident: bool,
    alerts: list[dict[str, str]],
) -> dict[str, Fault]:
    """Return the faults by name.

    Args:
        target: where the warehouse is.
        brokers: what hands the tasks to Celery's workers, by name.
        workers: Celery's workers, by name; none with the LocalExecutor.
        small: whether the warehouse's disk is so small that it can be filled.
        resident: whether dbt tasks share a process.
        alerts: those that were sent.
    """
    faults: dict[str, Fault] = {
        "foreign lock": foreign_lock,
        "pool too small": pool_too_small,
        "rollback that holds": rolled_back,
        "backfill": backfill,
    }
    if not workers:  # they read from an object store, where several files cannot be replaced at once
        faults["files replaced"] = files_replaced
        faults["one source loaded by another run"] = one_source_by_another_run
        faults["delivery"] = delivery
        faults["late delivery"] = functools.partial(late_delivery, alerts)
    for name, service in {**target.services(), **brokers, **workers}.items():
        faults[f"SIGKILL {name}"] = functools.partial(gone_for_a_while, service)
    if target.name == "duckdb":
        faults["corrupted database"] = corrupted
        if small:
            faults["disk full"] = disk_full
    here = [kind for kind in TITLES if not (workers and ("worker" in kind or kind == "triggerer"))]
    if not resident:
        here.remove("resident process")
    machines = list(workers.values())
    for kind in here:
        faults[f"SIGKILL {kind}"] = functools.partial(killed, kind, signal.SIGKILL, machines)
    for kind in ("task", "worker", "scheduler"):
        if kind in here:
            faults[f"SIGTERM {kind}"] = functools.partial(killed, kind, signal.SIGTERM, machines)
    for kind in ("task", "worker", "resident process"):
        if kind in here:
            faults[f"SIGSTOP {kind}"] = functools.partial(stopped, kind, machines)
    for kind in ("task", "resident process"):
        if kind in here:
            faults[f"out of memory {kind}"] = functools.partial(out_of_memory, kind, machines)
    return faults
