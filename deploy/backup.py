"""Back up the running compose deployment to a folder, and restore it from there.

python3 deploy/backup.py save|restore DIR ENV_FILE [KEEP]    needs Docker with compose; no packages

A backup is `metadata.dump`, `warehouse.tar` and, with dashboards, `bi.dump`, tied together by `SHA256SUMS`. A new
backup replaces the old one only once it is complete. A restore prepares everything alongside the running deployment,
then swaps it in, and swaps back if anything fails. The part inside the warehouse's volume is in backup_warehouse.py.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DUMP, TAR, SUMS, BI_DUMP = "metadata.dump", "warehouse.tar", "SHA256SUMS", "bi.dump"
STAMP, DATED = "%Y-%m-%dT%H%M%SZ", re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")
# Whatever writes to what a restore replaces.
WRITERS = ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "bi")
RESEND_SECONDS = 30.0
STOPPING = "Exiting gracefully upon receiving signal"  # in a scheduler's log
UP = ("up", "--detach", "--wait", "--wait-timeout", "900")


@dataclass(frozen=True)
class Database:
    """A Postgres database of the deployment; its user has the same name."""

    service: str
    name: str
    dump: str


METADATA = Database("postgres", "airflow", DUMP)
DASHBOARDS = Database("bi-postgres", "superset", BI_DUMP)


class BackupError(Exception):
    """A backup or restore failed; the message says what failed and what state that leaves."""


class Compose:
    """The deployment, through `docker compose`; its error messages go to standard error."""

    def __init__(self, env_file: str) -> None:
        self.command = ("docker", "compose", "--progress=quiet", "--env-file", env_file)

    def __call__(self, *words: str, stdin: Path | None = None) -> str:
        """Run `docker compose WORDS` and return its output; raise `BackupError` if it fails."""
        with (stdin or Path(os.devnull)).open("rb") as source:
            ended = subprocess.run((*self.command, *words), stdin=source, stdout=subprocess.PIPE, text=True)
        _check(ended.returncode, words)
        return ended.stdout.strip()

    def save(self, path: Path, *words: str) -> None:
        """Write the output of `docker compose WORDS` to a file and flush it to disk."""
        with path.open("wb") as out:
            command = (*self.command, *words)
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
                assert process.stdout
                shutil.copyfileobj(process.stdout, out)
            _check(process.returncode, words)
            out.flush()
            os.fsync(out.fileno())

    def volume(self, command: str, stdin: Path | None = None) -> str:
        """Run a command of backup_warehouse.py in a container that mounts the warehouse's volume."""
        return self(*_in_volume(command), stdin=stdin)

    def services(self) -> set[str]:
        """Return the services of the deployment, with those of its profiles."""
        return set(self("config", "--services").split())

    def databases(self) -> list[Database]:
        """Return the databases of the deployment."""
        return [METADATA, DASHBOARDS] if DASHBOARDS.service in self.services() else [METADATA]

    def sql(self, database: Database, *statements: str, name: str = "postgres") -> str:
        """Run SQL in a database's server, in one transaction, and return what it prints."""
        psql = ("psql", f"--username={database.name}", f"--dbname={name}", "--tuples-only", "--no-align")
        commands = (f"--command={sql}" for sql in statements)
        options = ("--set=ON_ERROR_STOP=1", "--single-transaction")
        return self("exec", "-T", database.service, *psql, *options, *commands)

    def rename(self, database: Database, names: dict[str, str]) -> None:
        """Rename databases, all or none, after terminating their remaining sessions."""
        old_names = ", ".join(f"'{name}'" for name in names)
        sessions = f"select pg_terminate_backend(pid) from pg_stat_activity where datname in ({old_names})"
        renames = (f"alter database {old} rename to {new}" for old, new in names.items())
        self.sql(database, f"select from ({sessions}) ended", *renames)

    def drop(self, database: Database, *names: str) -> None:
        """Drop databases, if they exist."""
        for name in names:
            quiet = ("--env", "PGOPTIONS=--client-min-messages=warning")
            drop = ("dropdb", f"--username={database.name}", "--if-exists", "--force", name)
            self("exec", "-T", *quiet, database.service, *drop)


def _in_volume(command: str) -> tuple[str, ...]:
    # Pass the program on the command line, so that an older image can run it too.
    program = Path(__file__).with_name("backup_warehouse.py").read_text()
    return "run", "--rm", "--no-deps", "-T", "init", "python", "-c", program, command


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__  # Ctrl-C has no text


def _check(returncode: int, words: tuple[str, ...]) -> None:
    if returncode:
        raise BackupError(f"docker compose {' '.join(word for word in words if len(word) < 100)} failed")


def save(compose: Compose, folder: Path) -> None:
    """Back up to a folder; if anything fails, its existing backup is unchanged."""
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True)
    databases = compose.databases()
    names = [*(database.dump for database in databases), TAR]
    parts = {name: folder / f"{name}.part" for name in (*names, SUMS)}
    try:
        for one in databases:
            dump = ("pg_dump", f"--username={one.name}", "--format=custom", one.name)
            compose.save(parts[one.dump], "exec", "-T", one.service, *dump)
        compose.save(parts[TAR], *_in_volume("pack"))
        for one in databases:
            compose("exec", "-T", one.service, "pg_restore", "--file=/dev/null", stdin=parts[one.dump])
        with tarfile.open(parts[TAR], "r|") as members:
            for _ in members:
                pass
        parts[SUMS].write_text("".join(f"{sha256(parts[name])}  {name}\n" for name in names))
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it was made for this one
        raise
    parts[SUMS].rename(folder / SUMS)  # commits the new backup, even if this process is killed from here on
    if BI_DUMP not in check(folder):
        (folder / BI_DUMP).unlink(missing_ok=True)  # of the backup before
    os.sync()
    try:
        compose.volume("mark")
    except BackupError as error:
        print(f"warning: {error}: an alert may say that the last backup is older. It is complete.", file=sys.stderr)


def save_dated(compose: Compose, folder: Path, keep: int) -> None:
    """Back up to a new folder named by the time, in UTC; then remove all but the latest `keep`."""
    if keep < 1:
        raise BackupError(f"KEEP={keep} would keep no backup. Nothing was changed.")
    save(compose, folder / datetime.now(UTC).strftime(STAMP))
    for old in dated(folder)[:-keep]:
        shutil.rmtree(old)


def dated(folder: Path) -> list[Path]:
    """Return the complete backups that `save_dated` has made in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if DATED.fullmatch(path.name) and (path / SUMS).is_file())


def check(folder: Path) -> set[str]:
    """Check that a folder has a complete backup, without Docker; return the names of its files.

    Raises:
        BackupError: a file is missing, damaged or from another backup.
    """
    advice = "Nothing was changed."
    try:
        lines = [line.split(maxsplit=1) for line in (folder / SUMS).read_text().splitlines()]
        sums = {name: digest for digest, name in lines}
    except (OSError, ValueError) as error:
        latest = f" The latest one in it is DIR={dated(folder)[-1]}." if dated(folder) else ""
        raise BackupError(f"no backup in {folder}: {error}. {advice}{latest}") from None
    for name in {DUMP, TAR, *sums}:
        path, part = folder / name, folder / f"{name}.part"
        if part.exists() and sha256(part) == sums.get(name):  # `save` was killed before its last step
            part.rename(path)
        if not path.is_file() or not path.stat().st_size:
            raise BackupError(f"{path} is missing or empty. {advice}")
        if sha256(path) != sums.get(name):
            raise BackupError(f"{path} is damaged or from another backup: its checksum is not in {SUMS}. {advice}")
    return set(sums)


def sha256(path: Path) -> str:
    """Return a file's checksum as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def restore(compose: Compose, folder: Path) -> None:
    """Replace the deployment's metadata and warehouse; if anything fails, keep and restart the current ones.

    Raises:
        BackupError: the backup is incomplete, or a step failed.
    """
    saved = check(folder)
    databases = [one for one in compose.databases() if one.dump in saved]
    if BI_DUMP in saved and DASHBOARDS not in databases:
        print("The dashboards of this backup are left out: COMPOSE_PROFILES has no bi.", flush=True)
    compose("up", "--detach", "--wait", *(one.service for one in databases))
    if compose.volume("state") == "swapped":
        print("An earlier restore was interrupted. Undoing it ...", flush=True)
        put_back(compose, databases)
    print("Unpacking alongside the current data ...", flush=True)
    try:
        compose.volume("unpack", stdin=folder / TAR)
        for one in databases:
            new = f"{one.name}_new"
            compose.drop(one, new, f"{one.name}_old")
            compose("exec", "-T", one.service, "createdb", f"--username={one.name}", new)
            options = (f"--username={one.name}", f"--dbname={new}", "--exit-on-error", "--single-transaction")
            compose("exec", "-T", one.service, "pg_restore", *options, stdin=folder / one.dump)
            # Airflow's or Superset's, not another database
            compose.sql(one, "select version_num from alembic_version", name=new)
    except BaseException as error:
        compose.volume("discard")
        for one in databases:
            compose.drop(one, f"{one.name}_new")
        raise BackupError(f"{_reason(error)}. Nothing was changed.") from error
    try:
        print("Stopping, swapping, starting ...", flush=True)
        stop(compose)
        compose.volume("swap")
        for one in databases:
            compose.rename(one, {one.name: f"{one.name}_old", f"{one.name}_new": one.name})
        compose(*UP)
    except BaseException as error:
        with contextlib.suppress(BackupError):
            print(compose("logs", "--no-log-prefix", "--tail=5", "init"), file=sys.stderr)
        print(f"{_reason(error)}. Undoing the swap ...", file=sys.stderr, flush=True)
        put_back(compose, databases)
        raise BackupError("the restored deployment did not start; the previous one is running again.") from error
    compose.volume("keep")
    for one in databases:
        compose.drop(one, f"{one.name}_old")


def stop(compose: Compose) -> None:
    """Stop what writes. A scheduler can lose the signal, and would run on until it is killed: it is sent again."""
    words, since = ("stop", *_writers(compose)), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = subprocess.Popen((*compose.command, *words), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while True:
        try:
            return _check(ended.wait(RESEND_SECONDS), words)
        except subprocess.TimeoutExpired:
            # A second signal to one that waits for its tasks would end them.
            log = compose("logs", "--no-log-prefix", f"--since={since}", "scheduler")
            if "scheduler" in compose("ps", "--services", "--status=running").split() and STOPPING not in log:
                print("The scheduler has not heard that it is to stop. Telling it again ...", flush=True)
                compose("kill", "--signal=SIGTERM", "scheduler")


def _writers(compose: Compose) -> list[str]:
    return [name for name in WRITERS if name in compose.services()]


def put_back(compose: Compose, databases: list[Database]) -> None:
    """Undo a complete or partial swap, and start the deployment."""
    with contextlib.suppress(BackupError):
        stop(compose)
    compose.volume("put-back")
    for one in databases:
        if compose.sql(one, f"select 1 from pg_database where datname = '{one.name}_old'"):
            compose.rename(one, {one.name: f"{one.name}_new", f"{one.name}_old": one.name})
    compose(*UP)
    for one in databases:
        compose.drop(one, f"{one.name}_new")


def main() -> int:
    """Run one command; return the exit code."""
    command, folder, env_file, *keep = sys.argv[1:]
    compose = Compose(env_file)
    try:
        if command == "restore":
            restore(compose, Path(folder))
        elif keep:
            save_dated(compose, Path(folder), int(keep[0]))
        else:
            save(compose, Path(folder))
    except ValueError:
        print(f"error: KEEP={keep[0]} is not a number of backups. Nothing was changed.", file=sys.stderr)
        return 1
    except (BackupError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
