"""Daily cleaning: logs, artifacts, Airflow's metadata, files of a lake that nothing needs."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task
from elt import PROJECT_NAME
from task_secrets import fetch

_DOC = """
Removes what runs leave behind: logs and Airflow's metadata of runs that ended more than `KEEP_DAYS` ago (`airflow.env`), artifacts beyond
those of the last 400 runs, previews, and files of a lake that nothing needs. What readers see, kept releases and the working
database stay as they are. Clear it at any time. On workers without the metadata's password, `metadata` is skipped; clean it on the main
machine: `docker compose exec -e PYTHONPATH=/opt/elt:/opt/elt/plugins scheduler python -m metadata_cleaning 90`.
"""

with DAG(
    dag_id=f"{PROJECT_NAME}_maintenance",
    schedule="30 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "data-platform",
        "retries": 1,
        "execution_timeout": timedelta(hours=1),
        "pre_execute": fetch,
    },
    tags=[PROJECT_NAME],
    description="Clean up what runs leave behind",
    doc_md=_DOC,
) as dag:

    @task
    def files() -> dict[str, int]:
        """Remove old logs, artifacts and previews, and files of a lake that nothing needs."""
        from pathlib import Path

        from airflow.configuration import conf

        from include.maintenance import clean

        removed = clean(Path(conf.get("logging", "base_log_folder")))
        print(", ".join(f"{name}: {count} removed" for name, count in removed.items()))
        return removed

    @task
    def metadata() -> str:
        """Remove the metadata of old runs, with Airflow's own cleaning."""
        import os
        import subprocess
        import sys
        from pathlib import Path

        from airflow.sdk.exceptions import AirflowSkipException
        from airflow_local_settings import METADATA

        from include.maintenance import keep_days

        if "Celery" in os.environ.get("AIRFLOW__CORE__EXECUTOR", ""):
            raise AirflowSkipException("Workers have no access to the metadata: clean it on the main machine.")
        plugins = str(Path(__file__).parents[1] / "plugins")
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([plugins, os.environ.get("PYTHONPATH", "")])}
        for name in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__SQL_ALCHEMY_CONN"):
            environ.pop(name, None)  # of a database that tasks may not use
        if METADATA and "not-allowed" not in METADATA:  # else it is in the configuration
            environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = METADATA
        command = [sys.executable, "-m", "metadata_cleaning", str(keep_days())]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"The metadata could not be cleaned: {done.stderr[-2000:]}")
        return done.stdout.splitlines()[-1]

    files()
    metadata()
