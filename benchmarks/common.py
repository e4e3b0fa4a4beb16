"""Shared by all benchmarks: child processes, scratch folders, medians, machine facts, saved results."""

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from include.generate_data import generate
from include.settings import warehouse_name
from testing.airflow_processes import interrupt_with_parent

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
# On the project's disk: /tmp may be in memory, where cp and loads are faster than in production.
SCRATCH = Path(os.environ.get("BENCH_SCRATCH") or PROJECT / ".bench").resolve()
PEERS = PROJECT / ".venv-peers" / "bin"
DBT_PROJECT = PROJECT / "include" / "dbt_project"
PACKAGES = ("apache-airflow", "astronomer-cosmos", "dlt", "duckdb", "dbt-core", "dbt-duckdb")


@dataclass
class Result:
    """The results of one benchmark; `save` prints them and writes them for the report."""

    part: str
    options: dict[str, Any]
    tables: list[dict[str, Any]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.tables.append({"title": title, "columns": list(columns), "rows": [list(map(cell, row)) for row in rows]})

    def chart(self, name: str, title: str, unit: str, bars: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Add a chart with, for each label, a bar for the median and a whisker from minimum to maximum."""
        self.charts.append({"name": name, "title": title, "unit": unit, "bars": [[k, list(v)] for k, v in bars]})

    def check(self, what: str, value: float, limit: float, *, at_least: bool = False) -> None:
        ok = value >= limit if at_least else value <= limit
        sign = "≥" if at_least else "≤"
        self.checks.append({"what": what, "value": value, "limit": f"{sign} {limit:g}", "met": ok})

    def save(self) -> None:
        for table in self.tables:
            print(f"\n{table['title']}\n")
            print_table(table["columns"], table["rows"])
        for note in self.notes:
            print(f"\n{note}")
        print()
        for check in self.checks:
            print(f"{'pass' if check['met'] else 'MISS'}  {check['what']}: {check['value']:.3g} ({check['limit']})")
        RESULTS.mkdir(parents=True, exist_ok=True)
        found = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), **asdict(self)}
        found["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES} | self.versions
        (RESULTS / f"{self.part}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def cell(value: object) -> str:
    """Format a number to three significant digits, a list of samples as median (minimum to maximum)."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        if not value:
            return "–"
        low, high = cell(float(min(value))), cell(float(max(value)))
        return cell(float(statistics.median(value))) + ("" if len(value) == 1 else f" ({low} to {high})")
    return str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, ["-" * width for width in widths], *rows):
        first, *rest = (f"{text:{'<' if n == 0 else '>'}{widths[n]}}" for n, text in enumerate(row))
        print("  ".join([first, *rest]))


def machine() -> dict[str, Any]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": _LOAD,
    }


_LOAD = round(os.getloadavg()[0], 2)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Yield a folder on disk, and delete it afterwards."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=SCRATCH))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def csv_files(orders: int) -> Path:
    """Return a folder of CSV files with that many orders, generated once and kept; 0 means the project's own files."""
    if orders == 0:
        return PROJECT / "include" / "data"
    folder = SCRATCH / "csv" / str(orders)
    if not (folder / "raw_payments.csv").exists():
        print(f"Generating {orders:,} orders ...", flush=True)
        generate(folder, max(100, orders // 10), orders, orders * 113 // 99)
    return folder


def project_env(root: Path, data_dir: Path | None = None) -> dict[str, str]:
    """Return the environment for running the load or dbt by hand, with all output under `root`."""
    outside = ("AIRFLOW", "WAREHOUSE", "SOURCES__", "DBT_", "DLT_", "DESTINATION__", "MAKE")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(outside)},
        "WAREHOUSE_DIR": str(root / "warehouse"),
        "WAREHOUSE_NAME": warehouse_name(),
        "WAREHOUSE_KEEP_RELEASES": "1",
        "SOURCES__JAFFLE_SHOP__DATA_DIR": str(data_dir or csv_files(0)),
        "DLT_PROJECT_DIR": str(PROJECT / "include" / "dlt_pipelines"),
        "DBT_TARGET_PATH": str(root / "target"),
        "DBT_LOG_PATH": str(root / "dbt-logs"),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(PROJECT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NO_COLOR": "1",
    }


@dataclass(frozen=True)
class Outcome:
    """A finished child: wall seconds, peak bytes of its largest process, its last line, from JSON, and CPU seconds."""

    seconds: float
    peak_bytes: int
    output: Any
    cpu_seconds: float


class ChildError(Exception):
    """A child process failed or timed out."""


def run(command: Sequence[object], env: dict[str, str], cwd: Path = PROJECT, timeout: float = 3600) -> Outcome:
    """Run one command in a fresh process and measure it.

    Raises:
        ChildError: it failed or timed out; the message has its output.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out:
        started = time.perf_counter()
        child = subprocess.Popen(
            words,
            env=env,
            cwd=cwd,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=interrupt_with_parent,
        )
        killer = threading.Timer(timeout, lambda: os.killpg(child.pid, signal.SIGKILL))
        killer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - started
        finally:
            killer.cancel()
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        output = out.read().decode(errors="replace")
    if child.returncode:
        raise ChildError(f"{' '.join(words)} ended with {child.returncode} after {seconds:.0f} s:\n{output[-3000:]}")
    result = None
    with suppress(ValueError, IndexError):
        result = json.loads(output.strip().splitlines()[-1])
    return Outcome(seconds, usage.ru_maxrss * 1024, result, usage.ru_utime + usage.ru_stime)


def interleave(variants: dict[str, Callable[[], Any]], repetitions: int, warm_up: bool = True) -> dict[str, list[Any]]:
    """Alternate between the variants, so that noise on the machine affects all of them alike."""
    found: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(-1 if warm_up else 0, repetitions):
        for name, call in variants.items():
            value = call()
            shown = f"{value:.2f}" if isinstance(value, float) else ""
            print(f"  {'warm-up' if number < 0 else number + 1}: {name} {shown}", flush=True)
            if number >= 0:
                found[name].append(value)
    return found


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def numbers(text: str) -> list[float]:
    """Parse `0.1,1,5`."""
    return [float(number) for number in text.split(",") if number]
