"""Links into Airflow's UI, for logs and alerts."""

from pathlib import Path
from urllib.parse import quote

from airflow.sdk.configuration import conf


def run_link(dag_id: str, run_id: str) -> str:
    """Return the URL of a run's page."""
    return f"{_base_url()}/dags/{dag_id}/runs/{quote(run_id)}"


def show_page(page: str) -> None:
    """Print the URL of a page of the Warehouse section in the task's log, if the section is there."""
    if Path(__file__).with_name("warehouse_ui").exists():
        print(f"See {_base_url()}/plugin/warehouse/warehouse/{page}")


def _base_url() -> str:
    return str(conf.get("api", "base_url", fallback="http://localhost:8080")).rstrip("/")
