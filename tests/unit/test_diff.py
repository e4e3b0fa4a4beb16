"""Two databases compared to the row; each case against what a person would count."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include.change.diff import ColumnDiff, Sample, Side, TableDiff, common_type, compare

pytestmark = pytest.mark.unit

KEYS = {"marts.t": [("id",)]}


class Databases:
    """Two files in which tables and views are made, as a warehouse's releases have them: under one catalog name."""

    def __init__(self, folder: Path) -> None:
        self.paths = {}
        for side in ("before", "after"):
            (folder / side).mkdir()
            self.paths[side] = folder / side / "shop.duckdb"
            self.run(side, "create schema marts; create schema staging")

    def run(self, side: str, sql: str) -> None:
        with duckdb.connect(str(self.paths[side])) as connection:
            connection.execute(sql)

    def both(self, before: str, after: str) -> None:
        self.run("before", before)
        self.run("after", after)

    def compare(
        self, keys=KEYS, is_open=lambda relation, column: True, memory="1GB", keep_types=(True, True)
    ) -> dict[str, TableDiff]:
        with duckdb.connect(":memory:", config={"memory_limit": memory}) as connection:
            for side, path in self.paths.items():
                connection.execute(f"attach '{path}' as {side} (read_only)")
            sides = [Side(side, keys, is_open, keeps) for side, keeps in zip(self.paths, keep_types, strict=True)]
            return {one.relation: one for one in compare(connection, *sides)}


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[Databases]:
    return Databases(tmp_path)


def columns(diff: TableDiff) -> dict[str, ColumnDiff]:
    return {one.name: one for one in diff.columns}


def test_counts_rows_and_values_by_key(databases: Databases) -> None:
    databases.both(
        "create table marts.t as from (values (1, 10.00, 'a', null), (2, 5.00, 'b', 1), (3, 1.00, 'c', 2))"
        " t(id, amount, s, n)",
        "create table marts.t as from (values (4, 9.00, 'd', 1), (2, 7.50, 'b', null), (1, 10.00, 'A', null))"
        " t(id, amount, s, n)",
    )
    found = databases.compare()["marts.t"]
    assert (found.rows_before, found.rows_after) == (3, 3)
    assert (found.added, found.removed, found.changed, found.key) == (1, 1, 2, ("id",))
    assert (found.added_rows, found.removed_rows) == (("4",), ("3",))
    of = columns(found)
    assert (of["amount"].changed, of["amount"].sum_change) == (1, "+10.50")
    assert of["amount"].samples == (Sample("2", "5.00", "7.50"),)
    assert (of["s"].changed, of["s"].sum_change, of["s"].samples) == (1, "", (Sample("1", "a", "A"),))
    assert (of["n"].changed, of["n"].samples) == (1, (Sample("2", "1", None),))


def test_the_same_rows_in_another_order_are_no_difference(databases: Databases) -> None:
    rows = "select i as id, i * 0.1 as x, 'v' || i as s from range(5000) t(i) order by {}"
    databases.both(*(f"create table marts.t as {rows.format(order)}" for order in ("i", "hash(i)")))
    assert databases.compare() == {}
    assert databases.compare(keys={}) == {}


def test_random_tables_against_a_dictionary(databases: Databases) -> None:
    random.seed(1)
    for round_ in range(10):
        tables = []
        for side in databases.paths:
            rows = {
                (i, j): (random.choice([None, 1, 2]), random.choice([None, "x", "y"]))
                for i in range(6)
                for j in range(6)
                if random.random() < 0.7
            }
            values = ", ".join(
                f"({i}, {j}, {'null' if a is None else a}::int, {'null' if b is None else repr(b)}::varchar)"
                for (i, j), (a, b) in rows.items()
            )
            databases.run(side, f"create or replace table marts.t as from (values {values}) t(i, j, a, b)")
            tables.append(rows)
        before, after = tables
        found = databases.compare(keys={"marts.t": [("i", "j")]})["marts.t"]
        both = before.keys() & after.keys()
        assert found.added == len(after.keys() - both), round_
        assert found.removed == len(before.keys() - both)
        assert found.changed == sum(before[one] != after[one] for one in both)
        for at, name in enumerate("ab"):
            assert columns(found)[name].changed == sum(before[one][at] != after[one][at] for one in both)
        sums = [sum(a or 0 for a, _ in table.values()) for table in tables]
        assert int(columns(found)["a"].sum_change or 0) == sums[1] - sums[0]
        whole = databases.compare(keys={})["marts.t"]
        bags = [Counter((*key, *values) for key, values in table.items()) for table in tables]
        assert (whole.added, whole.removed) == ((bags[1] - bags[0]).total(), (bags[0] - bags[1]).total())
        assert (whole.key, whole.changed) == ((), None)


def test_columns_added_removed_renamed_and_retyped(databases: Databases) -> None:
    databases.both(
        "create table marts.t as select i as id, i * 2 as amount, i % 3 as gone, 'x' || i as name, i as code"
        " from range(9) t(i)",
        "create table marts.t as select i as id, i * 2 as total, 'new' as extra, 'x' || i as name,"
        " i::varchar as code from range(9) t(i)",
    )
    found = databases.compare()["marts.t"]
    assert (found.added, found.removed, found.changed) == (0, 0, 0)
    of = columns(found)
    assert of.keys() == {"total", "extra", "gone", "code"}
    assert (of["total"].status, of["total"].was) == ("renamed", "amount")
    assert (of["extra"].status, of["gone"].status) == ("added", "removed")
    assert (of["code"].status, of["code"].changed) == ("retyped", 0)
    assert (of["code"].type_before, of["code"].type_after) == ("BIGINT", "VARCHAR")


def test_a_column_with_other_values_is_not_renamed(databases: Databases) -> None:
    databases.both(
        "create table marts.t as select i as id, i as one, null::int as blank from range(9) t(i)",
        "create table marts.t as select i as id, i + 1 as two, null::int as empty from range(9) t(i)",
    )
    found = columns(databases.compare()["marts.t"])
    assert {name: one.status for name, one in found.items()} == {
        **dict.fromkeys(("one", "blank"), "removed"),
        **dict.fromkeys(("two", "empty"), "added"),
    }


def test_a_renamed_key_still_joins(databases: Databases) -> None:
    databases.both(
        "create table marts.t as select i as id, i as x from range(9) t(i)",
        "create table marts.t as select i as order_id, i + (i = 3)::int as x from range(9) t(i)",
    )
    with duckdb.connect(":memory:") as connection:
        for side, path in databases.paths.items():
            connection.execute(f"attach '{path}' as {side} (read_only)")
        sides = (Side("before", KEYS), Side("after", {"marts.t": [("order_id",)]}))
        (found,) = compare(connection, *sides)
    assert (found.added, found.removed, found.changed, found.key) == (0, 0, 1, ("order_id",))
    assert (columns(found)["order_id"].status, columns(found)["order_id"].was) == ("renamed", "id")


def test_a_key_that_repeats_afterwards_is_said_and_counted(databases: Databases) -> None:
    databases.both(
        "create table marts.t as select i as id, i as x from range(10) t(i)",
        "create table marts.t as select i % 10 as id, i % 10 as x from range(15) t(i)",
    )
    found = databases.compare()["marts.t"]
    assert (found.added, found.removed, found.changed) == (5, 0, 0)
    assert "5 rows repeat the id of another" in found.note


def test_a_key_that_repeats_before_is_not_used(databases: Databases) -> None:
    databases.both(
        "create table marts.t as select 1 as id, i as x from range(2000) t(i)",
        "create table marts.t as select 1 as id, i as x from range(2001) t(i)",
    )
    found = databases.compare()["marts.t"]
    assert (found.key, found.added, found.removed) == ((), 1, 0)
    assert found.added_rows == ("id 1, x 2000",)
    assert columns(found)["x"].sum_change == "+2000"


def test_a_first_column_that_is_made_anew_is_no_key(databases: Databases) -> None:
    table = "create table marts.t as select uuid() as row_id, i % 7 as x from range(100) t(i)"
    databases.both(table, table)
    assert databases.compare(keys={})["marts.t"].key == ()


def test_null_keys_are_rows_of_their_own(databases: Databases) -> None:
    databases.both(
        "create table marts.t as from (values (1, 1), (null, 2)) t(id, x)",
        "create table marts.t as from (values (1, 1), (null, 2), (null, 3)) t(id, x)",
    )
    found = databases.compare()["marts.t"]
    assert (found.added, found.removed, found.changed) == (2, 1, 0)
    assert found.rows_before + found.added - found.removed == found.rows_after


def test_tables_and_views_in_one_only(databases: Databases) -> None:
    databases.both(
        "create table marts.old as from range(3)",
        "create view marts.new as from range(4); create table marts.e (i int)",
    )
    found = databases.compare()
    assert {name: (one.status, one.rows_before, one.rows_after) for name, one in found.items()} == {
        "marts.old": ("removed", 3, None),
        "marts.new": ("added", None, 4),
        "marts.e": ("added", None, 0),
    }


def test_views_are_read_from_their_own_side(databases: Databases) -> None:
    """A view's SQL names the catalog, which is attached under another name."""
    view = """
        create view staging.stg as with t as (select * from "shop"."marts"."t") select t.id, t.x as "a AS b" from t;
        create view marts.v (id, y) as
            select s.id, "a AS b" + (select count(*) from "shop"."marts"."t" where shop.marts.t.id > 3)
            from "shop"."staging"."stg" as s semi join marts.t on s.id = t.id
    """
    for side, by in (("before", 0), ("after", 1)):
        databases.run(side, f"create table marts.t as select i as id, i + (i = 2)::int * {by} as x from range(5) t(i)")
    for side in databases.paths:
        databases.run(side, view)
    found = databases.compare(keys={})
    assert {name: (one.changed, columns(one).keys()) for name, one in found.items()} == {
        "marts.t": (1, {"x"}),
        "staging.stg": (1, {"a AS b"}),
        "marts.v": (1, {"y"}),
    }


def test_a_view_that_is_broken_fails_alone(databases: Databases) -> None:
    databases.both(
        "create table marts.t as select 1 as id; create view marts.v as select id from marts.t",
        "create table marts.t as select 1 as id; create view marts.v as select id from marts.t; alter table marts.t"
        " rename id to other",
    )
    found = databases.compare()
    assert found["marts.v"].status == "failed"
    assert '"id" not found' in found["marts.v"].note
    assert found["marts.t"].columns[0].status == "added" or found["marts.t"].columns[0].status == "renamed"


def test_what_was_not_rebuilt_is_not_read(databases: Databases) -> None:
    builds = """
        create table marts.t as select {} as id; create schema warehouse; create table warehouse.builds as
        select 1 as version, 'model.t' as node, '{}' as build_id, '' as code, '{{}}' as parents, true as passed,
        false as stateful, 'marts.t' as relation, '' as run_id, now() as recorded_at
    """
    databases.both(builds.format(1, "same"), builds.format(2, "same"))
    assert databases.compare() == {}
    databases.run("after", "insert into marts.t values (3)")  # by hand
    assert databases.compare()["marts.t"].added == 2
    databases.run("after", "delete from marts.t where id = 3")
    databases.run("after", "update warehouse.builds set build_id = 'other'")
    assert databases.compare()["marts.t"].status == "changed"


def test_technical_tables_and_columns_are_ignored(databases: Databases) -> None:
    for side, by in (("before", 0), ("after", 1)):
        databases.run(
            side,
            f"create table marts.t as select 1 as id, {by} as _dlt_load_id, 'f{by}' as _file, {by} as dbt_valid_from;"
            f"create table marts._dlt_loads as select {by} as i;"
            f"create schema audit; create table audit.a as select {by}",
        )
    assert databases.compare() == {}


def test_hidden_columns_are_counted_and_never_shown(databases: Databases) -> None:
    databases.both(
        "create table marts.t as select i as id, 'Secret' || i as name, 41 as salary, 'o' as s from range(5) t(i)",
        "create table marts.t as select i as id, 'Hidden' || i as name, 42 as salary, 'p' as s from range(6) t(i)",
    )
    by_key = databases.compare(is_open=lambda _, column: column in ("id", "s"))["marts.t"]
    assert (columns(by_key)["name"].changed, columns(by_key)["salary"].sum_change) == (5, "")
    assert columns(by_key)["s"].samples
    by_row = databases.compare(keys={"marts.t": [("x",)]}, is_open=lambda _, column: column == "s")["marts.t"]
    hidden_key = databases.compare(is_open=lambda _, column: column == "s")["marts.t"]
    assert columns(hidden_key)["s"].changed == 5
    assert not columns(hidden_key)["s"].samples
    for one in (by_key, by_row, hidden_key):
        assert not any(secret in repr(one) for secret in ("Secret", "Hidden", "41", "42", "+1,"))


def test_floats_differ_by_more_than_the_order_of_an_addition(databases: Databases) -> None:
    table = "create table marts.t as from (values (1, {}::double), (2, 'nan'), (3, 'inf'), (4, null)) t(id, x)"
    databases.both(table.format("0.1 + 0.2"), table.format("0.3"))
    assert databases.compare() == {}
    databases.run("after", "update marts.t set x = 0.3000001 where id = 1; update marts.t set x = 1 where id > 2")
    assert columns(databases.compare()["marts.t"])["x"].changed == 3


def test_sums_past_the_largest_decimal_are_left_out(databases: Databases) -> None:
    table = (
        f"create table marts.t as select i as id, {'9' * 36}.00::decimal(38, 2) as x, {{}} as y from range(300) t(i)"
    )
    databases.both(table.format(1), table.format(2))
    found = columns(databases.compare()["marts.t"])
    assert (found["y"].changed, found["y"].samples[0]) == (300, Sample("0", "1", "2"))


def test_names_of_any_kind(databases: Databases) -> None:
    for side, by in (("before", 1), ("after", 2)):
        databases.run(
            side,
            'create schema "odd ""schema"; create table "odd ""schema"."t\'; --" as '
            f'select 1 as "the ""id", {by} as "c0", {by} as "k 0", {by} as here, {by} as "l"',
        )
    (found,) = databases.compare(keys={"odd \"schema.t'; --": [('the "id',)]}).values()
    assert (found.changed, columns(found).keys()) == (1, {"c0", "k 0", "here", "l"})


def test_tables_larger_than_memory_spill(databases: Databases) -> None:
    rows = "select i as id, 'a long enough text ' || i as s, i {} as x from range(400000) t(i) order by hash(i)"
    databases.both(*(f"create table marts.t as {rows.format(by)}" for by in ("", "+ (i = 7)::int")))
    assert databases.compare(memory="50MB")["marts.t"].changed == 1


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("INTEGER", "BIGINT", "DECIMAL(19,0)"),
        ("BIGINT", "DECIMAL(38,2)", "DECIMAL(38,2)"),
        ("DECIMAL(18,2)", "DECIMAL(10,4)", "DECIMAL(20,4)"),
        ("DECIMAL(38,2)", "DECIMAL(38,10)", "DOUBLE"),
        ("HUGEINT", "BIGINT", "VARCHAR"),
        ("DECIMAL(38,2)", "DOUBLE", "DOUBLE"),
        ("FLOAT", "INTEGER", "DOUBLE"),
        ("DATE", "TIMESTAMP", "TIMESTAMP"),
        ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIMESTAMP WITH TIME ZONE"),
        ("VARCHAR", "BIGINT", "VARCHAR"),
        ("DATE", "INTEGER", "VARCHAR"),
        ("INTEGER[]", "VARCHAR", "VARCHAR"),
    ],
)
def test_values_of_two_types_are_compared_over_a_common_one(one: str, other: str, expected: str) -> None:
    assert common_type(one, other) == common_type(other, one) == expected
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"select null::{one}::{expected}, null::{other}::{expected}")


def test_against_an_engine_with_other_types_only_another_kind_of_type_is_a_difference(databases: Databases) -> None:
    names, values = "id, amount, {}, made_at, n", "1::{}, 1.50::{}, 0.5::{}, '2026-01-01'::{}, 1::{}"
    types = {
        "old_rate": ("decimal(38, 0)", "decimal(38, 9)", "double", "timestamp_ns", "integer"),
        "rate": ("integer", "decimal(10, 2)", "float", "timestamp", "double"),
    }
    databases.both(
        *(
            f"create table marts.t as from (values ({values.format(*of)})) t({names.format(rate)})"
            for rate, of in types.items()
        )
    )
    statuses = {
        keep_types: {
            name: one.status for name, one in columns(databases.compare(keep_types=keep_types)["marts.t"]).items()
        }
        for keep_types in ((False, True), (True, True))
    }
    assert statuses[False, True] == {"rate": "renamed", "n": "retyped"}
    retyped = dict.fromkeys(("amount", "made_at", "n"), "retyped")
    assert statuses[True, True] == {**retyped, "old_rate": "removed", "rate": "added"}
