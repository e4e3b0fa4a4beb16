"""airflow.env contains only settings that Airflow knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dags

PRELOAD = "AIRFLOW__SCHEDULER__MP_FORKSERVER_PRELOAD"


def test_every_preloaded_module_can_be_imported(airflow_env: dict[str, str]) -> None:
    # The forkserver silently ignores modules that it cannot import.
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    outcome = subprocess.run([sys.executable, "-c", program, *airflow_env[PRELOAD].split(",")], capture_output=True)
    assert outcome.returncode == 0, outcome.stderr.decode()


def test_every_airflow_setting_exists(airflow_env: dict[str, str], airflow_home: Path) -> None:
    import cosmos.settings
    from airflow.configuration import conf

    options = conf.configuration_description
    unknown = []
    for name in airflow_env:
        if name.startswith("AIRFLOW__"):
            _, section, option = name.lower().split("__")
            # A component's own section may override a setting of [core].
            known = option in options.get(section, {}).get("options", {}) or (
                option in options["core"]["options"] and option.startswith("mp_")
            )
            if not (known or (section == "cosmos" and hasattr(cosmos.settings, option))):
                unknown.append(name)
    assert unknown == []


def test_no_setting_looks_like_a_secret(airflow_env: dict[str, str]) -> None:
    words = ("PASSWORD", "SECRET", "TOKEN", "FERNET", "_KEY")
    assert [name for name in airflow_env if any(word in name for word in words)] == []


def test_a_misspelt_target_does_not_end_the_process_that_tasks_fork_from() -> None:
    # multiprocessing's fork server survives an ImportError of a preloaded module, and nothing else.
    env = os.environ | {"DBT_TARGET": "duckdbb"}
    subprocess.run([sys.executable, "-c", "import include.warm_target"], env=env, check=True)
