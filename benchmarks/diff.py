"""Difference: two releases of a table compared to the row, against one full join in DuckDB with as much memory."""

import argparse
import sys
from functools import partial

from benchmarks.common import PROJECT, Result, interleave, median, project_env, run, scratch

MAKE = """
import sys
import duckdb
folder, rows = sys.argv[1], int(sys.argv[2])
for side, changed in (("before", 0), ("after", 1)):
    with duckdb.connect(f"{folder}/{side}.duckdb", config={"memory_limit": "2GB"}) as connection:
        # Rows of a mart are in no order, and in another one after each build.
        connection.execute(f'''
            create schema marts; create table marts.orders as
            select i as order_id, i % 1000 as customer_id, date '2018-01-01' + cast(i % 900 as int) as order_date,
                ['placed', 'shipped', 'completed', 'returned'][1 + i % 4] as status,
                cast(i * 7919 % 100000 / 100 + {changed} * (i % {sys.argv[3]} = 0)::int as decimal(38, 2)) as amount,
                cast(i % 13 as decimal(38, 2)) as coupon_amount, cast(i % 17 as decimal(38, 2)) as card_amount,
                cast(i % 19 as decimal(38, 2)) as gift_amount, cast(i % 23 as decimal(38, 2)) as transfer_amount
            from range({changed} * 10, {rows}) as r(i) order by hash(i + {changed})''')
"""
# What anyone would write first: the rows on one side only, and the values that differ in each column.
JOIN = """
columns = ["customer_id", "order_date", "status", "amount", "coupon_amount", "card_amount", "gift_amount",
           "transfer_amount"]
differ = ", ".join(f"count(*) filter (l.{one} is distinct from r.{one})" for one in columns)
connection.execute(f"select count(*) filter (l.order_id is null), count(*) filter (r.order_id is null), {differ}"
                   " from before.marts.orders as l full join after.marts.orders as r using (order_id)").fetchall()
"""
DIFF = """
from include.change.diff import Side, compare
keys = {"marts.orders": [("order_id",)]} if %r else {"marts.orders": [("customer_id",)]}  # which is none
found, = compare(connection, Side("before", keys), Side("after", keys))
assert found.removed >= 10 and bool(found.key) == bool(%r), found
"""
CHILD = """
import json, resource, sys
import duckdb
connection = duckdb.connect(":memory:", config={"memory_limit": "1GB", "temp_directory": sys.argv[1] + "/spilled"})
connection.execute("set enable_progress_bar = false")
for side in ("before", "after"):
    connection.execute(f"attach '{sys.argv[1]}/{side}.duckdb' as {side} (read_only)")
before = resource.getrusage(resource.RUSAGE_SELF)
exec(sys.argv[2])
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=diff", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args(arguments)
    result = Result("diff", vars(options))
    rows, bars = [], []
    for changed, every in (("one row in 1,000 differs", 1000), ("every row differs", 1)):
        with scratch("diff") as root:
            env = project_env(root)
            run([sys.executable, "-c", MAKE, root, options.rows, every], env)
            programs = {
                "one full join in DuckDB": JOIN,
                "this project, by key": DIFF % (True, True),
                "this project, without a key": DIFF % (False, False),
            }
            peaks: dict[str, int] = {}

            def measure(name: str, program: str) -> float:
                outcome = run([sys.executable, "-c", CHILD, root, program], env, cwd=PROJECT)  # noqa: B023
                peaks[name] = max(peaks.get(name, 0), outcome.peak_bytes)  # noqa: B023
                return float(outcome.output)

            calls = {name: partial(measure, name, program) for name, program in programs.items()}
            found = interleave(calls, options.repetitions, warm_up=False)
        join = median(found["one full join in DuckDB"])
        for name, seconds in found.items():
            rows.append([f"{name}, {changed}", median(seconds), median(seconds) / join, peaks[name] / 2**20])
            bars.append((f"{name}, {changed}", seconds))
        result.check(f"difference by key ÷ one full join, {changed}", median(found["this project, by key"]) / join, 1.2)
        result.samples[changed] = found
    columns = ("", "CPU s", "÷ one full join", "peak MiB")
    result.table(f"{options.rows:,} rows, 9 columns, DuckDB's memory limit 1 GB", columns, rows)
    result.chart("diff", "CPU of comparing two releases", "s", bars)
    result.save()
