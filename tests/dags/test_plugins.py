"""Plugins stay cheap for task processes, which load them too."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dags


def test_task_processes_load_plugins_without_the_web_pages(airflow_home: Path) -> None:
    program = (
        "import sys; from airflow import plugins_manager as manager; manager.ensure_plugins_loaded();"
        "plugins, errors = manager._get_plugins();"
        "assert 'warehouse' in {plugin.name for plugin in plugins} and not errors, errors;"
        "print(sorted({'warehouse_ui', 'app', 'charts', 'pages', 'views'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
