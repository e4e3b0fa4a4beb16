"""Spark: all models and tests on a distributed engine, Sail with two workers, against the file and a lake."""

import argparse
import sys
from pathlib import Path

from benchmarks.common import DBT_PROJECT, Result, csv_files, interleave, median, numbers, project_env, run, scratch
from benchmarks.sizes import ORDERS
from benchmarks.transform import LOAD
from testing import sail, targets

BUILD = ("build", "--profiles-dir", DBT_PROJECT)
Spent = tuple[float, float]
DUCKDB, LAKE, SAIL = "file", "lake in a folder", f"Sail, {sail.WORKERS} workers"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=spark", description=__doc__)
    parser.add_argument("--rows", type=numbers, default=[20], help="million rows in the three files")
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args(arguments)
    result = Result("spark", vars(options))
    for millions in options.rows:
        files = csv_files(round(millions * 1e6 * ORDERS))
        with scratch("spark") as root, targets.started("ducklake") as lake, sail.cluster(root) as cluster:
            file = project_env(root / "file", files)
            on_lake = project_env(root / "lake", files)
            on_lake |= lake.new(root) | {"WAREHOUSE_DIR": str(root / "lake" / "warehouse")}
            project = sail.Project(cluster, root)
            for env in (file, on_lake):
                run([sys.executable, "-c", LOAD], env)
            project.load(files)
            variants = {
                DUCKDB: lambda file=file: build(file),
                LAKE: lambda on_lake=on_lake: build(on_lake),
                SAIL: lambda project=project: distributed(project),
            }
            found: dict[str, list[Spent]] = interleave(variants, options.repetitions)
            check_sums(file, project)
        cpu = {name: [one[1] for one in spent] for name, spent in found.items()}
        rows = [
            [name, [one[0] for one in spent], cpu[name], median(cpu[name]) / median(cpu[DUCKDB])]
            for name, spent in found.items()
        ]
        columns = ("on", "seconds", "CPU s", "CPU ÷ the file")
        result.table(f"All models and tests with {millions:g} million rows", columns, rows)
        result.samples[f"{millions:g} M"] = found
    result.save()


def build(env: dict[str, str]) -> Spent:
    """Return the seconds and the CPU seconds of all models and tests in DuckDB."""
    done = run(["dbt", *BUILD], env, cwd=DBT_PROJECT)
    return done.seconds, done.cpu_seconds


def distributed(project: sail.Project) -> Spent:
    """Return the same on the cluster, of dbt, the driver and the workers."""
    before = of_cluster(project)
    command, env = project.dbt("build")
    done = run(command, env, cwd=DBT_PROJECT)
    return done.seconds, done.cpu_seconds + of_cluster(project) - before


def of_cluster(project: sail.Project) -> float:
    """Return the CPU seconds that the workers and the driver have used."""
    workers, driver = project.cluster.spent()
    return sum(workers) + driver


def check_sums(env: dict[str, str], project: sail.Project) -> None:
    """Both must have the same orders, to the cent."""
    query = "select count(*), sum(amount), sum(credit_card_amount) from marts.orders"
    path = Path(env["WAREHOUSE_DIR"]) / f"{env['WAREHOUSE_NAME']}.duckdb"
    code = (
        "import duckdb, json, sys\n"
        "row = duckdb.connect(sys.argv[1], read_only=True).sql(sys.argv[2]).fetchone()\n"
        "print(json.dumps([str(one) for one in row]))"
    )
    [theirs] = project.query(query)[0]
    ours = run([sys.executable, "-c", code, path, query], env).output
    assert theirs == ours, (theirs, ours)
