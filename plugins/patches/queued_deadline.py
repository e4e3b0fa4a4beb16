"""A deadline that counts from when a run was queued, on which a run can be cleared.

What: a reference of our own, as Airflow documents them, in place of `DeadlineReference.DAGRUN_QUEUED_AT`.
Why: clearing a run whose deadline counts from that one answers 500, `unsupported type for timedelta`.
Reported: https://github.com/apache/airflow/issues/70368 (open).
Since: Airflow 3.3.0.
Remove once that is fixed: then `deadline()` in plugins/alerts.py takes `DAGRUN_QUEUED_AT`.
"""

from datetime import datetime
from typing import Any, ClassVar, cast

from airflow.sdk.definitions.deadline import BaseDeadlineReference


class Queued(BaseDeadlineReference):
    """The time a run was queued; plugins/alerts.py registers it."""

    required_kwargs: ClassVar = {"dag_id", "run_id"}

    def _evaluate_with(self, *, session: Any, dag_id: str, run_id: str) -> datetime | None:
        from airflow.models import DagRun
        from sqlalchemy import select

        wanted = select(DagRun.queued_at).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
        return cast(datetime | None, session.scalar(wanted))
