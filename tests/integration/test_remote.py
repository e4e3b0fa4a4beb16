"""BigQuery and Snowflake on emulators, end to end and killed. Their conformance tests: `pytest --target bigquery`."""

import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from dbt_common.exceptions import DbtDatabaseError

from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.jaffle_shop_pipeline import SOURCE
from include.dlt_pipelines.load import load
from include.dlt_pipelines.rejects import RejectedRowsError
from include.patches import dbt_values
from include.runs.publish import publish
from include.settings import DBT_PROJECT
from include.warehouse.__main__ import main
from include.warehouse.builds import loads, record_load
from include.warehouse.errors import NotReadyError, WarehouseError
from include.warehouse.targets import target
from testing import targets
from testing.classic import CLASSIC

pytestmark = [pytest.mark.integration, pytest.mark.long]

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT / "include" / "data"
READERS = "jaffle_shop_marts"
Server = targets.InBigQuery | targets.InSnowflake


@pytest.fixture(scope="module", params=["bigquery", "snowflake"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with targets.started(request.param) as server:
        assert isinstance(server, Server)
        yield server


@dataclass
class Warehouse:
    """A place on the emulator, a folder of CSV files, and the jaffle shop's dbt project."""

    server: Server
    folder: Path
    env: dict[str, str]

    def deliver(self, payments: int | None = None) -> None:
        """Put the shop's files into the folder, of payments only the first ones."""
        (self.folder / "csv").mkdir(exist_ok=True)
        for path in DATA.glob("raw_*.csv"):
            lines = path.read_text().splitlines()
            kept = lines[: payments + 1] if payments and path.stem == "raw_payments" else lines
            (self.folder / "csv" / path.name).write_text("\n".join(kept) + "\n")

    @property
    def place(self) -> str:
        return self.env.get("BIGQUERY_PROJECT") or self.env["SNOWFLAKE_DATABASE"]

    @property
    def source(self) -> FileSource:
        return replace(SOURCE, folder=str(self.folder / "csv"))

    def dbt(self, *words: str) -> subprocess.CompletedProcess[str]:
        project = self.folder / "project"
        command = [Path(sys.executable).with_name("dbt"), "--quiet", *words, "--project-dir", project]
        done = subprocess.run(
            [*command, "--profiles-dir", project],
            env=os.environ | {"PYTHONPATH": str(PROJECT), "DBT_LOG_PATH": str(self.folder / "logs")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def publish(self, run_id: str) -> None:
        self.dbt("parse")
        publish(run_id, self.folder / "project" / "target" / "manifest.json")

    def read(self, sql: str) -> list[tuple[Any, ...]]:
        return self.server.read(sql)


@pytest.fixture
def warehouse(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    env = server.new(tmp_path) | {"WAREHOUSE_LOCK_TIMEOUT": "20"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    project = tmp_path / "project"
    shutil.copytree(DBT_PROJECT, project, ignore=shutil.ignore_patterns("target", "logs", "dbt_packages"))
    (project / "dbt_packages").mkdir()
    (project / "dbt_packages" / "warehouse").symlink_to(PROJECT / "include" / "dbt_warehouse")
    server.adapt(project)
    return Warehouse(server, tmp_path, env)


def test_a_run_ends_in_the_marts_of_the_file(warehouse: Warehouse, capsys: pytest.CaptureFixture[str]) -> None:
    warehouse.deliver()
    warehouse.read("create schema jaffle_shop")
    warehouse.read("create table jaffle_shop.staging_1 (i integer)")  # of a load that was killed long ago
    assert target().list_releases() == []
    load(warehouse.source, "one")
    with pytest.raises(NotReadyError):
        warehouse.publish("one")
    warehouse.dbt("build")
    warehouse.publish("one")
    oracle = duckdb.connect()
    oracle.execute(CLASSIC.format(data=DATA))
    for mart in ("customers", "orders"):
        expected = oracle.execute(f"from classic_{mart} order by 1").fetchall()
        assert warehouse.read(f"select * from {READERS}.{mart} order by 1") == expected
    # More cents than a double holds.
    warehouse.read("insert into jaffle_shop_raw.raw_payments (id, amount) values (-1, 9007199254740993)")
    [(paid,)] = warehouse.read("select amount from staging.stg_payments where payment_id = -1")
    assert str(paid).rstrip("0") == "90071992547409.93"
    warehouse.read("delete from jaffle_shop_raw.raw_payments where id = -1")
    remote: Any = target()
    assert {one.table for one in remote.columns_there(["jaffle_shop"])} == {"releases"}
    capsys.readouterr()
    assert main(["show"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"marts.orders +99", shown) and "jaffle_shop_raw.raw_payments" in shown
    assert f"{READERS} of {warehouse.place}" in shown

    first = warehouse.read(f"select sum(credit_card_amount) from {READERS}.orders")
    warehouse.deliver(payments=50)
    load(warehouse.source, "two")
    with pytest.raises(NotReadyError, match="ran before"):
        warehouse.publish("two")
    warehouse.dbt("build")
    warehouse.publish("two")
    second = warehouse.read(f"select sum(credit_card_amount) from {READERS}.orders")
    assert first != second
    assert [one.id for one in target().list_releases() if one.published] == ["two"]
    target().rollback("one")
    assert warehouse.read(f"select sum(credit_card_amount) from {READERS}.orders") == first
    assert main(["releases"]) == 0
    assert re.search(r"^\* +one ", capsys.readouterr().out, re.MULTILINE)
    warehouse.dbt("source", "freshness")

    assert "now those of one" in target().restore()
    assert warehouse.read("select count(*) from jaffle_shop_raw.raw_payments") == [(113,)]
    with pytest.raises(NotReadyError, match="nothing was loaded"):
        warehouse.publish("three")
    load(warehouse.source, "three")
    warehouse.dbt("build")
    warehouse.publish("three")
    assert warehouse.read(f"select sum(credit_card_amount) from {READERS}.orders") == second


def test_dbts_error_shows_no_value_of_a_row_and_still_says_what_failed() -> None:
    adapter: Any = pytest.importorskip("dbt.adapters.bigquery.connections", reason="needs make test-clouds")
    manager = adapter.BigQueryConnectionManager
    bad_request: Any = importlib.import_module("google.api_core.exceptions").BadRequest
    dbt_values.apply(manager)
    for text, shown in (("Bad int64 value: a person", "Bad int64 value: ***"), ("No such column: x",) * 2):
        with pytest.raises(DbtDatabaseError) as failed, manager.exception_handler(manager, "select 1"):
            raise bad_request(text, errors=[{"message": text, "reason": "invalidQuery"}])
        assert failed.value.msg == shown


def test_what_is_published_moves_to_a_file_and_back(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warehouse.deliver()
    load(warehouse.source, "one")
    warehouse.dbt("build")
    warehouse.publish("one")
    sums = "select count(*), sum(customer_id), sum(number_of_orders) from {}"
    there = warehouse.read(sums.format(f"{READERS}.customers"))
    monkeypatch.setenv("DBT_TARGET", "duckdb")
    monkeypatch.setenv("WAREHOUSE_DIR", str(warehouse.folder / "file"))
    assert main(["copy-from", warehouse.server.name]) == 0
    with target().open_working() as connection:
        assert connection.execute(sums.format("marts.customers")).fetchall() == there
        assert [one.run_id for one in loads(connection)][:1] == ["one"]
    target().publish("in-a-file", lambda _: None)
    for name, value in warehouse.server.new(warehouse.folder / "back").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WAREHOUSE_DIR", str(warehouse.folder / "file"))
    assert main(["copy-from", "duckdb"]) == 0
    assert warehouse.read(sums.format("marts.customers")) == there


def test_values_come_back_as_they_were(warehouse: Warehouse) -> None:
    kept = {
        "tiny": "1::tinyint",
        "big": "9223372036854775807::bigint",
        "money": "90071992547409.93::decimal(38, 2)",
        "share": "1.2345::decimal(10, 4)",
        "number": "1.5::double",
        "text": "'it''s \\ \"x\" é %s ;' || chr(10) || 'b'",
        "nothing": "''",
        "bytes": "'ab\\x00'::blob",
        "day": "date '2026-01-02'",
        "hour": "time '10:11:12.123456'",
        "moment": "timestamp '1600-01-02 03:04:05.123456'",
        "instant": "timestamptz '2026-01-02 03:04:05.123456+02'",
        "truth": "true",
        "name": "uuid '7f3a0b3c-0000-4000-8000-000000000001'",
        "items": "[1, 2]::json",
    }
    values = ", ".join(f"{value} as {name}_" for name, value in kept.items())
    with target().open_working() as connection:
        connection.execute("create schema marts")
        query = f"select {values} union all select {', '.join(['null'] * len(kept))}"
        connection.execute(f"create table marts.kept as {query}")
        expected = connection.execute("select cast(name_ as varchar), * exclude name_ from marts.kept").fetchall()
    with target().open_working() as connection:
        target().fetch(connection, "marts", lambda _: True)
        found = connection.execute("select name_, * exclude name_ from marts.kept").fetchall()
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_rejected_rows_are_kept_and_a_load_that_rejects_too_many_changes_nothing(warehouse: Warehouse) -> None:
    warehouse.deliver()
    load(warehouse.source, "one")
    with (warehouse.folder / "csv" / "raw_orders.csv").open("a") as file:
        file.write("x,1,2025-01-01,placed\n")
    with pytest.raises(RejectedRowsError, match="column id"):
        load(warehouse.source, "two")
    assert warehouse.read("select count(*) from jaffle_shop_raw.raw_orders") == [(99,)]
    assert warehouse.read("select line, column_name from jaffle_shop_raw.rejected_rows") == [(101, "id")]
    load(warehouse.source, "two", max_rejected_rows=1)
    assert warehouse.read("select count(*) from jaffle_shop_raw.raw_orders") == [(99,)]
    assert warehouse.read("select count(*) from jaffle_shop_raw.rejected_rows") == [(1,)]


def test_a_drop_folder_adds_changes_and_withdraws_files_like_a_full_reload(warehouse: Warehouse) -> None:
    folder = warehouse.folder / "drop"
    folder.mkdir()
    table = TableContract(
        "visits",
        {"id": "BIGINT", "price": "DECIMAL(10, 2)", "at": "TIMESTAMP"},
        ("id",),
        files="visits_*.csv",
        write_disposition="merge",
    )
    source = FileSource("drop", str(folder), (table,))
    rows = "select id, price, _file from drop_raw.visits order by 1"

    def deliver(name: str, text: str) -> None:
        (folder / f"visits_{name}.csv").write_text(f"id,price,at\n{text}")

    deliver("1", "1,1.50,2026-01-01 10:00:00\n2,2.50,2026-01-01 10:00:00\n")
    load(source, "one")
    deliver("2", "2,9.99,2026-01-02 10:00:00\n3,3.00,2026-01-02 10:00:00\n")
    load(source, "two")
    deliver("1", "1,7.00,2026-01-01 10:00:00\n2,2.50,2026-01-01 10:00:00\n")
    load(source, "three")
    found = warehouse.read(rows)
    assert [(row[0], str(row[1]).rstrip("0")) for row in found] == [(1, "7."), (2, "9.99"), (3, "3.")]
    load(source, "four", full_refresh=True)
    assert warehouse.read(rows) == found
    (folder / "visits_2.csv").unlink()
    load(source, "five")
    assert [(row[0], str(row[1]).rstrip("0")) for row in warehouse.read(rows)] == [(1, "7."), (2, "2.5")]


def test_a_load_from_another_machine_meanwhile_is_not_overwritten(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse.deliver()
    load(warehouse.source, "one")
    with pytest.raises(WarehouseError, match="somebody else has loaded meanwhile"), target().open_working() as ours:
        with monkeypatch.context() as patch:
            patch.setenv("WAREHOUSE_DIR", str(warehouse.folder / "another-machine"))
            load(warehouse.source, "two")
        with target().transaction(ours):
            record_load(ours, "three", {"jaffle_shop_raw.raw_orders": "older"})
    with target().open_working() as connection:
        assert {one.run_id for one in loads(connection)} == {"two"}


@pytest.mark.timeout(1800)
def test_readers_see_one_release_whatever_is_published_or_killed(warehouse: Warehouse) -> None:
    """A hundred publishes, two readers in a loop; each release has one number in both tables. Others are killed."""
    build = (
        "import sys\n"
        "from include.warehouse.targets import target\n"
        "with target().open_working() as db:\n"
        "    db.execute('create schema if not exists marts')\n"
        "    for table in ('a', 'b'):\n"
        "        target().drop(db, 'marts', table)\n"
        "        db.execute(f'create table marts.{table} as select {sys.argv[1]} as n from range(50)')\n"
        "target().publish(f'run-{sys.argv[1]}', lambda _: None)\n"
    )
    code = warehouse.folder / "build.py"
    code.write_text(build)

    def start(number: int) -> "subprocess.Popen[bytes]":
        env = os.environ | {"PYTHONPATH": str(PROJECT)}
        return subprocess.Popen([sys.executable, code, str(number)], env=env, stderr=subprocess.DEVNULL)

    assert start(0).wait() == 0
    done, seen, wrong = threading.Event(), [], []

    def look() -> None:
        query = f"select distinct n from {READERS}.a union all select distinct n from {READERS}.b"
        while not done.is_set():
            try:
                numbers = [row[0] for row in warehouse.read(query)]
                (seen if len(numbers) == 2 and len(set(numbers)) == 1 else wrong).append(numbers)
            except Exception as error:  # noqa: BLE001, whatever a reader gets counts
                wrong.append(error)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    moments, ends = random.Random(1), []
    for number in range(1, 150):
        process = start(number)
        if number % 3 == 0:
            try:
                process.wait(moments.uniform(0.6, 3.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        ends.append(process.wait())
    ends.append(start(150).wait())
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong, wrong[:5]
    assert set(ends) == {0, -signal.SIGKILL} and min(ends.count(0) - 80, ends.count(-signal.SIGKILL)) >= 20, ends
    assert len({numbers[0] for numbers in seen}) > 50, len(seen)
    assert warehouse.read(f"select distinct n from {READERS}.a") == [(150,)]
    print(json.dumps({"reads": len(seen), "published": ends.count(0), "killed": len(ends) - ends.count(0)}))
    listed = {one.location for one in target().list_releases()}
    remote: Any = target()
    assert {name.split("_")[3] for name in remote.schemas() if name.startswith("jaffle_shop_release_")} == listed


def test_a_killed_load_changes_nothing_or_everything(warehouse: Warehouse) -> None:
    rows = "select (select count(*) from jaffle_shop_raw.raw_payments), (select max(version) from warehouse.builds)"
    warehouse.deliver()
    load(warehouse.source, "start")
    code = warehouse.folder / "load.py"
    code.write_text(
        "import sys\nfrom dataclasses import replace\nfrom include.dlt_pipelines.load import load\n"
        "from include.dlt_pipelines.jaffle_shop_pipeline import SOURCE\n"
        "load(replace(SOURCE, folder=sys.argv[1]), sys.argv[2])\n"
    )
    moments, killed = random.Random(2), 0
    [(count, version)] = warehouse.read(rows)
    for number in range(40):
        wanted = 50 if count == 113 else 113
        warehouse.deliver(payments=wanted)
        process = subprocess.Popen(
            [sys.executable, code, str(warehouse.folder / "csv"), f"load-{number}"],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(moments.uniform(1.5, 4.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        time.sleep(0.3)  # what the service had received is done
        [(now, its_version)] = warehouse.read(rows)
        assert (now == wanted) == (its_version > version) and now in (count, wanted)
        count, version = now, its_version
    assert killed >= 20
    print(json.dumps({"killed": killed}))
    load(warehouse.source, "end")
