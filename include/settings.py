"""Settings from airflow.env, also for processes started without them."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
DBT_PROJECT = REPOSITORY_ROOT / "include" / "dbt_project"
REJECTED_ROWS = "rejected_rows"  # the table in each source's schema
_chosen: ContextVar[str] = ContextVar("warehouse", default="")


@lru_cache(maxsize=2)
def airflow_env(project: Path = REPOSITORY_ROOT) -> dict[str, str]:
    """Return the variables of airflow.env, parsed as `make` and compose do: NAME=value lines and comments.

    Args:
        project: another checkout's folder.
    """
    lines = (project / "airflow.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


# The schema of the tables that dashboards, assets and servers get.
MARTS_SCHEMA = os.environ.get("MARTS_SCHEMA") or airflow_env().get("MARTS_SCHEMA", "marts")


def is_audit(schema: str) -> bool:
    """Return whether dbt stores failing rows of tests in a schema: `audit` here, `..._dbt_test__audit` by default."""
    return schema.lower().endswith("audit")


@lru_cache(maxsize=1)
def dbt_profile() -> str:
    """Return the name of the dbt project's profile."""
    found = re.search(r"^profile:\s*['\"]?([^'\"\s#]+)", (DBT_PROJECT / "dbt_project.yml").read_text(), re.MULTILINE)
    return found[1] if found else "default"


def tasks_at_once(pool: str | None = None) -> int:
    """Return how many dbt tasks may run at a time: the slots of a pool in pools.json, by default of all of them."""
    pools = json.loads((REPOSITORY_ROOT / "pools.json").read_text())
    return sum(int(one["slots"]) for name, one in pools.items() if pool in (None, name)) or 1


def dbt_target() -> str:
    """Return the engine that the warehouse is on: `DBT_TARGET`, by default the DuckDB file."""
    return os.environ.get("DBT_TARGET") or "duckdb"


def warehouse_name() -> str:
    """Return the name of the warehouse: that of `in_warehouse`, else `WAREHOUSE_NAME`, by default from airflow.env.

    It is also the catalog name that DuckDB derives from the file name, by which views refer to their tables.

    Raises:
        ValueError: the name is not a plain SQL identifier.
    """
    name = _chosen.get() or default_warehouse()
    if not name.isidentifier() or not name.isascii() or name != name.lower():
        raise ValueError(f"WAREHOUSE_NAME must be lower-case letters, digits and underscores, not {name!r}.")
    return name


def default_warehouse() -> str:
    """Return the name of this process's warehouse, also within `in_warehouse`."""
    return os.environ.get("WAREHOUSE_NAME") or airflow_env()["WAREHOUSE_NAME"]


@contextlib.contextmanager
def in_warehouse(name: str) -> Iterator[None]:
    """Read another warehouse of this deployment, in this thread or task only; tasks use `paths.use_warehouse`."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def warehouse_timezone() -> str:
    """Return the time zone of every database session, `WAREHOUSE_TIMEZONE`: results do not depend on the machine's."""
    return os.environ.get("WAREHOUSE_TIMEZONE") or airflow_env()["WAREHOUSE_TIMEZONE"]
