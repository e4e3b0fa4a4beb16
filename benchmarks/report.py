"""Write docs/performance.md and its pictures from benchmarks/results/*.json; no figure in it is typed by hand."""

import json
import statistics
from html import escape
from typing import Any

from benchmarks.common import PROJECT, RESULTS

DOCS = PROJECT / "docs"
HEAD = """\
# Performance

This page is written by `make bench` from `benchmarks/results/`; don't edit it. `make bench PART=load` measures one part
alone, `make bench PART=load ARGS=--help` tells its options, `make bench-report` writes the page again.

Figures are medians, with the smallest and the largest sample in brackets. Variants take turns within one run, so ratios
mean more than seconds, which are those of one machine. Every child process is fresh and every database new unless a table
says otherwise.
"""
METHOD = {
    "run": """\
**One orchestrated run**, from the trigger by REST to its success, on a warm running scheduler, with the project's default
files. All load the same files, build the same models and run the same data and unit tests. All but the hand-run commands
publish as this project does; only this project and the Cosmos peers check source freshness, and only this project's load
keeps rejected rows.

- *this project*: `make up`'s processes and settings.
- *Cosmos LOCAL* and *Cosmos WATCHER*: Airflow's and Cosmos's defaults: LocalExecutor, manifest, in-process dbt, with this
  project's load and publish; WATCHER with a triggerer for its deferrable sensors. See `benchmarks/peers/airflow_dags/`.
- *Dagster*: webserver and daemon with defaults, `@dlt_assets`, `@dbt_assets` (`dbt build`) and an asset that publishes,
  launched over GraphQL. See `benchmarks/peers/dagster_project.py`.
- *by hand*: `four commands` (load; `dbt run` of staging; of marts; `dbt test`) and `two` (load; `dbt build`), each in a
  fresh process, with dbt's partial parse warm.
""",
    "models": """\
**Many models**: generated ones beside the project's own five, in the project's own DAG file, with a test each.
The overhead of a task is its duration minus the time dbt's nodes took. DAG parse is what the dag-processor says itself.
""",
    "load": """\
**Load** of the three CSV files. Seconds leave out imports, which warm task processes have done already; the column beside
them has the whole process. This project's load also checks every value against its contract and keeps what it rejects;
the other two don't.
""",
    "transform": """\
**Transform**: both marts, as dbt builds them, against `create table as` of the same compiled SQL in DuckDB itself.
dbt's node time is its own `execution_time`: compile, contract check, build, swap, commit.
""",
    "publish": """\
**Publish**: checkpoint, copy, wait for the disk, verify, rename. `cp` alone returns before the data is on the disk; publish does
not, so `cp` followed by `fsync` is the like-for-like.
""",
    "ui": """\
**The Warehouse pages** over a published database with two large tables and a history of daily runs, asked one after the
other as the admin. The first look at a page after a publish counts and profiles; what it finds is kept until the next one.
""",
    "readers": """\
**Readers** of the published file, while publishes follow each other without a pause.
""",
}


def main() -> None:
    """Render what there is; parts that were never run are left out."""
    (DOCS / "images").mkdir(parents=True, exist_ok=True)
    lines = [HEAD]
    results = {part: json.loads(path.read_text()) for part in METHOD if (path := RESULTS / f"{part}.json").exists()}
    checks = [[c["what"], f"{c['value']:.3g}", c["limit"], "yes" if c["met"] else "**no**"]
              for found in results.values() for c in found["checks"]]  # fmt: skip
    if checks:
        lines += ["## Limits", "", *_table(["what", "found", "limit", "met"], checks), ""]
    for part, found in results.items():
        lines += [f"## {part.capitalize()}", "", METHOD[part]]
        for chart in found["charts"]:
            (DOCS / "images" / f"bench-{chart['name']}.svg").write_text(_svg(chart))
            lines += [f"![{chart['title']}, {chart['unit']}](images/bench-{chart['name']}.svg)", ""]
        for table in found["tables"]:
            lines += [f"{table['title']}:", "", *_table(table["columns"], table["rows"]), ""]
        lines += [f"{note}\n" for note in found["notes"]]
        machine = found["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        lines += [
            f"Measured {found['measured_at']}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
            f"Linux {machine['kernel']}, load average before {machine['load_before']}; Python {machine['python']}, "
            f"{versions}; options {json.dumps(found['options'])}.\n"
        ]
    (DOCS / "performance.md").write_text("\n".join(lines))
    print(f"Wrote {DOCS / 'performance.md'}")


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    align = ["---", *["--:"] * (len(columns) - 1)]
    return ["| " + " | ".join(map(str, row)) + " |" for row in (columns, align, *rows)]


def _svg(chart: dict[str, Any]) -> str:
    """Draw horizontal bars with whiskers from the smallest to the largest sample."""
    bars = [(label, values) for label, values in chart["bars"] if values]
    left, width, step = 12 + 7 * max((len(label) for label, _ in bars), default=0), 420, 26
    top = max((max(values) for _, values in bars), default=1) or 1
    height = 34 + step * len(bars)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
        f'width="{left + width + 90}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="8" y="18" font-weight="bold">'
        f"{escape(chart['title'])}, {escape(chart['unit'])}</text>",
    ]
    for number, (label, values) in enumerate(bars):
        y, middle = 30 + step * number, statistics.median(values)
        low, high, end = (left + width * value / top for value in (min(values), max(values), middle))
        color = "#1f77b4" if "this project" in label or number == 0 else "#9aa7b5"
        out += [
            f'<text x="{left - 6}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left}" y="{y + 2}" width="{end - left:.1f}" height="16" fill="{color}"/>',
            f'<path d="M{low:.1f} {y + 10}H{high:.1f}" stroke="#222"/>',
            f'<text x="{max(high, end) + 6:.1f}" y="{y + 14}">{middle:.3g}</text>',
        ]
    return "\n".join([*out, "</svg>"]) + "\n"
