"""The load from the command line, against a real warehouse."""

import gzip
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from include.warehouse import builds, paths
from include.warehouse.targets import duckdb_file, target
from testing.project import NAME

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop"]
COUNTS = {"raw_customers": 100, "raw_orders": 99, "raw_payments": 113}


class Shop:
    """A folder of CSV files and a warehouse."""

    def __init__(self, folder: Path) -> None:
        self.data, self.warehouse = folder / "csv", folder / "warehouse"
        shutil.copytree(ROOT / "include" / "data", self.data)

        self.environment = os.environ | {
            "WAREHOUSE_DIR": str(self.warehouse),
            "SOURCES__JAFFLE_SHOP__DATA_DIR": str(self.data),
            "WAREHOUSE_LOCK_TIMEOUT": "5",
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [*COMMAND, *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def load(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out + err

    def query(self, sql: str) -> list[tuple]:
        with duckdb.connect(str(self.warehouse / f"{NAME}.duckdb")) as connection:
            return connection.execute(sql).fetchall()

    def counts(self) -> dict[str, int]:
        return {table: self.query(f"select count(*) from jaffle_shop_raw.{table}")[0][0] for table in COUNTS}

    def append(self, table: str, line: str) -> None:
        with (self.data / f"{table}.csv").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_the_shipped_files_match_the_generators_output(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "include.generate_data", "--out", tmp_path], cwd=ROOT, check=True)
    for table in COUNTS:
        shipped = ROOT / "include" / "data" / f"{table}.csv"
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes()


def test_all_tables_are_loaded_under_one_load_id(shop: Shop) -> None:
    code, output = shop.load()
    assert code == 0, output
    assert shop.counts() == COUNTS
    ids = " union ".join(f"select _dlt_load_id from jaffle_shop_raw.{table}" for table in COUNTS)
    assert len(shop.query(ids)) == 1
    assert shop.query(f"{ids} except select load_id from jaffle_shop_raw._dlt_loads") == []
    assert list((shop.warehouse / "artifacts").glob("*/load-*.json"))
    assert not (shop.warehouse / "load").exists()


def test_a_rejected_row_fails_the_load_is_kept_and_leaves_the_tables_unchanged(shop: Shop) -> None:
    assert shop.load()[0] == 0
    before = shop.query("select distinct _dlt_load_id from jaffle_shop_raw.raw_orders")
    shop.append("raw_orders", "100,1,yesterday,placed")
    code, output = shop.load()
    assert code == 1
    assert "raw_orders.csv:101" in output
    assert "order_date: not a valid DATE" in output
    assert "yesterday" not in output, "everyone can read the log"
    kept = shop.query("select line, column_name, text from jaffle_shop_raw.rejected_rows")
    assert kept == [(101, "order_date", "100,1,yesterday,placed")]
    assert shop.counts() == COUNTS
    assert shop.query("select distinct _dlt_load_id from jaffle_shop_raw.raw_orders") == before


def test_tolerated_rows_are_kept_and_the_rest_loaded(shop: Shop) -> None:
    shop.append("raw_orders", "100,1,yesterday,placed")
    shop.append("raw_payments", "114,1,coupon")
    assert shop.load("--max-rejected-rows", "1")[0] == 1
    code, output = shop.load("--max-rejected-rows", "2")
    assert code == 0, output
    assert shop.counts() == COUNTS
    last = "(select max(_dlt_load_id) from jaffle_shop_raw.rejected_rows)"
    kept = shop.query(f"select table_name from jaffle_shop_raw.rejected_rows where _dlt_load_id = {last} order by all")
    assert kept == [("raw_orders",), ("raw_payments",)]


def test_rejected_rows_are_kept_once_for_a_files_content_and_not_published_if_their_load_failed(shop: Shop) -> None:
    kept = "select text from jaffle_shop_raw.rejected_rows order by 1"
    shop.append("raw_orders", "100,1,yesterday,placed")
    for _ in range(3):
        assert shop.load()[0] == 1
    assert shop.query(kept) == [("100,1,yesterday,placed",)]
    for _ in range(2):
        assert shop.load("--max-rejected-rows", "1")[0] == 0
    assert shop.query(kept) == [("100,1,yesterday,placed",)]
    shop.append("raw_payments", "114,1,coupon")
    assert shop.load("--max-rejected-rows", "1")[0] == 1
    assert sorted({text for (text,) in shop.query(kept)}) == ["100,1,yesterday,placed", "114,1,coupon"]
    # As publish does, of a run that loaded before; and as the next load does.
    with duckdb.connect(str(shop.warehouse / f"{NAME}.duckdb")) as connection:
        builds.drop_rejects_of_failed_loads(connection, "jaffle_shop_raw")
    assert shop.query(kept) == [("100,1,yesterday,placed",)]
    assert shop.load("--max-rejected-rows", "2")[0] == 0
    assert len(shop.query(kept)) == 2


def test_problems_in_several_files_are_reported_together(shop: Shop) -> None:
    (shop.data / "raw_orders.csv").unlink()
    (shop.data / "raw_payments.csv").write_text("")
    code, output = shop.load()
    assert code == 1
    assert "raw_orders.csv: no such file" in output
    assert "raw_payments.csv: the file is empty" in output
    assert "Traceback" not in output


def test_duplicate_and_missing_keys_are_loaded_and_left_to_dbt_tests(shop: Shop) -> None:
    shop.append("raw_orders", "1,1,2025-01-01,lost")
    shop.append("raw_orders", ",1,2025-01-01,placed")
    assert shop.load()[0] == 0
    assert shop.counts()["raw_orders"] == 101


def test_gzipped_files_are_loaded(shop: Shop) -> None:
    plain = shop.data / "raw_orders.csv"
    (shop.data / "raw_orders.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert shop.load()[0] == 0
    assert shop.counts() == COUNTS


def test_a_lock_held_by_another_process_is_reported_after_the_timeout(shop: Shop) -> None:
    assert shop.load()[0] == 0
    shop.environment["WAREHOUSE_LOCK_TIMEOUT"] = "1"
    path = str(shop.warehouse / f"{NAME}.duckdb")
    code = f"import duckdb, sys; connection = duckdb.connect({path!r}); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        code, output = shop.load()
    finally:
        holder.kill()
        holder.wait()
    assert code == 1
    assert str(holder.pid) in output
    assert "published" in output
    assert shop.load()[0] == 0


def test_a_load_killed_at_any_time_leaves_one_complete_load_and_needs_no_repair(shop: Shop) -> None:
    assert shop.load()[0] == 0
    choose = random.Random(7)
    for _ in range(6):
        process = shop.start()
        time.sleep(choose.uniform(0.3, 2.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ids = " union ".join(f"select _dlt_load_id from jaffle_shop_raw.{table}" for table in COUNTS)
        assert len(shop.query(ids)) == 1
        assert shop.counts() == COUNTS
    code, output = shop.load()
    assert code == 0, output
    assert not (shop.warehouse / "load").exists()


@pytest.mark.long
def test_memory_stays_flat_on_millions_of_rows(shop: Shop) -> None:
    peaks = []
    for millions in (1, 3):
        with duckdb.connect() as connection:
            connection.execute(
                f"copy (select i as id, i % 99 + 1 as order_id, 'coupon' as payment_method, i % 5000 as amount "
                f"from range({millions}000000) t(i)) to '{shop.data / 'raw_payments.csv'}' (header)"
            )
        process = shop.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, process.stderr and process.stderr.read()
        peaks.append(usage.ru_maxrss / 1024)
    assert shop.counts()["raw_payments"] == 3_000_000
    assert max(peaks) < 1000
    assert peaks[1] < 2 * peaks[0]


def test_a_file_that_grows_during_the_load_fails_it_and_leaves_the_tables_unchanged(shop: Shop) -> None:
    assert shop.load()[0] == 0
    with duckdb.connect() as connection:
        connection.execute(
            f"copy (select i as id, 1 as order_id, 'coupon' as payment_method, i as amount from range(300000) t(i)) "
            f"to '{shop.data / 'raw_payments.csv'}' (header)"
        )
    process = shop.start()
    while process.poll() is None and not list((shop.warehouse / "load").glob("*/*/raw_payments.parquet")):
        time.sleep(0.01)
    shop.append("raw_payments", "0,1")  # half a row, which must not be reported as a bad one
    _, output = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "raw_payments.csv: modified while being read" in output
    assert shop.counts() == COUNTS


@pytest.mark.long
def test_a_million_bad_rows_are_all_kept_with_a_short_message_and_flat_memory(shop: Shop) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            f"copy (select i as id, 'x' as order_id, repeat('long ', 20) as payment_method, 1 as amount "
            f"from range(1000000) t(i)) to '{shop.data / 'raw_payments.csv'}' (header)"
        )
    with (shop.warehouse.parent / "output").open("w+") as output:
        process = subprocess.Popen(COMMAND, cwd=ROOT, env=shop.environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        message = output.read()
    assert process.returncode == 1
    assert "1000000 row(s) rejected, at most 0 tolerated" in message
    assert len(message) < 5000
    assert shop.query("select count(*), min(line), max(line) from jaffle_shop_raw.rejected_rows") == [
        (1_000_000, 2, 1_000_001)
    ]
    assert usage.ru_maxrss / 1024 < 1000


def test_a_changed_column_type_is_reported(shop: Shop) -> None:
    assert shop.load()[0] == 0
    shop.query("alter table jaffle_shop_raw.raw_payments alter amount type varchar")
    shop.query("alter table jaffle_shop_raw.raw_orders drop status")
    code, output = shop.load()
    assert code == 0, output
    assert "raw_payments.amount: VARCHAR -> BIGINT" in output
    assert "raw_orders.status: absent -> VARCHAR" in output


def test_two_concurrent_loads_take_turns(shop: Shop) -> None:
    shop.environment["WAREHOUSE_LOCK_TIMEOUT"] = "60"
    both = [shop.start(), shop.start()]
    for process in both:
        output = process.communicate(timeout=120)[1]
        assert process.returncode == 0, output
    assert shop.counts() == COUNTS


def test_a_restore_keeps_a_load_out_even_without_a_working_file(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(shop.warehouse))
    shop.warehouse.mkdir()
    shop.environment["WAREHOUSE_LOCK_TIMEOUT"] = "0"
    with duckdb_file._not_open(paths.working_path()):
        code, output = shop.load()
    assert code == 1 and "is locked by" in output and str(os.getpid()) in output, output
    assert "The next load creates a new working database" in target().restore()
    assert not paths.working_path().exists()
    assert shop.load()[0] == 0


def test_a_warehouse_that_cannot_be_written_is_reported_with_the_remedy(shop: Shop) -> None:
    shop.warehouse.write_text("a file where the folder should be")
    code, output = shop.load()
    assert code == 1 and "This user cannot write the working database" in output and "WAREHOUSE_DIR" in output, output
    assert "Traceback" not in output


def test_source_files_are_not_modified(shop: Shop) -> None:
    def digests() -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(shop.data.iterdir())]

    before = digests()
    assert shop.load()[0] == 0
    assert digests() == before
