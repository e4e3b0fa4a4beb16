"""Readers in other processes during publishes, and two concurrent publishers."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from include.warehouse.paths import published_path
from include.warehouse.targets import target
from testing.project import unchecked

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warehouse")]

PROCESSES = multiprocessing.get_context("forkserver")

# Any error ends the reader with a traceback and a nonzero exit code.
READER = """
import os, sys, time, duckdb
path, stop = sys.argv[1:]
reads = states = last = 0
while not os.path.exists(stop):
    with duckdb.connect(path, read_only=True) as c:
        customers, orders, amount = c.execute('''
            select (select min(g) from marts.customers), (select min(g) from marts.orders),
                   (select sum(customer_lifetime_value) from marts.customers) - (select sum(amount) from marts.orders)
        ''').fetchone()
        run = c.execute("select run_id from warehouse.release").fetchone()[0]
    assert customers == orders and amount == 0 and run == f"run:{customers}", (customers, orders, amount, run)
    assert not os.access(path + ".wal", os.F_OK)
    reads += 1
    states += customers != last
    last = customers
    time.sleep(0.01)  # leaves the publisher a core
print(reads, states)
"""


def build(generation: int) -> None:
    """Build both tables in two transactions, so the working database is inconsistent in between."""
    with target().open_working() as connection:
        connection.execute("create schema if not exists marts")
        connection.execute(
            f"create or replace table marts.customers as select {generation} as g, range * {generation} as"
            " customer_lifetime_value from range(2000)"
        )
        connection.execute(
            f"create or replace table marts.orders as select {generation} as g, range * {generation} as amount"
            " from range(2000)"
        )


def test_readers_see_whole_releases_while_thirty_are_published(warehouse: Path) -> None:
    build(1)
    target().publish("run:1", unchecked)
    stop = warehouse / "stop"
    command = [sys.executable, "-c", READER, str(published_path()), str(stop)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        for generation in range(2, 32):
            build(generation)
            target().publish(f"run:{generation}", unchecked)
            if generation % 5 == 0:
                target().rollback(f"run:{generation - 1}")
    finally:
        stop.touch()
        results = [reader.communicate(timeout=20) for reader in readers]
    assert [(reader.returncode, errors) for reader, (_, errors) in zip(readers, results, strict=True)] == [(0, "")] * 3
    reads, states = zip(*(map(int, out.split()) for out, _ in results), strict=True)
    assert min(reads) > 20 and min(states) > 5, (reads, states)


def publish_together(run_id: str, directory: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    os.environ["WAREHOUSE_DIR"] = directory
    barrier.wait()
    target().publish(run_id, unchecked)


@pytest.mark.parametrize("runs", [("one", "two"), ("same", "same")])
def test_two_concurrent_publishers_take_turns(runs: tuple[str, str], warehouse: Path) -> None:
    build(1)
    barrier = PROCESSES.Barrier(2)
    processes = [PROCESSES.Process(target=publish_together, args=(run, str(warehouse), barrier)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    newest, *others = target().list_releases()
    assert {newest.id, *(other.id for other in others)} == set(runs)
    assert newest.published and newest == target().published_release()
    with duckdb.connect(str(published_path()), read_only=True) as connection:
        assert connection.execute("select count(*) from marts.orders").fetchone() == (2000,)
    names = sorted(path.name for path in (warehouse / "releases").iterdir())
    assert names == [".lock", *sorted({f"{run}.duckdb" for run in runs})]
