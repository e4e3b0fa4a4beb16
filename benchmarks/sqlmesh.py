"""SQLMesh on this dbt project: planned once, then a load and a run of all models and audits by hand."""

import shutil
import sys
import time
from pathlib import Path

from benchmarks.common import DBT_PROJECT, PROJECT, csv_files, project_env, run

SQLMESH = PROJECT / ".venv-sqlmesh" / "bin" / "sqlmesh"
LOAD = [sys.executable, "-m", "include.dlt_pipelines", "jaffle_shop"]
CONFIG = """\
from pathlib import Path

from sqlmesh.core.config import ModelDefaultsConfig
from sqlmesh.dbt.loader import sqlmesh_config

config = sqlmesh_config(Path(__file__).parent, model_defaults=ModelDefaultsConfig(dialect="duckdb", start="2026-01-01"))
"""


class SqlMesh:
    """A copy of the dbt project, as SQLMesh takes it."""

    def __init__(self, root: Path) -> None:
        """Copy the project without its package, whose hooks record builds for `publish`, and plan it."""
        self._dbt = root / "dbt"
        left_out = shutil.ignore_patterns("target", "logs", "dbt_packages", "packages.yml", "package-lock.yml")
        shutil.copytree(DBT_PROJECT, self._dbt, ignore=left_out)
        for texts in (DBT_PROJECT.parent / "dbt_warehouse" / "models").glob("*.md"):
            shutil.copy(texts, self._dbt / "models" / f"warehouse_{texts.name}")
        (self._dbt / "config.py").write_text(CONFIG)
        self._env = project_env(root, csv_files(0)) | {"SQLMESH__DISABLE_ANONYMIZED_ANALYTICS": "true"}
        del self._env["DBT_TARGET_PATH"], self._env["DBT_LOG_PATH"]
        run(LOAD, self._env)
        self._sqlmesh("plan", "--auto-apply", "--no-prompts")

    def run_once(self) -> float:
        """Load, and run all models whether they are due or not; return the seconds."""
        started = time.perf_counter()
        run(LOAD, self._env)
        self._sqlmesh("run", "--ignore-cron")
        return time.perf_counter() - started

    def _sqlmesh(self, *words: str) -> None:
        run([SQLMESH, *words], self._env, self._dbt)
