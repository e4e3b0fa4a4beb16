"""Back up the running compose deployment to a folder, and restore it from there.

python3 -m deploy.backup save|restore DIR ENV_FILE [KEEP]    needs Docker with compose; no packages

A backup is `metadata.dump`, `warehouse.tar` and, with dashboards, `bi.dump`, tied together by `SHA256SUMS`. A new
backup replaces the old one only once it is complete. A restore prepares everything alongside the running deployment,
then swaps it in, and swaps back if anything fails. The part inside the warehouse's volume is in backup_warehouse.py.

A warehouse on a lake or in PostgreSQL adds `warehouse.json`, which says what was published where, `warehouse.dump` (the
schemas of its catalog, or of its list of releases), `NAME.dump` (the published database), and for a lake
`warehouse.files`: the files that the catalog names. The catalog is saved first. Files never change, and stay for a day
after they are no longer needed, so those that are linked a moment later are complete: which is checked, by name and
size. The part that talks to the server is in backup_postgres.py.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.compose import UP, Compose, ComposeError, stop

DUMP, TAR, SUMS, BI_DUMP = "metadata.dump", "warehouse.tar", "SHA256SUMS", "bi.dump"
PLAN, SCHEMAS_DUMP, FILES = "warehouse.json", "warehouse.dump", "warehouse.files"
STAMP, DATED = "%Y-%m-%dT%H%M%SZ", re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")


@dataclass(frozen=True)
class Database:
    """A Postgres database of the deployment; its user has the same name."""

    service: str
    name: str
    dump: str


METADATA = Database("postgres", "airflow", DUMP)
DASHBOARDS = Database("bi-postgres", "superset", BI_DUMP)


class BackupError(ComposeError):
    """A backup or restore failed; the message says what failed and what state that leaves."""


class Deployment(Compose):
    """The deployment, with what a backup asks of it."""

    def volume(self, command: str, stdin: Path | None = None) -> str:
        """Run a command of backup_warehouse.py in a container that mounts the warehouse's volume."""
        return self(*_in_container("backup_warehouse.py", command), stdin=stdin)

    def warehouse(self, command: str, stdin: Path | None = None) -> str:
        """Run a command of backup_postgres.py in a container that reaches the warehouse's server."""
        return self(*_in_container("backup_postgres.py", command), stdin=stdin)

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


def _in_container(name: str, command: str) -> tuple[str, ...]:
    # Pass the program on the command line, so that an older image can run it too.
    program = Path(__file__).with_name(name).read_text()
    return "run", "--rm", "--no-deps", "-T", "init", "python", "-c", program, command


def _client(program: str, *words: str) -> tuple[str, ...]:
    return "run", "--rm", "--no-deps", "-T", "pg-client", program, *words


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__  # Ctrl-C has no text


def save(compose: Deployment, folder: Path) -> None:
    """Back up to a folder; if anything fails, its existing backup is unchanged."""
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Path] = {}

    def part(name: str) -> Path:
        return parts.setdefault(name, folder / f"{name}.part")

    try:
        for one in compose.databases():
            dump = ("pg_dump", f"--username={one.name}", "--format=custom", one.name)
            compose.save(part(one.dump), "exec", "-T", one.service, *dump)
        plan = json.loads(compose.warehouse("plan"))
        if plan:
            _save_server(compose, plan, part)
        compose.save(part(TAR), *_in_container("backup_warehouse.py", "pack"))
        for one in compose.databases():
            compose("exec", "-T", one.service, "pg_restore", "--file=/dev/null", stdin=parts[one.dump])
        _check_files(compose, plan.get("data", ""), parts.get(FILES), parts[TAR])
        sums = "".join(f"{sha256(path)}  {name}\n" for name, path in parts.items())
        part(SUMS).write_text(sums)
    except BaseException:
        for path in parts.values():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it was made for this one
        raise
    earlier = _listed(folder)
    parts[SUMS].rename(folder / SUMS)  # commits the new backup, even if this process is killed from here on
    for name in earlier - check(folder):
        (folder / name).unlink(missing_ok=True)
    os.sync()
    try:
        compose.volume("mark")
    except ComposeError as error:
        print(f"warning: {error}: an alert may say that the last backup is older. It is complete.", file=sys.stderr)


def _save_server(compose: Deployment, plan: dict[str, Any], part: Callable[[str], Path]) -> None:
    """Save what a warehouse has in PostgreSQL, and list the files that its catalog names."""
    part(PLAN).write_text(json.dumps({name: value for name, value in plan.items() if name != "home"}, indent=2))
    schemas = [f'--schema="{schema}"' for schema in plan["schemas"]]
    dump = _client("pg_dump", "--format=custom", f"--dbname={plan['home']}")
    compose.save(part(SCHEMAS_DUMP), *dump, *schemas)
    for name, database in plan["databases"].items():
        compose.save(part(f"{name}.dump"), *_client("pg_dump", "--format=custom", f"--dbname={database}"))
        compose(*_client("pg_restore", "--file=/dev/null"), stdin=part(f"{name}.dump"))
    tables = ("--data-only", "--table=ducklake_data_file", "--table=ducklake_delete_file", "--file=-")
    rows = compose(*_client("pg_restore", *tables), stdin=part(SCHEMAS_DUMP))  # which reads all of it
    if plan["data"]:
        part(FILES).write_text("".join(f"{name}\t{size}\n" for name, size in sorted(files_of(rows))))


def files_of(text: str) -> set[tuple[str, int]]:
    """Return name and size in bytes of the files that a lake's catalog names, given the SQL of its dump."""
    found, columns = set(), None
    for line in text.splitlines():
        if copy := re.match(r"COPY \S+ducklake_\w+_file \((.*)\) FROM stdin;", line):
            columns = copy[1].split(", ")
        elif line == "\\.":
            columns = None
        elif columns:
            row = dict(zip(columns, line.split("\t"), strict=True))
            found.add((row["path"].rsplit("/", 1)[-1], int(row["file_size_bytes"])))
    return found


def _check_files(compose: Deployment, data: str, listed: Path | None, tar: Path) -> None:
    """Read a tar to its end; check that each listed file is in it or, if the lake is in an object store, there."""
    with tarfile.open(tar, "r|") as members:
        packed = {(Path(member.name).name, member.size) for member in members}
    if listed is None:
        return
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    if "://" in data:
        compose.warehouse("find", stdin=listed)
        size = sum(int(size) for _, size in lines) / 1e9
        print(
            f"The lake's {len(lines)} files ({size:.1f} GB) stay in {data}: this backup needs them there.", flush=True
        )
    elif missing := {(name, int(size)) for name, size in lines} - packed:
        raise BackupError(f"{len(missing)} of {len(lines)} files of the lake are missing, such as {min(missing)[0]}.")


def save_dated(compose: Deployment, folder: Path, keep: int) -> None:
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
        sums = _sums(folder)
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


def _sums(folder: Path) -> dict[str, str]:
    return {
        name: digest for digest, name in (line.split(maxsplit=1) for line in (folder / SUMS).read_text().splitlines())
    }


def _listed(folder: Path) -> set[str]:
    try:
        return set(_sums(folder))
    except (OSError, ValueError):
        return set()


def sha256(path: Path) -> str:
    """Return a file's checksum as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def restore(compose: Deployment, folder: Path) -> None:
    """Replace the deployment's metadata and warehouse; if anything fails, keep and restart the current ones.

    Raises:
        BackupError: the backup is incomplete, or a step failed.
    """
    saved = check(folder)
    databases = [one for one in compose.databases() if one.dump in saved]
    if BI_DUMP in saved and DASHBOARDS not in databases:
        print("The dashboards of this backup are left out: COMPOSE_PROFILES has no bi.", flush=True)
    compose("up", "--detach", "--wait", *(one.service for one in databases))
    where = compose.volume("where")
    if where != ("server" if PLAN in saved else "volume"):
        is_of = "a warehouse on a server" if PLAN in saved else "files"
        raise BackupError(f"the backup is of {is_of}, DBT_TARGET chooses another one. Nothing was changed.")
    server = Server(compose, folder) if PLAN in saved else None
    if compose.volume("state") == "swapped":
        print("An earlier restore was interrupted. Undoing it ...", flush=True)
        put_back(compose, databases, server)
    print("Unpacking alongside the current data ...", flush=True)
    try:
        if server:
            server.unpack()
        compose.volume("unpack", stdin=folder / TAR)
        for one in databases:
            _unpack_database(compose, one, folder)
    except BaseException as error:
        compose.volume("discard")
        for one in databases:
            compose.drop(one, f"{one.name}_new")
        if server:
            server.discard()
        raise BackupError(f"{_reason(error)}. Nothing was changed.") from error
    try:
        print("Stopping, swapping, starting ...", flush=True)
        stop(compose)
        compose.volume("swap")
        if server:
            server.swap()
        for one in databases:
            compose.rename(one, {one.name: f"{one.name}_old", f"{one.name}_new": one.name})
        compose(*UP)
    except BaseException as error:
        with contextlib.suppress(ComposeError):
            print(compose("logs", "--no-log-prefix", "--tail=5", "init"), file=sys.stderr)
        print(f"{_reason(error)}. Undoing the swap ...", file=sys.stderr, flush=True)
        put_back(compose, databases, server)
        raise BackupError("the restored deployment did not start; the previous one is running again.") from error
    compose.volume("keep")
    for one in databases:
        compose.drop(one, f"{one.name}_old")
    if server:
        server.keep()


def _unpack_database(compose: Deployment, one: Database, folder: Path) -> None:
    new = f"{one.name}_new"
    compose.drop(one, new, f"{one.name}_old")
    compose("exec", "-T", one.service, "createdb", f"--username={one.name}", new)
    options = (f"--username={one.name}", f"--dbname={new}", "--exit-on-error", "--single-transaction")
    compose("exec", "-T", one.service, "pg_restore", *options, stdin=folder / one.dump)
    # Airflow's or Superset's, not another database
    compose.sql(one, "select version_num from alembic_version", name=new)


class Server:
    """What a backup has of a warehouse in PostgreSQL, and the server that it is restored to."""

    OPTIONS = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")

    def __init__(self, compose: Deployment, folder: Path) -> None:
        self.compose, self.folder, self.plan = compose, folder, folder / PLAN
        self.saved = json.loads(self.plan.read_text())

    def unpack(self) -> None:
        """Restore the databases under other names, and check that the lake's files are there."""
        created = [line.split("\t") for line in self.compose.warehouse("prepare", stdin=self.plan).splitlines()]
        for name, database in created:
            self._restore(self.folder / f"{name}.dump", database)
        if self.saved["data"]:
            _check_files(self.compose, self.saved["data"], self.folder / FILES, self.folder / TAR)

    def swap(self) -> None:
        """Move what is there aside, and take the backup into use."""
        home = self.compose.warehouse("home")
        self.compose.warehouse("aside", stdin=self.plan)
        self._restore(self.folder / SCHEMAS_DUMP, home)
        self.compose.warehouse("switch", stdin=self.plan)

    def _restore(self, dump: Path, database: str) -> None:
        self.compose(*_client("pg_restore", f"--dbname={database}", *self.OPTIONS), stdin=dump)

    def discard(self) -> None:
        """Remove what `unpack` created."""
        self.compose.warehouse("discard")

    def put_back(self) -> None:
        """Undo a swap, however far it got."""
        self.compose.warehouse("put-back")

    def keep(self) -> None:
        """Make a swap final; it is complete even if what was there before cannot be removed."""
        try:
            self.compose.warehouse("keep")
        except ComposeError as error:
            print(f"warning: {error}: what was there before stays, until the next restore.", file=sys.stderr)


def put_back(compose: Deployment, databases: list[Database], server: Server | None) -> None:
    """Undo a complete or partial swap, and start the deployment."""
    with contextlib.suppress(ComposeError):
        stop(compose)
    if server:  # first: it looks for the warehouses in the volume
        server.put_back()
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
    compose = Deployment(env_file)
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
    except (ComposeError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
