"""Load: this project, DuckDB's own `create table as from read_csv`, and dlt's stock CSV reader on the same files."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    PEERS,
    ChildError,
    Outcome,
    Result,
    csv_files,
    interleave,
    median,
    numbers,
    project_env,
    run,
    scratch,
)
from include.dlt_pipelines.jaffle_shop_pipeline import SOURCE

OURS, DUCKDB, STOCK = "this project", "DuckDB", "dlt read_csv"
# Each child prints its seconds without imports, which Airflow's warm task processes have already done.
# The stock reader follows dlt's documentation of the filesystem source.
PROGRAMS = {
    OURS: """
from include.dlt_pipelines.load import find_source, load
started = time.perf_counter()
load(find_source("jaffle_shop"), "bench")
""",
    DUCKDB: """
import duckdb
started = time.perf_counter()
with duckdb.connect(sys.argv[1] + "/plain.duckdb") as connection:
    for name in names:
        connection.execute(f"create or replace table {name} as from read_csv('{sys.argv[2]}/{name}.csv')")
""",
    STOCK: """
import dlt, pathlib
from dlt.sources.filesystem import filesystem, read_csv
started = time.perf_counter()
destination = dlt.destinations.duckdb(sys.argv[1] + "/stock.duckdb")
pipeline = dlt.pipeline("stock", destination=destination, dataset_name="raw", pipelines_dir=sys.argv[1] + "/dlt")
url = pathlib.Path(sys.argv[2]).as_uri()
pipeline.run(
    [(filesystem(bucket_url=url, file_glob=f"{name}.csv") | read_csv()).with_name(name) for name in names],
    write_disposition="replace",
)
""",
}
START = "import json, sys, time\nnames = sys.argv[3:]\n"
END = "\nprint(json.dumps(time.perf_counter() - started))\n"


def measure(reader: str, root: Path, data: Path) -> Outcome:
    program = START + PROGRAMS[reader] + END
    env, python = project_env(root, data), sys.executable
    if reader == STOCK:
        python = str(PEERS / "python")  # it needs pandas
        env["DLT_PROJECT_DIR"] = str(root)  # dlt's defaults, not this project's configuration
    for old in root.glob("plain.duckdb*"):
        old.unlink()
    return run([python, "-c", program, root, data, *(table.name for table in SOURCE.tables)], env, timeout=7200)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=load", description=__doc__)
    parser.add_argument("--rows", type=numbers, default=[0.1, 1, 5, 20, 50], help="million rows over the three files")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--stock-rows", type=float, default=5, help="the largest size for dlt's stock reader, run once")
    options = parser.parse_args(arguments)
    result = Result("load", vars(options))
    found: dict[float, dict[str, list[Any]]] = {}
    rows = []
    for millions in options.rows:
        # For n orders there are n / 10 customers and n * 113 / 99 payments.
        data = csv_files(int(millions * 1e6 / (1 + 0.1 + 113 / 99)))
        size = sum((data / f"{table.name}.csv").stat().st_size for table in SOURCE.tables) / 1e6
        print(f"{millions:g} million rows, {size:.0f} MB", flush=True)
        with scratch("load") as root:
            variants = {reader: partial(measure, reader, root, data) for reader in (OURS, DUCKDB)}
            found[millions] = interleave(variants, options.repetitions)
            if millions <= options.stock_rows:
                try:
                    found[millions] |= interleave({STOCK: partial(measure, STOCK, root, data)}, 1, warm_up=False)
                except ChildError as error:
                    result.notes.append(f"dlt's stock reader at {millions:g} million rows: {error}")
        for reader, outcomes in found[millions].items():
            seconds = [outcome.output for outcome in outcomes]
            ratio = median(seconds) / median([outcome.output for outcome in found[millions][DUCKDB]])
            peak = [outcome.peak_bytes / 1e6 for outcome in outcomes]
            whole = [outcome.seconds for outcome in outcomes]
            speed = millions * 1e6 / median(seconds)
            rows.append([f"{millions:g} M, {size:.0f} MB", reader, seconds, speed, ratio, whole, peak])

    def seconds(millions: float, reader: str) -> list[float]:
        return [outcome.output for outcome in found[millions].get(reader, [])]

    columns = ("rows", "reader", "seconds", "rows/s", "× DuckDB", "with start and imports, s", "peak MB")
    result.table("Load of the three CSV files", columns, rows)
    peaks = {millions: [outcome.peak_bytes / 1e6 for outcome in found[millions][OURS]] for millions in found}
    for millions in found:
        if millions >= 5:
            factor = median(seconds(millions, OURS)) / median(seconds(millions, DUCKDB))
            result.check(f"load of {millions:g} M rows ÷ DuckDB's own", factor, 4)
            if stock := seconds(millions, STOCK):
                factor = median(stock) / median(seconds(millions, OURS))
                result.check(f"dlt's stock reader ÷ load of {millions:g} M rows", factor, 100, at_least=True)
        result.check(f"peak MB of the load of {millions:g} M rows", max(peaks[millions]), 1000)
    large = [millions for millions in found if millions >= 5]
    if len(large) > 1:
        growth = median(peaks[large[-1]]) / median(peaks[large[0]])
        result.check(f"peak at {large[-1]:g} M rows ÷ peak at {large[0]:g} M", growth, 1.2)
    compared = max((millions for millions in found if STOCK in found[millions]), default=options.rows[0])
    bars = [(reader, seconds(compared, reader)) for reader in found[compared]]
    result.chart("load", f"Load of {compared:g} million rows", "s", bars)
    result.chart("load-memory", "Peak memory of the load", "MB", [(f"{m:g} M rows", peaks[m]) for m in found])
    result.samples = {str(m): {r: seconds(m, r) for r in found[m]} for m in found}
    result.save()
