"""Readers: queries on the published file during publishes; every one must succeed and see a single release."""

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks.common import PROJECT, Result, project_env, run, scratch
from testing.airflow_processes import interrupt_with_parent

# Each query reopens the file, as a dashboard does. The two marts are updated in one transaction before each publish, so
# a read in which they differ would mix two releases.
READER = """
import json, sys, time
import duckdb
from include.warehouse.targets import target
latencies, errors, seen = [], [], set()
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    started = time.perf_counter()
    try:
        with target().open_release() as connection:
            one, other, total = connection.execute(
                "select (select max(batch) from marts.orders), (select max(batch) from marts.customers), "
                "(select sum(amount) from marts.orders)").fetchone()
        if one != other or total is None:
            errors.append(f"batch {one} of orders but {other} of customers")
        seen.add(one)
    except Exception as error:
        errors.append(repr(error)[:300])
    latencies.append(time.perf_counter() - started)
print(json.dumps({"latencies": latencies, "errors": errors, "seen": len(seen)}))
"""
PREPARE = """
import sys
from include.warehouse.targets import target
with target().open_working() as connection:
    connection.execute("create schema marts")
    connection.execute(f"create table marts.orders as select i as id, (i % 1000)::decimal(18, 2) as amount, 0 as batch "
                f"from range({sys.argv[1]}) r(i)")
    connection.execute("create table marts.customers as select i as id, 0 as batch from range(1000) r(i)")
target().publish("bench-0", lambda _: None)
"""
PUBLISHER = """
import json, sys, time
from include.warehouse.targets import target
end, batch, seconds = time.monotonic() + float(sys.argv[1]), 0, []
while time.monotonic() < end:
    batch += 1
    with target().open_working() as connection:
        connection.begin()
        connection.execute("insert into marts.orders select i, 1, ? from range(1000) r(i)", [batch])
        connection.execute("insert into marts.customers select i, ? from range(10) r(i)", [batch])
        connection.commit()
    started = time.perf_counter()
    target().publish(f"bench-{batch}", lambda _: None)
    seconds.append(time.perf_counter() - started)
print(json.dumps(seconds))
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=readers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=5_000_000)
    options = parser.parse_args(arguments)
    result = Result("readers", vars(options))
    rows = []
    with scratch("readers") as root:
        env = {**project_env(root), "WAREHOUSE_KEEP_RELEASES": "2"}
        run([sys.executable, "-c", PREPARE, options.rows], env)
        for publishing in (False, True):
            name = "during publishes" if publishing else "no publishes"
            print(f"{options.readers} readers for {options.seconds:g} s, {name}", flush=True)
            readers = [child(READER, options.seconds, env) for _ in range(options.readers)]
            publisher = child(PUBLISHER, options.seconds, env) if publishing else None
            answers = [answer(reader) for reader in readers]
            published = answer(publisher) if publisher else []
            latencies = sorted(1000 * latency for one in answers for latency in one["latencies"])
            cuts = statistics.quantiles(latencies, n=100)
            errors = [error for one in answers for error in one["errors"]]
            seen = max(one["seen"] for one in answers)
            speed = len(latencies) / options.seconds
            rows.append([name, len(published), speed, cuts[49], cuts[98], latencies[-1], seen, len(errors)])
            result.notes += errors[:5]
            result.samples[name] = {"publish_seconds": published, "latency_ms_cuts": cuts}
            result.check(f"reads that failed or were inconsistent, {name}", len(errors), 0)
    result.check("releases seen by one reader", rows[-1][-2], 2, at_least=True)  # otherwise the test proves nothing
    columns = ("meanwhile", "publishes", "queries/s", "p50 ms", "p99 ms", "worst ms", "releases seen", "errors")
    result.table(f"{options.readers} readers, reopening the file for each query", columns, rows)
    result.chart("readers", "Queries per second", "1/s", [(row[0], [row[2]]) for row in rows])
    result.save()


def child(program: str, seconds: float, env: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, str(seconds)],
        env=env, cwd=PROJECT, stdout=subprocess.PIPE, text=True, preexec_fn=interrupt_with_parent,
    )  # fmt: skip


def answer(process: "subprocess.Popen[str]") -> "dict[str, list[float]] | list[float]":
    output = process.communicate(timeout=600)[0]
    if process.returncode:
        raise RuntimeError(f"a reader or the publisher ended with {process.returncode}")
    return json.loads(output)
