"""One orchestrated run, trigger to success: this project, stock Cosmos, Dagster, Prefect, SQLMesh and dbt by hand."""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.airflow import Site, Timed
from benchmarks.common import DBT_PROJECT, PEERS, Result, cell, csv_files, interleave, median, project_env, run, scratch
from benchmarks.dagster import Dagster
from benchmarks.prefect import Prefect
from benchmarks.sqlmesh import LOAD, SqlMesh

OURS, LOCAL, WATCHER, DAGSTER, PREFECT = "this project", "Cosmos LOCAL", "Cosmos WATCHER", "Dagster", "Prefect"
SQLMESH = "SQLMesh by hand"
FOUR, TWO = "four commands by hand", "two commands by hand"
ALL = (OURS, LOCAL, WATCHER, DAGSTER, PREFECT, SQLMESH, FOUR, TWO)
BY_HAND = {
    FOUR: [["run", "--select", "staging"], ["run", "--select", "marts"], ["test"]],
    TWO: [["build"]],
}
LIMITS = {FOUR: 0.45, TWO: 0.9, LOCAL: 0.18, WATCHER: 0.3, DAGSTER: 0.4, PREFECT: 0.4, SQLMESH: 1.0}


def start_peer(name: str, stack: ExitStack) -> Callable[[], Any]:
    """Start what runs the same models in another way, until the stack is closed; return its run."""
    if name in (LOCAL, WATCHER):
        mode = name.split()[1].lower()
        return alone(stack.enter_context(Site(mode, stock_mode=mode).running()))
    if name == SQLMESH:
        return SqlMesh(stack.enter_context(scratch("sqlmesh"))).run_once
    if name in BY_HAND:
        root = stack.enter_context(scratch("hand"))
        return lambda: by_hand(root, BY_HAND[name])
    server = Dagster() if name == DAGSTER else Prefect()
    return stack.enter_context(server.running()).run_once


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=run", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help=f"some of: {', '.join(ALL)}")
    options = parser.parse_args(arguments)
    chosen = options.only or list(ALL)
    if unknown := set(chosen) - set(ALL):
        parser.error(f"unknown: {', '.join(unknown)}")
    result = Result("run", vars(options))
    with ExitStack() as stack:
        variants: dict[str, Callable[[], Any]] = {}
        ours: Site | None = None
        for name in chosen:
            print(f"Starting {name}", flush=True)
            if name == OURS:
                ours = stack.enter_context(Site("ours").running())
                variants[name] = ours.run_once
            else:
                variants[name] = start_peer(name, stack)
        found = interleave(variants, options.repetitions)
        timed: list[Timed] = found.get(OURS, [])
        splits = [ours.split(one) for one in timed] if ours else []
        overhead = [ours.overhead(task) for one in timed for task in one.dbt_tasks()] if ours else []
        kept = [ours.kept_workers(one) for one in timed] if ours else []
    if timed:
        found[OURS] = [one.seconds for one in timed]
    base = median(found[OURS]) if OURS in found else None
    rows = [[name, seconds, base / median(seconds) if base else "–"] for name, seconds in found.items()]
    result.table("Trigger to success", ("by", "seconds", "this project ÷ it"), rows)
    result.chart("run", "One run, trigger to success", "s", list(found.items()))
    result.samples = {"seconds": found, "splits": splits}
    if splits:
        whole = sum(median([split[part] for split in splits]) for part in splits[0])
        parts = {part: [split[part] for split in splits] for part in splits[0]}
        rows = [[part, seconds, f"{100 * median(seconds) / whole:.0f} %"] for part, seconds in parts.items()]
        result.table(
            "Where this project's run spends its time, all tasks together", ("part", "seconds", "of all"), rows
        )
        result.chart("run-split", "Where this project's run spends its time", "s", list(parts.items()))
        result.check("s of overhead per dbt task", median(overhead), 0.25)
        result.notes.append(
            f"CPU seconds of all of this project's processes in a run: {cell([one.cpu_seconds for one in timed])}. "
            f"Tasks that kept their worker for over half a second after their end: {sum(kept)} of "
            f"{sum(len(one.tasks) for one in timed)}."
        )
        result.samples["overhead"] = overhead
    for name, limit in LIMITS.items():
        if base and name in found:
            result.check(f"this project's run ÷ {name}", base / median(found[name]), limit)
    if DAGSTER in found or PREFECT in found:
        versions = run([PEERS / "python", "-c", VERSIONS], project_env(Path())).output
        result.versions = versions
    result.save()


VERSIONS = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({n: m.version(n) for n in ('dagster', 'dagster-dbt', 'dagster-dlt', 'prefect', 'prefect-dbt')}))"
)


def alone(site: Site) -> Callable[[], float]:
    return lambda: site.run_once().seconds


def by_hand(root: Path, commands: list[list[str]]) -> float:
    env = project_env(root, csv_files(0))
    started = time.perf_counter()
    run(LOAD, env)
    for words in commands:
        run(["dbt", *words, "--profiles-dir", DBT_PROJECT], env, DBT_PROJECT)
    return time.perf_counter() - started
