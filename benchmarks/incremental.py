"""Incremental: a delivery of 1 % new and corrected rows to a drop folder, against the full reload of the same files."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.common import DBT_PROJECT, Result, median, numbers, project_env, run, scratch
from include.settings import warehouse_name
from testing.project import STG_SALES, block

FILES = 10
LOAD = """
import json, sys, time
from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.load import load
columns = {"id": "BIGINT", "store_id": "BIGINT", "sold_at": "TIMESTAMP", "price": "DECIMAL(18,2)"}
sales = TableContract("raw_sales", columns, ("id",), files="raw_sales*.csv", write_disposition="merge")
started = time.perf_counter()
load(FileSource("stores", sys.argv[1], (sales,)), "bench", full_refresh=bool(sys.argv[2:]))
print(json.dumps(time.perf_counter() - started))
"""
PUBLISH = """
import sys
from pathlib import Path
from include.runs.publish import publish
publish("bench", Path(sys.argv[1], "manifest.json"))
"""
SOURCES = "sources: [{name: stores, schema: stores_raw, tables: [{name: raw_sales}]}]\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=incremental", description=__doc__)
    parser.add_argument("--rows", type=numbers, default=[2, 20], help="million rows in the folder at first")
    parser.add_argument("--repetitions", type=int, default=3, help="deliveries")
    options = parser.parse_args(arguments)
    result = Result("incremental", vars(options))
    rows, bars = [], []
    for millions in options.rows:
        with scratch("incremental") as root:
            found = measure(root, int(millions * 1e6), options.repetitions)
        for way, samples in found.items():
            load, transform = ([sample[part] for sample in samples] for part in ("load", "transform"))
            rows.append(
                [f"{millions:g} M", way, load, transform, [a + b for a, b in zip(load, transform, strict=True)]]
            )
            bars.append((f"{millions:g} M rows, {way}", rows[-1][-1]))
            result.samples[f"{millions:g} M {way}"] = samples
        for part, column, limit in (("load", 2, 0.2), ("transform", 3, 0.5)) if millions >= 5 else ():
            factor = median(rows[-2][column]) / median(rows[-1][column])
            result.check(f"{part} of 1 % of {millions:g} M rows ÷ full reload", factor, limit)
    result.table("Seconds to bring a delivery of 1 % to the mart", ("rows", "way", "load", "transform", "both"), rows)
    result.chart("incremental", "Seconds to bring a delivery of 1 % to the mart", "s", bars)
    result.save()


def measure(root: Path, total: int, repetitions: int) -> dict[str, list[dict[str, float]]]:
    data, project = root / "csv", root / "dbt"
    data.mkdir()
    for number in range(FILES):
        size = total // FILES
        deliver(data, number, f"select range + {number * size} as id from range({size})")
    for name in ("dbt_project.yml", "profiles.yml", "macros", "dbt_packages"):
        copy: Any = shutil.copytree if (DBT_PROJECT / name).is_dir() else shutil.copy
        project.mkdir(exist_ok=True)
        copy(DBT_PROJECT / name, project / name)
    for name, text in {
        "staging/stg_sales.sql": STG_SALES,
        "staging/stg_sales.yml": SOURCES,
        "marts/sales.sql": "{{ config(contract={'enforced': false}, group=none) }}\n"
        + block("An incremental model", "sql"),
        "groups.yml": "groups: [{name: data_platform, owner: {name: bench, email: bench@example.com}}]\n",
    }.items():
        (project / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "models" / name).write_text(text)
    env = project_env(root)
    ways: dict[str, list[str]] = {"1 % delivered": [], "full reload": ["--full-refresh"]}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    build(env, data, project, ["--full-refresh"])
    for repetition in range(repetitions):
        # Half of it corrects rows of all files, half is new.
        new = total // 200
        first = total + repetition * new
        deliver(
            data,
            FILES + repetition,
            f"select range * {total // new} as id from range({new}) union all select range + {first} from range({new})",
        )
        sums = []
        for way, flags in ways.items():
            found[way].append(build(env, data, project, flags))
            print(f"  {repetition + 1}: {way} {found[way][-1]}", flush=True)
            with duckdb.connect(str(root / "warehouse" / f"{warehouse_name()}.duckdb"), read_only=True) as connection:
                sums.append(
                    connection.execute(
                        "select count(*), sum(sale_id), sum(price), max(sold_at) from marts.sales"
                    ).fetchone()
                )
        assert sums[0] == sums[1], sums
    return found


def deliver(data: Path, number: int, ids: str) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            f"copy (select id, id % 50 as store_id, timestamp '2026-01-01' + to_seconds(id) as sold_at,"
            f" (id % 1000 + {number})::decimal(18, 2) as price from ({ids})) to '{data}/raw_sales_{number:03}.csv'"
        )


def build(env: dict[str, str], data: Path, project: Path, flags: list[str]) -> dict[str, float]:
    """Load, transform and publish once; return the seconds of the first two, without start and imports."""
    load = float(run([sys.executable, "-c", LOAD, data, *flags], env).output)
    run(["dbt", "run", *flags, "--profiles-dir", project], env, cwd=project)
    results = json.loads((Path(env["DBT_TARGET_PATH"]) / "run_results.json").read_text())["results"]
    run([sys.executable, "-c", PUBLISH, env["DBT_TARGET_PATH"]], env)  # a load reverts what was not published
    return {"load": round(load, 3), "transform": round(sum(float(one["execution_time"]) for one in results), 3)}
