"""Airflow's metadata is cleaned of what ended long ago, also of a DAG that is gone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from testing import targets

pytestmark = [pytest.mark.dags, pytest.mark.long]

PROJECT = Path(__file__).resolve().parents[2]
FILL = """
import uuid
from datetime import UTC, datetime, timedelta
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.dag import DagModel
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.models.serialized_dag import SerializedDagModel
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.models.dag_version import DagVersion
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType
from sqlalchemy import insert, select
now = datetime.now(UTC)
with create_session() as session:
    session.add(DagBundleModel(name="dags-folder"))
for dag_id in ("gone", "there"):
    with DAG(dag_id, schedule=None, start_date=datetime(2020, 1, 1, tzinfo=UTC)) as dag:
        EmptyOperator(task_id="ran") >> EmptyOperator(task_id="never")
    with create_session() as session:
        at = now - timedelta(days=200)
        gone = dag_id == "gone"
        model = DagModel(dag_id=dag_id, bundle_name="dags-folder", is_stale=gone)
        model.last_parsed_time = at if gone else now
        session.add(model)
        session.flush()
        SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(dag), bundle_name="dags-folder", session=session)
        session.flush()
        version = session.scalar(select(DagVersion).where(DagVersion.dag_id == dag_id))
        for days in (200, 150, 1):
            if dag_id == "gone" and days == 1:
                continue
            at = now - timedelta(days=days)
            run = DagRun(dag_id=dag_id, run_id=f"run-{days}", run_type=DagRunType.SCHEDULED, run_after=at)
            run.state, run.start_date = DagRunState.FAILED, at
            run.created_dag_version_id = version.id
            session.add(run)
            session.flush()
            for name, start in (("ran", at), ("never", None)):
                session.execute(
                    insert(TaskInstance).values(
                        id=uuid.uuid4(), dag_id=dag_id, run_id=run.run_id, task_id=name, map_index=-1, try_number=1,
                        max_tries=0,
                        start_date=start, state="failed" if start else "upstream_failed", dag_version_id=version.id,
                        pool="default_pool", pool_slots=1, queue="default", priority_weight=1,
                    )
                )
"""
LEFT = """
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import select
with create_session() as session:
    print(sorted(session.scalars(select(DagModel.dag_id))))
    print(sorted(session.execute(select(DagRun.dag_id, DagRun.run_id)).all()))
    print(sorted(session.execute(select(TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id)).all()))
"""


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Where the metadata is: in the embedded mode, and with compose."""
    if request.param == "sqlite":
        yield {}
        return
    with targets.postgres() as server:
        name = psycopg.conninfo.conninfo_to_dict(server.create_database())["dbname"]
        address = f"postgres:{server.password}@127.0.0.1:{server.port}/{name}"
        yield {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{address}"}


def test_old_runs_go_with_tasks_that_never_started_and_with_dags_that_are_gone(
    tmp_path: Path, database: dict[str, str]
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(tmp_path),
        "PYTHONPATH": f"{PROJECT}:{PROJECT}/plugins",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "no",
    }
    env |= {"AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"), **database}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    run("-m", "airflow", "db", "migrate")
    (tmp_path / "fill.py").write_text(FILL)  # Airflow keeps a DAG's code
    run(str(tmp_path / "fill.py"))
    printed = run("-m", "metadata_cleaning", "90")
    assert "is left" in printed or "are left" in printed
    dags, runs, tasks = run("-c", LEFT).splitlines()[-3:]
    assert dags == "['there']"
    assert runs == "[('gone', 'run-150'), ('there', 'run-1')]", "Airflow keeps the last scheduled run of each DAG"
    assert tasks == "[('there', 'run-1', 'never'), ('there', 'run-1', 'ran')]"
