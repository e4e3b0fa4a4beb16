"""The dbt project by hand: on a real warehouse, with the commands that a person types in its folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include import dbt_results, warehouse
from include.dlt_pipelines import jaffle_shop_pipeline

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DBT = Path(sys.executable).with_name("dbt")

# The public jaffle shop's own logic, as dbt-labs wrote it, over raw tables.
CLASSIC = """
with stg_payments as (
    select id as payment_id, order_id, payment_method, amount / 100 as amount from jaffle_shop_raw.raw_payments
),
stg_orders as (select id as order_id, user_id as customer_id, order_date, status from jaffle_shop_raw.raw_orders),
stg_customers as (select id as customer_id, first_name, last_name from jaffle_shop_raw.raw_customers),
customer_orders as (
    select customer_id, min(order_date) as first_order, max(order_date) as most_recent_order,
        count(order_id) as number_of_orders
    from stg_orders group by customer_id
),
customer_payments as (
    select orders.customer_id, sum(amount) as total_amount
    from stg_payments left join stg_orders as orders on stg_payments.order_id = orders.order_id
    group by orders.customer_id
),
customers as (
    select c.customer_id, c.first_name, c.last_name, o.first_order, o.most_recent_order, o.number_of_orders,
        p.total_amount as customer_lifetime_value
    from stg_customers as c
    left join customer_orders as o on c.customer_id = o.customer_id
    left join customer_payments as p on c.customer_id = p.customer_id
),
order_payments as (
    select order_id,
        sum(case when payment_method = 'credit_card' then amount else 0 end) as credit_card_amount,
        sum(case when payment_method = 'coupon' then amount else 0 end) as coupon_amount,
        sum(case when payment_method = 'bank_transfer' then amount else 0 end) as bank_transfer_amount,
        sum(case when payment_method = 'gift_card' then amount else 0 end) as gift_card_amount,
        sum(amount) as total_amount
    from stg_payments group by order_id
),
orders as (
    select o.order_id, o.customer_id, o.order_date, o.status, p.credit_card_amount, p.coupon_amount,
        p.bank_transfer_amount, p.gift_card_amount, p.total_amount as amount
    from stg_orders as o left join order_payments as p on o.order_id = p.order_id
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project where its default warehouse path, ../../data, is a fresh one; load, and build it by hand."""
    folder = tmp_path_factory.mktemp("repo") / "include" / "dbt_project"
    shutil.copytree(ROOT / "include" / "dbt_project", folder, ignore=shutil.ignore_patterns("target", "logs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAREHOUSE_DIR", str(folder.parents[1] / "data"))
        jaffle_shop_pipeline.load("test", 0)
    built = dbt(folder, "--warn-error", "build")
    assert built.returncode == 0, built.stdout
    return folder


@pytest.fixture
def database(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Lend the built warehouse's working database, and put it back as it was."""
    monkeypatch.setenv("WAREHOUSE_DIR", str(project.parents[1] / "data"))
    saved = shutil.copyfile(warehouse.working_path(), warehouse.working_path().with_suffix(".saved"))
    yield warehouse.working_path()
    saved.replace(warehouse.working_path())


def dbt(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "WAREHOUSE_DIR"}
    return subprocess.run(
        [DBT, *arguments], cwd=project, env=environment | {"DO_NOT_TRACK": "1"}, capture_output=True, text=True
    )


def test_freshness_by_hand_passes_after_a_load(project: Path) -> None:
    done = dbt(project, "source", "freshness")
    assert done.returncode == 0, done.stdout
    assert "WARN" not in done.stdout.replace("WARN=0", "")


def test_docs_by_hand_describe_each_column_of_the_models(project: Path) -> None:
    done = dbt(project, "docs", "generate")
    assert done.returncode == 0, done.stdout
    manifest = json.loads((project / "target" / "manifest.json").read_text())
    catalog = json.loads((project / "target" / "catalog.json").read_text())
    models = [key for key in catalog["nodes"] if key.startswith("model.")]
    assert len(models) == 5
    for key in models:
        described = {name for name, column in manifest["nodes"][key]["columns"].items() if column["description"]}
        assert described == set(catalog["nodes"][key]["columns"]), key


@pytest.mark.parametrize(("mart", "rows"), [("customers", 100), ("orders", 99)])
def test_marts_equal_the_classic_logic(database: Path, mart: str, rows: int) -> None:
    with duckdb.connect(str(database)) as con:
        assert con.execute(f"select count(*) from marts.{mart}").fetchone() == (rows,)
        for one, other in ((mart, f"marts.{mart}"), (f"marts.{mart}", mart)):
            assert con.execute(f"{CLASSIC} from {one} except all from {other}").fetchall() == []


@pytest.mark.parametrize(
    ("damage", "test", "row"),
    [
        (
            "insert into raw_orders select * from raw_orders where id = 7",
            "unique_stg_orders_order_id",
            {"unique_field": 7},
        ),
        ("update raw_orders set status = 'lost' where id = 7", "accepted_values_stg_orders", {"value_field": "lost"}),
        ("update raw_payments set order_id = 999 where id = 3", "payments_have_an_order", {"from_field": 999}),
        ("update raw_customers set id = null where id = 3", "not_null_stg_customers_customer_id", {}),
    ],
)
def test_bad_data_fails_its_test_which_tells_the_rows(
    project: Path, database: Path, damage: str, test: str, row: dict[str, object]
) -> None:
    with duckdb.connect(str(database)) as con:
        con.execute("use jaffle_shop_raw")
        con.execute(damage)
    assert dbt(project, "test", "--exclude-resource-type", "unit_test").returncode == 1
    failed = dbt_results.failing_rows(project / "target" / "run_results.json")
    name = next(name for name in failed if name.startswith(test))
    assert failed[name][0].items() >= row.items()
