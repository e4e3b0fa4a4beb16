"""Bring an older snapshot back to the readers."""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param, task

DOC = """
Makes a kept snapshot what readers see, at once and atomically; the working database is not touched. The next green run of
`jaffle_shop` publishes its own snapshot again: **pause `jaffle_shop`** if the older state has to stay.

`list_snapshots` logs which snapshots are kept; trigger with *snapshot* empty to see them only. Safe to clear: rolling
back to the same snapshot twice changes nothing.
"""

with DAG(
    dag_id="jaffle_shop_rollback",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-platform", "retries": 0, "execution_timeout": timedelta(minutes=10)},
    params={
        "snapshot": Param(
            "",
            type="string",
            title="Snapshot",
            description_md="The id of a kept snapshot, or the run id that published it. Empty: only list them.",
        )
    },
    tags=["jaffle_shop", "on-call"],
    description="Make a kept snapshot what readers see",
    doc_md=DOC,
):

    @task
    def list_snapshots() -> list[str]:
        """Log the kept snapshots, newest first."""
        from include import warehouse

        snapshots = warehouse.list_snapshots()
        for snapshot in snapshots:
            mark = "  <- published" if snapshot.published else ""
            print(f"{snapshot.id}  {snapshot.created_at:%Y-%m-%d %H:%M:%S} UTC  {snapshot.size_bytes} bytes{mark}")
        return [snapshot.id for snapshot in snapshots]

    @task
    def rollback(params: dict[str, str]) -> str:
        """Link the chosen snapshot as the published database."""
        from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

        from include import warehouse

        if not params["snapshot"]:
            raise AirflowSkipException("No snapshot chosen; nothing was changed.")
        try:
            return warehouse.rollback(params["snapshot"]).id
        except warehouse.WarehouseError as error:
            raise AirflowFailException(str(error)) from error

    list_snapshots() >> rollback()
