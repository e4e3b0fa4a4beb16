"""Many models: the project's DAG over a dbt project with generated models, each with a test."""

import argparse
import sys
from pathlib import Path

from benchmarks.airflow import Site
from benchmarks.common import PROJECT, Result, interleave, median, project_env, run, scratch
from testing.project import Copy

SHAPES = {
    "chain": lambda number: [number - 1],
    "fan-out": lambda number: [0],
    "layered": lambda number: [above for above in (number - 10, number - 9) if above > 0] or [0],
}
# Of layers of views, DuckDB reads the first as often as there are ways up to it: twice as often for each layer.
_TABLE_LAYERS = 3
# The last has two parents, so a task of its own.
_TESTS = (
    "not_null",
    "unique",
    "{accepted_values: {arguments: {values: [-1], quote: false}, config: {where: order_id < 0}}}",
    "{relationships: {arguments: {to: ref('stg_orders'), field: order_id}}}",
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=models", description=__doc__)
    parser.add_argument("--models", default="10,50,100,200", help="numbers of generated models")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repetitions", type=int, default=1, help="runs of each size; every task is a sample")
    options = parser.parse_args(arguments)
    result = Result("models", vars(options))
    rows, bars = [], []
    for count in map(int, options.models.split(",")):
        for shape in options.shapes.split(","):
            with scratch("models") as root:
                project = copy_project(root, count, shape)
                site = Site(f"models-{shape}-{count}", project=project)
                with site.running():
                    print(f"{count} models, {shape}", flush=True)
                    timed = interleave({shape: site.run_once}, options.repetitions, warm_up=False)[shape]
                    tasks = [task for one in timed for task in one.dbt_tasks()]
                    overhead = [site.overhead(task) for task in tasks]
                    parse, memory = site.parse_seconds(), site.dag_processor_bytes() / 1e6
            rows.append(
                [
                    f"{count} {shape}",
                    len(tasks) // len(timed),
                    [t.seconds for t in timed],
                    [t.cpu_seconds for t in timed],
                    overhead,
                    parse,
                    memory,
                ]
            )
            bars.append((f"{count} models, {shape}", overhead))
            result.samples[f"{count} {shape}"] = overhead
            if count in (10, 100):
                limit = 0.35 if count == 100 else 0.25
                result.check(f"s of overhead per dbt task, {count} models, {shape}", median(overhead), limit)
            if count == 100:
                result.check(f"s of DAG parse, {count} models, {shape}", parse, 0.5)
    columns = (
        "generated models",
        "dbt tasks",
        "run, s",
        "CPU s",
        "overhead per task, s",
        "DAG parse, s",
        "dag-processor MB",
    )
    result.table("The pipeline with generated models added to its own five", columns, rows)
    result.chart("models", "Overhead per dbt task", "s", bars)
    result.save()


def copy_project(
    root: Path, count: int, shape: str, tests: int = 1, source: Path = PROJECT, python: str = sys.executable
) -> Path:
    """Copy the project, add generated models, if any, and return its folder.

    Args:
        root: gets a folder `project`.
        count: how many models.
        shape: one of `SHAPES`.
        tests: of each model, at most four.
        source: the project, or another checkout of it.
        python: the checkout's interpreter.
    """
    project = Copy(root / "project", source).root
    target = project / "include" / "dbt_project"
    if count:
        _generate(target / "models" / "generated", count, shape, tests)
    env = {**project_env(root), "PYTHONPATH": str(project)}
    if (project / "include" / "runs" / "manifest.py").exists():
        run([python, "-m", "include.runs.manifest"], env, project)
    else:  # an older checkout
        parse = [Path(python).with_name("dbt"), "--quiet", "parse", "--profile", "analytics", "--target", "duckdb"]
        run(parse, {**env, "DBT_TARGET_PATH": "target"}, target)
    return project


def _generate(models: Path, count: int, shape: str, tests: int) -> None:
    models.mkdir()
    for number in range(1, count + 1):
        above = [f"ref('generated_{parent}')" if parent else "ref('stg_orders')" for parent in SHAPES[shape](number)]
        sql = "\nunion\n".join(f"select order_id from {{{{ {parent} }}}}" for parent in above)
        if shape == "layered" and (number - 1) // 10 % _TABLE_LAYERS == _TABLE_LAYERS - 1:
            sql = "{{ config(materialized='table') }}\n" + sql
        (models / f"generated_{number}.sql").write_text(sql + "\n")
    chosen = ", ".join(_TESTS[:tests])
    described = "\n".join(
        f"  - name: generated_{number}\n    columns:\n      - {{name: order_id, data_tests: [{chosen}]}}"
        for number in range(1, count + 1)
    )
    (models / "generated.yml").write_text(f"models:\n{described}\n")
