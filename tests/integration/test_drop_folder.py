"""Drop folders: whatever is delivered, corrected and withdrawn, a load leaves what loading all files would give."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from include.dlt_pipelines import drop_folder, file_loader
from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.files import SourceFileError, TableContract
from include.dlt_pipelines.load import load
from include.dlt_pipelines.rejects import RejectedRowsError
from include.runs import artifacts
from include.warehouse.targets import target
from testing.targets import fetch_all

pytestmark = pytest.mark.integration

SEQUENCES = int(os.environ.get("DELIVERY_SEQUENCES", "2"))
KILLS = int(os.environ.get("DELIVERY_KILLS", "4"))

Rows = list[tuple[int | None, str]]


class Folder:
    """A drop folder, what it should lead to, and a warehouse."""

    def __init__(self, path: Path, disposition: Literal["append", "merge"]) -> None:
        self.path, self.disposition = path / "csv", disposition
        self.path.mkdir()
        self.files: dict[str, Rows] = {}
        self.source = self.declare()

    def declare(self, **changes: Any) -> FileSource:
        declared: dict[str, Any] = {"columns": {"id": "BIGINT", "text": "VARCHAR"}, "primary_key": ("id",)} | changes
        table = TableContract("items", **declared, files="items*.csv", write_disposition=self.disposition)
        return FileSource("shop", str(self.path), (table,))

    def deliver(self, name: str, rows: Rows) -> None:
        self.files[name] = rows
        text = "id,text\n" + "".join(f"{'' if key is None else key},{text}\n" for key, text in rows)
        partial = self.path / f".{name}"
        partial.write_text(text)
        partial.rename(self.path / name)

    def withdraw(self, name: str) -> None:
        del self.files[name]
        (self.path / name).unlink()

    def load(self, **options: Any) -> artifacts.Load:
        return load(self.source, "a-run", **options)

    def expected(self) -> list[tuple[Any, ...]]:
        last: dict[int, str] = {}
        for name in sorted(self.files):
            last |= {key: name for key, _ in self.files[name] if key is not None}
        keep = self.disposition == "append"
        return [
            (key, text, name)
            for name, rows in self.files.items()
            for key, text in rows
            if keep or key is None or last[key] == name
        ]

    def check(self) -> None:
        found = query("select id, text, _file from shop_raw.items")
        assert sorted(found, key=repr) == sorted(self.expected(), key=repr)
        if self.disposition == "merge":
            rest = query("select count(*) from shop_raw.items_superseded")[0][0]
            assert len(found) + rest == sum(map(len, self.files.values()))
        assert sorted(query("select file from shop_raw.loaded_files")) == sorted((name,) for name in self.files)


def query(sql: str) -> list[tuple[Any, ...]]:
    with target().open_working() as connection:
        fetch_all(connection)
        return connection.execute(sql).fetchall()


@pytest.fixture(autouse=True)
def _warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path / "warehouse"))


@pytest.fixture
def merged(tmp_path: Path) -> Folder:
    return Folder(tmp_path, "merge")


def change(folder: Folder, dice: random.Random) -> None:
    """Deliver, correct or withdraw something."""
    name = f"items_{dice.randrange(5)}.csv"
    if name in folder.files and len(folder.files) > 1 and dice.random() < 0.3:
        folder.withdraw(name)
        return
    keys = [dice.choice([None, *range(6)]) for _ in range(dice.randrange(1, 6))]
    folder.deliver(name, [(key, f"t{dice.randrange(1000)}") for key in keys])


@pytest.mark.parametrize("seed", range(SEQUENCES))
@pytest.mark.parametrize("disposition", ["append", "merge"])
def test_any_sequence_of_deliveries_leads_to_what_a_full_reload_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disposition: Literal["append", "merge"], seed: int
) -> None:
    monkeypatch.setattr(drop_folder, "_KEYS_AT_ONCE", 2)  # several parts
    monkeypatch.setattr(file_loader, "_TOGETHER", 2)
    folder, dice = Folder(tmp_path, disposition), random.Random(seed)
    for _ in range(6):
        for _ in range(dice.randrange(1, 4)):
            change(folder, dice)
        folder.load()
        folder.check()
    incremental = query("select id, text, _file from shop_raw.items order by all")
    folder.load(full_refresh=True)
    folder.check()
    assert query("select id, text, _file from shop_raw.items order by all") == incremental


def test_a_column_that_old_files_lack_is_optional_with_a_default(merged: Folder) -> None:
    merged.deliver("items_1.csv", [(1, "a"), (2, "b")])
    merged.load()
    (merged.path / "items_2.csv").write_text("text,price,id,note\nc,1.50,2,new\nd,,3,\n")
    columns = {"id": "BIGINT", "text": "VARCHAR", "price": "DECIMAL(9,2)", "note": "VARCHAR"}
    with pytest.raises(SourceFileError, match=r"items_1\.csv:1: column price, note is missing"):
        load(merged.declare(columns=columns), "a-run")
    merged.source = merged.declare(columns=columns, optional={"price": "0.00", "note": 'none, "yet"\nof it'})
    for options in ({}, {"full_refresh": True}):
        merged.load(**options)
        rows = query("select id, text, cast(price as decimal(9, 2)), note from shop_raw.items order by 1")
        assert [tuple(map(str, row)) for row in rows] == [
            ("1", "a", "0.00", 'none, "yet"\nof it'),
            ("2", "c", "1.50", "new"),
            ("3", "d", "None", "None"),
        ]
    merged.source = merged.declare(columns=columns, optional={"price": None, "note": None})
    merged.load()
    assert query("select price, note from shop_raw.items where id = 1") == [(None, None)]


@pytest.mark.parametrize(
    ("optional", "problem"),
    [
        ({"id": "1"}, "id cannot be optional"),
        ({"x": "1"}, "x cannot"),
        ({"n": "one"}, "the default 'one' is no BIGINT"),
    ],
)
def test_a_default_that_cannot_be_is_refused(merged: Folder, optional: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        merged.declare(columns={"id": "BIGINT", "n": "BIGINT"}, optional=optional)


def test_a_file_name_that_is_not_utf8_is_named(merged: Folder) -> None:
    merged.deliver("items_1.csv", [(1, "a")])
    (merged.path / os.fsdecode(b"items_\xe9.csv")).write_text("id,text\n2,b\n")
    with pytest.raises(SourceFileError, match=r"the name of b'items_\\xe9.csv' is not UTF-8"):
        merged.load()


def test_a_key_may_be_named_as_what_is_compared(merged: Folder) -> None:
    merged.source = merged.declare(columns={"_last": "BIGINT", "latest": "VARCHAR"}, primary_key=("_last", "latest"))
    for name in ("items_1.csv", "items_2.csv"):
        (merged.path / name).write_text("_last,latest\n1,a\n")
        merged.load()
    assert query("select _last, latest, _file from shop_raw.items") == [(1, "a", "items_2.csv")]


def test_only_new_and_changed_files_are_read_and_their_rows_alone_get_a_new_load_id(merged: Folder) -> None:
    merged.deliver("items_1.csv", [(1, "a"), (2, "b")])
    merged.deliver("items_2.csv", [(2, "c")])
    first = merged.load()
    assert first.tables["items"].files == 2
    before = query("select build_id from warehouse.builds where node = 'shop_raw.items'")[-1]
    again = merged.load()
    assert (again.tables["items"].files, again.rows_loaded) == (0, 0)
    assert query("select build_id from warehouse.builds where node = 'shop_raw.items' order by version")[-1] == before
    os.utime(merged.path / "items_1.csv")  # touched, not changed
    assert merged.load().tables["items"].files == 0

    merged.deliver("items_3.csv", [(3, "d")])
    third = merged.load()
    assert (third.tables["items"].files, third.tables["items"].files_removed, third.rows_loaded) == (1, 0, 1)
    ids = dict(query("select id, _dlt_load_id from shop_raw.items"))
    assert (ids[1], ids[3]) == (first.load_id, third.load_id)

    merged.withdraw("items_2.csv")
    fourth = merged.load()
    assert (fourth.tables["items"].files, fourth.tables["items"].files_removed) == (0, 1)
    assert query("select text, _dlt_load_id from shop_raw.items where id = 2") == [("b", fourth.load_id)], (
        "it returns as a row of this load, so that incremental models notice"
    )


def test_a_changed_contract_or_a_lost_record_of_files_loads_everything_again(merged: Folder) -> None:
    merged.deliver("items_1.csv", [(1, "a")])
    merged.deliver("items_2.csv", [(2, "b")])
    merged.load()
    merged.source = merged.declare(columns={"id": "INTEGER", "text": "VARCHAR"})
    assert merged.load().tables["items"].files == 2
    assert query("select typeof(id) from shop_raw.items limit 1") == [(target().stored_type("INTEGER"),)]
    merged.deliver("items_3.csv", [(2, "c")])
    for merged.disposition in ("append", "merge"):
        merged.source = merged.declare()
        assert merged.load().tables["items"].files == 3
        merged.check()
    with target().open_working() as connection:
        target().drop(connection, "shop_raw", "loaded_files")
    assert merged.load().tables["items"].files == 3
    merged.check()


def test_an_empty_folder_is_an_error_and_not_a_withdrawal_of_everything(merged: Folder) -> None:
    with pytest.raises(SourceFileError, match=r"items\*\.csv: no such file\. Deliver one there"):
        merged.load()
    merged.deliver("items_1.csv", [(1, "a")])
    merged.load()
    (merged.path / "items_1.csv").rename(merged.path / "elsewhere.csv")
    with pytest.raises(SourceFileError, match="no such file"):
        merged.load()
    merged.check()


def test_a_file_that_is_there_twice_or_is_none_is_an_error(merged: Folder) -> None:
    merged.deliver("items_1.csv", [(1, "a")])
    (merged.path / "items_1.csv.gz").write_bytes(b"")
    with pytest.raises(SourceFileError, match=r"items_1\.csv\.gz: items_1.csv exists too"):
        merged.load()
    (merged.path / "items_1.csv.gz").unlink()
    (merged.path / "items_2.csv").symlink_to("nowhere")
    with pytest.raises(SourceFileError, match=r"items_2\.csv: is not a file"):
        merged.load()


def test_all_bad_files_are_named_and_a_rejected_row_keeps_the_whole_delivery_out(merged: Folder) -> None:
    merged.deliver("items_1.csv", [(1, "a")])
    merged.load()
    for name in ("items_2.csv", "items_3.csv"):
        (merged.path / name).write_text("id\n1\n")
    with pytest.raises(SourceFileError, match=r"items_2\.csv:1: column text is missing[\s\S]*items_3\.csv:1: column"):
        merged.load()
    (merged.path / "items_2.csv").write_text("id,text\n2,b\n")
    (merged.path / "items_3.csv").write_text("id,text\nthree,c\n3,c\n")
    with pytest.raises(RejectedRowsError, match=r"items_3\.csv:2: column id: id: not a valid BIGINT"):
        merged.load()
    merged.check()
    tolerated = merged.load(max_rejected_rows=1)
    assert (tolerated.rows_loaded, tolerated.rows_rejected) == (2, 1)
    assert query("select id from shop_raw.items order by 1") == [(1,), (2,), (3,)]
    assert merged.load().rows_rejected == 0, "tolerated once; the file is not read again"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"files": "2026/*.csv"}, "names in the source's folder, without a path"),
        ({"write_disposition": "merge"}, "merge needs `files` and a primary_key"),
        ({"files": "a*.csv", "columns": {"_file": "VARCHAR"}}, "each load adds the column _file"),
    ],
)
def test_a_wrong_declaration_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableContract(**{"name": "items", "columns": {"id": "BIGINT"}, "primary_key": ("id",)} | wrong)


def test_loads_killed_at_any_moment_never_double_or_lose_a_row(tmp_path: Path) -> None:
    """Each delivery is loaded by a process that is killed at a random moment, then by one that is not."""
    folder, dice = Folder(tmp_path, "merge"), random.Random(int(os.environ.get("DELIVERY_SEED", "1")))
    program = (
        "import sys; from include.dlt_pipelines.load import load; from include.dlt_pipelines.file_source import *;"
        "table = TableContract('items', {'id': 'BIGINT', 'text': 'VARCHAR'}, ('id',), files='items*.csv',"
        " write_disposition='merge'); source = FileSource('shop', sys.argv[1], (table,));"
        "print('ready', flush=True); load(source, 'a-run')"
    )
    killed = 0
    for number in range(KILLS):
        for _ in range(2):
            change(folder, dice)
        folder.deliver(f"items_9{number}.csv", [(dice.randrange(20_000), f"r{number}") for _ in range(20_000)])
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout and process.stdout.readline() == "ready\n"
        time.sleep(dice.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        folder.load()
        folder.check()
    assert killed
    assert query("select count(*) > 0 from shop_raw.items_superseded") == [(True,)]
