"""Links into Airflow's UI, for logs and alerts."""

from pathlib import Path
from urllib.parse import quote

from airflow.sdk.configuration import conf

from include.settings import warehouse_name

_DEFAULT = warehouse_name()  # of the deployment: a task's process may turn to another


def run_link(dag_id: str, run_id: str) -> str:
    """Return the URL of a run's page."""
    return f"{_base_url()}/dags/{dag_id}/runs/{quote(run_id)}"


def incident_page(run_id: str, task_id: str = "") -> str:
    """Return the page of the Warehouse section on what has failed in a run, for `section_link`."""
    return f"incident?run_id={quote(run_id, safe='')}" + (f"&task_id={quote(task_id, safe='')}" if task_id else "")


def section_link(page: str, dag_id: str) -> str:
    """Return the URL of a page of the Warehouse section on a DAG's warehouse; empty if the section is not there."""
    if not Path(__file__).with_name("warehouse_ui").exists():
        return ""
    other = "" if dag_id == _DEFAULT else f"w/{quote(dag_id, safe='')}/"
    return f"{_base_url()}/plugin/warehouse/warehouse/{other}{page}"


def show_page(page: str, dag_id: str) -> None:
    """Print the URL of a page of the Warehouse section in the task's log, if the section is there."""
    if link := section_link(page, dag_id):
        print(f"See {link}")


def _base_url() -> str:
    return str(conf.get("api", "base_url", fallback="http://localhost:8080")).rstrip("/")
