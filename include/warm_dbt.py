"""Warm dbt up by being imported: task processes that fork afterwards skip what dbt otherwise builds anew in each.

dbt compiles its serializers and JSON schemas on first use, about 0.9 s of each command. Parsing the project once builds
them all, and opens no database. Airflow's `mp_forkserver_preload` names it; where it fails,
tasks are only slower.
"""

import gc
import tempfile
from pathlib import Path

import dbt.task.freshness
import dbt.task.run
import dbt.task.test  # noqa: F401
from dbt.cli.main import dbtRunner

_PROJECT = str(Path(__file__).resolve().parent / "dbt_project")

with tempfile.TemporaryDirectory() as _scratch:
    _places = ["--project-dir", _PROJECT, "--profiles-dir", _PROJECT, "--target-path", _scratch, "--log-path", _scratch]
    for _ in range(2):  # the second one reads what the first one has kept, as tasks do
        dbtRunner().invoke(["--quiet", "--log-level-file", "none", "parse", *_places])
# What is there now stays: without this, each child's first collection copies all of it.
gc.collect()
gc.freeze()
