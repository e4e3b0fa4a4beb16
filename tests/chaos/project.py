"""The project that chaos breaks: a copy with a second source, a drop folder, which two DAGs load.

The first DAG loads both sources. `DELIVERED` runs once the files of a set are in the drop folder, in its own warehouse.
"""

import random
from datetime import timedelta
from pathlib import Path

from include.settings import in_warehouse
from include.warehouse.targets import target
from testing.airflow_processes import Deployment
from testing.project import NAME, Copy

SOURCE = "drop"
LOADS = (f"load.{NAME}", f"load.{SOURCE}")
DELIVERED = "delivered"
DEADLINE = timedelta(seconds=15)

_CONTRACT = '''"""Sales, a file for each delivery, and the list of stores as it is now."""

from include.dlt_pipelines.file_source import FileSource, TableContract

SOURCE = FileSource(
    "drop",
    folder="include/data/drop",
    tables=(
        TableContract("sales", {"id": "BIGINT", "store_id": "BIGINT"}, ("id",), files="sales_*.csv"),
        TableContract("stores", {"id": "BIGINT"}, ("id",)),
    ),
)
'''
_DBT = """sources:
  - name: drop
    schema: drop_raw
    tables: [{name: sales}, {name: stores}]
models:
  - name: sold
    columns:
      - name: id
        data_tests: [unique, not_null]
"""
_MODEL = """{{ config(materialized='table', schema='marts') }}
select sales.id, sales._file, stores.id as store_id
from {{ source('drop', 'sales') }} as sales
inner join {{ source('drop', 'stores') }} as stores on stores.id = sales.store_id
"""
_DAG = f'''"""Runs once the files are there."""

from datetime import timedelta

from deliveries import when_delivered
from elt import elt_dag, load, publish, transform

schedule = when_delivered("{SOURCE}", timedelta(seconds={DEADLINE.seconds}))
with elt_dag("{DELIVERED}", schedule=schedule, description="On delivery", pool="default_pool") as dag:
    models = transform(select=["path:models/drop"])
    load(("{SOURCE}",)) >> models >> publish(models)
'''


def deploy(root: Path) -> Deployment:
    """Return a deployment of the copy, in which deliveries start runs, and the day: one at first."""
    copy = Copy(root / "project")
    copy.write(f"include/dlt_pipelines/{SOURCE}_pipeline.py", _CONTRACT)
    copy.write("include/dbt_project/models/drop/drop.yml", _DBT)
    copy.write("include/dbt_project/models/drop/sold.sql", _MODEL)
    copy.write(f"dags/{DELIVERED}.py", _DAG)
    copy.edit("dags/jaffle_shop.py", f'("{NAME}",)', f'("{NAME}", "{SOURCE}")')
    copy.file("dags/maintenance.py").unlink()
    copy.run("python -m include.runs.manifest")
    deployment = Deployment(root, copy.root, probes=False)
    (root / SOURCE).mkdir()
    deployment.env |= {
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
        "TRIGGERER": "true",
        f"SOURCES__{SOURCE.upper()}__DATA_DIR": str(root / SOURCE),
    }
    for table in ("sales", "stores"):
        deliver(deployment, table, random.Random(0))
    return deployment


def deliver(deployment: Deployment, table: str, chance: random.Random) -> None:
    """Rename a file into place: another one with sales, or the list of stores, which only grows."""
    folder = deployment.root / SOURCE
    first = 100 * len(list(folder.glob("sales_*.csv")))
    if table == "sales":
        name, lines = f"sales_{first:06}.csv", ["id,store_id"]
        lines += [f"{number},1" for number in range(first, first + chance.randrange(1, 100))]
    else:
        name, lines = "stores.csv", ["id", *map(str, range(1, first // 100 + 2))]
    (folder / f".{name}").write_text("\n".join(lines) + "\n")
    (folder / f".{name}").rename(folder / name)


def sold(deployment: Deployment, warehouse: str) -> dict[str, int]:
    """Return the rows of each file with sales that readers of a warehouse see."""
    with deployment.selected(), in_warehouse(warehouse):
        if not target().published_version():
            return {}
        with target().open_release() as connection:
            return dict(connection.execute("select _file, count(*) from marts.sold group by all").fetchall())


def delivered(deployment: Deployment) -> dict[str, int]:
    """Return the rows of each file with sales in the drop folder."""
    found = (deployment.root / SOURCE).glob("sales_*.csv")
    return {file.name: len(file.read_text().splitlines()) - 1 for file in found}


def has_seen_all(deployment: Deployment) -> bool:
    """Return whether readers see all that was delivered."""
    return sold(deployment, DELIVERED) == delivered(deployment)
