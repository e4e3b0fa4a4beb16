"""What a run of many models costs: CPU seconds by process, against another checkout, Cosmos WATCHER, or dbt by hand."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.airflow import PROCESSES, Site, Timed
from benchmarks.common import Result, csv_files, interleave, median, project_env, run, scratch
from benchmarks.models import SHAPES, copy_project

OURS, OTHER, WATCHER, HAND = "this project", "the other checkout", "Cosmos WATCHER", "load and dbt build by hand"
LIMITS = {OTHER: 0.35, WATCHER: 0.25, HAND: 2.0}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=cost", description=__doc__)
    parser.add_argument("--models", type=int, default=100, help="number of generated models")
    parser.add_argument("--tests", type=int, default=1, help="tests of each, at most 4")
    parser.add_argument("--shape", default="layered", choices=SHAPES)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another checkout, with its .venv")
    parser.add_argument("--watcher", action="store_true", help="run Cosmos WATCHER, too")
    options = parser.parse_args(arguments)
    result = Result("cost", {**vars(options), "against": bool(options.against)})
    shape = (options.models, options.shape, options.tests)
    with ExitStack() as stack:

        def site(name: str, **options: Any) -> Callable[[], Timed]:
            return stack.enter_context(Site(name, **options).running()).run_once

        project = copy_project(stack.enter_context(scratch("cost")), *shape)
        variants: dict[str, Callable[[], Timed]] = {OURS: site("ours", project=project)}
        if options.against:
            other = options.against.resolve()
            there = {"python": str(other / ".venv" / "bin" / "python")}
            copy = copy_project(stack.enter_context(scratch("cost-other")), *shape, source=other, **there)
            variants[OTHER] = site("other", project=copy, **there)
        if options.watcher:
            variants[WATCHER] = site("watcher", stock_mode="watcher", project=project)
        root = stack.enter_context(scratch("cost-hand"))
        variants[HAND] = lambda: by_hand(root, project)
        found = interleave(variants, options.repetitions, warm_up=False)
    kinds = [*PROCESSES, "others"]
    rows = []
    for name, timed in found.items():
        tasks = len(timed[0].dbt_tasks()) or len(found[OURS][0].dbt_tasks())
        cpu = [one.cpu_seconds for one in timed]
        each = [[one.cpu.get(kind, 0.0) / tasks for one in timed] for kind in kinds]
        rows.append([name, [one.seconds for one in timed], cpu, [used / tasks for used in cpu], *each])
    title = f"{options.models} generated models ({options.shape}) with {options.tests} tests each"
    columns = ("by", "run, s", "CPU s", "CPU s per dbt task", *kinds)
    result.table(f"{title}: {len(found[OURS][0].dbt_tasks())} dbt tasks", columns, rows)
    ours = median([one.seconds for one in found[OURS]]), median([one.cpu_seconds for one in found[OURS]])
    for name, limit in LIMITS.items():
        if name in found:
            result.check(f"run ÷ {name}", ours[0] / median([one.seconds for one in found[name]]), limit)
            result.check(f"CPU seconds ÷ {name}", ours[1] / median([one.cpu_seconds for one in found[name]]), limit)
    result.samples = {name: [{"seconds": one.seconds, **one.cpu} for one in timed] for name, timed in found.items()}
    result.save()


def by_hand(root: Path, project: Path) -> Timed:
    """Load and build with two commands."""
    env = {**project_env(root, csv_files(0)), "PYTHONPATH": str(project)}
    dbt, started = project / "include" / "dbt_project", time.time()
    load = run([sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop"], env, project)
    build = run(["dbt", "build", "--profiles-dir", dbt], env, dbt)
    return Timed(load.seconds + build.seconds, started, [], {"tasks": load.cpu_seconds + build.cpu_seconds})
