"""docs/adding-a-source.md, followed to the letter in a copy of the project; and the project under another name."""

import re
import sqlite3
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from testing.project import PROJECT, STG_SALES, Copy, block
from tests.integration.test_sources import Api

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    copy = Copy(tmp_path_factory.mktemp("guide") / "project")
    copy.file(".venv").symlink_to(sys.prefix)  # for `make`
    return copy


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    api = Api()
    api.purchases = [{"id": 1, "paid": 5}]  # type: ignore[attr-defined]
    yield api
    api.server.shutdown()


STAGING = "include/dbt_project/models/staging"
MARTS = "include/dbt_project/models/marts/core"
SALES_YML = """
models:
  - name: stg_sales
    description: One row per sale.
    columns:
      - {name: sale_id, description: Key of the sale., data_tests: [unique, not_null]}
  - name: sales
    description: One row per sale.
    columns:
      - {name: sale_id, description: Key of the sale., data_type: bigint, data_tests: [unique, not_null]}
      - {name: store_id, description: The store., data_type: bigint}
      - {name: sold_at, description: When it was sold., data_type: timestamp}
      - {name: price, description: What was paid., data_type: "decimal(18,2)"}
      - {name: _dlt_load_id, description: The load., data_type: varchar}
"""


@pytest.mark.long
def test_the_guide_can_be_followed(copy: Copy, api: Api, tmp_path: Path) -> None:
    dbt = "include/dbt_project"
    stores = ["1,Accra,2024-02-29", *(f"{number},Lima,2025-01-0{number}" for number in range(2, 7))]
    (tmp_path / "raw_stores.csv").write_text("\n".join(["id,name,opened_at", *stores]) + "\n")
    copy.run(f"make new-source FILES={tmp_path / 'raw_stores.csv'}")
    assert copy.file("include/dlt_pipelines/stores_pipeline.py").read_text() == block("A set of CSV files", "python")
    (tmp_path / "raw_products.csv").write_text("sku,price\nJ1,2.50\n")
    shown = copy.run(f"make new-source FILES={tmp_path / 'raw_products.csv'} NAME=stores")
    assert "raw_products: a new table" in shown and '"price": "DECIMAL(18,2)"' in shown

    sales = textwrap.indent(block("A drop folder", "python").strip(), " " * 8)
    copy.edit("include/dlt_pipelines/stores_pipeline.py", "    ),\n)\n", f"{sales},\n    ),\n)\n")
    copy.edit(f"{STAGING}/stores.yml", "    tables:\n", "    tables:\n      - {name: raw_sales, description: Sales.}\n")
    folder = "include/data/stores/raw_sales_"
    copy.write(f"{folder}1.csv", "id,store_id,sold_at,price\n1,1,2026-11-01 10:00:00,2.50\n2,1,2026-11-01 11:00:00,1\n")
    copy.write(f"{folder}2.csv", "id,store_id,sold_at,price\n2,2,2026-11-02 10:00:00,4\n3,2,2026-11-02 11:00:00,1\n")
    copy.write(f"{STAGING}/stg_sales.sql", STG_SALES)
    copy.write(f"{MARTS}/sales.sql", block("An incremental model", "sql"))
    copy.write(f"{MARTS}/sales.yml", SALES_YML)

    copy.write("include/dlt_pipelines/wholesale_pipeline.py", block("A REST API", "python"))
    copy.env["WHOLESALE_URL"] = f"http://127.0.0.1:{api.server.server_port}"
    copy.write("include/dlt_pipelines/crm_pipeline.py", block("A REST API", "python", 1))
    copy.env["CRM_URL"] = f"sqlite:///{tmp_path}/crm.db"
    with closing(sqlite3.connect(tmp_path / "crm.db")) as crm, crm:
        crm.execute("create table accounts as select 7 as id")
    copy.edit("dags/jaffle_shop.py", '("jaffle_shop", "stores")', '("jaffle_shop", "stores", "wholesale", "crm")')

    copy.write(f"{MARTS}/openings.sql", block("A model", "sql"))
    copy.write(f"{MARTS}/openings.yml", block("A model", "yaml"))
    copy.write(f"{dbt}/seeds/regions.csv", block("A seed", "csv"))
    copy.write(f"{dbt}/snapshots/store_history.yml", block("A seed", "yaml"))
    for source in ("jaffle_shop", "stores", "wholesale", "crm"):
        copy.run(f"python -m include.dlt_pipelines {source}")
    copy.run("dbt build", dbt)
    tasks = copy.dags()["jaffle_shop"]
    assert {"load.jaffle_shop", "load.stores", "load.wholesale", "load.crm"} <= tasks
    assert {"transform.stg_stores.run", "transform.openings.test", "transform.sales.run", "publish"} <= tasks
    assert {"transform.regions_seed", "transform.store_history_snapshot"} <= tasks
    copy.run("python -m include.runs publish guide")
    published = "data/published/jaffle_shop.duckdb"
    assert copy.published(published, "from marts.openings order by 1") == [(2024, 1), (2025, 5)]
    assert copy.published(published, "select paid from wholesale_raw.purchases") == [(5,)]
    assert copy.published(published, "select id from crm_raw.accounts") == [(7,)]
    sold = "select sale_id, store_id from marts.sales order by 1"
    assert copy.published(published, sold) == [(1, 1), (2, 2), (3, 2)]

    copy.file(f"{folder}2.csv").unlink()
    copy.write(f"{folder}3.csv", "id,store_id,sold_at,price\n4,2,2026-11-03 10:00:00,9\n")
    copy.run("python -m include.dlt_pipelines stores")
    copy.run("dbt build --select stg_stores+ stg_sales+", dbt)
    copy.run("python -m include.runs publish again")
    assert copy.published(published, sold) == [(1, 1), (2, 1), (4, 2)]
    copy.run(f"sqlfluff lint --disable-progress-bar {STAGING}/stg_stores.sql {MARTS}/sales.sql {MARTS}/openings.sql")
    copy.run("ruff check include dags && ruff format --check include dags")

    # A second DAG takes the stores' model over, without what was built on it.
    for built in (f"{MARTS}/openings", f"{MARTS}/sales", f"{STAGING}/stg_sales", f"{dbt}/snapshots/store_history"):
        for path in copy.root.glob(f"{built}.*"):
            path.unlink()
    for ending in ("sql", "yml"):
        model = copy.file(f"{dbt}/models/staging/stg_stores.{ending}")
        copy.write(f"{dbt}/models/marketing/stg_stores.{ending}", model.read_text())
        model.unlink()
    copy.edit(
        f"{dbt}/dbt_project.yml",
        "    marts:\n",
        "    marketing:\n      +schema: marts\n      +materialized: table\n    marts:\n",
    )
    copy.edit(
        "pools.json",
        "{",
        '{"marketing_writer": {"slots": 2, "description": "dbt tasks of the warehouse marketing"}, ',
    )
    copy.write("dags/marketing.py", block("A second DAG", "python"))
    copy.edit("dags/jaffle_shop.py", "transform()", 'transform(exclude=["path:models/marketing"])')
    copy.run("dbt parse", dbt)
    dags = copy.dags()
    assert dags["marketing"] == {
        *("load.stores", "source_freshness", "transform.stg_stores.run", "transform.stg_stores.test", "publish")
    }
    assert not [task for task in dags["jaffle_shop"] if task.startswith("transform.stg_stores")]


@pytest.mark.long
def test_under_another_name_the_pipeline_runs_and_the_old_name_is_nowhere_also_without_the_uis_side(
    tmp_path: Path,
) -> None:
    copy = Copy(tmp_path / "project")
    copy.edit("airflow.env", "WAREHOUSE_NAME=jaffle_shop", "WAREHOUSE_NAME=acme")
    copy.env["WAREHOUSE_NAME"] = copy.setting("WAREHOUSE_NAME")
    copy.run("python -m include.dlt_pipelines jaffle_shop")
    copy.run("dbt build", "include/dbt_project")
    copy.run("python -m include.runs publish renamed")
    query = (
        "from include.warehouse_catalog import published, query;"
        "print(query.run('select count(*) from marts.orders').rows, published.current().release.id)"
    )
    assert "(('99',),) renamed" in copy.run(f'python -c "{query}"')

    dags = copy.dags()
    assert dags.keys() == {"acme", "acme_rollback", "acme_maintenance"} and "publish" in dags["acme"]
    shown = copy.run("python -m include.warehouse show")
    assert str(copy.file("data/published/acme.duckdb")) in shown and "marts.customers" in shown
    assert "No test has failing rows" in copy.run("python -m include.runs failures")
    files = [path.name for path in copy.file("data").rglob("*.duckdb")]
    assert sorted(files) == ["acme.duckdb", "acme.duckdb", "renamed.duckdb"]


def test_the_layers_import_one_way() -> None:
    above = {
        "warehouse": ("include.runs", "include.dlt_pipelines", "include.warehouse_catalog"),
        "runs": ("include.dlt_pipelines", "include.warehouse_catalog"),
        "dlt_pipelines": ("include.warehouse_catalog",),
    }
    for layer, forbidden in above.items():
        for path in (PROJECT / "include" / layer).rglob("*.py"):
            imported = re.findall(r"^\s*(?:from|import) (include\S*)", path.read_text(), flags=re.M)
            assert not [name for name in imported if name.startswith(forbidden)], path
