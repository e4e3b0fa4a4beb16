"""Alerts through Apprise: Slack, Teams, e-mail, webhooks and many more. Optional: without this file, none are sent."""

import logging
import os
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.callback import SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowTaskTimeout
from airflow.sdk.log import mask_logs
from links import incident_page, run_link, section_link
from patches.queued_deadline import Queued

if TYPE_CHECKING:
    from include.runs.alerts import Alert, Kind

CONNECTION = "apprise_default"
_VARIABLE = f"AIRFLOW_CONN_{CONNECTION.upper()}"
_REMEDY = 'see "Who gets alerts" in docs/runbook.md'


class AlertNotifier(BaseNotifier):
    """Alert the person on call, at the targets of the Airflow connection `apprise_default`; without it, nobody.

    An alert fails nothing, whatever is wrong with it: Cosmos sends it from inside the task. What is wrong is logged.
    """

    def __init__(self, kind: "Kind", warehouse: str | None = None, context: Any = None) -> None:
        """Set what to report.

        Args:
            kind: what happened.
            warehouse: name of the warehouse the alert is about; default the process's.
            context: a deadline's context.
        """
        super().__init__()
        self.kind = kind
        self.warehouse = warehouse

    def notify(self, context: Any) -> None:
        """Send the alert for a task's, a run's or a deadline's context."""
        try:
            self._notify(context)
        except Exception as error:  # noqa: BLE001
            text = _masked(" ".join(f"{type(error).__name__}: {error}".split()))
            self.log.error("The alert that a run or task %s was not sent: %s. To fix it, %s.", self.kind, text, _REMEDY)

    def _notify(self, context: Any) -> None:
        from include.runs import alerts

        if self.warehouse:
            from include.warehouse.paths import use_warehouse

            use_warehouse(self.warehouse)
        alert, started = self._alert(context)
        if alert and (alert.kind not in alerts.FAILURES or alerts.should_send(alert, started)):
            self._send(alert)

    def _alert(self, context: Any) -> "tuple[Alert | None, datetime | None]":
        from include.errors import TimeLimitError, describe_failure
        from include.runs.alerts import Alert, resolve_failures

        if self.kind == "late":  # a deadline's context is JSON
            run = context["dag_run"]
            reason = f"Not finished by its deadline, {context['deadline']['deadline_time']}."
            link = run_link(run["dag_id"], run["dag_run_id"])
            page = section_link(incident_page(run["dag_run_id"]), run["dag_id"])
            return Alert(
                "late", run["dag_id"], run["dag_run_id"], reason, link, runbook="A run is late", page=page
            ), None
        dag_id, run_id = context["dag"].dag_id, context["run_id"]
        run = context.get("dag_run")
        started = run.start_date if run else None
        if self.kind == "recovered":
            message = resolve_failures(dag_id, run.end_date if run else None)
            if message is None:
                return None, None
            return Alert("recovered", dag_id, run_id, message, run_link(dag_id, run_id)), started
        if "reason" in context:  # a DAG's callback
            reason, runbook = f"The run failed: {context['reason']}.", "A run failed"
            page = section_link(incident_page(run_id), dag_id)
            link = run_link(dag_id, run_id)
            return Alert("failed", dag_id, run_id, reason, link, runbook=runbook, page=page), started
        ti = context["ti"]
        if self.kind == "warned":
            if not context["test_names"]:  # Cosmos calls back after every freshness check, even without a warning
                return None, None
            lines = [
                f"{name}: {text}" for name, text in zip(context["test_names"], context["test_results"], strict=True)
            ]
            reason, runbook = "\n".join(lines), context.get("runbook", "A test warns")
        elif self.kind == "waits":
            reason, runbook = context["why"], context["runbook"]
        else:
            error = context.get("exception")
            reason, runbook = describe_failure(TimeLimitError() if isinstance(error, AirflowTaskTimeout) else error)
        tries = f"{ti.try_number} of {ti.max_tries + 1}"
        page = section_link(incident_page(run_id, ti.task_id), dag_id)
        return Alert(self.kind, dag_id, run_id, reason, ti.log_url, ti.task_id, tries, runbook, page), started

    def _send(self, alert: "Alert") -> None:
        from airflow.providers.apprise.hooks.apprise import AppriseHook
        from apprise import Apprise, NotifyType

        title, targets = alert.title(), Apprise()
        apprise_logger = logging.getLogger("apprise")
        try:
            hook = AppriseHook(CONNECTION)
            apprise_logger.disabled = True  # it would log URLs that it does not know, with their secrets
            hook.set_config_from_conn(hook.get_connection(CONNECTION), targets)
        except AirflowNotFoundException:
            if os.environ.get(_VARIABLE):  # Airflow ignores JSON that it cannot parse
                self._cannot_send(title, "is not valid JSON")
            else:
                self.log.info("No connection %s, so no alert is sent: %s", CONNECTION, title)
            return
        except Exception as error:  # noqa: BLE001, its text could have a secret of the connection
            return self._cannot_send(title, f"is malformed ({type(error).__name__})")
        finally:
            apprise_logger.disabled = False
        if not targets:
            return self._cannot_send(title, "has no target that Apprise knows")
        kinds = {"failed": NotifyType.FAILURE, "recovered": NotifyType.SUCCESS}
        body = _masked(alert.body())
        # The hook's own notify() does not report whether the alert was delivered.
        if not targets.notify(body=body, title=title, notify_type=kinds.get(self.kind, NotifyType.WARNING)):
            self.log.error("The alert %r could not be delivered to every target of %s", title, CONNECTION)

    def _cannot_send(self, title: str, problem: str) -> None:
        self.log.error(
            "The alert %r was not sent: the connection %s %s. Set %s as docs/runbook.md shows under %s.",
            title,
            CONNECTION,
            problem,
            _VARIABLE,
            '"Who gets alerts"',
        )


def send(kind: "Kind", reason: str, runbook: str) -> None:
    """Send an alert about the project's warehouse that is not about a run; as `AlertNotifier`, it fails nothing.

    Args:
        kind: what happened.
        reason: it, in a few words.
        runbook: title of the section to read.
    """
    from include.runs.alerts import Alert
    from include.settings import warehouse_name

    link = f"{conf.get('api', 'base_url', fallback='')}/plugin/warehouse"
    notifier = AlertNotifier(kind)
    try:
        notifier._send(Alert(kind, warehouse_name(), "", reason, link, runbook=runbook))
    except Exception as error:  # noqa: BLE001
        notifier.log.error("An alert was not sent: %s. To fix it, %s.", type(error).__name__, _REMEDY)


def deadline(name: str, after: timedelta) -> DeadlineAlert:
    """Return the deadline of a DAG's runs, with an alert for each run that misses it.

    Args:
        name: the warehouse's name, also the DAG's id.
        after: how long after it was queued a run must have ended.
    """
    callback = SyncCallback(AlertNotifier, kwargs={"kind": "late", "warehouse": name})
    return DeadlineAlert(reference=Queued(), interval=after, callback=callback)


def _masked(text: str) -> str:
    """Return a text without the secrets that Airflow knows."""
    return str(cast(dict[str, Any], mask_logs(None, "", {"text": text}))["text"])


class AlertsPlugin(AirflowPlugin):
    """Registers the deadline reference with the scheduler."""

    name = "alerts"
    deadline_references = [Queued]  # noqa: RUF012, an instance variable of the base class
