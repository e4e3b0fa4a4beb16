"""Sizes: runs on each target with millions of rows, and publishing a growing lake."""

import argparse
import sys
from functools import partial

from benchmarks.common import Result, interleave, median, numbers, project_env, run, scratch
from benchmarks.publish import MAKE, PUBLISH
from benchmarks.targets import Variant, runs
from testing import targets

ORDERS = 99 / (99 + 113 + 10)  # of all rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=sizes", description=__doc__)
    parser.add_argument("--rows", type=numbers, default=[5, 20], help="million rows in the three files")
    parser.add_argument("--gigabytes", type=numbers, default=[0.1, 1], help="lakes to publish")
    parser.add_argument("--repetitions", type=int, default=1, help="runs; three times as many publishes")
    options = parser.parse_args(arguments)
    result = Result("sizes", vars(options))
    with targets.started("ducklake") as lake, targets.started("postgres") as postgres:
        for millions in options.rows:
            variants = [Variant(), Variant(lake, 1), Variant(lake, 2), Variant(postgres, 2)]
            title = f"The pipeline with {millions:g} million rows"
            runs(result, title, variants, options.repetitions, orders=round(millions * 1e6 * ORDERS))
        publishes(result, lake, options.gigabytes, 3 * options.repetitions)
    result.save()


def publish(env: dict[str, str]) -> float:
    return float(run([sys.executable, "-c", PUBLISH], env).output)


def publishes(result: Result, lake: targets.Target, gigabytes: list[float], repetitions: int) -> None:
    seconds = {}
    for size in gigabytes:
        with scratch("sizes") as root:
            env = {**project_env(root), **lake.new(root), "WAREHOUSE_DIR": str(root / "warehouse")}
            run([sys.executable, "-c", MAKE, size], env)
            name = f"publish {size:g} GB"
            seconds[size] = interleave({name: partial(publish, env)}, repetitions)[name]
            stored = sum(path.stat().st_size for path in root.rglob("*.parquet"))
            print(f"{stored / 1e9:.2f} GB of Parquet", flush=True)
    rows = [[f"{size:g} GB", found] for size, found in seconds.items()]
    result.table("Publishing a lake", ("data", "seconds"), rows)
    if len(gigabytes) > 1:
        small, large = (median(seconds[size]) for size in (min(gigabytes), max(gigabytes)))
        what = f"publish of a lake of {max(gigabytes):g} GB ÷ of {min(gigabytes):g} GB"
        result.check(what, large / small, 1.2)
