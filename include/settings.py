"""The settings in airflow.env, also for Python that was started without them."""

import os
from functools import lru_cache
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]


@lru_cache(maxsize=1)
def airflow_env() -> dict[str, str]:
    """Return the variables of airflow.env, read as `make` and compose read it: NAME=value lines and comments."""
    lines = (REPOSITORY_ROOT / "airflow.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def warehouse_name() -> str:
    """Return the name of this process's warehouse: `WAREHOUSE_NAME`, default that of airflow.env, the project's name.

    It is also the catalog name that DuckDB derives from the file name: the views inside refer to their tables by it.

    Raises:
        ValueError: it is no plain SQL name.
    """
    name = os.environ.get("WAREHOUSE_NAME") or airflow_env()["WAREHOUSE_NAME"]
    if not name.isidentifier() or not name.isascii() or name != name.lower():
        raise ValueError(f"WAREHOUSE_NAME must be lower-case letters, digits and underscores, not {name!r}.")
    return name
