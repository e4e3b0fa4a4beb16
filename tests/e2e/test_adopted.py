"""A dbt project with packages, hooks and odd names, adopted as it is, in a real Airflow: what plain dbt builds."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from testing.airflow_processes import Airflow, Deployment
from testing.project import NAME
from tests.integration.test_adopt import BAKERY, BAKERYS_TASKS, build_plainly, commit_all, rows

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(BAKERY, tmp_path_factory.mktemp("theirs") / "bakery"))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Deployment:
    root = tmp_path_factory.mktemp("adopted")
    deployment = Deployment(root, commit_all(root / "project"), probes=False)
    # Exported by a developer, as for dbt by hand; and the DAG's file is read as often as in a deployment.
    deployment.env["DBT_TARGET_PATH"] = str(root / "elsewhere")
    del deployment.env["AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL"]
    adopt = [sys.executable, "scripts/adopt.py", str(project)]
    done = subprocess.run(adopt, cwd=deployment.project, env=deployment.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the rows that fail data_tests are not stored, as two tests would have the same table" in done.stdout
    deployment.initialise()
    return deployment


@pytest.fixture(scope="module")
def airflow(deployment: Deployment) -> Iterator[Airflow]:
    with deployment.running() as airflow:
        yield airflow


def test_one_run_publishes_what_plain_dbt_builds_and_each_node_has_a_task(
    airflow: Airflow, deployment: Deployment, project: Path
) -> None:
    run = airflow.trigger(NAME)
    tasks = run.tasks()
    assert tasks.keys() == BAKERYS_TASKS
    assert set(tasks.values()) == {"success"}, tasks
    expected = build_plainly(project)
    with duckdb.connect(str(deployment.published), read_only=True) as connection:
        assert rows(connection) == expected
        (starts,) = connection.execute("select count(*) from main.starts").fetchall()[0]
        assert starts >= len(BAKERYS_TASKS) - 5, "hooks ran with each task, and their table is published"
        recorded = "select count(distinct node) from watched.results where status in ('success', 'pass')"
        assert connection.execute(recorded).fetchall()[0][0] >= 5
    kept = {
        path.stem for path in deployment.warehouse.glob("artifacts/*/transform.*.json") if ".cost." not in path.name
    }
    assert kept == {task for task in BAKERYS_TASKS if task.startswith("transform.")} - {"transform.between_run"}
    assert not (deployment.root / "elsewhere").exists()


def test_an_edit_while_airflow_runs_is_in_the_next_run_all_of_it(airflow: Airflow, deployment: Deployment) -> None:
    """A changed model, a new one and a new test: triggered before Airflow has read the DAG again."""
    models = deployment.project / "include" / "dbt_project" / "transformations"
    model = models / "marts" / "by_shop.sql"
    model.write_text(model.read_text().replace("sum(amount) as amount", "sum(amount) + 100 as amount"))
    (models / "marts" / "by_postcode.sql").write_text("select postcode, amount from {{ ref('by_shop') }}")
    (models / "marts" / "more.yml").write_text(
        "models: [{name: by_postcode, columns: [{name: postcode, data_tests: [unique]}]}]"
    )
    run = airflow.trigger(NAME)
    tasks = run.tasks()
    assert run.state == "success", (tasks, run.log("publish"))
    assert {"transform.by_postcode.run", "transform.by_postcode.test"} <= tasks.keys()
    published = deployment.read("select postcode, amount from marts.by_postcode order by 1")
    assert published == [("00501", 121.0), ("02134", 125.0)]
