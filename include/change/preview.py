"""Build a change in a scratch database of its own, and compare that with what readers see.

    published file ──copy──▶ .previews/NAME/jaffle_shop.duckdb ──dbt: build what differs, test──▶ compare both

Nothing else is written: not the running warehouse, and of the checkout's `target/` at most the manifest that `make`
keeps there as well. So previews can run beside Airflow and beside each other.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from include import provenance
from include.change.databases import Database, compare_databases, find_database, is_encrypted, of_file
from include.change.readers import find_readers
from include.change.report import CODES, Build, Report
from include.errors import PipelineError, is_disk_full
from include.provenance import Provenance
from include.runs.build_graph import BuildGraph
from include.runs.manifest import current
from include.settings import REPOSITORY_ROOT, airflow_env, warehouse_name
from include.warehouse.copy_from import copy_all
from include.warehouse.errors import DiskFullError, WarehouseError
from include.warehouse.targets import named, target
from include.warehouse.targets.database_file import connect, encryption_key, write_ahead_logs

PREVIEWS = REPOSITORY_ROOT / ".previews"
KEPT_DAYS = 3
_AT_ONCE = 9  # of one branch
_RESULT, _LOCK, _ABOUT, _TARGET = "build.json", ".lock", "preview.json", "target"
# Where production keeps and serves things: nothing of a preview.
_NOT_IN_SCRATCH = ("WAREHOUSE_ARTIFACTS", "SERVE_URL", "SERVE_PASSWORD")


class PreviewError(WarehouseError):
    """The scratch could not be made or built."""


@dataclass(frozen=True)
class Kept:
    """A kept preview.

    Attributes:
        folder: its folder.
        title: of what, against what.
        created_at: UTC.
        size_bytes: of all of its files.
        is_running: whether it is being built right now.
    """

    folder: Path
    title: str
    created_at: datetime
    size_bytes: int
    is_running: bool


def preview(base: str | None = None, full: bool = False) -> Report:
    """Build what differs from a release in a copy of it, run the tests, and compare.

    Args:
        base: release id, run id or path of a published file; default what readers see.
        full: build everything, not only what differs.

    Returns:
        What was built and how it differs; `has_failed` if something failed or is broken.

    Raises:
        PreviewError: dbt could not be run.
        DiskFullError: no space for the scratch.
        WarehouseError: the base cannot be found or read.
        duckdb.Error: likewise.
    """
    before, code = find_database(base), provenance.current()
    title = code.title or "this checkout"
    expire()
    with _folder(code) as folder:
        about = {"title": f"{title}, against {before.title}", "created_at": datetime.now(UTC).isoformat()}
        (folder / _ABOUT).write_text(json.dumps(about))
        scratch = folder / f"{warehouse_name()}.duckdb"
        _fill(scratch, before)
        if before.path:  # with which a load compares what it finds
            (folder / "published").mkdir()
            (folder / "published" / scratch.name).symlink_to(before.path)
        options = ["--full"] if full else []
        build = replace(build_scratch(folder, *options, encrypted=is_encrypted(scratch)), place=str(scratch))
        manifest = folder / _TARGET / "manifest.json"
        after = of_file(scratch, title, manifest if manifest.exists() else None)
        if after.manifest_path is None:
            return Report(before.title, after.title, (), (), build)
        if before.manifest_path is None:  # a file from elsewhere, where nothing was parsed before: as in CI
            before = replace(before, manifest_path=after.manifest_path)
        tables = tuple(
            one
            for one in compare_databases(before, after)
            if one.status != "added" or one.relation not in build.left_out
        )
        with before.opened() as old, after.opened() as new:
            readers = find_readers(after.manifest, [one.relation for one in tables], old, new)
        return Report(before.title, after.title, tables, tuple(readers), build)


@contextlib.contextmanager
def _folder(code: Provenance) -> Iterator[Path]:
    """Make the folder of a preview: that of the branch, emptied, or another one if that is in use."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", code.branch or code.commit[:10])[:60].strip("-.") or "checkout"
    for place in (name, *(f"{name}~{number}" for number in range(2, _AT_ONCE + 1))):
        folder = PREVIEWS / place
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # for this user alone: it holds people's data
            folder.chmod(0o700)
        except OSError as error:
            raise PreviewError(f"A preview needs to write {folder}: {error.strerror}.") from error
        with _locked(folder) as free:
            if free:
                for path in folder.iterdir():
                    if path.name == _TARGET:  # what dbt parsed last time: it knows it again in the same place only
                        (path / "manifest.json").unlink(missing_ok=True)
                    elif path.name != _LOCK:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                yield folder
                return
    raise PreviewError(f"{_AT_ONCE} previews of {name} are running already in {PREVIEWS}: let one finish.")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a preview's folder; yield whether nobody else has."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def list_previews() -> list[Kept]:
    """Return the kept previews of this checkout, newest first."""
    found = []
    for folder in PREVIEWS.glob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            about = json.loads((folder / _ABOUT).read_text())
            with _locked(folder) as free:
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                created_at = datetime.fromisoformat(about["created_at"])
                found.append(Kept(folder, str(about["title"]), created_at, size, not free))
    return sorted(found, key=lambda one: one.created_at, reverse=True)


def expire(days: float = KEPT_DAYS) -> list[Path]:
    """Remove the previews older than some days, and what was left of killed ones; return their folders."""
    removed = []
    for folder in PREVIEWS.glob("*"):
        with contextlib.suppress(OSError):
            age = timedelta(seconds=time.time() - folder.stat().st_mtime)
            if (age > timedelta(days=days) or (not (folder / _ABOUT).exists() and age.seconds > 60)) and _remove(
                folder
            ):
                removed.append(folder)
    return removed


def _remove(folder: Path) -> bool:
    with contextlib.suppress(OSError), _locked(folder) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)
            return True
    return False


def _fill(scratch: Path, base: Database) -> None:
    """Make the scratch a copy of the base: of its file where it has one, else of its tables and views."""
    try:
        if base.path and not any(log.stat().st_size for log in write_ahead_logs(base.path)):
            with base.opened():  # a writer would change it under the copy
                _copy(base.path, scratch)
            return
        with contextlib.closing(connect(scratch, encryption_key())) as connection:
            for statement in base.attach("base"):
                connection.execute(statement)
            # Views name their catalog, in PostgreSQL in its dialect: they are built.
            source = target() if base.is_release else named("duckdb")
            copy_all(connection, source, "base", named("duckdb"), with_views=False)
    except (OSError, duckdb.Error) as error:
        if not is_disk_full(str(error)):
            raise
        raise DiskFullError(
            f"No space for {scratch}. Free some, or remove previews: make previews DAYS=0. Nothing was changed."
        ) from error


def _copy(source: Path, scratch: Path) -> None:
    options = ["--reflink=auto"] if sys.platform == "linux" else []  # GNU only
    # In a process of its own, see warehouse/targets/duckdb_file.py: a descriptor closed here would end DuckDB's lock.
    copied = subprocess.run(
        ["cp", *options, "--", str(source), str(scratch)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    if copied.returncode:
        raise OSError(copied.stderr.strip() or f"cp exited with {copied.returncode}")
    scratch.chmod(0o600)  # the published file is read-only, and so would be its copy


def build_scratch(folder: Path, *options: str, encrypted: bool) -> Build:
    """Build and test in a scratch database, in a process of its own.

    Args:
        folder: where `NAME.duckdb` is.
        options: of `include.change.build`.
        encrypted: whether it is encrypted with `WAREHOUSE_ENCRYPTION_KEY`.

    Raises:
        PreviewError: dbt could not be run.
    """
    result = folder / _RESULT
    if not target().keeps_types:  # a contract, for one, names the types of its engine
        with contextlib.suppress(PipelineError):  # the project has an error, which the build says as well
            nodes = BuildGraph(json.loads(current().manifest.read_text())).nodes
            (folder / CODES).write_text(json.dumps({node.id: node.code for node in nodes}))
    command = [sys.executable, "-m", "include.change.build", str(result), *options]
    environment = _environment(folder, encrypted)
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True)
    try:
        return Build.from_json(result.read_text())
    except (OSError, ValueError) as error:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise PreviewError(f"dbt could not be run: {said[-1] if said else f'exit code {done.returncode}'}") from error


def _environment(folder: Path, encrypted: bool) -> Mapping[str, str]:
    """Return the environment of dbt commands on the scratch."""
    unwanted = _NOT_IN_SCRATCH if encrypted else (*_NOT_IN_SCRATCH, "WAREHOUSE_ENCRYPTION_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    own = {
        "WAREHOUSE_DIR": str(folder),
        "WAREHOUSE_NAME": warehouse_name(),
        "DBT_TARGET": "encrypted" if encrypted else "duckdb",
        "PYTHONPATH": str(REPOSITORY_ROOT),
        "DLT_PROJECT_DIR": str(REPOSITORY_ROOT / "include" / "dlt_pipelines"),
    }
    return {**airflow_env(), **kept, **own}
