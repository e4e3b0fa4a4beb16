"""What a preview finds in a change of each kind, to the row; and that it touches nothing else.

Each is a command in a checkout of its own, as people run it. Changes that don't meet share a preview, for speed. With
`--target`, the release is on that target; the scratch is a file all the same.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from include.settings import airflow_env
from include.warehouse.targets import target as warehouse_target
from testing.targets import InBigQuery, InSnowflake, Target

pytestmark = [pytest.mark.integration, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "{{ config(materialized='%s', schema='marts', contract={'enforced': false}) }}\n"
# Beside the project's own models: those of other kinds.
EXTRA = {
    "seeds/regions.csv": "region_id,region\n1,North\n2,South\n3,East\n",
    "seeds/regions.yml": "seeds: [{name: regions, config: {schema: marts}}]",
    "models/extra/gone.sql": CONFIG % "table" + "select 1 as id, 'x' as letter",
    "models/extra/by_status.sql": CONFIG % "table"
    + "select status, count(*) as orders from {{ ref('orders') }} group by 1",
    "models/extra/grown.sql": CONFIG % "incremental"
    + "select order_id, amount as paid from {{ ref('orders') }}"
    + " {% if is_incremental() %} where order_id > (select max(order_id) from {{ this }}) {% endif %}",
}
SILENT = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


@dataclass
class Checkout:
    """A clone of the project."""

    root: Path
    warehouse: Path
    variables: Mapping[str, str]

    @property
    def dbt(self) -> Path:
        return self.root / "include" / "dbt_project"

    def start(self, *arguments: str, cwd: str = ".", **environment: str) -> "subprocess.Popen[str]":
        own = {
            **self.variables,
            "PYTHONPATH": str(self.root),
            "DLT_PROJECT_DIR": str(self.root / "include" / "dlt_pipelines"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return subprocess.Popen(
            arguments, cwd=self.root / cwd, env={**os.environ, **airflow_env(), **own, **environment}, **SILENT
        )

    def run(self, *arguments: str, cwd: str = ".", **environment: str) -> str:
        with self.start(*arguments, cwd=cwd, **environment) as process:
            out = process.communicate()[0]
        assert process.returncode == 0, out
        return out

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.dbt / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        path = self.root / name
        text = path.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)

    def start_preview(self, *arguments: str) -> Callable[[], tuple[int, dict[str, Any], str]]:
        process = self.start(sys.executable, "-m", "include.change", "preview", "--json", "out.json", *arguments)

        def finish() -> tuple[int, dict[str, Any], str]:
            out = process.communicate()[0]
            assert (self.root / "out.json").exists(), out
            return process.returncode, json.loads((self.root / "out.json").read_text()), out

        return finish

    def preview(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        return self.start_preview(*arguments)()

    def reset(self) -> None:
        self.run("git", "checkout", "-q", ".")
        self.run("git", "clean", "-qfd")


def checkout(root: Path, variables: Mapping[str, str], target: Target | None = None) -> Checkout:
    skipped = shutil.ignore_patterns("target", "logs", "__pycache__")
    for name in ("include", "bi"):
        shutil.copytree(ROOT / name, root / name, ignore=skipped)
    for name in ("airflow.env", "pools.json", ".gitignore", "dbt_build_graph.py"):
        shutil.copy(ROOT / name, root / name)
    made = Checkout(root, Path(variables["WAREHOUSE_DIR"]), variables)
    made.write(EXTRA)
    if isinstance(target, InBigQuery | InSnowflake):
        target.adapt(made.dbt)
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    made.run("git", "init", "-q", "-b", "coupons")
    made.run("git", "add", "-A")
    made.run("git", *identity, "commit", "-qm", "All of it")
    return made


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Iterator[Checkout]:
    """A checkout whose warehouse has one release; nothing in a test may change either."""
    folder = tmp_path_factory.mktemp("preview")
    made = checkout(folder / "one", target.new(folder), target)
    made.run(sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop")
    made.run("dbt", "--quiet", "build", cwd="include/dbt_project")
    made.run(sys.executable, "-m", "include.runs", "publish", "first")
    before = digests(made)
    yield made
    assert digests(made) == before


@pytest.fixture
def clone(published: Checkout, monkeypatch: pytest.MonkeyPatch, _on_target: None) -> Iterator[Checkout]:
    """That checkout, to change."""
    for name, value in published.variables.items():
        monkeypatch.setenv(name, value)
    yield published
    published.reset()


def digests(made: Checkout) -> dict[str, str]:
    """What readers, the pipeline and the served checkout use."""
    paths = [
        # Of a release on BigQuery, there is a copy once somebody reads it.
        *(one for one in made.warehouse.rglob("*.duckdb") if one.parent.name != "copies"),
        *(made.dbt / "target").glob("*.json"),
        *(made.dbt / "target").glob("*.msgpack"),
    ]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def tables(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["relation"]: one for one in report["tables"]}


def columns(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in table["columns"]}


def query(_: Checkout, sql: str) -> Any:
    with warehouse_target().open_release() as connection:
        return connection.execute(sql).fetchone()


def is_amount(text: str, expected: str) -> bool:
    """Return whether a report shows an amount; of a service's, digits after the point may be others."""
    if warehouse_target().keeps_types:
        return text == expected
    return (text[0], Decimal(text)) == (expected[0], Decimal(expected))


NO_COUPONS = ('money("sum(amount)")', "money(\"sum(case when payment_method = 'coupon' then 0 else amount end)\")")


def test_a_changed_amount_an_incremental_model_a_seed_and_a_removed_model_while_somebody_previews_no_change(
    clone: Checkout, tmp_path: Path, target: Target
) -> None:
    other = checkout(tmp_path / "two", clone.variables, target)
    finish_other = other.start_preview()
    clone.edit("include/dbt_project/models/marts/core/orders.sql", NO_COUPONS)
    clone.edit("include/dbt_project/models/extra/grown.sql", ("amount as paid", "2 * amount as paid"))
    (clone.dbt / "models/extra/gone.sql").unlink()
    (clone.dbt / "seeds/regions.csv").write_text("region_id,region\n1,North\n2,Southern\n4,West\n")
    code, report, text = clone.preview()

    assert (report["build"]["changed"], report["build"]["also_built"]) == (
        ["grown", "orders", "regions"],
        ["by_status"],
    )
    assert report["build"]["removed"] == ["marts.gone"]
    assert any("grown is incremental, and was rebuilt in full" in one for one in report["build"]["notes"])
    found = tables(report)
    assert found.keys() == {"marts.orders", "marts.grown", "marts.gone", "marts.regions"}
    orders, grown, gone, regions = (
        found[one] for one in ("marts.orders", "marts.grown", "marts.gone", "marts.regions")
    )
    changed, by = query(clone, "select count(*), -sum(coupon_amount) from marts.orders where coupon_amount > 0")
    assert (orders["added"], orders["removed"], orders["changed"], orders["key"]) == (0, 0, changed, ["order_id"])
    assert is_amount(orders["columns"][0]["sum_change"], str(by))
    sample = orders["columns"][0]["samples"][0]
    assert sample["key"] == "9" and is_amount(sample["before"], "8.00") and is_amount(sample["after"], "0.00")
    assert (
        columns(grown)["paid"]["changed"]
        == query(clone, "select count(*) from marts.orders where amount is distinct from 2 * (amount - coupon_amount)")[
            0
        ]
    )
    assert (gone["status"], gone["rows_before"]) == ("removed", 1)
    assert (regions["added"], regions["removed"], regions["changed"]) == (1, 1, 1)
    assert columns(regions)["region"]["samples"] == []  # not documented, so it might be about people

    # The sums of the parts are no longer the whole, which a unit test and two models say.
    assert code == 1
    assert any(one.startswith("payments_reconcile_with_marts: 25 failing rows") for one in report["build"]["failures"])
    readers = {one["name"]: one for one in report["readers"]}
    assert (readers["Customer value"]["kind"], readers["Customer value"]["detail"]) == ("dashboard", "Sales Analytics")
    assert {"orders_by_status.sql", "revenue_by_month.sql"} <= readers.keys()
    assert not any(one["error"] for one in readers.values())
    assert text.startswith("Preview of branch coupons, with uncommitted changes, against release 2")
    assert f"~ marts.orders   99 rows: 0 added, 0 removed, {changed} changed by order_id" in text

    code, report, text = finish_other()
    assert (code, report["tables"], report["build"]["changed"]) == (0, [], [])
    # A service's views are built again, on another engine, so what reads them is tested.
    assert report["build"]["tests"] == 0 or isinstance(target, InBigQuery | InSnowflake)
    assert "No table differs" in text
    assert text.startswith("Preview of branch coupons, against")


def test_columns_added_removed_renamed_and_retyped_and_a_contract_of_a_source(clone: Checkout, target: Target) -> None:
    for name in ("customers.sql", "customers.yml"):
        clone.edit(f"include/dbt_project/models/marts/core/{name}", ("customer_lifetime_value", "lifetime_value"))
    clone.edit(
        "include/dbt_project/models/marts/core/orders.sql",
        ("        orders.status,", "        orders.status,\n        orders.status = 'returned' as is_returned,"),
        ("        orders.order_date,", "        cast(orders.order_date as timestamp) as order_date,"),
        (
            "            order_payments.{{ payment_method }}_amount,",
            "{% if payment_method != 'coupon' %}\n            order_payments.{{ payment_method }}_amount,{% endif %}",
        ),
    )
    clone.edit(
        "include/dbt_project/models/marts/core/orders.yml",
        ("        data_type: date\n", "        data_type: timestamp\n"),
        (
            "      - name: credit_card_amount\n",
            "      - name: is_returned\n        data_type: boolean\n      - name: credit_card_amount\n",
        ),
        (
            "      - name: coupon_amount\n"
            "        description: Paid by coupon; 0 if paid otherwise, NULL if the order has no payment.\n"
            "        data_type: *money\n",
            "",
        ),
    )
    clone.edit("include/dlt_pipelines/jaffle_shop_pipeline.py", ('"amount": "BIGINT"', '"amount": "INTEGER"'))
    code, report, text = clone.preview("--markdown", "out.md")

    assert report["build"]["changed"][0] == "jaffle_shop_raw.raw_payments"
    found = tables(report)
    raw = found.pop("jaffle_shop_raw.raw_payments", None)
    if isinstance(target, InBigQuery | InSnowflake):  # which have one type of integer
        assert raw is None
    else:
        assert [(one["name"], one["status"], one["type_after"], one["changed"]) for one in raw["columns"]] == [
            ("amount", "retyped", "INTEGER", 0)
        ]
    assert found.keys() == {"marts.customers", "marts.orders"}
    renamed = columns(found["marts.customers"])["lifetime_value"]
    assert (renamed["status"], renamed["was"]) == ("renamed", "customer_lifetime_value")
    of_orders = {name: one["status"] for name, one in columns(found["marts.orders"]).items()}
    assert of_orders == {"is_returned": "added", "coupon_amount": "removed", "order_date": "retyped"}
    assert all(one["changed"] == one["added"] == one["removed"] == 0 for one in found.values())

    # A renamed column passes the tests of the project; those who read it are said to break.
    assert code == 1
    broken = {one["name"]: one["error"] for one in report["readers"] if one["error"]}
    assert "No function matches the given name and argument types '-(TIMESTAMP" in broken["inactive_customers.sql"]
    datasets = {name.split(" of ")[0]: error for name, error in broken.items()}
    assert datasets.keys() == {"inactive_customers.sql", "customers", "orders"}
    assert "metric coupon" in datasets["orders"]
    assert '"customer_lifetime_value" not found' in datasets["customers"]
    assert "BROKEN" in text
    assert "`lifetime_value renamed from customer_lifetime_value, same values`" in (clone.root / "out.md").read_text()


def test_a_macro_and_a_broken_test(clone: Checkout, target: Target) -> None:
    clone.edit("include/dbt_project/macros/money.sql", ("cast({{ amount }} as", "cast(2 * ({{ amount }}) as"))
    clone.write({"tests/few_returns.sql": "select order_id from {{ ref('orders') }} where status = 'returned'"})
    code, report, _ = clone.preview()
    assert report["build"]["changed"] == ["customers", "orders", "stg_payments"]
    assert report["build"]["also_built"] == ["by_status", "grown"]
    found = tables(report)
    # In a service, views are no part of a release.
    views = set() if isinstance(target, InBigQuery | InSnowflake) else {"staging.stg_payments"}
    assert found.keys() == {"marts.customers", "marts.orders", *views}  # grown has no new orders
    for view in views:
        payments, by = query(clone, f"select count(*), sum(amount) from {view} where amount <> 0")
        amount = columns(found[view])["amount"]
        assert amount["changed"] == payments and is_amount(amount["sum_change"], f"+{by}")
    orders, by = query(clone, "select count(*), 3 * sum(amount) from marts.orders where amount <> 0")
    amount = columns(found["marts.orders"])["amount"]
    assert amount["changed"] == orders and is_amount(amount["sum_change"], f"+{by}")
    (returned,) = query(clone, "select count(*) from marts.orders where status = 'returned'")
    assert code == 1
    assert f"few_returns: {returned} failing rows" in report["build"]["failures"]


@pytest.mark.files
def test_personal_data_is_counted_and_in_no_output(clone: Checkout) -> None:
    clone.edit(
        "include/dbt_project/models/marts/core/customers.sql",
        ("        customers.last_name,", "        upper(customers.last_name) as last_name,"),
    )
    _, report, text = clone.preview("--markdown", "out.md")
    customers = tables(report)["marts.customers"]
    (changed,) = query(clone, "select count(*) from marts.customers where last_name <> upper(last_name)")
    assert (customers["changed"], columns(customers)["last_name"]["changed"]) == (changed, changed)
    first, last = query(clone, "select first_name, upper(last_name) from marts.customers order by 1 limit 1")
    for output in (text, json.dumps(report), (clone.root / "out.md").read_text()):
        assert "hidden" in output
        assert first not in output
        assert f" {last}" not in output


@pytest.mark.long
def test_a_masked_sample_is_a_base_and_a_warehouse_to_build_on(clone: Checkout, tmp_path: Path, target: Target) -> None:
    working = tmp_path / "jaffle_shop.duckdb"
    text = clone.run(sys.executable, "-m", "include.change", "sample", str(working))
    assert re.search(r"(\d+) of \1 tests pass on masked data", text)
    with warehouse_target().open_release() as connection:
        connection.execute(f"attach '{working}' as sample (read_only)")
        for of, shared in (("", 100), ("sample.", 0)):
            raw = f"select first_name from {of}jaffle_shop_raw.raw_customers"
            sql = f"select count(*) from marts.customers where first_name in ({raw})"
            assert connection.execute(sql).fetchone() == (shared,)
    code, report, _ = clone.preview("--base", str(working))
    assert (code, report["tables"], report["build"]["changed"]) == (0, [], [])
    # As in CI: without a warehouse, and never parsed before.
    plain = {"DBT_TARGET": "duckdb", "WAREHOUSE_ENCRYPTION_KEY": ""}
    other = checkout(tmp_path / "ci", {"WAREHOUSE_DIR": str(tmp_path / "none"), **plain}, target)
    other.edit("include/dbt_project/models/marts/core/orders.sql", NO_COUPONS)
    _, report, _ = other.preview("--base", str(working))
    assert {name: one["changed"] for name, one in tables(report).items()} == {"marts.orders": 14}
    assert columns(tables(report)["marts.orders"])["amount"]["sum_change"].startswith("-")
    for command in (
        (sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop"),
        ("dbt", "--quiet", "build", "--project-dir", "include/dbt_project", "--profiles-dir", "include/dbt_project"),
        (sys.executable, "-m", "include.runs", "publish", "of-files"),
    ):
        place = {"WAREHOUSE_DIR": str(tmp_path), **plain, "DBT_TARGET_PATH": str(tmp_path / "target")}
        clone.run(*command, **place)


@pytest.mark.files
def test_a_project_that_does_not_parse_or_a_base_that_is_not_there(clone: Checkout) -> None:
    clone.write({"models/marts/core/orders.sql": "select * from {{ ref('nothing') }}"})
    code, report, _ = clone.preview()
    assert (code, report["tables"]) == (1, [])
    assert "the project cannot be parsed" in report["build"]["failures"][0]
    assert "node named 'nothing'" in report["build"]["failures"][0]
    with clone.start(sys.executable, "-m", "include.change", "preview", "--base", "other.duckdb") as process:
        out = process.communicate()[0]
    assert process.returncode == 1
    assert out == "error: There is neither a release nor a file 'other.duckdb'. Kept releases: first.\n"


@pytest.mark.files
def test_previews_are_listed_replaced_and_expire(clone: Checkout) -> None:
    kept = clone.run(sys.executable, "-m", "include.change", "previews")
    assert kept.count("branch coupons") == 1  # the last one of the branch
    assert "Removed" in clone.run(sys.executable, "-m", "include.change", "previews", "--days", "0")
    assert clone.run(sys.executable, "-m", "include.change", "previews") == "No previews are kept.\n"


@pytest.mark.long
@pytest.mark.files
def test_an_encrypted_file_and_one_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_ENCRYPTION_KEY", "only-for-this-test-1234567890123")
    monkeypatch.setenv("DBT_TARGET", "encrypted")
    made = checkout(tmp_path / "one", {"WAREHOUSE_DIR": str(tmp_path / "data")})
    made.run(sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop")
    made.run("dbt", "--quiet", "build", cwd="include/dbt_project")
    made.run(sys.executable, "-m", "include.runs", "publish", "first")
    made.edit("include/dbt_project/models/marts/core/orders.sql", NO_COUPONS)
    for arguments in ((), ("--base", str(made.warehouse / "published" / "jaffle_shop.duckdb"))):
        _, report, _ = made.preview(*arguments)
        assert {name: one["changed"] for name, one in tables(report).items()} == {"marts.orders": 14}
    scratch = made.root / ".previews" / "coupons" / "jaffle_shop.duckdb"
    assert (scratch.stat().st_mode & 0o777, scratch.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with pytest.raises(duckdb.Error, match="without a key"):
        duckdb.connect(str(scratch), read_only=True)
