"""The project under test: its names, its guide's code, and copies of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb

from include.settings import REPOSITORY_ROOT, airflow_env

PROJECT = REPOSITORY_ROOT
NAME = airflow_env()["WAREHOUSE_NAME"]
LOAD = "load.jaffle_shop"  # the task of the first source
GUIDE = PROJECT / "docs" / "adding-a-source.md"
STG_SALES = """select
    id as sale_id,
    store_id,
    sold_at,
    price,
    _dlt_load_id

from {{ source('stores', 'raw_sales') }}
"""


def unchecked(_: object) -> None:
    """For `publish`, where a test is about something else than what may be published."""


def block(section: str, language: str, number: int = 0) -> str:
    """A code block of the guide."""
    text = re.split(r"^## ", GUIDE.read_text(), flags=re.M)
    found = next(part for part in text if part.startswith(section))
    code = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", found, flags=re.M | re.S)[number]
    return re.sub(rf"^{code[0]}", "", code[1], flags=re.M)


class Copy:
    """The project in another folder, with a shell as `make shell` gives it."""

    def __init__(self, root: Path, source: Path = PROJECT) -> None:
        self.root = root
        ignored = shutil.ignore_patterns(".git", ".venv*", ".airflow", "data", "target", "logs", ".bench", ".*_cache")
        shutil.copytree(source, root, ignore=ignored)
        shutil.copytree(source / "include" / "data", root / "include" / "data", dirs_exist_ok=True)
        self.env = {
            k: v for k, v in os.environ.items() if not re.match("AIRFLOW|WAREHOUSE|SOURCES__|DBT_|DLT_|MAKE", k)
        }
        self.env |= {"PYTHONPATH": str(root), "WAREHOUSE_DIR": str(root / "data"), "DO_NOT_TRACK": "1"}
        self.env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env["WAREHOUSE_NAME"] = self.setting("WAREHOUSE_NAME")

    def setting(self, name: str) -> str:
        return next(line.split("=")[1] for line in self.file("airflow.env").read_text().splitlines() if name in line)

    def file(self, name: str) -> Path:
        return self.root / name

    def write(self, name: str, text: str) -> None:
        self.file(name).parent.mkdir(parents=True, exist_ok=True)
        self.file(name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        assert old in self.file(name).read_text(), (name, old)
        self.write(name, self.file(name).read_text().replace(old, new, 1))

    def run(self, command: str, folder: str = ".") -> str:
        done = subprocess.run(
            command, shell=True, cwd=self.root / folder, env=self.env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def dags(self) -> dict[str, set[str]]:
        """Every DAG's tasks, as Airflow imports them."""
        program = (
            "from airflow.dag_processing.dagbag import DagBag; bag = DagBag('dags'); assert not bag.import_errors, "
            "bag.import_errors; print('DAGS', {id_: dag.task_ids for id_, dag in bag.dags.items()})"
        )
        home = {
            "AIRFLOW_HOME": str(self.root / ".airflow"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.root / "plugins"),
        }
        self.env |= home | {"AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        out = self.run(f'{sys.executable} -c "{program}"')
        found = eval(next(line for line in out.splitlines() if line.startswith("DAGS "))[5:])
        return {id_: set(tasks) for id_, tasks in found.items()}

    def published(self, path: str, query: str) -> list[tuple[object, ...]]:
        with duckdb.connect(str(self.file(path)), read_only=True) as connection:
            return connection.execute(query).fetchall()
