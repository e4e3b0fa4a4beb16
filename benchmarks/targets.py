"""Targets: the pipeline on the file, on a lake and on Postgres with several writers, and publishing a growing lake."""

import argparse
import re
import sys
from functools import partial
from pathlib import Path

from benchmarks.airflow import Site
from benchmarks.common import Result, interleave, median, numbers, project_env, run, scratch
from benchmarks.models import copy_project
from benchmarks.publish import MAKE, PUBLISH
from tests import targets

FILE = "file"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=targets", description=__doc__)
    parser.add_argument("--models", default=20, type=int, help="generated models, layered by tens")
    parser.add_argument("--slots", default="1,2,4", help="writers, except on the file")
    parser.add_argument("--gigabytes", type=numbers, default=[0.1, 1], help="lakes to publish")
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args(arguments)
    result = Result("targets", vars(options))
    with targets.started("ducklake") as lake, targets.started("postgres") as postgres:
        runs(result, [lake, postgres], options.models, options.slots.split(","), options.repetitions)
        publishes(result, lake, options.gigabytes, options.repetitions)
    result.save()


def runs(result: Result, others: list[targets.Target], models: int, slots: list[str], repetitions: int) -> None:
    seconds: dict[str, list[float]] = {}
    rows = []
    variants = {FILE: (targets.Target(), "")}
    variants |= {f"{one.name}, {number} at a time": (one, number) for one in others for number in slots}
    for name, (target, number) in variants.items():
        with scratch("targets") as root:
            project = copy_project(root, models, "layered")
            site = Site(f"targets-{target.name}-{number}", project=project)
            if name != FILE:
                pools = project / "pools.json"
                pools.write_text(re.sub(r'"slots": \d+', f'"slots": {number}', pools.read_text()))
                site.deployment.env |= target.new(root) | {"WAREHOUSE_DIR": str(site.deployment.warehouse)}
            with site.running():
                print(f"{models} models on {name}", flush=True)
                timed = interleave({name: site.run_once}, repetitions)[name]
                overhead = [site.overhead(task) for one in timed for task in one.dbt_tasks()]
        seconds[name] = [one.seconds for one in timed]
        rows.append([name, seconds[name], median(seconds[name]) / median(seconds[FILE]), overhead])
    columns = ("target", "run, s", "÷ the file", "s in a dbt task outside its nodes")
    result.table(f"The pipeline with {models} generated models", columns, rows)
    result.samples |= seconds


def publish(env: dict[str, str]) -> float:
    return float(run([sys.executable, "-c", PUBLISH], env).output)


def publishes(result: Result, lake: targets.Target, gigabytes: list[float], repetitions: int) -> None:
    seconds = {}
    for size in gigabytes:
        with scratch("targets") as root:
            env = {**project_env(root), **lake.new(root), "WAREHOUSE_DIR": str(root / "warehouse")}
            run([sys.executable, "-c", MAKE, size], env)
            name = f"publish {size:g} GB"
            seconds[size] = interleave({name: partial(publish, env)}, repetitions)[name]
            stored = sum(path.stat().st_size for path in Path(root).rglob("*.parquet"))
            print(f"{stored / 1e9:.2f} GB of Parquet", flush=True)
    rows = [[f"{size:g} GB", found] for size, found in seconds.items()]
    result.table("Publishing a lake", ("data", "seconds"), rows)
    if len(gigabytes) > 1:
        small, large = (median(seconds[size]) for size in (min(gigabytes), max(gigabytes)))
        what = f"publish of a lake of {max(gigabytes):g} GB ÷ of {min(gigabytes):g} GB"
        result.check(what, large / small, 1.2)
