"""dbt's manifest of the project's files as they are, in a folder of its own that no dbt command by hand writes to.

    manifest.json   dbt's
    tasks.json      what Cosmos renders (`BuildGraph.tasks`)
    files.json      of which files

python -m include.runs.manifest     parse the project, if its files have changed
"""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from include.errors import PipelineError
from include.settings import DBT_PROJECT, REPOSITORY_ROOT, dbt_profile, dbt_target, warehouse_name

_NOT_READ = ("target", "logs", "__pycache__")
_ENV_VAR = re.compile(rb"env_var\(\s*['\"](\w+)['\"]")


class DbtParseError(PipelineError):
    """The dbt project cannot be parsed."""


@dataclass(frozen=True)
class Parsed:
    """A parsed project.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @property
    def manifest(self) -> Path:
        """Dbt's manifest."""
        return self.folder / "manifest.json"

    @property
    def tasks(self) -> Path:
        """The manifest for Cosmos."""
        return self.folder / "tasks.json"


def current() -> Parsed:
    """Return the project's manifest, parsed again if a file has changed since.

    Raises:
        DbtParseError: dbt cannot parse the project; has dbt's own message.
        include.runs.build_graph.UnsupportedNodeError: the pipeline cannot run a node of it.
    """
    folders = _folders()
    looked_at = _look_at_files()
    for folder in folders:
        if _is_of(folder, looked_at):
            return Parsed(folder)
    folder = next(one for one in folders if _is_writable(one))
    with _locked(folder):
        if not _is_of(folder, _look_at_files()):  # nobody else has parsed it meanwhile
            _parse(folder)
    return Parsed(folder)


def latest() -> Path | None:
    """Return the manifest that was parsed last, whether or not the files have changed since; None if there is none."""
    found = [folder / "manifest.json" for folder in _folders()]
    return max((one for one in found if one.exists()), key=lambda one: one.stat().st_mtime, default=None)


def _folders() -> list[Path]:
    """Return where manifests are: in a container the first cannot be written, and edits are parsed in the second."""
    home = Path(os.environ.get("AIRFLOW_HOME") or REPOSITORY_ROOT / ".airflow")
    return [folder / dbt_target() for folder in (DBT_PROJECT / "target" / "pipeline", home / "dbt_manifest")]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files(folder: Path | None = None) -> Iterator[Path]:
    """Return the files that dbt reads, of packages only linked ones: those that are installed do not change."""
    with os.scandir(folder or DBT_PROJECT) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name.startswith(".") and entry.name != ".dbtignore":
                continue
            if entry.name == "dbt_packages":
                yield from (file for one in sorted(Path(entry).iterdir()) if one.is_symlink() for file in _files(one))
            elif entry.is_dir() and entry.name not in _NOT_READ:
                yield from _files(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path)


def _look_at_files() -> str:
    """Return names, sizes and times of the files, as a digest: cheap, and different in each copy of the project."""
    digest = hashlib.sha256()
    for file in _files():
        found = file.stat()
        digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _read_files() -> dict[str, Any]:
    """Return their contents, as a digest, and the values of the environment variables that they name."""
    digest = hashlib.sha256()
    names: set[str] = set()
    for file in _files():
        content = file.read_bytes()
        digest.update(f"{file.relative_to(DBT_PROJECT)}\0{len(content)}\0".encode() + content)
        names.update(name.decode() for name in _ENV_VAR.findall(content))
    return {"contents": digest.hexdigest(), "env": {name: _env(name) for name in sorted(names)}}


def _env(name: str) -> str:
    """Return a digest: it may be a secret. The folders of a warehouse change nothing that counts."""
    if name.startswith(("WAREHOUSE_", "PG", "DUCKLAKE_")):
        return ""
    return hashlib.sha256(os.environ.get(name, "").encode()).hexdigest()


def _is_of(folder: Path, looked_at: str) -> bool:
    """Return whether a folder has the manifest of the files as they are; whatever is damaged is made again."""
    try:
        kept = json.loads((folder / "files.json").read_text())
        if not all((folder / name).stat().st_size for name in ("manifest.json", "tasks.json")):
            return False
        known, contents, env = kept["files"], kept["contents"], dict(kept["env"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if any(_env(name) != value for name, value in env.items()):
        return False
    if known == looked_at:
        return True
    if contents != _read_files()["contents"]:
        return False
    with suppress(OSError):
        _replace(folder / "files.json", json.dumps({**kept, "files": looked_at}))
    return True


def parse_command(folder: Path) -> list[str]:
    """Return dbt's arguments that parse the project into a folder.

    dbt compares the profile and target arguments as given, so they are those that Cosmos passes.
    """
    project = ["--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT)]
    chosen = ["--profile", dbt_profile(), "--target", dbt_target()]
    written = ["--target-path", str(folder), "--log-path", str(folder), "--write-json"]
    return ["--quiet", "--log-level-file", "none", "parse", *chosen, *written, *project]


def _parse(folder: Path) -> None:
    from include.runs.build_graph import RECORDER, BuildGraph  # lazily: every process of Airflow imports this module

    state = {"files": _look_at_files(), **_read_files()}  # before: what changes while dbt reads is parsed again
    scratch = folder / "parsing"
    # In full: after some changes, a partial parse loses the descriptions of singular tests (dbt 1.11).
    command = [*parse_command(scratch), "--no-partial-parse"]
    run = [sys.executable, "-c", "from dbt.cli.main import cli; cli()", *command]
    env = os.environ | {"WAREHOUSE_NAME": warehouse_name(), "PYTHONPATH": str(REPOSITORY_ROOT), "DO_NOT_TRACK": "1"}
    done = subprocess.run(run, cwd=DBT_PROJECT, env=env, capture_output=True, text=True)
    if done.returncode:
        text = " ".join((done.stdout + done.stderr).split())
        raise DbtParseError(f"dbt cannot parse the project in {DBT_PROJECT}: {text[-2000:]}")
    manifest = json.loads((scratch / "manifest.json").read_text())
    if RECORDER not in manifest["macros"]:
        raise DbtParseError(
            "Builds could not be recorded: list `- local: ../dbt_warehouse` in packages.yml, and run dbt deps."
        )
    tasks = json.dumps(BuildGraph(manifest).tasks())
    for file in scratch.iterdir():  # dbt's partial parse too
        file.replace(folder / file.name)
    _replace(folder / "tasks.json", tasks)
    _replace(folder / "files.json", json.dumps(state))


def _replace(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


if __name__ == "__main__":
    try:
        current()
    except PipelineError as error:
        sys.exit(f"error: {error}")
