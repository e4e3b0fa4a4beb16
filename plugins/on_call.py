"""On-call support in Airflow: alerts, retries only where they can help, runs that take turns."""

import gc
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, cast
from urllib.parse import quote

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseNotifier
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.deadline import BaseDeadlineReference
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowRescheduleException, AirflowTaskTimeout

CONNECTION = "apprise_default"
TURN_SECONDS = 10
UNUSUAL = "What was published is unusual"  # of the runbook


class RetryIfItHelps(RetryPolicy):
    """Retry transient failures: a held lock, a full disk, a killed process. Everything else fails at once."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """Decide by the exception; unknown ones are retried."""
        from include.errors import PipelineError
        from include.runs.dbt_results import TRANSIENT

        retryable = True
        if isinstance(exception, PipelineError):
            retryable = exception.retryable
        elif type(exception).__name__ == "CosmosDbtRunError":  # Cosmos wraps every dbt failure in it
            retryable = any(sign in str(exception) for sign in TRANSIENT)
        elif isinstance(exception, AirflowTaskTimeout):
            retryable = False
        if retryable:
            return RetryDecision.default()
        return RetryDecision.fail(f"{type(exception).__name__}: a retry would fail again")


def before_task(context: Any, warehouse: str | None = None) -> None:
    """Select the warehouse, wait for other tasks and runs, and make the task's time limit cancel its queries.

    Args:
        context: as for `pre_execute`.
        warehouse: name of the task's warehouse; default the project's.

    Raises:
        As `take_turn`.
    """
    from include.warehouse import begin_turn

    _use_warehouse(warehouse)
    take_turn(context, is_only_writer=begin_turn())
    if limit := context["task"].execution_timeout:
        threading.Thread(target=_cancel_dbt_queries, args=(limit.total_seconds(),), daemon=True).start()
    gc.freeze()  # Cosmos collects garbage after dbt, which need not visit the DAG's objects: a twelfth of a task's time


def _use_warehouse(name: str | None) -> None:
    if name:
        from include import warehouse

        warehouse.use_warehouse(name)


def _cancel_dbt_queries(limit: float) -> None:
    # Airflow's timeout raises in the main thread. There dbt cancels its queries only on KeyboardInterrupt; on any other
    # exception it waits for them to finish, possibly forever.
    time.sleep(limit + 1)
    from dbt.adapters.contracts.connection import ConnectionState
    from dbt.adapters.factory import FACTORY

    while True:
        for adapter in list(FACTORY.adapters.values()):
            # Not cancel_open_connections(): it needs the lock that the waiting main thread holds.
            for connection in list(adapter.connections.thread_connections.values()):
                if connection.state == ConnectionState.OPEN:
                    # dbt-postgres would need a connection of this thread; psycopg2 needs none.
                    cancel = getattr(connection.handle, "cancel", None)
                    cancel() if cancel else adapter.connections.cancel(connection)
        time.sleep(1)


def take_turn(context: Any, is_only_writer: bool) -> None:
    """Wait until no other active run has its data in the working database, and no outside process holds it.

    A backfill's runs start in parallel with each other and with the scheduled run. The pool serializes their tasks;
    this serializes the runs: the task is rescheduled in `TURN_SECONDS` and holds no slot meanwhile.

    Raises:
        AirflowRescheduleException: it is another run's turn.
        include.warehouse.WarehouseError: the working database cannot be opened.
    """
    from include import warehouse

    ti = context["ti"]
    # Nobody to wait for: on a lake, opening it to find out would take a third of a second.
    if not is_only_writer and ti.get_dr_count(dag_id=ti.dag_id, states=["running"]) <= 1:
        return
    with warehouse.open_working() as connection:
        runs = {load.run_id for load in warehouse.loads(connection)}
    others = sorted(runs - {ti.run_id})
    if others and ti.get_dr_count(dag_id=ti.dag_id, run_ids=others, states=["running"]):
        print(f"Waiting for another run to finish with the database: {', '.join(others)}")
        raise AirflowRescheduleException(datetime.now(UTC) + timedelta(seconds=TURN_SECONDS))  # type: ignore[no-untyped-call]


class Queued(BaseDeadlineReference):
    """The time a run was queued. Airflow's own DAGRUN_QUEUED_AT breaks clearing in 3.3: apache/airflow issue 70368."""

    required_kwargs: ClassVar = {"dag_id", "run_id"}

    def _evaluate_with(self, *, session: Any, dag_id: str, run_id: str) -> datetime | None:
        from airflow.models import DagRun
        from sqlalchemy import select

        wanted = select(DagRun.queued_at).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
        return cast(datetime | None, session.scalar(wanted))


class AlertNotifier(BaseNotifier):
    """Alert the person on call through Apprise: Slack, Teams, e-mail, webhooks and many more.

    Alerts go to the targets of the Airflow connection `apprise_default`; without it none are sent. A failed delivery is
    logged and fails nothing.
    """

    def __init__(self, kind: str, warehouse: str | None = None, context: Any = None) -> None:
        """Set what to report.

        Args:
            kind: `failed`, `warned`, `late` or `recovered`.
            warehouse: name of the warehouse the alert is about; default the process's.
            context: a deadline's context.
        """
        super().__init__()
        self.kind = kind
        self.warehouse = warehouse

    def notify(self, context: Any) -> None:
        """Send the alert for a task's, a run's or a deadline's context."""
        from airflow.sdk.log import redact  # type: ignore[attr-defined]

        from include.runs import alerts

        _use_warehouse(self.warehouse)
        alert, started = self._alert(context)
        if alert is None or (alert.kind in ("failed", "late") and not alerts.should_send(alert, started)):
            return
        self._send(alert.title(), cast(str, redact(alert.body())), context)

    def _alert(self, context: Any) -> tuple[Any, datetime | None]:
        from include.runs import alerts

        if self.kind == "late":  # a deadline's context is JSON
            run = context["dag_run"]
            reason = f"Not finished by its deadline, {context['deadline']['deadline_time']}."
            link = _run_link(run["dag_id"], run["dag_run_id"])
            return alerts.Alert("late", run["dag_id"], run["dag_run_id"], reason, link, runbook="A run is late"), None
        dag_id, run_id = context["dag"].dag_id, context["run_id"]
        run = context.get("dag_run")
        started = run.start_date if run else None
        if self.kind == "recovered":
            message = alerts.resolve_failures(dag_id, run.end_date if run else None)
            return message and alerts.Alert("recovered", dag_id, run_id, message, _run_link(dag_id, run_id)), started
        if "reason" in context:  # a DAG's callback
            reason, runbook = f"The run failed: {context['reason']}.", "A run failed"
            return alerts.Alert("failed", dag_id, run_id, reason, _run_link(dag_id, run_id), runbook=runbook), started
        ti = context["ti"]
        if self.kind == "warned":
            if not context["test_names"]:  # Cosmos calls back after every freshness check, even without a warning
                return None, None
            lines = [
                f"{name}: {text}" for name, text in zip(context["test_names"], context["test_results"], strict=True)
            ]
            reason, runbook = "\n".join(lines), context.get("runbook", "A test warns")
        else:
            reason, runbook = alerts.describe_failure(context.get("exception"))
        tries = f"{ti.try_number} of {ti.max_tries + 1}"
        return alerts.Alert(self.kind, dag_id, run_id, reason, ti.log_url, ti.task_id, tries, runbook), started

    def _send(self, title: str, body: str, context: Any) -> None:
        from airflow.providers.apprise.hooks.apprise import AppriseHook
        from airflow.sdk.exceptions import AirflowNotFoundException
        from apprise import Apprise, NotifyType

        hook, targets = AppriseHook(CONNECTION), Apprise()
        try:
            hook.set_config_from_conn(hook.get_connection(CONNECTION), targets)
        except AirflowNotFoundException:
            self.log.info("No connection %s, so no alert is sent: %s", CONNECTION, title)
            return
        kinds = {"failed": NotifyType.FAILURE, "recovered": NotifyType.SUCCESS}
        # The hook's own notify() does not report whether the alert was delivered.
        if not targets.notify(body=body, title=title, notify_type=kinds.get(self.kind, NotifyType.WARNING)):
            self.log.error("The alert %r could not be delivered to every target of %s", title, CONNECTION)


def _base_url() -> str:
    return str(conf.get("api", "base_url", fallback="http://localhost:8080")).rstrip("/")


def _run_link(dag_id: str, run_id: str) -> str:
    return f"{_base_url()}/dags/{dag_id}/runs/{quote(run_id)}"


def show_page(page: str) -> None:
    """Print the URL of a page of the Warehouse section in the task's log, if the section is there."""
    if Path(__file__).with_name("warehouse_ui").exists():
        print(f"See {_base_url()}/plugin/warehouse/warehouse/{page}")


class OnCallPlugin(AirflowPlugin):
    """Registers the deadline reference with the scheduler."""

    name = "on_call"
    deadline_references = [Queued]  # noqa: RUF012, an instance variable of the base class
