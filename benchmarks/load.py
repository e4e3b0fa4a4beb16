"""Load: this project, DuckDB's own `read_csv` and dlt's stock CSV reader on the same files; and other files' loads."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import duckdb

from benchmarks.common import (
    PEERS,
    ChildError,
    Outcome,
    Result,
    csv_files,
    interleave,
    median,
    numbers,
    project_env,
    run,
    scratch,
)
from include.dlt_pipelines.jaffle_shop_pipeline import SOURCE

OURS, DUCKDB, STOCK = "this project", "DuckDB", "dlt read_csv"
START = """
import json, resource, sys, time
def used():
    found = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), found.ru_utime + found.ru_stime
root, data, *names = sys.argv[1:]
"""
END = "\nprint(json.dumps([after - before for before, after in zip(started, used())]))\n"
# Each child prints its seconds and CPU seconds without imports, which Airflow's warm task processes have already done.
# The stock reader follows dlt's documentation of the filesystem source.
PROGRAMS = {
    OURS: """
from include.dlt_pipelines.load import find_source, load
started = used()
load(find_source("jaffle_shop"), "bench")
""",
    DUCKDB: """
import duckdb
started = used()
with duckdb.connect(root + "/plain.duckdb") as connection:
    for name in names:
        connection.execute(f"create or replace table {name} as from read_csv('{data}/{name}.csv')")
""",
    STOCK: """
import dlt, pathlib
from dlt.sources.filesystem import filesystem, read_csv
started = used()
destination = dlt.destinations.duckdb(root + "/stock.duckdb")
pipeline = dlt.pipeline("stock", destination=destination, dataset_name="raw", pipelines_dir=root + "/dlt")
pipeline.run(
    [
        (filesystem(bucket_url=pathlib.Path(data).as_uri(), file_glob=f"{name}.csv") | read_csv()).with_name(name)
        for name in names
    ],
    write_disposition="replace",
)
""",
}
# A table of sales: by default one file, or as its arguments say.
SALES = """
from include.dlt_pipelines.file_source import CsvDialect, FileSource, TableContract
from include.dlt_pipelines.load import load
columns = {{"id": "BIGINT", "store_id": "BIGINT", "sold_at": "TIMESTAMP", "city": "VARCHAR", "price": "DECIMAL(18,2)"}}
table = TableContract("sales", columns, ("id",), {arguments})
started = used()
load(FileSource("bench", data, (table,), max_rejected_rows=1), "bench", full_refresh={full_refresh})
"""
EUROPEAN = "dialect=CsvDialect(delimiter=';', encoding='cp1252', decimal=',', timestamp_format='%d.%m.%Y %H:%M:%S')"
DUCKDB_EUROPEAN = """
import duckdb
started = used()
with duckdb.connect(root + "/plain.duckdb") as connection:
    connection.execute(
        f"create or replace table sales as from read_csv('{data}/sales.csv', delim=';', decimal_separator=',',"
        " encoding='latin-1', timestampformat='%d.%m.%Y %H:%M:%S')"
    )
"""
FOLDER = "files='sales*.csv', write_disposition='merge'"
ROWS = """
select id, id % 50 as store_id, {moment} as sold_at, ['München', 'Köln', 'Berlin'][1 + id % 3] as city,
    {price} as price from ({ids})
"""
MOMENT, PRICE = "timestamp '2026-01-01' + to_seconds(id)", "(id % 1000 + 0.25)::decimal(18, 2)"
FILES = 10
# The limit of each ratio, and from how many million rows it holds: a load takes half a second whatever it loads.
LIMITS = {
    "three CSV files ÷ DuckDB's own": (2.4, 5),
    "semicolons, decimal commas, cp1252 ÷ DuckDB's own": (3.2, 5),
    "one bad line ÷ without it": (3, 1),
    "full reload of a drop folder ÷ one file of its rows": (2, 1),
    "1 % delivered to a drop folder ÷ full reload": (0.05, 20),
}


@dataclass(frozen=True)
class Sample:
    """A load: CPU seconds and seconds without imports, seconds of the whole process, and its peak memory."""

    cpu: float
    seconds: float
    whole: float
    peak_mb: float


def measure(program: str, root: Path, data: Path, *, stock: bool = False) -> Sample:
    env, python = project_env(root, data), sys.executable
    if stock:
        python = str(PEERS / "python")  # it needs pandas
        env["DLT_PROJECT_DIR"] = str(root)  # dlt's defaults, not this project's configuration
    for old in root.glob("plain.duckdb*"):
        old.unlink()
    names = [table.name for table in SOURCE.tables]
    found: Outcome = run([python, "-c", START + program + END, root, data, *names], env, timeout=7200)
    seconds, cpu = found.output
    return Sample(cpu, seconds, found.seconds, found.peak_bytes / 1e6)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench PART=load", description=__doc__)
    parser.add_argument("--rows", type=numbers, default=[5], help="million rows of each load, such as 5,20,50")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument(
        "--stock-rows", type=float, default=0.1, help="the largest size for dlt's stock reader, run once"
    )
    parser.add_argument("--small-files", type=int, default=10_000, help="files of 10 rows in a drop folder")
    options = parser.parse_args(arguments)
    result = Result("load", vars(options))
    rows: list[Sequence[object]] = []
    ratios: list[Sequence[object]] = []
    peaks: dict[float, list[float]] = {}
    for millions in options.rows:
        print(f"{millions:g} million rows", flush=True)
        with scratch("load") as root:
            found = three_files(root, millions, options, result)
            for reader, samples in found.items():
                rows.append([f"{millions:g} M", reader, *columns_of(samples, found[DUCKDB])])
            ratios += ratio("three CSV files ÷ DuckDB's own", millions, found[OURS], found[DUCKDB], result)
            for make in (european, bad_line, drop_folder):
                for what, one, other in make(root, int(millions * 1e6), options.repetitions):
                    ratios += ratio(what, millions, one, other, result)
            peaks[millions] = [sample.peak_mb for sample in found[OURS]]
        result.check(f"peak MB of the load of {millions:g} M rows", max(peaks[millions]), 1000)
    columns = ("rows", "reader", "CPU s", "× DuckDB", "seconds", "with start and imports, s", "peak MB")
    result.table("Load of the three CSV files", columns, rows)
    result.table("Loads of other files", ("load", "rows", "CPU s", "÷ CPU s", "ratio", "peak MB"), ratios)
    if options.small_files:
        small_files(options.small_files, result)
    result.chart("load-memory", "Peak memory of the load", "MB", [(f"{m:g} M rows", peaks[m]) for m in peaks])
    result.save()


def three_files(root: Path, millions: float, options: argparse.Namespace, result: Result) -> dict[str, list[Sample]]:
    # For n orders there are n / 10 customers and n * 113 / 99 payments.
    data = csv_files(int(millions * 1e6 / (1 + 0.1 + 113 / 99)))
    variants = {reader: partial(measure, PROGRAMS[reader], root, data) for reader in (OURS, DUCKDB)}
    found = alternate(variants, options.repetitions)
    if millions <= options.stock_rows:
        try:
            found[STOCK] = [measure(PROGRAMS[STOCK], root, data, stock=True)]
        except ChildError as error:
            result.notes.append(f"dlt's stock reader at {millions:g} million rows: {error}")
    return found


def columns_of(samples: Sequence[Sample], baseline: Sequence[Sample]) -> list[object]:
    factor = median([one.cpu for one in samples]) / median([one.cpu for one in baseline])
    return [
        [one.cpu for one in samples],
        factor,
        [one.seconds for one in samples],
        [one.whole for one in samples],
        [one.peak_mb for one in samples],
    ]


def ratio(
    what: str, millions: float, samples: Sequence[Sample], baseline: Sequence[Sample], result: Result
) -> list[Sequence[object]]:
    """Check a ratio of CPU seconds, and return its row."""
    used, other = [one.cpu for one in samples], [one.cpu for one in baseline]
    factor = median(used) / median(other)
    print(f"  {what}: {factor:.2f}", flush=True)
    limit, least = LIMITS[what]
    if millions >= least:
        result.check(f"load, {millions:g} M rows: {what}", factor, limit)
    result.samples[f"{what}, {millions:g} M"] = [used, other]
    return [[what, f"{millions:g} M", used, other, factor, [one.peak_mb for one in samples]]]


def alternate(variants: dict[str, Callable[[], Sample]], repetitions: int) -> dict[str, list[Sample]]:
    return interleave(variants, repetitions, warm_up=repetitions > 1)


Compared = list[tuple[str, list[Sample], list[Sample]]]


def european(root: Path, rows: int, repetitions: int) -> Compared:
    data = folder(root, "european")
    comma, day = f"replace({PRICE}::varchar, '.', ',')", f"strftime({MOMENT}, '%d.%m.%Y %H:%M:%S')"
    deliver(data / "utf-8.csv", f"from range({rows}) as r(id)", moment=day, price=comma, delimiter=";")
    with (data / "utf-8.csv").open("rb") as source, (data / "sales.csv").open("wb") as out:
        while lines := source.readlines(1 << 24):
            out.write(b"".join(lines).decode().encode("cp1252"))
    (data / "utf-8.csv").unlink()
    programs = {OURS: sales(EUROPEAN), DUCKDB: DUCKDB_EUROPEAN}
    found = alternate({name: partial(measure, program, root, data) for name, program in programs.items()}, repetitions)
    return [("semicolons, decimal commas, cp1252 ÷ DuckDB's own", found[OURS], found[DUCKDB])]


def bad_line(root: Path, rows: int, repetitions: int) -> Compared:
    good, bad = folder(root, "good"), folder(root, "bad")
    deliver(good / "sales.csv", f"from range({rows}) as r(id)")
    with (good / "sales.csv").open("rb") as source, (bad / "sales.csv").open("wb") as out:
        for number, lines in enumerate(iter(lambda: source.readlines(1 << 24), [])):
            out.writelines(lines)
            if not number:
                out.write(b"this line is no row\n")
    found = alternate(
        {name: partial(measure, sales(""), root, data) for name, data in (("good", good), ("bad", bad))}, repetitions
    )
    return [("one bad line ÷ without it", found["bad"], found["good"])]


def drop_folder(root: Path, rows: int, repetitions: int) -> Compared:
    """Load a folder in full, one file of the same rows, and a delivery of 1 %, half of it corrections."""
    many, one = folder(root, "many"), folder(root, "one")
    size, new = rows // FILES, rows // 200
    for number in range(FILES):
        deliver(many / f"sales_{number:03}.csv", f"from range({number * size}, {(number + 1) * size}) as r(id)")
    with duckdb.connect() as connection:
        connection.execute(f"copy (from read_csv('{many}/*.csv', all_varchar=true)) to '{one}/sales.csv'")
    number = FILES

    def delivery() -> Sample:
        nonlocal number
        again = f"select range * {rows // new} as id from range({new})"
        first = rows + (number - FILES) * new
        deliver(many / f"sales_{number:03}.csv", f"{again} union all from range({first}, {first + new})")
        number += 1
        return measure(sales(FOLDER), root, many)

    full = partial(measure, sales(FOLDER, full_refresh=True), root, many)
    variants: dict[str, Callable[[], Sample]] = {"1 %": delivery, "full": full}
    full()
    found = alternate(variants, repetitions)
    with scratch("load-one") as other:
        found |= alternate({"one": partial(measure, sales(""), other, one)}, repetitions)
    return [
        ("full reload of a drop folder ÷ one file of its rows", found["full"], found["one"]),
        ("1 % delivered to a drop folder ÷ full reload", found["1 %"], found["full"]),
    ]


def small_files(count: int, result: Result) -> None:
    """Deliver small files in five parts, and load each."""
    part = count // 5
    rows: list[Sequence[object]] = []
    with scratch("small") as root:
        data = folder(root, "small")
        for number in range(5):
            for file in range(number * part, (number + 1) * part):
                lines = (f"{file * 10 + row},{row},2026-01-01 00:00:00,Berlin,{row}.50\n" for row in range(11))
                (data / f"sales_{file:06}.csv").write_text("id,store_id,sold_at,city,price\n" + "".join(lines))
            sample = measure(sales(FOLDER), root, data)
            rows.append([number * part, part, sample.cpu * 1000 / part, sample.peak_mb])
            print(f"  {rows[-1]}", flush=True)
    columns = ("files there already", "files delivered", "CPU s per 1,000", "peak MB")
    result.table("Small files in a drop folder that merges, 11 rows each", columns, rows)
    # The first load has no rows to compare with.
    result.check("small files: last part ÷ second part", rows[-1][2] / rows[1][2], 1.2)  # type: ignore[operator]


def sales(arguments: str, *, full_refresh: bool = False) -> str:
    return SALES.format(arguments=arguments, full_refresh=full_refresh)


def folder(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


def deliver(path: Path, ids: str, moment: str = MOMENT, price: str = PRICE, delimiter: str = ",") -> None:
    rows = ROWS.format(ids=ids, moment=moment, price=price)
    with duckdb.connect() as connection:
        connection.execute(f"copy ({rows}) to '{path}' (delimiter '{delimiter}')")
