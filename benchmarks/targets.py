"""Targets: the pipeline on the file, on a lake and on Postgres, with several writers, workers and many models."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.airflow import Site, Timed
from benchmarks.common import Result, csv_files, interleave, median, numbers, scratch
from benchmarks.models import copy_project
from testing import celery_processes, targets

FILE = "file"


@dataclass(frozen=True)
class Variant:
    """Where a run is measured. With workers, Celery hands the tasks to that many, one at a time to each."""

    target: targets.Target = field(default_factory=targets.Target)
    slots: int = 0
    workers: int = 0

    @property
    def name(self) -> str:
        if self.workers:
            return f"{self.target.name}, {self.workers} {'worker' if self.workers == 1 else 'workers'}"
        return f"{self.target.name}, {self.slots} at a time" if self.slots else FILE


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=targets", description=__doc__)
    parser.add_argument("--models", type=integers, default=[0, 45], help="models to add to the project's own five")
    parser.add_argument("--slots", type=integers, default=[1, 2, 4], help="writers on a lake")
    parser.add_argument("--workers", type=integers, default=[1, 2], help="Celery workers on a lake")
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args(arguments)
    result = Result("targets", vars(options))
    with ExitStack() as stack:
        lake, stored, postgres = (
            stack.enter_context(targets.started(name)) for name in ("ducklake", "ducklake-s3", "postgres")
        )
        variants = [Variant(), *(Variant(lake, slots) for slots in options.slots), Variant(postgres, 2)]
        workers = [Variant(stored, number, number) for number in options.workers]
        for models in options.models:
            chosen = variants if models else [*variants, *workers]
            runs(result, f"The pipeline with {models + 5} models", chosen, options.repetitions, models=models)
    result.save()


def integers(text: str) -> list[int]:
    """Parse `1,2,4`."""
    return [int(number) for number in numbers(text)]


def runs(
    result: Result, title: str, variants: Sequence[Variant], repetitions: int, *, models: int = 0, orders: int = 0
) -> None:
    """Measure runs on each variant, the file first, and add a table."""
    seconds: dict[str, list[float]] = {}
    rows = []
    for variant in variants:
        print(f"{title}: {variant.name}", flush=True)
        with running(variant, models, orders) as site:
            timed: list[Timed] = interleave({variant.name: site.run_once}, repetitions)[variant.name]
            # Workers keep dbt's results in the object store.
            tasks = [] if variant.workers else [task for one in timed for task in one.dbt_tasks()]
            overhead = [site.overhead(task) for task in tasks]
        seconds[variant.name] = [one.seconds for one in timed]
        loads = [
            task["end"] - task["start"] for one in timed for task in one.tasks if task["task_id"].startswith("load.")
        ]
        rest = median(seconds[variant.name]) / median(seconds[FILE])
        rows.append([variant.name, seconds[variant.name], rest, loads, overhead])
    columns = ("target", "run, s", "÷ the file", "load, s", "s in a dbt task outside its nodes")
    result.table(title, columns, rows)
    result.samples[title] = seconds


@contextmanager
def running(variant: Variant, models: int, orders: int) -> Iterator[Site]:
    """Run an Airflow with the variant's target, writers and workers."""
    with ExitStack() as stack:
        root = stack.enter_context(scratch("targets"))
        project = copy_project(root, models, "layered")
        site = Site(f"targets-{variant.target.name}-{variant.slots}", project=project)
        env = site.deployment.env
        if variant.slots:
            pools = project / "pools.json"
            pools.write_text(re.sub(r'"slots": \d+', f'"slots": {variant.slots}', pools.read_text()))
        if variant.workers:
            assert isinstance(variant.target, targets.DuckLake)
            broker = stack.enter_context(celery_processes.redis())
            celery_processes.connect(site.deployment, variant.target, broker)
        else:
            env |= variant.target.new(root) | {"WAREHOUSE_DIR": str(site.deployment.warehouse)}
            if orders:
                env["SOURCES__JAFFLE_SHOP__DATA_DIR"] = str(csv_files(orders))
        stack.enter_context(site.running())
        for number in range(variant.workers):
            machine = Path(root, f"worker-{number}")
            worker = celery_processes.Worker(f"worker-{number}", machine, site.airflow)
            stack.callback(worker.service.kill)
        yield site
