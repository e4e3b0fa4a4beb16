"""A year of daily runs in a loop: deliveries, failures, clears, rollbacks, maintenance; what grows, and what does not.

One process does what the tasks do, with the functions that they call: load, `dbt build`, publish. Airflow does not run.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import DBT_PROJECT, PROJECT, Result, project_env, scratch

SAMPLES = "samples.jsonl"
ORDERS = 1_000  # in each delivery


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=year", description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=3600, help="end earlier, after the run of that moment")
    parser.add_argument("--folder", type=Path, help="keep the warehouse there, and go on with it the next time")
    options = parser.parse_args(arguments)
    result = Result("year", {"runs": options.runs, "seconds": options.seconds})
    with contextlib.nullcontext(options.folder.resolve()) if options.folder else scratch("year") as root:
        (root / "csv").mkdir(parents=True, exist_ok=True)
        env = project_env(root, root / "csv") | {"WAREHOUSE_KEEP_RELEASES": "7"}
        words = [sys.executable, "-m", "benchmarks.year", str(root), str(options.runs), str(options.seconds)]
        subprocess.run(words, env=env, cwd=PROJECT, stdout=subprocess.DEVNULL, check=True)
        samples = [json.loads(line) for line in (root / SAMPLES).read_text().splitlines()]
    last, tenth = samples[-1], samples[max(0, len(samples) // 10 - 1)]
    shown = ("runs", "working", "releases", "artifacts", "rejected", "memory", "seconds")
    step = max(1, len(samples) // 8)
    chosen = [*samples[step - 1 :: step], *([last] if (len(samples) % step) else [])]
    result.table(
        "What a year of daily runs leaves, in MB",
        ("runs", "working file", "releases", "artifacts", "rejected rows kept", "memory of the process", "s per run"),
        [[sample[name] for name in shown] for sample in chosen],
    )
    what = f"{last['failed']} failed and were cleared, {last['rolled_back']} rollbacks, {last['cleaned']} cleanings"
    result.notes.append(f"{last['runs']} runs of {ORDERS:,} orders: {what}. Readers always saw a release that passed.")
    for name in ("working", "releases", "memory"):
        result.check(f"{name}, last run ÷ run {tenth['runs']}", last[name] / tenth[name], 1.25)
    result.samples["year"] = samples
    result.save()


class Year:
    """Runs the pipeline again and again, in this process."""

    def __init__(self, root: Path, before: dict[str, Any]) -> None:
        self.root, self.luck = root, random.Random(1)
        self.failed = before.get("failed", 0)
        self.rolled_back = before.get("rolled_back", 0)
        self.cleaned = before.get("cleaned", 0)

    def deliver(self, day: int, *, broken: bool) -> None:
        """Write the day's files: all orders of the last days, some corrected; broken ones have an id twice."""
        from include.generate_data import generate

        generate(self.root / "csv", ORDERS // 10, ORDERS, ORDERS, seed=day)
        if broken:
            with (self.root / "csv" / "raw_orders.csv").open("a") as file:
                file.write("7,1,2025-01-01,placed\n")
        if day % 5 == 0:  # a row that cannot be parsed, and is tolerated
            with (self.root / "csv" / "raw_payments.csv").open("a") as file:
                file.write(f"x{day},1,coupon,1\n")

    def run(self, run_id: str) -> bool:
        """Load, build, test and publish; return whether it was published."""
        from dbt.cli.main import dbtRunner

        from include import dbt_session
        from include.dlt_pipelines.load import find_source, load
        from include.runs import dbt_results, manifest
        from include.runs.publish import publish
        from include.settings import dbt_profile, dbt_target
        from include.warehouse.hold import ReleaseHeldError

        load(find_source("jaffle_shop"), run_id, 5)
        target = self.root / "target"
        project = ["--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT), "--profile", dbt_profile()]
        dbtRunner().invoke(["--quiet", "build", *project, "--target", dbt_target(), "--target-path", str(target)])
        try:
            dbt_results.conclude(target, run_id, "transform")
        except dbt_results.DbtFailedError:
            return False
        finally:
            dbt_session.close_database()
        try:
            publish(run_id, manifest.current().manifest)
        except ReleaseHeldError:
            return False
        return True

    def day(self, day: int) -> None:
        """Run once, with what goes wrong on such a day."""
        from include.maintenance import clean
        from include.warehouse import hold
        from include.warehouse.targets import target

        run_id, broken = f"scheduled__{day:04}", day % 11 == 0
        self.deliver(day, broken=broken)
        published = self.run(run_id)
        assert published is not broken, day
        if broken:
            self.failed += 1
            self.deliver(day, broken=False)
            assert self.run(run_id), day  # cleared
        if day % 20 == 0:
            self.rolled_back += 1
            hold.roll_back(self.luck.choice(target().list_releases()[1:]).id)
            self.deliver(day, broken=False)
            assert not self.run(f"held__{day:04}"), day
            hold.end()
        if day % 10 == 0:
            self.cleaned += 1
            clean(self.root / "logs")
        with target().open_release() as connection:
            rows, ids = connection.execute("select count(*), count(distinct order_id) from marts.orders").fetchall()[0]
        assert rows == ids == ORDERS, (day, rows, ids)

    def sample(self, runs: int, seconds: float) -> dict[str, Any]:
        """Return sizes in MB."""
        from include.warehouse import paths
        from include.warehouse.targets import target

        with target().open_working() as connection:
            rejected = connection.execute("select count(*) from jaffle_shop_raw.rejected_rows").fetchall()[0][0]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "runs": runs,
            "working": _megabytes(paths.working_path()),
            "releases": _megabytes(paths.releases_dir()),
            "artifacts": _megabytes(paths.artifacts_dir()),
            "rejected": rejected,
            "memory": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "seconds": seconds,
            "failed": self.failed,
            "rolled_back": self.rolled_back,
            "cleaned": self.cleaned,
        }


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files) / 1e6


def loop(root: Path, runs: int, seconds: float) -> None:
    """Run the days that are missing to a year, and keep a sample of every tenth."""
    from include import dbt_session

    (root / "logs").mkdir(exist_ok=True)
    dbt_session.start()
    samples = root / SAMPLES
    before = json.loads(samples.read_text().splitlines()[-1]) if samples.exists() else {}
    year, started = Year(root, before), time.monotonic()
    since = started
    for day in range(before.get("runs", 0) + 1, runs + 1):
        year.day(day)
        is_last = day == runs or time.monotonic() - started > seconds
        if day % 10 == 0 or is_last:
            with samples.open("a") as out:
                out.write(json.dumps(year.sample(day, (time.monotonic() - since) / (day % 10 or 10))) + "\n")
            since = time.monotonic()
        if is_last:
            break


if __name__ == "__main__":
    loop(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
