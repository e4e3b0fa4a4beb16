"""Transform: each mart built by dbt, and by the same compiled SQL in plain DuckDB, on the same tables."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import DBT_PROJECT, Result, csv_files, interleave, median, numbers, project_env, run, scratch
from include.settings import warehouse_name

MARTS = ("customers", "orders")
LOAD = "from include.dlt_pipelines.load import find_source, load; load(find_source('jaffle_shop'), 'bench')"
# One process and connection per model, like the tasks; only the statement is timed.
PLAIN = """
import duckdb, json, pathlib, sys, time
sql = pathlib.Path(sys.argv[2]).read_text()
with duckdb.connect(sys.argv[1]) as connection:
    connection.execute("set threads = 4; create schema if not exists plain")
    started = time.perf_counter()
    connection.execute(f"create or replace table plain.{sys.argv[3]} as {sql}")
    print(json.dumps(time.perf_counter() - started))
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=transform", description=__doc__)
    parser.add_argument("--orders", type=numbers, default=[5, 20], help="million orders")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args(arguments)
    result = Result("transform", vars(options))
    rows, bars = [], []
    for millions in options.orders:
        with scratch("transform") as root:
            env = project_env(root, csv_files(int(millions * 1e6)))
            print(f"{millions:g} million orders: loading", flush=True)
            run([sys.executable, "-c", LOAD], env)
            dbt(root, env, "run", "--select", "staging")
            dbt(root, env, "compile", "--select", "marts")
            compiled = root / "target" / "compiled" / "analytics" / "models" / "marts" / "core"
            sql = {mart: root / f"{mart}.sql" for mart in MARTS}
            for mart in MARTS:  # dbt run overwrites them
                sql[mart].write_text((compiled / f"{mart}.sql").read_text())
            found = interleave(
                {
                    "dbt, node time": each(lambda mart, root=root, env=env: node_seconds(root, env, mart)),
                    "DuckDB, same SQL": each(
                        lambda mart, root=root, env=env, sql=sql: plain(root, env, mart, sql[mart])
                    ),
                },
                options.repetitions,
            )
        for name, samples in found.items():
            totals = [sum(sample.values()) for sample in samples]
            parts = [[sample[mart] for sample in samples] for mart in MARTS]
            rows.append([f"{millions:g} M", name, totals, *parts])
            bars.append((f"{millions:g} M, {name}", totals))
        ratio = median(rows[-2][2]) / median(rows[-1][2])
        if millions >= 20:
            result.check(f"dbt's node time ÷ plain DuckDB, {millions:g} M orders", ratio, 1.2)
        result.notes.append(f"{millions:g} M orders: dbt's node time is {ratio:.2f} × the same SQL in plain DuckDB.")
    result.table("Seconds for the marts", ("orders", "through", "all marts", *MARTS), rows)
    result.chart("transform", "Seconds for the marts", "s", bars)
    result.samples = {f"{row[0]} {row[1]}": row[2] for row in rows}
    result.save()


def each(measure: Callable[[str], float]) -> Callable[[], dict[str, float]]:
    return lambda: {mart: measure(mart) for mart in MARTS}


def dbt(root: Path, env: dict[str, str], *words: str) -> None:
    run(["dbt", *words, "--profiles-dir", DBT_PROJECT], env, cwd=DBT_PROJECT)


def node_seconds(root: Path, env: dict[str, str], mart: str) -> float:
    """Build one mart as its task does; return the node's execution time as dbt reports it."""
    dbt(root, env, "run", "--select", mart)
    [node] = json.loads((root / "target" / "run_results.json").read_text())["results"]
    return float(node["execution_time"])


def plain(root: Path, env: dict[str, str], mart: str, sql: Path) -> float:
    database = root / "warehouse" / f"{warehouse_name()}.duckdb"
    return float(run([sys.executable, "-c", PLAIN, database, sql, mart], env).output)
