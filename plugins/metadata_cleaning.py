"""Clean Airflow's metadata of what ended long ago: python -m metadata_cleaning DAYS, in a process of its own.

Tasks have no access to the metadata; the scheduler's own do not have it before they start another process.
"""

import sys


def main() -> None:
    """Remove what is older than the days given, and print how much."""
    import pendulum
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.db_cleanup import run_cleanup
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import delete, func, select

    before = pendulum.now("UTC").subtract(days=int(sys.argv[1]))
    ended = (DagRunState.SUCCESS, DagRunState.FAILED)
    with create_session() as session:
        # Tasks that never started have no date that Airflow's cleaning looks at, so they stay; and if their DAG is
        # gone, it fails on their foreign keys.
        begun = func.coalesce(DagRun.start_date, DagRun.queued_at, DagRun.run_after)
        for dag_id, run_id in session.execute(
            select(DagRun.dag_id, DagRun.run_id).where(begun < before, DagRun.state.in_(ended))
        ).all():
            session.execute(
                delete(TaskInstance)
                .where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id, TaskInstance.start_date.is_(None))
                .execution_options(synchronize_session=False)
            )
    for tables in (["task_instance", "task_instance_history", "xcom"], ["dag_run"], None):
        run_cleanup(clean_before_timestamp=before, table_names=tables, confirm=False, skip_archive=True)
    with create_session() as session:
        print(f"{session.scalar(select(func.count()).select_from(DagRun))} runs are left")


if __name__ == "__main__":
    main()
