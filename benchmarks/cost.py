"""What a run of many models costs: CPU seconds by process, against another checkout, Cosmos WATCHER, or dbt by hand."""

import argparse
import re
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles

from benchmarks.airflow import PROCESSES, Site
from benchmarks.common import Result, csv_files, interleave, median, project_env, run, scratch
from benchmarks.models import SHAPES, copy_project
from benchmarks.ui import TIMES, ask

OURS, OTHER, WATCHER, HAND = "this project", "the other checkout", "Cosmos WATCHER", "load and dbt build by hand"
CPU_LIMITS = {OTHER: 0.3, WATCHER: 0.25, HAND: 2.0}
SECONDS_LIMITS = {OTHER: 0.35, WATCHER: 0.25, HAND: 2.0}
PARSES = 3
# In the order in which the DAG's parse and publish do it; without the imports, which both have done already.
STEPS = """
import json, time
from include.runs import manifest
from include.runs.build_graph import BuildGraph
from include.warehouse import builds
from include.warehouse.targets import target
taken, started = {}, time.process_time()
def step(name, result):
    global started
    taken[name], started = time.process_time() - started, time.process_time()
    return result
parsed = step("files looked at", manifest.current())
step("tasks made", BuildGraph(json.loads(parsed.manifest.read_text())).tasks())
graph = BuildGraph(json.loads(parsed.manifest.read_text()))
step("demand", graph.nodes)
with target().open_working() as connection:
    started = time.process_time()
    step("check", builds.check_current(connection, graph.nodes))
    dropped = step("search for what to drop", builds.drop_unknown(connection, set(graph.relations.values())))
    assert not dropped, dropped
    # As if the generated models had been removed.
    kept = {one for one in graph.relations.values() if ".generated_" not in one}
    taken["dropped"] = len(builds.drop_unknown(connection, kept))
    step("all dropped", None)
print(json.dumps(taken))
"""


@dataclass
class Cost:
    """What a number of dbt tasks took: seconds, and CPU seconds by kind of process."""

    tasks: int
    seconds: float
    cpu: dict[str, float]

    @property
    def each(self) -> float:
        return sum(self.cpu.values()) / self.tasks


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=cost", description=__doc__)
    parser.add_argument("--models", type=int, default=100, help="number of generated models")
    parser.add_argument("--tests", type=int, default=1, help="tests of each, at most 4")
    parser.add_argument("--shape", default="layered", choices=SHAPES)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=0, help="end each run after so many dbt tasks; 0: run all")
    parser.add_argument("--against", type=Path, help="another checkout, with its .venv")
    parser.add_argument("--watcher", action="store_true", help="run Cosmos WATCHER, too")
    options = parser.parse_args(arguments)
    name = f"cost-{options.models}{'-watcher' if options.watcher else ''}"
    result = Result(name, {**vars(options), "against": bool(options.against)})
    shape = (options.models, options.shape, options.tests)
    with ExitStack() as stack:
        project = copy_project(stack.enter_context(scratch("cost")), *shape)
        sites = {OURS: Site("ours", project=project)}
        if options.against:
            other = options.against.resolve()
            python = str(other / ".venv" / "bin" / "python")
            copy = copy_project(stack.enter_context(scratch("cost-other")), *shape, source=other, python=python)
            sites[OTHER] = Site("other", project=copy, python=python)
        if options.watcher:
            sites[WATCHER] = Site("watcher", stock_mode="watcher", project=project)
        for site in sites.values():
            stack.enter_context(site.running())
        total = sites[OURS].count_dbt_tasks()
        variants = {name: partial(_run, site, options.tasks, total) for name, site in sites.items()}
        variants[HAND] = partial(_by_hand, stack.enter_context(scratch("cost-hand")), project, total)
        found = interleave(variants, options.repetitions, warm_up=False)
        if not options.tasks:
            _measure_published(sites[OURS], project, options.models, result)
    kinds = [*PROCESSES, "others"]
    rows = [
        [
            name,
            costs[0].tasks,
            [one.seconds for one in costs],
            [one.each for one in costs],
            *([one.cpu.get(kind, 0.0) / one.tasks for one in costs] for kind in kinds),
        ]
        for name, costs in found.items()
    ]
    title = f"CPU seconds for each of {total} dbt tasks, by process: {options.models} generated models"
    result.table(f"{title} ({options.shape}), {options.tests} tests each", ("by", "tasks", "s", "all", *kinds), rows)
    for what, limits in (("CPU seconds", CPU_LIMITS), ("seconds", SECONDS_LIMITS)):
        for name, limit in limits.items():
            if name in found:
                ours, theirs = (_each(found[one], what) for one in (OURS, name))
                result.check(f"{what} of a dbt task, {options.models} models ÷ {name}", ours / theirs, limit)
    result.samples = {name: [asdict(one) for one in costs] for name, costs in found.items()}
    result.save()


def _each(costs: list[Cost], what: str) -> float:
    return median([one.each if what == "CPU seconds" else one.seconds / one.tasks for one in costs])


def _run(site: Site, tasks: int, total: int) -> Cost:
    if tasks:
        return Cost(tasks, *site.sample(tasks))
    timed = site.run_once()
    print(f"  {timed.seconds:.0f} s, CPU s: {timed.cpu}", flush=True)
    return Cost(total, timed.seconds, timed.cpu)


def _measure_published(site: Site, project: Path, models: int, result: Result) -> None:
    """Measure the pages over what a run has published, the parse, and the steps of publish; then drop all models."""
    pages = ["/", "/tables", "/lineage", "/quality", "/releases", "/incident", "/dbt-docs/", "/api/overview"]
    if models:
        pages += [f"/tables/main/generated_{models}", f"/lineage?q=generated_{models}", f"/tables?q=generated_{models}"]
    airflow, rows = site.airflow, []
    for page in pages:
        first = ask(f"{airflow.url}/warehouse{page}", airflow.token)
        before = site.cpu_seconds()
        later = [ask(f"{airflow.url}/warehouse{page}", airflow.token) for _ in range(TIMES)]
        cpu = 1000 * (site.cpu_seconds()["api-server"] - before["api-server"]) / TIMES
        slow = quantiles(later, n=20)[-1]
        rows.append([re.sub(r"generated_\d+", "MODEL", page), first, median(later), slow, cpu])
        result.check(f"CPU ms of {rows[-1][0]}, {models} models", cpu, 500)
    columns = ("page", "first request", "median", "95th percentile", "CPU of the api-server")
    result.table(f"Milliseconds for the Warehouse pages over {models} generated models", columns, rows)
    parses = [site.parse_seconds() for _ in range(PARSES)]
    steps = run([sys.executable, "-c", STEPS], {**site.deployment.env, "WAREHOUSE_SHARED": "1"}, project).output
    result.table(
        f"The DAG's parse, and the steps of parse and publish, {models} generated models",
        (
            "DAG parse, s",
            "dag-processor MB",
            *(f"{name}, CPU s" for name in steps if name != "dropped"),
            "models dropped",
        ),
        [
            [
                parses,
                site.dag_processor_bytes() / 1e6,
                *(steps[name] for name in steps if name != "dropped"),
                steps["dropped"],
            ]
        ],
    )


def _by_hand(root: Path, project: Path, total: int) -> Cost:
    env = {**project_env(root, csv_files(0)), "PYTHONPATH": str(project)}
    dbt = project / "include" / "dbt_project"
    load = run([sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop"], env, project)
    build = run(["dbt", "build", "--profiles-dir", dbt], env, dbt)
    return Cost(total, load.seconds + build.seconds, {"tasks": load.cpu_seconds + build.cpu_seconds})
