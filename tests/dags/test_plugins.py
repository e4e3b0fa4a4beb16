"""Plugins stay cheap for task processes, which load them too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testing.project import PROJECT

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


def test_the_warehouse_section_is_left_out_without_what_it_reads_with(airflow_home: Path, tmp_path: Path) -> None:
    for folder in ("plugins", "include"):
        ignored = shutil.ignore_patterns("warehouse_catalog", "dbt_project", "data", "__pycache__")
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(PROJECT / "airflow.env", tmp_path)
    program = (
        "from airflow import plugins_manager as manager; manager.get_fastapi_plugins();"
        "plugins, errors = manager._get_plugins();"
        "assert not errors, errors; print(*sorted(plugin.name for plugin in plugins))"
    )
    env = os.environ | {"AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path / "plugins"), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = done.stdout.splitlines()[-1].split()
    assert "web_security" in names and "warehouse" not in names


def test_what_registers_no_plugin_is_not_loaded_as_one(airflow_home: Path) -> None:
    program = (
        "import os, airflow.settings as settings; settings.initialize();"
        "from airflow_local_settings import METADATA as before;"
        "os.environ['AIRFLOW__DATABASE__SQL_ALCHEMY_CONN'] = 'airflow-db-not-allowed:///';"  # as a task's process does
        "from airflow import plugins_manager as manager; manager.ensure_plugins_loaded();"
        "from airflow_local_settings import METADATA as after;"
        "plugins, errors = manager._get_plugins(); assert not errors, errors;"
        "print(before, after, *sorted(str(plugin.source) for plugin in plugins if plugin.source))"
    )
    database = f"sqlite:///{airflow_home}/airflow.db"
    env = os.environ | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    before, after, *sources = done.stdout.splitlines()[-1].split()
    assert before == after == database
    ignored = (PROJECT / "plugins" / ".airflowignore").read_text().splitlines()
    for file in (PROJECT / "plugins").glob("*.py"):
        assert (file.name in ignored) != any(file.name in source for source in sources), file
