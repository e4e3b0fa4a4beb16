"""`make backup` and `make restore-backup` without Docker: the files, and the part inside the volume."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from deploy import compose
from include.settings import airflow_env

pytestmark = pytest.mark.unit

PROJECT = Path(__file__).resolve().parents[2]
VOLUME_SCRIPT = (PROJECT / "deploy" / "backup_warehouse.py").read_text()
# Stands in for Docker: logs its calls, and takes its answers from the environment.
DOCKER = """#!/bin/sh
asked=
for word in "$@"; do case "$word" in *import*) ;; *) asked="$asked $word" ;; esac; done  # the program left out
echo "$asked" >> "$FAKE_LOG"
env > "$FAKE_LOG.env"
case "$asked" in *"$FAKE_FAILS"*) echo "half"; exit 1 ;; esac
case "$asked" in
  *"config --services") echo "postgres api-server scheduler dag-processor triggerer worker $FAKE_SERVICES" ;;
  *pg_dump*) echo "a dump of $FAKE_CONTENT" ;;
  *" plan") echo "{}" ;;
  *" where") echo "${FAKE_WHERE:-volume}" ;;
  *" pack") cat "$FAKE_TAR" ;;
  *pg_database*) echo 1 ;;
  *" logs "*) echo "$FAKE_SCHEDULER" ;;
  *"--status=running") echo "scheduler" ;;
  *" kill "*) touch "$FAKE_LOG.signalled" ;;
  *" stop "*) while [ -n "$FAKE_DEAF" ] && [ ! -e "$FAKE_LOG.signalled" ]; do sleep 0.05; done ;;
  *) cat > /dev/null ;;
esac
"""


class Machine:
    """A folder for backups, and a machine with a fake Docker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.backup = folder, folder / "log", folder / "backup"
        self.services = ""
        (folder / "docker").write_text(DOCKER)
        (folder / "docker").chmod(0o755)
        self.log.touch()
        self.content("monday")

    def content(self, content: str) -> None:
        with tarfile.open(self.folder / "tar", "w") as tar:
            member = tarfile.TarInfo("published/jaffle_shop.duckdb")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
        self.environ = os.environ | {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "FAKE_LOG": str(self.log),
            "FAKE_CONTENT": content,
            "FAKE_TAR": str(self.folder / "tar"),
            "FAKE_SERVICES": self.services,
        }

    def make(self, target: str, *words: str, fails: str = "nothing does") -> "subprocess.CompletedProcess[str]":
        command = ["make", "-s", target, f"DIR={self.backup}", f"ENV_FILE={self.folder / 'env'}", *words]
        environ = self.environ | {"FAKE_FAILS": fails}
        return subprocess.run(command, cwd=PROJECT, env=environ, text=True, capture_output=True, timeout=60)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.backup.iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    saved = machine.make("backup")
    assert saved.returncode == 0, saved.stderr
    return machine


def test_a_backup_is_private_and_has_checksums_that_sha256sum_reads(machine: Machine) -> None:
    assert machine.files().keys() == {"metadata.dump", "warehouse.tar", "SHA256SUMS"}
    assert {path.stat().st_mode & 0o777 for path in machine.backup.iterdir()} == {0o600}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=machine.backup, check=True)


@pytest.mark.parametrize("target", ["stop", "upgrade", "backup", "restore-backup"])
def test_docker_sees_what_the_caller_exports_and_nothing_of_makes_which_would_win_over_env(
    machine: Machine, target: str
) -> None:
    ours = airflow_env().keys() | {"AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "DBT_TARGET", "WAREHOUSE_DIR"}
    for given in ({}, {"DBT_TARGET": "ducklake", "WAREHOUSE_NAME": "acme"}):
        machine.environ = {name: value for name, value in machine.environ.items() if name not in ours} | given
        done = machine.make(target)
        assert done.returncode == 0, done.stderr
        seen = dict(line.partition("=")[::2] for line in Path(f"{machine.log}.env").read_text().splitlines())
        assert {name: seen[name] for name in ours & seen.keys()} == given


@pytest.mark.parametrize("step", ["pg_dump", " pack", "pg_restore --file=/dev/null"])
def test_a_failing_backup_leaves_the_good_one_in_the_same_folder(machine: Machine, step: str) -> None:
    good = machine.files()
    machine.content("tuesday")
    failed = machine.make("backup", fails=step)
    assert failed.returncode and "error: " in failed.stderr
    assert machine.files() == good


def test_a_complete_backup_is_noted_and_one_that_cannot_be_noted_is_complete(machine: Machine) -> None:
    calls = machine.log.read_text().splitlines()
    assert calls[-1].endswith(" mark") and sum(call.endswith(" mark") for call in calls) == 1
    machine.content("tuesday")
    unnoted = machine.make("backup", fails=" mark")
    assert unnoted.returncode == 0 and "It is complete." in unnoted.stderr
    assert machine.files()["metadata.dump"] == b"a dump of tuesday\n"


def test_a_truncated_tar_is_not_accepted_as_a_backup(machine: Machine) -> None:
    good = machine.files()
    machine.content("tuesday" * 1000)
    os.truncate(machine.folder / "tar", 3000)
    assert machine.make("backup").returncode
    assert machine.files() == good


def test_a_new_backup_replaces_the_old_one(machine: Machine) -> None:
    machine.content("tuesday")
    assert machine.make("backup").returncode == 0
    assert machine.files()["metadata.dump"] == b"a dump of tuesday\n"


def test_dated_backups_rotate_and_a_failing_one_removes_none(machine: Machine) -> None:
    machine.backup = machine.folder / "backups"
    machine.backup.mkdir()
    for name in ("notes", "2026-01-01T000000Z", "2026-01-02T000000Z"):
        (machine.backup / name).mkdir()
        (machine.backup / name / "SHA256SUMS").touch()
    failed = machine.make("backup", "KEEP=2", fails=" pack")
    assert failed.returncode and len(list(machine.backup.iterdir())) == 3
    assert machine.make("backup", "KEEP=2").returncode == 0
    old, latest, notes = sorted(path.name for path in machine.backup.iterdir())
    assert (old, notes) == ("2026-01-02T000000Z", "notes")
    assert f"The latest one in it is DIR={machine.backup / latest}." in machine.make("restore-backup").stderr
    machine.backup /= latest
    assert machine.make("restore-backup").returncode == 0
    for keep in ("0", "all"):
        refused = machine.make("backup", f"KEEP={keep}")
        assert refused.returncode and f"KEEP={keep}" in refused.stderr


def test_a_backup_killed_between_its_renames_is_complete(machine: Machine) -> None:
    for name in ("metadata.dump", "warehouse.tar"):
        (machine.backup / name).rename(machine.backup / f"{name}.part")
        (machine.backup / name).write_text("of the backup before")
    assert machine.make("restore-backup").returncode == 0
    assert machine.files()["metadata.dump"] == b"a dump of monday\n"


@pytest.mark.parametrize("name", ["metadata.dump", "warehouse.tar", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "of another backup"])
def test_a_restore_refuses_bad_files_before_calling_docker(machine: Machine, name: str, damage: str) -> None:
    path = machine.backup / name
    if damage == "missing":
        path.unlink()
    elif damage == "of another backup":
        other, machine.backup = machine.backup, machine.folder / "other"
        machine.content("tuesday")
        assert machine.make("backup").returncode == 0
        path.write_bytes((machine.backup / name).read_bytes())
        machine.backup = other
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size // 2)
    machine.log.write_text("")
    refused = machine.make("restore-backup")
    assert refused.returncode and "Nothing was changed" in refused.stderr
    assert len(refused.stderr.splitlines()) <= 2  # the second is make's
    assert machine.log.read_text() == ""


@pytest.mark.parametrize("step", [" unpack", "createdb", "--exit-on-error", "alembic_version"])
def test_an_unreadable_backup_stops_no_service_and_swaps_nothing(machine: Machine, step: str) -> None:
    machine.log.write_text("")
    assert "Nothing was changed" in machine.make("restore-backup", fails=step).stderr
    asked = machine.log.read_text()
    assert " discard" in asked and " stop " not in asked and " swap" not in asked


@pytest.mark.parametrize("step", [" stop ", " swap", "rename to airflow_old"])
def test_a_failure_after_stopping_the_services_is_undone_and_they_are_restarted(machine: Machine, step: str) -> None:
    machine.log.write_text("")
    failed = machine.make("restore-backup", fails=step)
    assert failed.returncode and "the previous one is running again" in failed.stderr
    asked = machine.log.read_text()
    assert " keep" not in asked
    undone = ("put-back", "rename to airflow_new", "up --detach --wait --wait-timeout")
    positions = [asked.rindex(command) for command in undone]
    assert positions == sorted(positions)


def test_a_backup_of_files_is_not_restored_to_a_lake(machine: Machine) -> None:
    machine.environ["FAKE_WHERE"] = "server"
    refused = machine.make("restore-backup")
    assert refused.returncode and "DBT_TARGET" in refused.stderr and "Nothing was changed" in refused.stderr
    assert " unpack" not in machine.log.read_text()


def test_an_interrupted_restore_is_undone_by_the_next_one(machine: Machine) -> None:
    script = (machine.folder / "docker").read_text()
    (machine.folder / "docker").write_text(
        script.replace("  *pg_database", '  *" state") echo swapped ;;\n  *pg_database')
    )
    machine.log.write_text("")
    assert machine.make("restore-backup").returncode == 0
    asked = machine.log.read_text()
    assert asked.index(" put-back") < asked.index(" unpack") < asked.index(" swap") < asked.index(" keep")


def test_dashboards_are_in_the_backup_and_everything_that_writes_is_stopped_for_a_restore(machine: Machine) -> None:
    machine.services = "bi bi-postgres"
    machine.content("tuesday")
    assert machine.make("backup").returncode == 0
    assert machine.files().keys() == {"metadata.dump", "bi.dump", "warehouse.tar", "SHA256SUMS"}
    machine.log.write_text("")
    assert machine.make("restore-backup").returncode == 0
    asked = machine.log.read_text()
    assert " stop api-server scheduler dag-processor triggerer worker bi\n" in asked
    assert "rename to superset_old" in asked and asked.index(" stop ") < asked.index("rename to superset_old")
    machine.services = ""
    machine.content("wednesday")  # the dashboards are switched off
    without = machine.make("restore-backup")
    assert without.returncode == 0 and "COMPOSE_PROFILES has no bi" in without.stdout
    assert machine.make("backup").returncode == 0
    assert machine.files().keys() == {"metadata.dump", "warehouse.tar", "SHA256SUMS"}


class Volume:
    """A warehouse volume with one file, and a tar with another."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.env: dict[str, str] = {}
        for name in ("published/jaffle_shop.duckdb", "releases/old.duckdb", "artifacts/run/load.json"):
            (self.data / name).parent.mkdir(parents=True)
            (self.data / name).write_text("old")
        (self.data / "jaffle_shop.duckdb").write_text("old")

    def __call__(self, command: str, program: str = VOLUME_SCRIPT, stdin: bytes = b"") -> bytes:
        environ = os.environ | {"WAREHOUSE_DIR": str(self.data), "PYTHONPATH": str(PROJECT), **self.env}
        command_line = [sys.executable, "-c", program, command]
        return subprocess.run(command_line, env=environ, input=stdin, stdout=subprocess.PIPE, check=True).stdout

    def prepare(self) -> None:
        for name in ("published/jaffle_shop.duckdb", "releases/new.duckdb", "jaffle_shop.duckdb"):
            (self.data / ".restore-new" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.data / ".restore-new" / name).write_text("new")

    def files(self) -> dict[str, str]:
        paths = (path for path in self.data.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(self.data)): path.read_text() for path in paths}


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


NEW = {"published/jaffle_shop.duckdb": "new", "releases/new.duckdb": "new", "jaffle_shop.duckdb": "new"}


def test_a_swap_replaces_everything_and_can_be_undone(volume: Volume) -> None:
    old = volume.files()
    volume.prepare()
    volume("swap")
    assert {name: text for name, text in volume.files().items() if not name.startswith(".restore-old")} == NEW
    assert volume("state") == b"swapped\n"
    volume("put-back")
    assert volume.files() == old and volume("state") == b"clean\n"


def test_a_final_swap_leaves_no_old_files(volume: Volume) -> None:
    volume.prepare()
    volume("swap")
    volume("keep")
    assert volume.files() == NEW and volume("state") == b"clean\n"


@pytest.mark.parametrize("command", ["swap", "put-back"])
@pytest.mark.parametrize("renames", range(9))
def test_a_kill_at_any_rename_can_be_undone(volume: Volume, command: str, renames: int) -> None:
    old = volume.files()
    volume.prepare()
    if command == "put-back":
        volume("swap")
    # Exits the process instead of doing one of the renames.
    dies = (
        f"import itertools, os, pathlib; count = itertools.count(); rename = pathlib.Path.rename\n"
        f"pathlib.Path.rename = lambda *a: rename(*a) if next(count) < {renames} else os._exit(0)\n"
    )
    volume(command, dies + VOLUME_SCRIPT)
    volume("put-back")
    assert volume.files() == old


def test_a_packed_warehouse_opens_after_unpacking(volume: Volume) -> None:
    shutil.rmtree(volume.data)
    environ = os.environ | {"WAREHOUSE_DIR": str(volume.data)}
    program = (
        "from include.warehouse.targets import target\n"
        "with target().open_working() as db:\n"
        "    db.execute('create schema marts; create table marts.orders as select 1 as id')\n"
        "target().publish('a-run', lambda connection: None)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=environ, check=True)
    tar = volume("pack")
    assert not any((volume.data / ".backup").iterdir())
    for content in (tar, _with_old_names(tar)):
        volume("unpack", stdin=content)
        kept = sorted(path.name for path in (volume.data / ".restore-new").rglob("*.duckdb"))
        assert kept == ["a-run.duckdb", "jaffle_shop.duckdb", "jaffle_shop.duckdb"]
        assert (volume.data / ".restore-new/releases/a-run.duckdb").exists()


def test_every_warehouse_in_the_volume_is_packed_and_restored(volume: Volume) -> None:
    shutil.rmtree(volume.data)
    program = (
        "from include.warehouse.targets import target\n"
        "with target().open_working() as db:\n"
        "    db.execute('create schema marts; create table marts.orders as select 1 as id')\n"
        "target().publish('a-run', lambda connection: None)"
    )
    for settings in ({}, {"WAREHOUSE_NAME": "marketing"}):
        environ = os.environ | {"WAREHOUSE_DIR": str(volume.data / settings.get("WAREHOUSE_NAME", ""))} | settings
        subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=environ, check=True)
    tar = volume("pack")
    volume("unpack", stdin=tar)
    volume("swap")
    volume("keep")
    for database in ("jaffle_shop.duckdb", "published/jaffle_shop.duckdb", "marketing/published/marketing.duckdb"):
        assert (volume.data / database).exists(), database
    assert (volume.data / "marketing/marketing.duckdb").exists()


def test_a_backup_without_a_warehouse_that_is_here_is_refused(volume: Volume) -> None:
    backup = volume.data.with_name("without.tar")
    with tarfile.open(backup, "w") as tar:
        tar.addfile(tarfile.TarInfo("published/jaffle_shop.duckdb"))
    (volume.data / "marketing" / "published").mkdir(parents=True)
    (volume.data / "marketing" / "published" / "marketing.duckdb").write_text("kept")
    with pytest.raises(subprocess.CalledProcessError):
        volume("unpack", stdin=backup.read_bytes())
    assert (volume.data / "marketing" / "published" / "marketing.duckdb").read_text() == "kept"


def test_where_nothing_is_published_there_is_no_backup(volume: Volume) -> None:
    (volume.data / "published" / "jaffle_shop.duckdb").unlink()
    with pytest.raises(subprocess.CalledProcessError):
        volume("pack")


def test_a_lake_is_packed_with_its_files_and_restored_as_it_is(volume: Volume) -> None:
    volume.env = {"DBT_TARGET": "ducklake"}
    file = volume.data / "lake/jaffle_shop/marts/orders/ducklake-1.parquet"
    file.parent.mkdir(parents=True)
    file.write_text("rows")
    tar = volume("pack")
    file.unlink()
    volume("unpack", stdin=tar)
    volume("swap")
    volume("keep")
    assert file.read_text() == "rows" and volume("where") == b"server\n"


@pytest.mark.parametrize("step", ["nothing does", " build", " stop "])
def test_an_upgrade_builds_first_then_stops_with_care_then_starts(machine: Machine, step: str) -> None:
    machine.log.write_text("")
    done = machine.make("upgrade", fails=step)
    asked = [line for line in machine.log.read_text().splitlines() if " config " not in line]
    words = [next(word for word in ("build", "stop", "up") if f" {word}" in line) for line in asked]
    failed = {"nothing does": None, " build": 0, " stop ": 1}[step]
    assert words == ["build", "stop", "up"][: None if failed is None else failed + 1]
    assert bool(done.returncode) == (failed is not None)


@pytest.mark.parametrize("name", ["backup_warehouse.py", "backup_postgres.py"])
def test_the_parts_in_a_container_run_in_one_of_any_version(name: str) -> None:
    program = (PROJECT / "deploy" / name).read_text()
    assert not {"include", "deploy"} & set(re.findall(r"^(?:from|import) (\w+)", program, re.MULTILINE))


def _with_old_names(tar: bytes) -> bytes:
    """Return a backup as it was when releases were called snapshots."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as old, tarfile.open(fileobj=made, mode="w") as new:
        for member in old:
            content = old.extractfile(member) if member.isfile() else None
            member.name = member.name.replace("releases", "snapshots")
            member.linkname = member.linkname.replace("releases", "snapshots")
            new.addfile(member, content)
    return made.getvalue()


def test_a_foreign_or_damaged_tar_is_refused(volume: Volume) -> None:
    old = volume.files()
    foreign = io.BytesIO()
    with tarfile.open(fileobj=foreign, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc/passwd"))
    for content in (foreign.getvalue(), volume("pack")[:4000], b"", volume("pack")):  # the last has no DuckDB file
        with pytest.raises(subprocess.CalledProcessError):
            volume("unpack", stdin=content)
        volume("discard")
        assert volume.files() == old


HEARD = "Exiting gracefully upon receiving signal 15"


@pytest.mark.parametrize(
    ("log", "is_told"),
    [("", True), (HEARD, False), (f"{HEARD}\nAdopting or resetting orphaned tasks for active dag runs", True)],
)
def test_a_scheduler_that_goes_on_is_told_again_and_one_that_waits_for_tasks_is_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, log: str, is_told: bool
) -> None:
    monkeypatch.setattr(compose, "RESEND_SECONDS", 0.3)
    for name, value in {
        **machine.environ,
        "FAKE_FAILS": "nothing does",
        "FAKE_DEAF": "1",
        "FAKE_SCHEDULER": log,
    }.items():
        monkeypatch.setenv(name, value)
    signalled = Path(f"{machine.log}.signalled")
    ending = threading.Timer(2, signalled.touch)  # the task that it waits for has ended
    if not is_told:
        ending.start()
    compose.stop(compose.Compose("env"))
    ending.cancel()
    assert (" kill " in machine.log.read_text()) is is_told
