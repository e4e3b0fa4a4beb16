"""One node of each type that dbt has, in a copy of the project, through a real Airflow, on each target."""

import csv
import io
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from include.warehouse import targets as engines
from testing import targets
from testing.airflow_processes import Airflow, Deployment, Run
from testing.classic import count_differences
from testing.project import LOAD, NAME, PROJECT, Copy

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]

NODES = Path(__file__).with_name("every_node_type")
# Each is a task, except `large`, which is ephemeral: an empty one.
BUILT = ("regions", "order_states", "grown", "scored", "shop_v1", "shop_v2", "from_old", "large")
PACKAGED = "transform.packaged_run"  # without tests, so without a group


@pytest.fixture(scope="module", params=["duckdb", "ducklake", "postgres", "bigquery", "snowflake"])
def target(request: pytest.FixtureRequest) -> Iterator[targets.Target]:
    with targets.started(request.param) as target:
        yield target


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, target: targets.Target) -> Deployment:
    """A copy of the project with these nodes, initialised as `make` does; with four writers where there can be."""
    root = tmp_path_factory.mktemp("nodes")
    copy = Copy(root / "project")
    shutil.copytree(NODES, copy.file("include/dbt_project"), dirs_exist_ok=True)
    if isinstance(target, targets.InBigQuery | targets.InSnowflake):
        target.adapt(copy.file("include/dbt_project"))
    if isinstance(target, targets.InPostgres | targets.InBigQuery | targets.InSnowflake):  # they have no Python models
        scored = copy.file("include/dbt_project/models/everything/scored.py")
        scored.with_suffix(".sql").write_text("select order_id, order_id % 3 as score from {{ ref('grown') }}")
        scored.unlink()
    if target.name != "duckdb":
        copy.edit("pools.json", '"slots": 2', '"slots": 4')
    deployment = Deployment(root, copy.root)
    deployment.env |= target.new(root) | {"WAREHOUSE_DIR": str(deployment.warehouse)}
    if isinstance(target, targets.DuckLake | targets.InPostgres):  # its PostgreSQL also gets the marts
        url = f"postgresql://postgres@127.0.0.1:{target.postgres.port}/postgres"
        deployment.env |= {"SERVE_URL": url, "SERVE_PASSWORD": target.postgres.password}
    deps = next(line for line in (PROJECT / "Makefile").read_text().splitlines() if line.startswith("DBT_DEPS"))
    commands = f"{deps.split(':= ')[1]} && python -m include.runs.manifest"
    subprocess.run(commands, shell=True, cwd=copy.file("include/dbt_project"), env=deployment.env, check=True)
    deployment.initialise()
    return deployment


@pytest.fixture(scope="module")
def airflow(deployment: Deployment) -> Iterator[Airflow]:
    with deployment.running() as airflow:
        yield airflow


def ids(kind: str, names: tuple[str, ...]) -> set[str]:
    other = {"regions": "seed", "order_states": "snapshot"}
    return {f"transform.{name}.{other.get(name, 'run') if kind == 'run' else kind}" for name in names}


def test_every_node_is_a_task_recorded_published_and_clearable(
    airflow: Airflow, deployment: Deployment, target: targets.Target
) -> None:
    run = airflow.trigger(NAME, full_refresh=True)
    tasks = run.tasks()
    assert set(tasks.values()) == {"success"}, tasks
    assert ids("run", BUILT) | ids("test", BUILT) | {PACKAGED} <= set(tasks)
    assert "1 of 1 PASS" in run.log("transform.large.test")
    recorded = {name for (name,) in deployment.read("select split(node, '.')[3] from warehouse.builds")}
    assert set(BUILT) - {"large", "shop_v1", "shop_v2"} | {"shop", "packaged"} <= recorded
    if not isinstance(target, targets.InBigQuery | targets.InSnowflake):  # a view, which is no part of a release there
        assert deployment.read("select * from everything.from_old order by id") == [(1, 1, 0), (2, None, 1)]
    with deployment.selected(), engines.target().open_release() as connection:
        assert count_differences(connection, deployment.data_dir) == {"customers": 0, "orders": 0}
    check_pages(airflow, deployment, run)

    if isinstance(target, targets.DuckLake | targets.InPostgres):
        with target.postgres.connect() as connection:
            assert connection.execute(f"select count(*) from {NAME}_marts.orders").fetchone() == (99,)

    # An incremental model keeps it, a full refresh does not.
    deployment.working("update everything.grown set cents = 0")
    run.clear_tasks(sorted(ids("run", BUILT) | {PACKAGED}))
    assert run.wait().state == "success", run.tasks()
    assert all(run.tries(task) == 2 for task in (ids("run", BUILT) | ids("test", BUILT)) - {"transform.large.run"})
    assert deployment.read("select count(*), min(cents) from everything.grown") == [(49, 5100)]


def test_a_killed_task_a_failing_test_and_a_rollback(airflow: Airflow, deployment: Deployment) -> None:
    first = airflow.trigger(NAME)
    assert first.state == "success", first.tasks()
    deployment.append("raw_orders", "100,1,2018-01-01,placed")
    run = airflow.start(NAME)
    killed = run.kill_running("transform.")
    assert run.wait().state == "success", run.tasks()
    assert run.tries(killed) > 1
    assert deployment.read("select count(*) from marts.orders") == [(100,)]

    deployment.append("raw_orders", "7,1,2018-01-01,placed")
    bad = airflow.trigger(NAME)
    assert bad.tasks()["transform.stg_orders.test"] == "failed"
    assert "unique_stg_orders_order_id: 1 failing row: unique_field=7" in bad.log("transform.stg_orders.test")
    assert deployment.read("select count(*) from marts.orders") == [(100,)]
    status, page = airflow.request("GET", "/warehouse/releases", token=airflow.token)
    assert status == 200 and run.id in page.decode()

    assert airflow.trigger(f"{NAME}_rollback", release=first.id).state == "success"
    assert deployment.read("select count(*) from marts.orders") == [(99,)]
    deployment.restore_data()
    bad.clear(LOAD)
    assert bad.state == "success", bad.tasks()
    assert deployment.read("select count(*) from marts.orders") == [(99,)]


def check_pages(airflow: Airflow, deployment: Deployment, run: Run) -> None:
    """Pages, the API and files read what is published."""
    expected = {
        "": "customers",
        "warehouses": NAME,
        "tables": "orders",
        "tables/marts/orders": "credit_card_amount",
        "tables/marts/orders/history": run.id,
        "lineage": "stg_orders",
        "quality": "unique_stg_orders_order_id",
        "releases": run.id,
        "connect": NAME,
        "query": "select",
        "api/tables/marts/orders/profile": "99",
        "files/marts.orders.csv": "credit_card_amount",
    }
    for page, text in expected.items():
        status, content = airflow.request("GET", f"/warehouse/{page}", token=airflow.token)
        assert status == 200 and text in content.decode(), (page, status, content[:2000])
    [(total,)] = deployment.read("select sum(amount) from marts.orders")
    assert sum(Decimal(row["amount"] or 0) for row in csv.DictReader(io.StringIO(content.decode()))) == total
