"""The models in the SQL of Snowflake and BigQuery; what runs on their emulators is in `test_remote.py`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlfluff
import yaml

DBT_PROJECT = Path(__file__).resolve().parents[2] / "include" / "dbt_project"
# As if there were a service: dbt compiles without asking it.
PROFILES: dict[str, dict[str, Any]] = {
    "snowflake": {"account": "none", "database": "analytics"},
    "bigquery": {"method": "oauth-secrets", "token": "none", "project": "analytics"},
}

pytestmark = [pytest.mark.integration, pytest.mark.long]


@pytest.mark.parametrize("target", PROFILES)
def test_models_and_tests_compile_to_sql_of_that_dialect(target: str, tmp_path: Path) -> None:
    pytest.importorskip(f"dbt.adapters.{target}", reason="needs make test-clouds")
    profiles = yaml.safe_load((DBT_PROJECT / "profiles.yml").read_text())
    profiles["analytics"]["outputs"] = {target: profiles["analytics"]["outputs"].get(target, {}) | PROFILES[target]}
    (tmp_path / "profiles.yml").write_text(yaml.safe_dump(profiles))
    dbt = [Path(sys.executable).with_name("dbt"), "compile", "--no-introspect", "--no-populate-cache"]
    done = subprocess.run(
        [*dbt, "--target", target, "--target-path", tmp_path / "target", "--profiles-dir", tmp_path],
        cwd=DBT_PROJECT,
        env=os.environ | {"DBT_LOG_PATH": str(tmp_path / "logs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    compiled = list((tmp_path / "target" / "compiled").rglob("*.sql"))
    assert len(compiled) == 5 + 21
    for path in compiled:
        sqlfluff.parse(path.read_text(), dialect=target)
