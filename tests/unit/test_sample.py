"""A masked sample joins as the original does, and has nothing of a person in it, wherever people have put it."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from include.change import sample
from include.change.databases import Database, of_file
from include.change.masking import Masker

pytestmark = [pytest.mark.unit, pytest.mark.files]

PEOPLE = 400
# By number: a name and an e-mail address that occur nowhere else.
NAME, EMAIL = "'Zoebeliana' || i || ' Quintabelle' || i", "'zoebeliana' || i || '@quintabelle.org'"
OF_ANOTHER = [re.sub(r"\bi\b", f"(i % {PEOPLE})", one) for one in (NAME, EMAIL)]
BASE = f"""
    create schema shop_raw; create schema marts; create schema warehouse;
    create type shop_raw.named as enum (select 'Quintabelle' || i from range({PEOPLE}) t(i));
    create table shop_raw.raw_people as select
        {EMAIL} as login, {NAME} as full_name, {NAME} as remarks, date '1950-01-01' + i::int * 20 as birth_date,
        491511000000 + i as phone, 50000 + i * 7.25 as salary, ('Quintabelle' || i)::shop_raw.named as tag,
        case when i % 2 = 0 then 'gold' else 'basic' end as tier, if(i = 3, 'the only one', 'usual') as segment,
        'Call Zoebeliana' || i || ' Quintabelle' || i || ' on +49 151 1000' || i as note,
        {{'email': {EMAIL}, 'size': i, 'tier': 'gold'}} as profile, map {{{EMAIL}: i}} as visits,
        to_json({{'kind': 'gold', 'who': {NAME}, 'phone': 491511000000 + i}}) as data, [{EMAIL}, 'gold'] as tags,
        to_json({{'kind': 'gold', 'who': {NAME}}})::varchar as text_data, union_value(who := {NAME}) as either,
        strftime(date '2026-01-01' + i::int, '%Y-%m-%d') as signed_up, ('zoebeliana' || i)::blob as photo, i as unit
        from range({PEOPLE}) t(i);
    create table shop_raw.raw_orders as select
        i as id, {OF_ANOTHER[1]} as buyer, if(i = 1, null, i - i % 3) as first_order_id,
        if(i % 3 = 0, {OF_ANOTHER[0]}, 'gold') as handled_by, '1754-02' || i as undocumented
        from range(1000) t(i);
    create table shop_raw.raw_items as select i as id, i % 1000 as order_id, i / 4 as price from range(2000) t(i);
    create table shop_raw.rejected_rows as select {NAME} as text, 'why' as reason from range(3) t(i);
    create table shop_raw._dlt_pipeline_state as select {EMAIL} as state from range(3) t(i);
    create table marts.greetings as select 'Dear ' || full_name as greeting from shop_raw.raw_people;
    create view marts.v as select greeting as full_name from marts.greetings;
    create table warehouse.release as select 'zoebeliana1@quintabelle.org' as provenance;
"""
PII = {"config": {"meta": {"contains_pii": True}}}
TABLES: dict[str, dict[str, Any]] = {
    # Found by name: full_name, birth_date, phone, salary; by form: login; by their values: remarks, tag.
    "raw_people": {
        one: {}
        for one in ("login", "tier", "note", "profile", "visits", "data", "tags", "segment", "text_data", "either")
    },
    "raw_orders": {one: {} for one in ("id", "buyer", "first_order_id", "handled_by")},
    "raw_items": {one: {} for one in ("id", "order_id", "price")},
    "rejected_rows": {"reason": {}, "text": PII},
}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    with duckdb.connect(str(tmp_path / "jaffle_shop.duckdb")) as connection:
        connection.execute(BASE)
    sources = {
        f"source.p.shop.{table}": {
            "resource_type": "source",
            "unique_id": f"source.p.shop.{table}",
            "schema": "shop_raw",
            "name": table,
            "identifier": table,
            "columns": {name: {"name": name, **column} for name, column in columns.items()},
        }
        for table, columns in TABLES.items()
    }
    model = {
        "resource_type": "model",
        "unique_id": "model.p.greetings",
        "name": "greetings",
        "schema": "marts",
        "alias": "greetings",
        "columns": {},
        "config": {},
        "depends_on": {"nodes": []},
        "raw_code": "select * from t where segment <> 'the only one'",
    }
    manifest = tmp_path / "manifest.json"
    manifest.write_text(
        json.dumps({"nodes": {"model.p.greetings": model}, "sources": sources, "exposures": {}, "metadata": {}})
    )
    return of_file(tmp_path / "jaffle_shop.duckdb", "the base", manifest)


def write(base: Database, path: Path, rows: int) -> duckdb.DuckDBPyConnection:
    with sample._opened(base, path) as connection:
        sample._Sampler(connection, base).write(rows)
    return duckdb.connect(str(path), read_only=True)


def test_nothing_of_a_person_is_in_a_sample(base: Database, tmp_path: Path) -> None:
    path = tmp_path / "sample.duckdb"
    with write(base, path, 10_000) as found:
        tables = {row[0] for row in found.execute("select table_name from duckdb_tables()").fetchall()}
        assert tables == {"raw_people", "raw_orders", "raw_items", "rejected_rows", "builds"}
        assert not found.execute("from duckdb_views() where not internal").fetchall()
        assert not found.execute("from duckdb_types() where logical_type = 'ENUM' and not internal").fetchall()
        everything = "\n".join(
            str(row) for one in tables - {"builds"} for row in found.execute(f"from shop_raw.{one}").fetchall()
        ).lower()
        for one in ("quintabelle", "zoebeliana", "491511", "1754-02", "+49 151"):
            assert one not in everything, one
            assert one.encode() not in path.read_bytes().lower(), one
        assert found.execute("select count(*) from shop_raw.rejected_rows").fetchone() == (0,)
        same = found.execute(
            f"attach '{base.path}' as base (read_only); select count(*) from base.shop_raw.raw_people as o"
            " join shop_raw.raw_people as m using (unit)"
            " where o.birth_date = m.birth_date or o.phone = m.phone or o.salary = m.salary"
        ).fetchone()
        assert same is not None
        assert same[0] < 5  # by chance


def test_keys_still_join_and_what_is_nobodys_stays(base: Database, tmp_path: Path) -> None:
    with write(base, tmp_path / "sample.duckdb", 10_000) as found:

        def value(sql: str) -> Any:
            return found.execute(sql).fetchone()

        assert value("select count(*), count(distinct login), count(distinct phone) from shop_raw.raw_people") == (
            PEOPLE,
            PEOPLE,
            PEOPLE,
        )
        assert value("select count(*) from shop_raw.raw_orders join shop_raw.raw_people on buyer = login") == (1000,)
        assert value("select count(*) from shop_raw.raw_orders join shop_raw.raw_people on full_name = handled_by") == (
            334,
        )
        # With the types and the forms of before; other texts of documented columns, dates, numbers and keys stay.
        assert value("select bool_and(login similar to '[a-z]+[0-9]+@[a-z]+\\.example') from shop_raw.raw_people") == (
            True,
        )
        assert value("select count(*) from shop_raw.raw_people where tier in ('gold', 'basic')") == (PEOPLE,)
        assert value("select count(*) from shop_raw.raw_people where segment = 'the only one'") == (1,)  # in the code
        assert value("select sum(price), sum(order_id) from shop_raw.raw_items") == (499750.0, 999000)
        assert value("select min(signed_up), any_value(profile.tier), max(profile.size) from shop_raw.raw_people") == (
            "2026-01-01",
            "gold",
            PEOPLE - 1,
        )
        assert value(
            "select any_value(data->>'kind'), any_value(tags[2]), any_value(text_data->>'kind')"
            " from shop_raw.raw_people"
        ) == ("gold", "gold", "gold")
        assert value(
            "select min(birth_date) >= '1951-01-01', max(birth_date) < '1972-01-01',"
            " count(distinct birth_date) > 300 from shop_raw.raw_people"
        ) == (True, True, True)
        types = {row[0]: row[1] for row in found.execute("describe shop_raw.raw_people").fetchall()}
        assert (types["salary"], types["birth_date"], types["phone"]) == ("DECIMAL(23,2)", "DATE", "BIGINT")
        assert types["profile"] == "STRUCT(email VARCHAR, size BIGINT, tier VARCHAR)"


def test_a_smaller_sample_has_all_that_its_rows_refer_to(base: Database, tmp_path: Path) -> None:
    with write(base, tmp_path / "sample.duckdb", 100) as found:

        def number(sql: str) -> int:
            row = found.execute(f"select count(*) from {sql}").fetchone()
            assert row is not None
            return int(row[0])

        assert 50 < number("shop_raw.raw_people") < 150
        orders, items = number("shop_raw.raw_orders"), number("shop_raw.raw_items")
        assert 0 < orders < 500
        assert number("shop_raw.raw_orders join shop_raw.raw_people on buyer = login") == orders
        assert items == number("shop_raw.raw_items i join shop_raw.raw_orders o on i.order_id = o.id") == 2 * orders
        assert not number("shop_raw.raw_orders where first_order_id not in (select id from shop_raw.raw_orders)")


def test_masks_differ_by_secret_and_never_repeat_or_equal_an_original() -> None:
    values = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
    masker = Masker(set(values))
    masks = [masker.text(one) for one in values]
    assert len(set(masks)) == 100
    assert not set(masks) & set(values)
    assert masks == [masker.text(one) for one in values]
    assert masks != [Masker().text(one) for one in values]
    assert [len(masker.text(one)) for one in "abcdefghijklmnopqrstuvwxyz"] != []  # more letters than one-letter masks
    assert masker.text("ANNA") == masker.text("anna").upper() == masker.text("Anna").upper()
    numbers = [masker.number(one) for one in range(-128, 128)]
    assert sorted(numbers) == list(range(-128, 128))
    assert [masker.text(one) for one in ("", " ")] == ["", " "]
    for text, parse in (
        ("1980-02-29", "%Y-%m-%d"),
        ("29.02.1980", "%d.%m.%Y"),
        ("2/29/1980", "%m/%d/%Y"),
        ("1980-02-29T10:11:12", "%Y-%m-%dt%H:%M:%S"),
    ):
        assert datetime.strptime(masker.text(text), parse)
    assert masker.text("DE44 5001 0517 5407 3249 31")[:2].isupper()
    assert (
        masker.nested('{"a": [true, null, 1.5], "b": "x"}', str, lambda _: True) != '{"a": [true, null, 1.5], "b": "x"}'
    )
