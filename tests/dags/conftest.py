"""The DagBag, parsed once with the settings of airflow.env and a temporary AIRFLOW_HOME."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from include.settings import airflow_env as settings_of_airflow_env

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def airflow_env() -> dict[str, str]:
    """The variables of airflow.env, parsed as `make` and compose do: NAME=value lines and comments, no quoting."""
    lines = [line for line in (PROJECT / "airflow.env").read_text().splitlines() if line and not line.startswith("#")]
    settings = settings_of_airflow_env()
    assert len(settings) == len(lines) and all(re.fullmatch("[A-Z][A-Z0-9_]*", name) for name in settings)
    return settings


@pytest.fixture(scope="session")
def airflow_home(airflow_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Isolate Airflow, imported after this, from the developer's own settings and files."""
    home = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in airflow_env.items():
            patch.setenv(name, os.environ.get(name, value))
        patch.setenv("AIRFLOW_HOME", str(home))
        patch.setenv("AIRFLOW__CORE__PLUGINS_FOLDER", str(PROJECT / "plugins"))
        # Airflow puts it on the path at its first import only, if it is not there at that moment.
        patch.syspath_prepend(PROJECT / "plugins")
        patch.setenv("AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT", "600")  # on a busy machine
        patch.setenv("WAREHOUSE_DIR", str(home / "warehouse"))
        yield home


@pytest.fixture(scope="session")
def dag_bag(airflow_home: Path) -> "DagBag":
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dag_folder=PROJECT / "dags")
