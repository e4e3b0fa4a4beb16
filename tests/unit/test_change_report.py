"""A difference as text, Markdown and a page: what a reviewer reads, and what values can do to it."""

import json

import duckdb
import pytest

from include.change.diff import ColumnDiff, Sample, TableDiff
from include.change.readers import find_readers
from include.change.report import Build, Reader, Report
from include.settings import warehouse_name

pytestmark = pytest.mark.unit

ORDERS = TableDiff(
    "marts.orders",
    "changed",
    99,
    99,
    changed=14,
    key=("order_id",),
    columns=(
        ColumnDiff(
            "amount",
            "changed",
            changed=14,
            sum_change="-246.00",
            samples=(Sample("9", "8.00", "0.00"), Sample("11", None, "1")),
        ),
    ),
)


def test_a_preview_reads_as_text() -> None:
    build = Build(("orders",), (), (), 6, 4, ("payments_reconcile_with_marts: 25 failing rows",))
    reader = Reader("dashboard", "Customer value", "Sales Analytics")
    report = Report("release 2026-11-28 18:53 UTC", "branch coupons", (ORDERS,), (reader,), build)
    assert (
        report.to_text()
        == """\
Preview of branch coupons, against release 2026-11-28 18:53 UTC
Changed     orders        Also built   nothing
Tests       4 of 6 passed
  FAIL payments_reconcile_with_marts: 25 failing rows
~ marts.orders   99 rows: 0 added, 0 removed, 14 changed by order_id
    amount       14 changed, sum -246.00
      order_id 9: 8.00 -> 0.00 | 11: NULL -> 1 | ...
Read by     Customer value (dashboard, Sales Analytics)
Not touched: readers, the working database
"""
    )
    assert report.has_failed
    page = report.to_html()
    for found in ("branch coupons", "4 of 6 passed", "25 failing rows", "14 changed, sum -246.00", "11: NULL -&gt; 1"):
        assert found in page


def test_a_difference_fails_only_with_what_is_broken() -> None:
    assert not Report("a", "b", (ORDERS,)).has_failed
    assert not Report("a", "b", ()).has_failed
    assert Report("a", "b", (TableDiff("marts.v", "failed", note="no column"),)).has_failed
    assert Report("a", "b", (), (Reader("query", "q.sql", error="no column"),)).has_failed
    assert "No table differs" in Report("a", "b", ()).to_text()


def test_values_are_data_in_a_terminal_in_markdown_and_on_a_page() -> None:
    evil = "\x1b[2J`|<img src=x>\n\u202e@team [link](http://x)"
    column = ColumnDiff("c|`\n<b>", "changed", changed=1, samples=(Sample(evil, evil, evil),))
    table = TableDiff('m."|`<script>', "changed", 1, 1, changed=1, key=("k`|",), columns=(column,), note=evil)
    report = Report(evil, evil, (table,), (Reader("query", evil, error=evil),), Build(failures=(evil,), notes=(evil,)))
    page = report.to_html()
    assert "<img" not in page and "<script" not in page
    assert page.count("&lt;img src=x&gt;") >= 8
    for text in (report.to_text(), report.to_markdown(), page):
        assert all(one.isprintable() or one == "\n" for one in text)
    for line in report.to_markdown().splitlines():
        outside = "".join(line.split("`")[::2])  # of inline code
        assert line.count("`") % 2 == 0
        assert "<img" not in outside
        assert "<script" not in outside
        assert "@team" not in outside
        assert "](" not in outside
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 6
    assert json.loads(report.to_json())["tables"][0]["columns"][0]["samples"][0]["before"] == evil


def test_a_kept_difference_reads_as_it_was_written() -> None:
    tables = (ORDERS, TableDiff("marts.gone", "removed", 3, removed=3, key=("id",), removed_rows=("1", "2")))
    kept = Report.from_json(Report("a", "b", tables).to_json())
    assert kept == Report("a", "b", tables)
    for other in ("", "{", "[]", "null", '{"before": "a", "after": "b", "tables": [{}]}'):
        assert Report.from_json(other) is None


def test_marts_that_are_copied_to_a_server_are_among_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_URL", "postgresql://writer@db.example.com:5432/shop")
    with duckdb.connect() as connection:
        found = find_readers({}, ["marts.orders", "staging.stg_orders"], connection, connection)
    assert [one for one in found if one.kind == "served table"] == [
        Reader("served table", f"{warehouse_name()}_marts.orders", "db.example.com/shop")
    ]
