"""Publish: databases of growing size, compared with `cp` and with `cp` followed by `fsync`."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.common import Result, interleave, median, numbers, project_env, run, scratch
from include.settings import warehouse_name

OURS, COPY, COPY_SYNC = "publish", "cp", "cp, fsync"
# Incompressible numbers, so that the file has the requested size.
MAKE = """
import duckdb, os, sys
from include.warehouse.targets import target
with target().open_working() as connection:
    connection.execute("create schema marts")
    connection.execute("create table marts.orders (a ubigint, b ubigint, c ubigint, d ubigint)")
    for part in range(max(1, round(float(sys.argv[1]) * 32))):
        connection.execute("insert into marts.orders select hash(i), hash(i + 1e18::bigint), hash(i + 2e18::bigint), "
                    "hash(i + 3e18::bigint) from range(?, ?) r(i)", [part * 970_000, (part + 1) * 970_000])
"""
# Timed after the imports, which Airflow's warm task processes have already done.
PUBLISH = """
import json, time
from include.warehouse.targets import target
started = time.perf_counter()
target().publish("bench", lambda _: None)
print(json.dumps(time.perf_counter() - started))
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=publish", description=__doc__)
    parser.add_argument("--gigabytes", type=numbers, default=[0.1, 1, 5])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)
    result = Result("publish", vars(options))
    rows, bars = [], []
    for gigabytes in options.gigabytes:
        with scratch("publish") as root:
            found = measure(root, gigabytes, options.repetitions)
        rows += [[f"{gigabytes:g} GB", name, seconds, *ratios(found, seconds)] for name, seconds in found.items()]
        bars += [(f"{gigabytes:g} GB, {name}", seconds) for name, seconds in found.items()]
        if gigabytes == 1:
            # cp returns while most of the data is still in memory; publish must not show readers what a power cut
            # would undo. So the fair comparison is cp followed by fsync.
            result.check("publish ÷ cp with fsync, 1 GB", ratios(found, found[OURS])[1], 1.5)
            result.check("publish ÷ cp without fsync, 1 GB", ratios(found, found[OURS])[0], 1.5)
    for gigabytes in options.gigabytes:
        with scratch("publish-clone") as root, cloning(root, gigabytes) as mount:
            if isinstance(mount, str):
                result.notes.append(f"File system with reflinks: skipped, {mount}.")
                break
            found = measure(mount, gigabytes, options.repetitions)
        rows += [[f"{gigabytes:g} GB, xfs clone", name, s, *ratios(found, s)] for name, s in found.items()]
        bars += [(f"{gigabytes:g} GB xfs, {name}", seconds) for name, seconds in found.items()]
    columns = ("database", "by", "seconds", "× cp", "× cp, fsync")
    result.table("Publishing a database", columns, rows)
    result.chart("publish", "Publishing a database", "s", bars)
    result.samples = {f"{row[0]} {row[1]}": row[2] for row in rows}
    result.save()


def ratios(found: dict[str, list[float]], seconds: list[float]) -> tuple[float, float]:
    return median(seconds) / median(found[COPY]), median(seconds) / median(found[COPY_SYNC])


def measure(root: Path, gigabytes: float, repetitions: int) -> dict[str, list[float]]:
    env = project_env(root)
    run([sys.executable, "-c", MAKE, gigabytes], env)
    database = root / "warehouse" / f"{warehouse_name()}.duckdb"
    print(f"{database.stat().st_size / 1e9:.2f} GB", flush=True)

    def copy(sync: bool) -> float:
        target = root / "copy.duckdb"
        os.sync()  # pending writes of others are not this copy's cost
        started = time.perf_counter()
        subprocess.run(["cp", "--reflink=never", database, target], check=True)
        if sync:
            with target.open("rb") as copied:
                os.fsync(copied.fileno())
        seconds = time.perf_counter() - started
        target.unlink()
        return seconds

    def publish() -> float:
        os.sync()
        return float(run([sys.executable, "-c", PUBLISH], env).output)

    return interleave(
        {OURS: publish, COPY: partial(copy, sync=False), COPY_SYNC: partial(copy, sync=True)}, repetitions
    )


@contextmanager
def cloning(root: Path, gigabytes: float) -> Iterator[Path | str]:
    """Mount a scratch xfs and yield its path, or yield the reason why not."""
    if os.geteuid() or not shutil.which("mkfs.xfs"):
        yield "it needs root and mkfs.xfs"
        return
    image, mount = root / "xfs.img", root / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(int((4 * gigabytes + 1) * 1e9))
    made = subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], capture_output=True, text=True)
    mounted = (
        made
        if made.returncode
        else subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True)
    )
    if mounted.returncode:
        yield f"no xfs here ({mounted.stderr.strip()})"
        return
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)
