"""Back up the running compose deployment to a folder, and restore it from there.

python3 deploy/backup.py save|restore DIR ENV_FILE    needs Docker with compose; no packages

A backup is `metadata.dump` and `warehouse.tar`, tied together by `SHA256SUMS`. A new backup replaces the old one only
once it is complete. A restore prepares everything alongside the running deployment, then swaps it in, and swaps back if
anything fails. The part inside the warehouse's volume is in backup_warehouse.py.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

DUMP, TAR, SUMS = "metadata.dump", "warehouse.tar", "SHA256SUMS"
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer")
PSQL = ("exec", "-T", "postgres", "psql", "--username=airflow", "--dbname=postgres", "--tuples-only", "--no-align")
UP = ("up", "--detach", "--wait", "--wait-timeout", "900")


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

    def sql(self, *statements: str) -> str:
        """Run SQL in Postgres, in one transaction, and return what it prints."""
        return self(*PSQL, "--set=ON_ERROR_STOP=1", "--single-transaction", *(f"--command={sql}" for sql in statements))

    def rename(self, databases: dict[str, str]) -> None:
        """Rename Postgres databases, all or none, after terminating their remaining sessions."""
        names = ", ".join(f"'{name}'" for name in databases)
        end = f"select from (select pg_terminate_backend(pid) from pg_stat_activity where datname in ({names})) ended"
        self.sql(end, *(f"alter database {old} rename to {new}" for old, new in databases.items()))

    def drop(self, *databases: str) -> None:
        """Drop Postgres databases, if they exist."""
        for database in databases:
            quiet = ("--env", "PGOPTIONS=--client-min-messages=warning")
            self("exec", "-T", *quiet, "postgres", "dropdb", "--username=airflow", "--if-exists", "--force", database)


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
    dump, tar, sums = parts = [folder / f"{name}.part" for name in (DUMP, TAR, SUMS)]
    try:
        compose.save(dump, "exec", "-T", "postgres", "pg_dump", "--username=airflow", "--format=custom", "airflow")
        compose.save(tar, *_in_volume("pack"))
        compose("exec", "-T", "postgres", "pg_restore", "--file=/dev/null", stdin=dump)
        with tarfile.open(tar, "r|") as members:
            for _ in members:
                pass
        sums.write_text(f"{sha256(dump)}  {DUMP}\n{sha256(tar)}  {TAR}\n")
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    sums.rename(folder / SUMS)  # commits the new backup, even if this process is killed from here on
    check(folder)
    os.sync()


def check(folder: Path) -> None:
    """Check that a folder has a complete backup, without Docker.

    Raises:
        BackupError: a file is missing, damaged or from another backup.
    """
    advice = "Nothing was changed."
    try:
        lines = [line.split(maxsplit=1) for line in (folder / SUMS).read_text().splitlines()]
        sums = {name: digest for digest, name in lines}
    except (OSError, ValueError) as error:
        raise BackupError(f"no backup in {folder}: {error}. {advice}") from None
    for name in (DUMP, TAR):
        path, part = folder / name, folder / f"{name}.part"
        if part.exists() and sha256(part) == sums.get(name):  # `save` was killed before its last step
            part.rename(path)
        if not path.is_file() or not path.stat().st_size:
            raise BackupError(f"{path} is missing or empty. {advice}")
        if sha256(path) != sums.get(name):
            raise BackupError(f"{path} is damaged or from another backup: its checksum is not in {SUMS}. {advice}")


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
    check(folder)
    compose("up", "--detach", "--wait", "postgres")
    if compose.volume("state") == "swapped":
        print("An earlier restore was interrupted. Undoing it ...", flush=True)
        put_back(compose)
    print("Unpacking alongside the current data ...", flush=True)
    compose.drop("airflow_new", "airflow_old")
    try:
        compose.volume("unpack", stdin=folder / TAR)
        compose("exec", "-T", "postgres", "createdb", "--username=airflow", "airflow_new")
        load = ("pg_restore", "--username=airflow", "--dbname=airflow_new", "--exit-on-error", "--single-transaction")
        compose("exec", "-T", "postgres", *load, stdin=folder / DUMP)
        # Airflow's metadata, not another database
        compose(
            *PSQL, "--dbname=airflow_new", "--set=ON_ERROR_STOP=1", "--command=select version_num from alembic_version"
        )
    except BaseException as error:
        compose.volume("discard")
        compose.drop("airflow_new")
        raise BackupError(f"{_reason(error)}. Nothing was changed.") from error
    try:
        print("Stopping, swapping, starting ...", flush=True)
        compose("stop", *AIRFLOW)
        compose.volume("swap")
        compose.rename({"airflow": "airflow_old", "airflow_new": "airflow"})
        compose(*UP)
    except BaseException as error:
        with contextlib.suppress(BackupError):
            print(compose("logs", "--no-log-prefix", "--tail=5", "init"), file=sys.stderr)
        print(f"{_reason(error)}. Undoing the swap ...", file=sys.stderr, flush=True)
        put_back(compose)
        raise BackupError("the restored deployment did not start; the previous one is running again.") from error
    compose.volume("keep")
    compose.drop("airflow_old")


def put_back(compose: Compose) -> None:
    """Undo a complete or partial swap, and start the deployment."""
    with contextlib.suppress(BackupError):
        compose("stop", *AIRFLOW)
    compose.volume("put-back")
    if compose.sql("select 1 from pg_database where datname = 'airflow_old'"):
        compose.rename({"airflow": "airflow_new", "airflow_old": "airflow"})
    compose(*UP)
    compose.drop("airflow_new")


def main() -> int:
    """Run one command; return the exit code."""
    command, folder, env_file = sys.argv[1:]
    try:
        {"save": save, "restore": restore}[command](Compose(env_file), Path(folder))
    except (BackupError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
