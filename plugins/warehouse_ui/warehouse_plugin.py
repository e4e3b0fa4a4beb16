"""The Warehouse section of Airflow's UI, and links from dbt tasks to their tables.

Every task process imports this file, so heavy imports wait until the api-server needs them.
"""

from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperatorLink

from include.settings import REPOSITORY_ROOT, warehouse_name

PREFIX = "/warehouse"
BASE_PATH = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")


class WarehouseLink(BaseOperatorLink):
    """Link from a task to what it loaded, built or tested, and from there to what to do if it failed."""

    name = "Warehouse"

    def get_link(self, operator: object, *, ti_key: Any) -> str:
        """Return the URL of the task's page, inside Airflow's frame; empty for a DAG that fills no warehouse."""
        if "elt" not in getattr(getattr(operator, "dag", None), "tags", ()):
            return ""
        other = "" if ti_key.dag_id == warehouse_name() else f"/w/{quote(ti_key.dag_id)}"
        page = f"{BASE_PATH}{PREFIX}{other}/task/{quote(ti_key.task_id)}?run_id={quote(ti_key.run_id)}"
        return f"{BASE_PATH}/plugin/warehouse{page}"


class TaskLink(WarehouseLink):
    """The same link for the operators of the pipeline; only the api-server reads the list."""

    @property
    def operators(self) -> list[type]:  # type: ignore[override]
        """The operators whose tasks get the link."""
        from airflow.providers.standard.decorators.python import _PythonDecoratedOperator
        from cosmos.operators import local  # takes half a second

        return [
            _PythonDecoratedOperator,  # load and publish
            local.DbtSourceLocalOperator,
            local.DbtRunLocalOperator,
            local.DbtTestLocalOperator,
            local.DbtSeedLocalOperator,
            local.DbtSnapshotLocalOperator,
        ]


class WarehousePlugin(AirflowPlugin):
    """Registers the section with Airflow."""

    name = "warehouse"
    external_views = [  # noqa: RUF012
        {
            "name": "Warehouse",
            "href": f"{BASE_PATH}{PREFIX}/",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": "warehouse",
            "icon": f"{BASE_PATH}{PREFIX}/static/warehouse.svg",
            "icon_dark_mode": f"{BASE_PATH}{PREFIX}/static/warehouse-dark.svg",
        },
        {
            "name": "dbt docs",
            "href": f"{BASE_PATH}{PREFIX}/dbt-docs/",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": "dbt-docs",
            "icon": f"{BASE_PATH}{PREFIX}/static/dbt-docs.svg",
            "icon_dark_mode": f"{BASE_PATH}{PREFIX}/static/dbt-docs-dark.svg",
        },
    ]
    operator_extra_links = [TaskLink()]  # noqa: RUF012

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The application, created when the api-server first needs it."""
        from warehouse_ui.app import create_app

        return [{"app": create_app(PREFIX, BASE_PATH), "url_prefix": PREFIX, "name": "Warehouse"}]


if not (REPOSITORY_ROOT / "include" / "warehouse_catalog" / "__init__.py").exists():
    del WarehousePlugin  # no section without what its pages read with
