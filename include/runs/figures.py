"""The pipeline's figures for monitoring: what readers see, the last run's rows and tests, the disk."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from include.runs import artifacts
from include.settings import in_warehouse
from include.warehouse import hold, paths
from include.warehouse.targets import target

TEST_STATES = ("pass", "warn", "fail", "error", "skipped")


@dataclass(frozen=True)
class Figure:
    """A number that is true now.

    Attributes:
        name: with dots, as in OpenTelemetry.
        unit: s, By, or empty for a count.
        labels: what it is about.
    """

    name: str
    value: float
    unit: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def figures(warehouse: str) -> list[Figure]:
    """Return the figures of a warehouse; without a release or a run those that there are.

    Raises:
        include.warehouse.errors.WarehouseError: what readers see cannot be read.
    """
    with in_warehouse(warehouse):
        found = [*_published(), *_last_run(), *_disk()]
    return [Figure(one.name, one.value, one.unit, {"warehouse": warehouse, **one.labels}) for one in found]


def costs(warehouse: str, run_id: str) -> Iterator[Figure]:
    """Yield what each task of a run cost: CPU time of its process, and the bytes billed where the engine says so."""
    with in_warehouse(warehouse):
        seconds, results = artifacts.costs_of(run_id), artifacts.results_of(run_id)
    billed: Counter[str] = Counter()
    for one in results:
        if one.billed is not None:
            billed[one.task_id] += one.billed
    for task, value in seconds.items():
        yield Figure("warehouse.task.cpu", value, "s", {"warehouse": warehouse, "task": task})
    for task, size in billed.items():
        yield Figure("warehouse.task.billed", size, "By", {"warehouse": warehouse, "task": task})


def _published() -> Iterator[Figure]:
    if release := target().published_release():
        yield Figure("warehouse.release.age", time.time() - release.created_at.timestamp(), "s")
        yield Figure("warehouse.release.size", release.size_bytes, "By")
    yield Figure("warehouse.held", int(hold.current() is not None))
    yield Figure("warehouse.waiting", int(target().waiting_release() is not None))


def _last_run() -> Iterator[Figure]:
    """Return the figures of the run that loaded last, also if it failed or still runs."""
    summaries = paths.artifacts_dir().glob("*/load-*.json")
    last = max(summaries, key=lambda path: path.stat().st_mtime, default=None)
    if last is None:
        return
    run = last.parent.name
    for load in artifacts.loads_of(run):
        labels = {"source": load.source}
        yield Figure("warehouse.load.duration", load.seconds, "s", labels)
        yield Figure("warehouse.rows.loaded", load.rows_loaded, labels=labels)
        yield Figure("warehouse.rows.rejected", load.rows_rejected, labels=labels)
    states = Counter(one.status for one in artifacts.test_results_of(run).values())
    states["error"] += states.pop("runtime error", 0)
    for state in TEST_STATES:
        yield Figure("warehouse.tests", states[state], labels={"state": state})


def _disk() -> Iterator[Figure]:
    if (folder := paths.warehouse_dir()).exists():
        usage = shutil.disk_usage(folder)
        yield Figure("warehouse.disk.free", usage.free, "By")
        yield Figure("warehouse.disk.size", usage.total, "By")
