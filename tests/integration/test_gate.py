"""A release that changes too much of a mart waits for a person, on every target; whoever is killed, readers see one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from include.change import gate, releases
from include.change.databases import find_before, find_database
from include.change.report import summarize
from include.runs import artifacts
from include.warehouse.errors import UnknownReleaseError, WarehouseError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from testing.project import unchecked
from testing.targets import fetch_all

pytestmark = pytest.mark.integration

ROWS = "create or replace table marts.t as select i as id, i % 7 as part, i as x from range(100) t(i)"
Publish = Callable[..., Release]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Publish:
    if request.config.getoption("--target") == "duckdb":
        monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    node = {
        "resource_type": "model",
        "unique_id": "model.p.t",
        "name": "t",
        "schema": "marts",
        "alias": "t",
        "config": {},
        "columns": {"id": {"name": "id"}, "x": {"name": "x"}},
    }
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"nodes": {"model.p.t": node}, "sources": {}, "exposures": {}}))

    def run(run_id: str, sql: str = ROWS, percent: float = 20.0) -> Release:
        with target().open_working() as connection:
            connection.execute("create schema if not exists marts")
            fetch_all(connection)
            for one in sql.split(";"):
                connection.execute(one)
        artifacts.keep_manifest(manifest, run_id)
        return target().publish(run_id, unchecked, gate=lambda new: gate.must_wait(new, manifest, percent))

    return run


def seen() -> object:
    with target().open_release() as connection:
        return connection.execute("select count(*), cast(sum(x) as bigint) from marts.t").fetchone()


def waiting() -> str:
    found = target().waiting_release()
    return found.id if found else ""


def reasons(run_id: str) -> list[str]:
    decision = gate.decision_of(run_id)
    return list(decision.reasons) if decision else []


def test_a_release_waits_is_approved_refused_or_superseded(publish: Publish) -> None:
    assert publish("one").published
    assert publish("two", "update marts.t set x = x + 1 where id < 20").published  # 20 %, 4 % of the sum
    assert reasons("two") == []
    third = publish("three", "update marts.t set x = x + 1 where id < 21")
    assert (third.published, waiting(), seen()) == (False, "three", (100, 4970))
    assert reasons("three") == [
        "marts.t: 21 % of its rows: 100 rows: 0 added, 0 removed, 21 changed by id",
    ]
    assert "three waits for approval" in str(gate.waits("three"))
    # Nobody takes it for one that readers have seen.
    assert [one.id for one in target().list_releases()] == ["two", "one"]
    with pytest.raises(UnknownReleaseError):
        target().rollback("three")
    assert find_before(find_database("three")).id == "two"
    kept = releases.difference_of("three")
    assert kept is not None
    assert summarize(kept.tables[0]).endswith("21 changed by id")

    # The next run takes its place, whether it waits or not.
    assert not publish("four", "update marts.t set x = 2 * x").published
    assert (waiting(), seen()) == ("four", (100, 4970))
    with pytest.raises(UnknownReleaseError, match="The release four does"):
        gate.decide("three", approved=True, note="fine")
    with pytest.raises(ValueError, match="a decision needs a note"):
        gate.decide("four", approved=True, note=" ")
    released = gate.decide("four", approved=True, note="prices\nhave doubled", by="ann")
    assert (released.published, waiting(), seen()) == (True, "", (100, 9982))
    assert [(one.id, one.published) for one in target().list_releases()][:2] == [("four", True), ("two", False)]
    decision = gate.decision_of("four")
    assert decision is not None
    assert (decision.state, decision.by, decision.note) == ("approved", "ann", "prices have doubled")
    assert decision.reasons[0].startswith("marts.t: 100 % of its rows")

    assert not publish("five", "delete from marts.t where id > 50").published
    gate.decide("five", approved=False, note="half of it is missing", by="ann")
    assert (waiting(), seen()) == ("", (100, 9982))
    with pytest.raises(UnknownReleaseError, match="None does"):
        gate.decide("five", approved=True, note="after all")
    assert publish("six", "delete from marts.t; insert into marts.t select i, i % 7, 2 * i from range(100) t(i)", 100)
    assert target().rollback("four").published
    assert not publish("six", "delete from marts.t where id > 50").published  # a run again, whose release is kept
    assert seen() == (100, 9982)
    gate.decide("six", approved=True, note="fine")
    assert (seen(), waiting()) == ((51, 2550), "")


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("drop table marts.t; create table marts.u as select 1 as id", "100 % of its rows: gone, 100 rows"),
        ("insert into marts.t select 100, 1, 4000", "80.81 % of the sum of x"),
        # A column that dbt's documentation does not have: its sum is not in the difference, but counts.
        ("insert into marts.t select 100, 4000, 0", "1356 % of the sum of part"),
        ("alter table marts.t drop column part", "33.33 % of its columns"),
        (
            "create or replace table marts.t as select id, part, cast(x as varchar) as x from marts.t",
            "33.33 % of its columns",
        ),
        ("insert into marts.t select i, 1, 0 from range(100, 120) t(i)", ""),
        ("alter table marts.t add column more integer", ""),
        ("create table marts.other as select 1 as id", ""),
    ],
)
def test_what_counts(publish: Publish, sql: str, reason: str) -> None:
    publish("one")
    assert publish("two", sql).published is not bool(reason)
    assert [one for one in reasons("two") if reason in one] == reasons("two")[:1]


def test_what_cannot_be_compared_or_recorded_is_not_shown(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("one")

    def fail(*_: object, **__: object) -> None:
        raise duckdb.IOException("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(gate, "compare_databases", fail)
        assert not publish("two").published
    assert "could not be compared with what readers see: damaged" in reasons("two")[0]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(gate.artifacts, "keep_decision", lambda *_: (_ for _ in ()).throw(OSError("full")))
        gate.decide("two", approved=True, note="fine")
    assert waiting() == "two"
    for value in ("-1", "101", "20%", "many"):
        monkeypatch.setenv(gate.SETTING, value)
        with pytest.raises(WarehouseError, match=gate.SETTING):
            gate.limit()
    monkeypatch.setenv(gate.SETTING, " 12.5 ")
    assert gate.limit() == 12.5


# Dies before the nth change of a file, or statement to a server, as by a SIGKILL.
KILLED = """
import os, sys, itertools
from pathlib import Path
import psycopg
from include.change import gate
from include.warehouse.targets import target
left = itertools.count(int(sys.argv[1]), -1)
def dying(method):
    def run(*arguments, **options):
        if next(left) == 0:
            os._exit(9)
        return method(*arguments, **options)
    return run
steps = {Path: ("rename", "unlink", "hardlink_to", "write_text"), psycopg.Connection: ("execute", "commit")}
if target().name in ("bigquery", "snowflake"):
    steps[type(target())] = ("query", "change", "upload", "drop_schema")
for owner, names in steps.items():
    for name in names:
        setattr(owner, name, dying(getattr(owner, name)))
exec(sys.argv[2])
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "after"),
    [
        ("gate.decide('two', approved=True, note='fine')", (100, 9900)),
        ("gate.decide('two', approved=False, note='no')", (100, 4950)),
        ("target().publish('two', lambda _: None, gate=lambda new: gate.must_wait(new, None, 20))", (100, 4950)),
    ],
)
def test_whoever_is_killed_readers_see_the_old_release_or_the_new_one(
    publish: Publish, command: str, after: tuple[int, int]
) -> None:
    publish("one")
    publish("two", "update marts.t set x = 2 * x")
    deaths = 0
    while True:
        arguments = [sys.executable, "-c", KILLED, str(deaths), command]
        done = subprocess.run(arguments, env=os.environ, capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        assert seen() in ((100, 4950), after)
        if done.returncode == 0:
            break
        deaths += 1 + deaths // 8  # on a lake there are a hundred
        if not waiting():  # the last step was done
            break
    assert deaths > 1
    assert seen() == after
    assert [one.id for one in target().list_releases() if one.published] == ["two" if after == (100, 9900) else "one"]
