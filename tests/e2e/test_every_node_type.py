"""One node of each type that dbt has, in a copy of the project, through a real Airflow."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from tests.conftest import NAME
from tests.e2e.airflow_processes import PROJECT, Airflow, Deployment
from tests.integration.test_guide import Copy

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]

NODES = Path(__file__).with_name("every_node_type")
# Each is a task, except `large`, which is ephemeral: an empty one.
BUILT = ("regions", "order_states", "grown", "scored", "shop_v1", "shop_v2", "from_old", "large")
PACKAGED = "transform.packaged_run"  # without tests, so without a group


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A copy of the project with these nodes, initialised as `make` does."""
    root = tmp_path_factory.mktemp("nodes")
    copy = Copy(root / "project")
    shutil.copytree(NODES, copy.file("include/dbt_project"), dirs_exist_ok=True)
    deployment = Deployment(root, copy.root)
    deps = next(line for line in (PROJECT / "Makefile").read_text().splitlines() if line.startswith("DBT_DEPS"))
    commands = f"{deps.split(':= ')[1]} && dbt --quiet parse"
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


def test_every_node_is_a_task_recorded_published_and_clearable(airflow: Airflow, deployment: Deployment) -> None:
    run = airflow.trigger(NAME, full_refresh=True)
    tasks = run.tasks()
    assert set(tasks.values()) == {"success"}, tasks
    assert ids("run", BUILT) | ids("test", BUILT) | {PACKAGED} <= set(tasks)
    assert "1 of 1 PASS" in run.log("transform.large.test")
    with duckdb.connect(str(deployment.published), read_only=True) as con:
        recorded = {name for (name,) in con.execute("select split(node, '.')[3] from warehouse.builds").fetchall()}
        assert set(BUILT) - {"large", "shop_v1", "shop_v2"} | {"shop", "packaged"} <= recorded
        assert con.execute("select * from main.from_old order by id").fetchall() == [(1, 1, 0), (2, None, 1)]

    with duckdb.connect(str(deployment.warehouse / f"{NAME}.duckdb")) as con:
        con.execute("update main.grown set cents = 0")  # an incremental model keeps it, a full refresh does not
    run.clear_tasks(sorted(ids("run", BUILT) | {PACKAGED}))
    assert run.wait().state == "success", run.tasks()
    assert all(run.tries(task) == 2 for task in (ids("run", BUILT) | ids("test", BUILT)) - {"transform.large.run"})
    with duckdb.connect(str(deployment.published), read_only=True) as con:
        assert con.execute("select count(*), min(cents) from main.grown").fetchall() == [(49, 5100)]
