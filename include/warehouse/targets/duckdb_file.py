"""The warehouse as DuckDB files: publish the working database as a release, list the kept releases, roll back.

    jaffle_shop.duckdb --cp--> releases/.<id>.duckdb.tmp --verify, rename--> releases/<id>.duckdb
                                    --link, rename--> published/jaffle_shop.duckdb --> readers

A release that has to wait for a person is moved to releases/waiting/ instead, and from there by `approve`.

The published file is a hard link to its release, not a symlink: mounting `published/` alone gives an ordinary file,
and an open reader keeps its file when the name moves on. It changes only by a rename, so a process killed at any step
leaves readers with either the previous release or the complete new one.
"""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from include.duckdb_session import open_duckdb
from include.errors import is_disk_full
from include.provenance import Provenance
from include.settings import warehouse_name
from include.warehouse import builds, paths
from include.warehouse.errors import (
    DiskFullError,
    NotReadyError,
    PublishError,
    UnknownReleaseError,
    WarehouseCorruptError,
    WarehouseError,
    WarehouseLockedError,
    first_line,
    is_damage,
)
from include.warehouse.locks import releases_lock, sign, signed_by
from include.warehouse.paths import release_id
from include.warehouse.targets import database_file as files
from include.warehouse.targets.base import (
    Check,
    Gate,
    Release,
    Target,
    find_waiting,
    has_built,
    keep_releases,
    no_gate,
    nothing,
)

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.02

_Reader = Callable[[], duckdb.DuckDBPyConnection]


class DuckDBFile(Target):
    """Files in `WAREHOUSE_DIR`; one process writes at a time."""

    can_be_sandboxed = True  # without external access, DuckDB reads only the attached file

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._turn = -1  # descriptor of the lock that this task holds
        self._records: dict[Hashable, tuple[Any, ...]] = {}  # of releases, whose files never change

    def _key(self) -> str:
        """Return the encryption key; empty: none."""
        return ""

    def open_working(self, timeout_seconds: float | None = None) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return files.open_working(timeout_seconds, self._key())

    def create_working(self) -> None:
        with contextlib.suppress(OSError):  # dbt creates the file, and says why it cannot
            paths.working_path().parent.mkdir(parents=True, exist_ok=True)

    def begin_turn(self) -> bool:
        # So the next task starts while one writes, and waits here before its time limit runs.
        if self._turn >= 0:  # this process has kept it since its task before
            return True
        path = paths.warehouse_dir() / f".{warehouse_name()}.turn"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            turn = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # `open_working` says what is wrong with the folder
            return True
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Waiting for the task that is writing: %s", signed_by(turn, "another process"))
            started = time.monotonic()
            fcntl.flock(turn, fcntl.LOCK_EX)
            logger.info("Waited %.2f s for the task that was writing", time.monotonic() - started)
        self._turn = turn
        sign(turn)
        return True

    def end_turn(self) -> None:
        if self._turn >= 0:
            os.close(self._turn)
            self._turn = -1

    def publish(self, run_id: str, check: Check, clean: Check = nothing, gate: Gate = no_gate) -> Release:
        # At its peak, the folder of the releases needs space for two more than are kept.
        started = time.monotonic()
        new_id, keep = release_id(run_id), keep_releases()
        working = paths.working_path()
        if not working.exists():
            raise NotReadyError(f"There is no working database {working} to publish: run the pipeline first.")
        # The open connection keeps other processes from writing until the copy is verified. It holds a POSIX lock,
        # which the kernel drops as soon as this process closes any descriptor of the file: never open() it here.
        with self.open_working() as connection, _exclusively() as lock, _reading() as reader:
            check(connection)
            clean(connection)
            builds.check_not_older(connection)
            final = paths.release_path(new_id)
            temporary = final.with_name(f".{final.name}.tmp")
            try:
                counts = self._stamp_and_checkpoint(connection, new_id, run_id)
                _copy(working, temporary, lock)
                self._verify(reader, temporary, counts)
                if gate(self._read_release(reader, temporary)):
                    final = paths.waiting_dir() / final.name
                    final.parent.mkdir(exist_ok=True)
                temporary.rename(final)
                _sync(final.parent)
                is_waiting = final.parent == paths.waiting_dir()
                if not is_waiting:
                    _show_to_readers(final)
                _remove_waiting(but=final)
            except (OSError, duckdb.Error) as error:
                temporary.unlink(missing_ok=True)
                raise _copy_error(error, "publish", working, temporary) from error
            for old in self._list_releases(reader)[keep:]:
                if not old.published:
                    _remove(old)
            release = self._read_release(reader, final)
        seconds, done = time.monotonic() - started, "Made, not shown to readers:" if is_waiting else "Published"
        logger.info("%s %s: %d bytes in %.2f s", done, release.id, release.size_bytes, seconds)
        return release

    def rollback(self, release_or_run_id: str) -> Release:
        # Needs neither the working database nor free space.
        with _exclusively(), _reading() as reader:
            path = self._find(reader, release_or_run_id)
            release = self._read_release(reader, path)
            self._verify(reader, path)
            _show_to_readers(path)
        logger.info("Rolled back to %s", release.id)
        return replace(release, published=True)

    def waiting_release(self) -> Release | None:
        with _reading() as reader:
            found = []
            for path in paths.waiting_dir().glob("*.duckdb"):  # two, if a publish was killed
                try:
                    found.append(self._read_release(reader, path))
                except (WarehouseError, OSError) as error:
                    if path.exists():
                        logger.warning("Skipping a file that is not a usable release: %s", error)
        return max(found, key=lambda one: one.created_at, default=None)

    def approve(self, release_or_run_id: str) -> Release:
        # Gone from the folder of the waiting only when readers see it: whoever is killed can do it again.
        with _exclusively(), _reading() as reader:
            found = find_waiting(self.waiting_release(), release_or_run_id)
            self._verify(reader, Path(found.location))
            final = paths.release_path(found.id)
            temporary = final.with_name(f".{final.name}.tmp")
            temporary.hardlink_to(found.location)
            temporary.rename(final)
            _sync(final.parent)
            _show_to_readers(final)
            _remove_waiting()
            release = self._read_release(reader, final)
        logger.info("Approved %s", release.id)
        return release

    def refuse(self, release_or_run_id: str) -> Release:
        with _exclusively():
            found = find_waiting(self.waiting_release(), release_or_run_id)
            _remove_waiting()
        logger.info("Refused %s", found.id)
        return found

    def restore(self, release_or_run_id: str | None = None) -> str:
        """Replace the working database with a copy of a release; the old file is kept, under another name."""
        working = paths.working_path()
        with _exclusively(), _not_open(working), _reading() as reader:
            source = self._find(reader, release_or_run_id) if release_or_run_id else paths.published_path()
            temporary = paths.releases_dir() / f".{working.name}.tmp"  # where leftovers are cleaned up
            if source.exists():
                self._verify(reader, source)
                try:
                    shutil.copyfile(source, temporary)
                    with files.connect(temporary, self._key()) as copy:
                        builds.forget_loads(copy)
                except (OSError, duckdb.Error) as error:
                    raise _copy_error(error, "restore", source, temporary) from error
            aside = f"{working}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
            moved = [path for path in (working, *files.write_ahead_logs(working)) if path.stat().st_size]
            for path in moved:
                path.rename(f"{aside}{path.name.removeprefix(working.name)}")
            if source.exists():
                temporary.rename(working)
            elif not moved:
                working.unlink()
        kept = f"Kept the old file as {aside}. " if moved else ""
        now = (
            f"The working database is now a copy of {source}"
            if source.exists()
            else "The next load creates a new working database"
        )
        return f"{kept}{now}. Clear `load` with downstream, or start a run."

    def list_releases(self) -> list[Release]:
        """Return the kept releases, newest first; other files are skipped with a warning."""
        with _reading() as reader:
            return self._list_releases(reader)

    def published_release(self) -> Release | None:
        # Its location is the kept file, or the published one if that run's release has been replaced or removed.
        while (version := self.published_version()) is not None:
            with _reading() as reader:
                release = self._read_release(reader, paths.published_path())
            if self.published_version() == version:  # else readers have been switched meanwhile
                return release
        return None

    def published_version(self) -> Hashable | None:
        """Return the identity of the published file."""
        try:
            stat = paths.published_path().stat()
        except FileNotFoundError:
            return None
        # With the time of the last link: readers may be switched to a file, away, and back.
        return stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_size

    def attach_statements(self, release: Release | None = None, name: str | None = None) -> list[str]:
        path = Path(release.location) if release else paths.published_path()
        return [files.attach_statement(path, "read_only", key=self._key(), name=name)]

    def published_location(self) -> str:
        return str(paths.published_path())

    def namespace(self, *, is_published: bool) -> str:
        return f"duckdb://{paths.published_path() if is_published else paths.working_path()}"

    def how_to_open(self) -> str:
        opened = f'duckdb.connect("{paths.published_path()}", read_only=True)'
        return f"""Open it, read-only, in `make shell`:
  python -c 'import duckdb; {opened}.sql("show all tables").show()'"""

    def _find(self, reader: _Reader, release_or_run_id: str) -> Path:
        path = paths.release_path(release_id(release_or_run_id))
        if not path.exists():
            kept = ", ".join(release.id for release in self._list_releases(reader)) or "none"
            raise UnknownReleaseError(f"There is no release {release_or_run_id!r} in {path.parent}. Kept: {kept}.")
        return path

    def _stamp_and_checkpoint(
        self, connection: duckdb.DuckDBPyConnection, new_id: str, run_id: str
    ) -> dict[tuple[str, str], int]:
        if not has_built(self.count_rows(connection)):
            raise NotReadyError("The working database has only loaded tables: run the pipeline, then publish.")
        builds.stamp(connection, new_id, run_id)
        connection.execute("checkpoint")
        for log in files.write_ahead_logs(paths.working_path()):
            if log.stat().st_size:
                raise PublishError(
                    f"{log} still holds changes after a checkpoint: close other connections to the database."
                )
        return self.count_rows(connection)

    def _verify(self, reader: _Reader, path: Path, expected: dict[tuple[str, str], int] | None = None) -> None:
        try:
            with files.attached(reader(), path, self._key()):
                counts = self.count_rows(reader())
        except duckdb.Error as error:
            raise _unreadable(path, error) from error
        if not has_built(counts):
            raise PublishError(f"{path} has no table that dbt builds.")
        if expected is not None and counts != expected:
            differing = ", ".join(
                f"{schema}.{table}" for (schema, table), _ in set(counts.items()) ^ set(expected.items())
            )
            raise PublishError(
                f"The copy {path} differs from the working database in {differing}; nothing changes for readers."
            )

    def _list_releases(self, reader: _Reader) -> list[Release]:
        releases = []
        for path in paths.releases_dir().glob("*.duckdb"):
            try:
                releases.append(self._read_release(reader, path))
            except (WarehouseError, OSError, OverflowError) as error:
                if path.exists():  # else a publish has just pruned it
                    logger.warning("Skipping a file that is not a usable release: %s", error)
        return sorted(releases, key=lambda release: (release.created_at, release.id), reverse=True)

    def _read_release(self, reader: _Reader, path: Path) -> Release:
        """Read a release's own record, or what was read before; `path` may be the published file."""
        file = _identity(path)
        if (row := self._records.get(file)) is None:
            try:
                with files.attached(reader(), path, self._key()):
                    row = _record(reader())
            except duckdb.Error as error:
                raise _unreadable(path, error) from error
            if row is None:
                raise WarehouseError(f"{path} has no record of which release it is.")
            if file and _identity(path) == file:  # else it was of a file that has just taken its place
                self._records[file] = row
        kept, published = paths.release_path(row[0]), paths.published_path()
        is_new = path.parent == paths.waiting_dir() or path.name == f".{kept.name}.tmp"
        if path not in (kept, published) and not is_new:
            raise WarehouseError(f"{path} is a copy of the release {row[0]}.")
        if path == published and _same_file(kept, published):
            path = kept
        created_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row[2])
        size, is_published = path.stat().st_size, _same_file(path, published)
        return Release(row[0], row[1], str(path), created_at, size, is_published, Provenance.from_json(row[3]))


class EncryptedFile(DuckDBFile):
    """The same files, encrypted with `WAREHOUSE_ENCRYPTION_KEY`."""

    encrypts = True

    def _key(self) -> str:
        if key := files.encryption_key():
            return key
        raise WarehouseError(f"DBT_TARGET={self.name} needs WAREHOUSE_ENCRYPTION_KEY (docs/deployment.md).")


@contextlib.contextmanager
def _reading() -> Iterator[_Reader]:
    """Yield what opens a DuckDB, to attach releases to, when it is called first: often all are known."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda: stack.enter_context(open_duckdb()))


@contextlib.contextmanager
def _not_open(path: Path) -> Iterator[None]:
    """Hold the lock that DuckDB takes on a database file, without DuckDB: the file may be unreadable.

    If there is no file, an empty placeholder keeps a load from creating one meanwhile.
    """
    with path.open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WarehouseLockedError(
                f"{path} is open in another process: let the running task finish first."
            ) from None
        yield


@contextlib.contextmanager
def _exclusively() -> Iterator[int]:
    with releases_lock() as lock:
        _remove_leftovers()  # of a killed process
        try:
            yield lock
        finally:
            _remove_leftovers()


def _remove_leftovers() -> None:
    # Nothing writes to releases, so a WAL next to one was left by someone who opened it as root or elsewhere. DuckDB
    # would replay it into the next file of that name.
    for folder in (paths.releases_dir(), paths.published_path().parent):
        for pattern in (".*.tmp", "*.duckdb.wal*", ".*.tmp.wal*"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def _copy(source: Path, target: Path, lock: int) -> None:
    needed, free = source.stat().st_size, shutil.disk_usage(target.parent).free
    if needed > free:  # only a hint: with reflinks the copy takes no space
        logger.warning("The release may not fit: it needs %d bytes, %d are free in %s", needed, free, target.parent)
    # In a separate process, see publish(). It inherits the lock: if this process is killed, the folder stays locked
    # until the orphaned copy has finished.
    options = ["--reflink=auto"] if sys.platform == "linux" else []  # GNU only
    with (
        target.open("xb") as copied,
        subprocess.Popen(
            ["cp", *options, source, target],
            pass_fds=(lock,),
            env={**os.environ, "LC_ALL": "C"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            message = _await_copy(process, copied.fileno())
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            raise OSError(message.strip() or f"cp exited with {process.returncode}")
        target.chmod(0o444)
        os.fsync(copied.fileno())


def _await_copy(process: subprocess.Popen[str], copied: int) -> str:
    """Wait for cp, flushing what it has copied so far, and return its error output."""
    done = 0
    while True:
        try:
            return process.communicate(timeout=_FLUSH_SECONDS)[1]
        except subprocess.TimeoutExpired:
            size = os.fstat(copied).st_size
        # On Linux this starts writeback and drops only clean pages, which these are not yet. So the final fsync has
        # little left to wait for.
        if sys.platform == "linux" and size > done:
            os.posix_fadvise(copied, done, size - done, os.POSIX_FADV_DONTNEED)
            done = size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> Hashable | None:
    """Return what another file, or a changed one, does not have; None if there is none."""
    try:
        found = path.stat()
    except OSError:  # whoever reads it says so
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _show_to_readers(release: Path) -> None:
    published = paths.published_path()
    published.parent.mkdir(exist_ok=True)
    temporary = published.with_name(f".{published.name}.tmp")
    try:
        temporary.hardlink_to(release)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        raise PublishError(
            f"Cannot hard link {release} to {temporary} ({error.strerror}): both folders must be on one file system "
            "that supports hard links, and this user must own the release."
        ) from error
    # If both names already are the same file, rename leaves the temporary one behind, to be cleaned up.
    temporary.rename(published)
    _sync(published.parent)


def _remove_waiting(but: Path | None = None) -> None:
    for path in paths.waiting_dir().glob("*.duckdb*"):
        if path != but:
            path.unlink(missing_ok=True)


def _remove(release: Release) -> None:
    try:
        Path(release.location).unlink(missing_ok=True)
    except OSError as error:  # the publish itself has succeeded
        logger.warning("Cannot remove the old release %s: %s", release.location, error)


def _record(reader: duckdb.DuckDBPyConnection) -> tuple[str, str, int, str | None] | None:
    """Return id, run id, microseconds of the creation time and provenance."""
    query = """
        select {} as id, * exclude (created_at), case when isfinite(created_at) then epoch_us(created_at) end as at
        from warehouse.{}
    """
    try:
        found = reader.execute(query.format("release_id", "release"))
    except duckdb.CatalogException:  # a release from when the table was named so
        found = reader.execute(query.format("snapshot_id", "snapshot"))
    names, row = [one[0] for one in found.description or ()], found.fetchone()
    record = dict(zip(names, row, strict=True)) if row else {}
    if not record.get("id") or not record["run_id"] or record["at"] is None:
        return None
    return record["id"], record["run_id"], record["at"], record.get("provenance")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _unreadable(path: Path, error: duckdb.Error) -> WarehouseError:
    kind = WarehouseCorruptError if is_damage(error, str(path)) else WarehouseError
    return kind(f"{path} cannot be read as a release: {first_line(error)}")


def _copy_error(error: OSError | duckdb.Error, action: str, source: Path, target: Path) -> WarehouseError:
    text = first_line(error)
    if not is_disk_full(text):
        return PublishError(f"Could not {action} {source}: {text}")
    needed, free = source.stat().st_size, shutil.disk_usage(target.parent).free
    return DiskFullError(
        f"No space for {target}: the copy needs {needed} bytes, {free} are available ({text}). Free some space "
        f"or lower WAREHOUSE_KEEP_RELEASES, then {action} again. Nothing was changed."
    )
