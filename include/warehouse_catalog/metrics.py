"""A dbt project's metrics, compiled by MetricFlow and run as any query on what is published.

    metrics, grouping ──▶ metrics_process.py: MetricFlow makes SQL of them ──SQL──▶ query.py: run it in the sandbox

Without the package `metricflow` (`make setup-metrics`), or without metrics in what is published, there are none.
MetricFlow is in a process of its own, so the server does not import it.
"""

import gzip
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from include.errors import storage_errors
from include.runs import artifacts
from include.runs.project import Project
from include.sql import identifier
from include.warehouse.paths import run_artifacts_dir
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from include.warehouse_catalog import lineage, query
from include.warehouse_catalog.published import State

logger = logging.getLogger(__name__)

# From the finest: a time can be grouped by its own grain and by those after it.
GRAINS = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
MOST = 20  # metrics in a query, and what to group by
_SECONDS = 20
_WAIT_SECONDS = 5.0
_one = threading.BoundedSemaphore(1)


class PersonalError(query.QueryError):
    """The query reads personal or undocumented columns, which this visitor may not see."""


@dataclass(frozen=True)
class Grouping:
    """What a metric can be grouped by.

    Attributes:
        name: as MetricFlow names it, such as `customer__country`.
        kind: dimension, entity or time.
        grain: the finest, of a time; otherwise empty.
    """

    name: str
    kind: str
    grain: str
    description: str


@dataclass(frozen=True)
class Metric:
    """A metric of the project.

    Attributes:
        kind: simple, ratio, derived, cumulative or conversion.
        by: what it can be grouped by, by name.
    """

    name: str
    label: str
    description: str
    kind: str
    by: tuple[Grouping, ...]


@dataclass(frozen=True)
class Result:
    """The values of metrics.

    Attributes:
        sql: the query that MetricFlow made.
        answer: first what they are grouped by, then the metrics; ordered from left to right.
    """

    sql: str
    answer: query.Answer


def is_installed() -> bool:
    """Return whether MetricFlow is."""
    return find_spec("metricflow") is not None


def declared(state: State | None) -> bool:
    """Return whether the project, as it was when it was published, declares metrics that can be queried here."""
    return bool(_manifest(state))


def metrics(state: State | None) -> tuple[Metric, ...]:
    """Return the metrics, by name.

    Raises:
        QueryError: MetricFlow cannot read the project's semantic models.
        QueryBusyError: it does so for others.
    """
    manifest = _manifest(state)
    return _list(manifest) if manifest else ()


def values(
    state: State | None, dbt: Project, names: Sequence[str], by: Sequence[str], grain: str, limit: int, sees_all: bool
) -> Result:
    """Return the values of some metrics.

    Args:
        state: what readers see.
        dbt: the project it was built with.
        names: the metrics.
        by: what to group by; a time may end in its grain, as in `metric_time__month`.
        grain: of `GRAINS`, for a time without one; empty for its finest.
        limit: most rows to return.
        sees_all: whether the visitor may see personal data.

    Raises:
        PersonalError: the query reads columns that the visitor may not see.
        QueryError: there is no such metric or grouping, or the query was refused or stopped.
        QueryBusyError: too many queries are running.
    """
    manifest = _manifest(state)
    if state is None or not manifest:
        raise query.QueryError("What is published has no metrics.")
    names = list(dict.fromkeys(names))
    chosen = _check(_list(manifest), names, by, grain)
    sql = str(_ask(manifest, names, list(chosen))["sql"])
    if not sees_all:
        _check_open(sql, state, dbt)
    # MetricFlow makes a timestamp of each day, month or year.
    days = [identifier(one) for one, used in chosen.items() if used in GRAINS[GRAINS.index("day") :]]
    dates = f" replace ({', '.join(f'cast({one} as date) as {one}' for one in days)})" if days else ""
    answer = query.run(f"select *{dates} from (\n{sql}\n) order by all", limit, release=state.release)
    return Result(sql, answer)


def _check(known: Sequence[Metric], names: Sequence[str], by: Sequence[str], grain: str) -> dict[str, str]:
    """Return what to group by as MetricFlow wants it, each with its grain, if it is a time.

    Nothing reaches MetricFlow that it has not listed.
    """
    found = {one.name: one for one in known}
    if not names:
        raise query.QueryError(f"Choose a metric: {', '.join(found)}.")
    if len(names) > MOST or len(by) > MOST:
        raise query.QueryError(f"At most {MOST} metrics, by at most {MOST}.")
    if unknown := [name for name in names if name not in found]:
        raise query.QueryError(f"There is no metric {', '.join(unknown)}. There are: {', '.join(found)}.")
    if grain and grain not in GRAINS:
        raise query.QueryError(f"There is no grain {grain}. There are: {', '.join(GRAINS)}.")
    common = set.intersection(*({one.name for one in found[name].by} for name in names))
    groupings = {one.name: one for one in found[names[0]].by if one.name in common}
    return dict(_group_by(one, groupings, names, grain) for one in by)


def _group_by(wanted: str, groupings: dict[str, Grouping], names: Sequence[str], grain: str) -> tuple[str, str]:
    base, _, suffix = wanted.rpartition("__")
    if wanted not in groupings and suffix in GRAINS and base in groupings and groupings[base].grain:
        wanted, grain = base, suffix
    if wanted not in groupings:
        raise query.QueryError(
            f"{' and '.join(names)} cannot be grouped by {wanted}. They can by: {', '.join(groupings) or 'nothing'}."
        )
    finest = groupings[wanted].grain
    if not finest:
        return wanted, ""
    grain = grain or finest
    if finest in GRAINS and GRAINS.index(grain) < GRAINS.index(finest):
        raise query.QueryError(f"{wanted} cannot be grouped by {grain}: its finest grain is {finest}.")
    return f"{wanted}__{grain}", grain


def _check_open(sql: str, state: State, dbt: Project) -> None:
    read = lineage.columns_read(sql, state)
    if read is None:
        raise PersonalError("Which columns this reads is not certain, so it takes the permission to run queries.")
    hidden = sorted(
        f"{schema}.{table}.{column}"
        for schema, table, column in read
        if not dbt.is_open(dbt.node_of(schema, table), column)
    )
    if hidden:
        raise PersonalError(
            f"This reads {', '.join(hidden)}: personal or undocumented, so it takes the permission to run queries."
        )


def _manifest(state: State | None) -> str:
    """Return dbt's semantic manifest of what is published; empty if it has no metrics, or they cannot be queried."""
    if state is None or not is_installed() or not target().can_be_sandboxed:
        return ""
    path = run_artifacts_dir(state.release.run_id) / artifacts.SEMANTIC_MANIFEST
    try:
        return _read(path, state.release)
    except storage_errors(EOFError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read as dbt's semantic manifest: %s", path, error)
        return ""


@lru_cache(maxsize=8)
def _read(path: Path, _release: Release) -> str:
    if not path.exists():
        return ""
    text = gzip.decompress(path.read_bytes()).decode()
    return text if json.loads(text)["metrics"] else ""


@lru_cache(maxsize=8)
def _list(manifest: str) -> tuple[Metric, ...]:
    return tuple(
        Metric(**{**one, "by": tuple(Grouping(**grouping) for grouping in one["by"])})
        for one in _ask(manifest)["metrics"]
    )


def _ask(manifest: str, names: Sequence[str] = (), by: Sequence[str] = ()) -> dict[str, Any]:
    order = {
        "manifest": manifest,
        "metrics": list(names),
        "by": list(by),
        "seconds": _SECONDS,
        "memory_bytes": 2 * query.memory_bytes(),
    }
    child = Path(__file__).with_name("metrics_process.py")
    if not _one.acquire(timeout=_WAIT_SECONDS):
        raise query.QueryBusyError("Other metrics are being compiled; try again in a moment.")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-B", "-X", "utf8", str(child)],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=_SECONDS,
            env={},
            cwd="/",
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise query.QueryError(f"MetricFlow was stopped after {_SECONDS} s.") from None
    except ValueError:
        logger.warning("MetricFlow failed: %s", done.stderr.decode(errors="replace")[-2000:])
        raise query.QueryError("MetricFlow failed on this project's semantic models; the log has its error.") from None
    finally:
        _one.release()
    if "error" in answer:
        raise query.QueryError(answer["error"])
    return answer
