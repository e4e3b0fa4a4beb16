"""The warehouse as DuckDB files: publish the working database as a release, list the kept releases, roll back.

    jaffle_shop.duckdb --cp--> releases/.<id>.duckdb.tmp --verify, rename--> releases/<id>.duckdb
                                    --link, rename--> published/jaffle_shop.duckdb --> readers

The published file is a hard link to its release, not a symlink: mounting `published/` alone gives an ordinary file,
and an open reader keeps its file when the name moves on. It changes only by a rename, so a process killed at any step
leaves readers with either the previous release or the complete new one.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Hashable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from include.errors import is_disk_full
from include.settings import warehouse_name
from include.warehouse import builds, paths
from include.warehouse.connection import (
    attach_statement,
    attached,
    connect,
    count_rows,
    open_working,
    write_ahead_logs,
)
from include.warehouse.connection import replace_table as replace_table
from include.warehouse.connection import stored_type as stored_type
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
from include.warehouse.target import MARTS_SCHEMA, Check, Release, keep_releases

__all__ = [
    "attach_statements",
    "begin_turn",
    "can_be_sandboxed",
    "end_turn",
    "how_to_open",
    "list_releases",
    "open_working",
    "publish",
    "published_location",
    "published_release",
    "published_version",
    "restore",
    "rollback",
]

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.02

_turn = -1  # descriptor of the lock that this task holds


def begin_turn() -> bool:
    """Wait until no other task of this warehouse writes, however long that takes; see `target.Target`.

    So the next task starts while one writes, and waits here before its time limit runs.
    """
    global _turn
    path = paths.warehouse_dir() / f".{warehouse_name()}.turn"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _turn = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # `open_working` says what is wrong with the folder
        return True
    try:
        fcntl.flock(_turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("Waiting for the task that is writing: %s", signed_by(_turn, "another process"))
        started = time.monotonic()
        fcntl.flock(_turn, fcntl.LOCK_EX)
        logger.info("Waited %.2f s for the task that was writing", time.monotonic() - started)
    sign(_turn)
    return True


def end_turn() -> None:
    """Let the next task write; the kernel does so when this process ends."""
    global _turn
    if _turn >= 0:
        os.close(_turn)
        _turn = -1


def publish(run_id: str, check: Check, clean: Check) -> Release:
    """Publish the working database: keep a copy of it as a release, and switch readers to that.

    Publishing the same run again replaces that run's release. Only the newest `keep_releases()` are kept; at its peak
    the folder needs space for two more.

    Args:
        run_id: the run that publishes.
        check: called first, with the working database: raises if it must not be published.
        clean: called then: drops what must not be published.

    Returns:
        The published release.

    Raises:
        NotReadyError: nothing to publish, or an older load than readers see; or raised by `check`.
        PublishError: the copy differs from the working database; readers still see the previous release.
        DiskFullError: no space for the copy; readers still see the previous release.
        WarehouseLockedError: the working database or another publish was still busy at the timeout.
        WarehouseCorruptError: the working database is damaged.
    """
    started = time.monotonic()
    new_id, keep = release_id(run_id), keep_releases()
    working = paths.working_path()
    if not working.exists():
        raise NotReadyError(f"There is no working database {working} to publish: run the pipeline first.")
    # The open connection keeps other processes from writing until the copy is verified. It holds a POSIX lock, which
    # the kernel drops as soon as this process closes any descriptor of the file: never open() it here.
    with open_working() as connection, _exclusively() as lock, duckdb.connect(":memory:") as reader:
        check(connection)
        clean(connection)
        builds.check_not_older(connection)
        final = paths.release_path(new_id)
        temporary = final.with_name(f".{final.name}.tmp")
        try:
            counts = _stamp_and_checkpoint(connection, new_id, run_id)
            _copy(working, temporary, lock)
            _verify(reader, temporary, counts)
            temporary.rename(final)
            _sync(final.parent)
            _show_to_readers(final)
        except (OSError, duckdb.Error) as error:
            temporary.unlink(missing_ok=True)
            raise _copy_error(error, "publish", working, temporary) from error
        for old in _list_releases(reader)[keep:]:
            if not old.published:
                _remove(old)
        release = _read_release(reader, final)
    logger.info("Published %s: %d bytes in %.2f s", release.id, release.size_bytes, time.monotonic() - started)
    return release


def rollback(release_or_run_id: str) -> Release:
    """Switch readers to an older (or newer) kept release. Needs neither the working database nor free space.

    Args:
        release_or_run_id: id of a kept release, or of the run that published it.

    Returns:
        The release that is now published.

    Raises:
        UnknownReleaseError: no such release; lists the kept ones.
        WarehouseCorruptError: its file is damaged; nothing changes for readers.
        WarehouseLockedError: a publish or another rollback was still running at the timeout.
    """
    with _exclusively(), duckdb.connect(":memory:") as reader:
        path = _find(reader, release_or_run_id)
        release = _read_release(reader, path)
        _verify(reader, path)
        _show_to_readers(path)
    logger.info("Rolled back to %s", release.id)
    return replace(release, published=True)


def restore(release_or_run_id: str | None = None) -> str:
    """Move the working database aside and replace it with a copy of a kept release.

    Args:
        release_or_run_id: id of a kept release, or of the run that published it; default: the published one. If
            nothing is published yet, no file is put in place and the next load creates one.

    Returns:
        What was done, in one line.

    Raises:
        UnknownReleaseError: no such release is kept.
        WarehouseCorruptError: the release is damaged too; choose another.
        WarehouseLockedError: a process has the working database open, or a publish or rollback takes too long.
        DiskFullError, PublishError: the copy could not be made; the working database is unchanged.
    """
    working = paths.working_path()
    with _exclusively(), _not_open(working), duckdb.connect(":memory:") as reader:
        source = _find(reader, release_or_run_id) if release_or_run_id else paths.published_path()
        temporary = paths.releases_dir() / f".{working.name}.tmp"  # where leftovers are cleaned up
        if source.exists():
            _verify(reader, source)
            try:
                shutil.copyfile(source, temporary)
                with connect(temporary) as copy:
                    builds.forget_loads(copy)
            except (OSError, duckdb.Error) as error:
                raise _copy_error(error, "restore", source, temporary) from error
        aside = f"{working}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        moved = [path for path in (working, *write_ahead_logs(working)) if path.stat().st_size]
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


def attach_statements(release: Release | None = None, name: str | None = None) -> list[str]:
    """Return the SQL that attaches a kept release, by default the published one; see `target.Target`."""
    path = Path(release.location) if release else paths.published_path()
    return [attach_statement(path, "read_only", name=name)]


def published_location() -> str:
    """Return the path of the published file."""
    return str(paths.published_path())


def can_be_sandboxed() -> bool:
    """Return True: without external access, DuckDB reads only the attached file."""
    return True


def how_to_open() -> str:
    """Return a command that opens the published file."""
    opened = f'duckdb.connect("{paths.published_path()}", read_only=True)'
    return f"""Open it, read-only, in `make shell`:
  python -c 'import duckdb; {opened}.sql("show all tables").show()'"""


def published_version() -> Hashable | None:
    """Return the identity of the published file, which changes with each publish; None before the first one."""
    try:
        stat = paths.published_path().stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def list_releases() -> list[Release]:
    """Return the kept releases, newest first; other files are skipped with a warning."""
    with duckdb.connect(":memory:") as reader:
        return _list_releases(reader)


def published_release() -> Release | None:
    """Return the published release, or None before the first publish.

    Its `location` is the kept file, or the published file itself if that run's release has been replaced or removed.

    Raises:
        WarehouseCorruptError: the published file is damaged.
    """
    path = paths.published_path()
    if not path.exists():
        return None
    with duckdb.connect(":memory:") as reader:
        return _read_release(reader, path)


def _find(reader: duckdb.DuckDBPyConnection, release_or_run_id: str) -> Path:
    path = paths.release_path(release_id(release_or_run_id))
    if not path.exists():
        kept = ", ".join(release.id for release in _list_releases(reader)) or "none"
        raise UnknownReleaseError(f"There is no release {release_or_run_id!r} in {path.parent}. Kept: {kept}.")
    return path


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


def _stamp_and_checkpoint(
    connection: duckdb.DuckDBPyConnection, new_id: str, run_id: str
) -> dict[tuple[str, str], int]:
    if not any(schema == MARTS_SCHEMA for schema, _ in count_rows(connection)):
        raise NotReadyError(f"The working database has no table in {MARTS_SCHEMA}: run the pipeline, then publish.")
    builds.stamp(connection, new_id, run_id)
    connection.execute("checkpoint")
    for log in write_ahead_logs(paths.working_path()):
        if log.stat().st_size:
            raise PublishError(
                f"{log} still holds changes after a checkpoint: close other connections to the database."
            )
    return count_rows(connection)


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


def _verify(reader: duckdb.DuckDBPyConnection, path: Path, expected: dict[tuple[str, str], int] | None = None) -> None:
    try:
        with attached(reader, path):
            counts = count_rows(reader)
    except duckdb.Error as error:
        raise _unreadable(path, error) from error
    if not any(schema == MARTS_SCHEMA for schema, _ in counts):
        raise PublishError(f"{path} has no table in {MARTS_SCHEMA}.")
    if expected is not None and counts != expected:
        differing = ", ".join(f"{schema}.{table}" for (schema, table), _ in set(counts.items()) ^ set(expected.items()))
        raise PublishError(
            f"The copy {path} differs from the working database in {differing}; nothing changes for readers."
        )


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


def _list_releases(reader: duckdb.DuckDBPyConnection) -> list[Release]:
    releases = []
    for path in paths.releases_dir().glob("*.duckdb"):
        try:
            releases.append(_read_release(reader, path))
        except (WarehouseError, OSError, OverflowError) as error:
            if path.exists():  # else a publish has just pruned it
                logger.warning("Skipping a file that is not a usable release: %s", error)
    return sorted(releases, key=lambda release: (release.created_at, release.id), reverse=True)


def _remove(release: Release) -> None:
    try:
        Path(release.location).unlink(missing_ok=True)
    except OSError as error:  # the publish itself has succeeded
        logger.warning("Cannot remove the old release %s: %s", release.location, error)


def _read_release(reader: duckdb.DuckDBPyConnection, path: Path) -> Release:
    """Read a release's own record; `path` may be the published file."""
    try:
        with attached(reader, path):
            row = _record(reader)
    except duckdb.Error as error:
        raise _unreadable(path, error) from error
    if row is None:
        raise WarehouseError(f"{path} has no record of which release it is.")
    kept, published = paths.release_path(row[0]), paths.published_path()
    if path not in (kept, published):
        raise WarehouseError(f"{path} is a copy of the release {row[0]}.")
    if path == published and _same_file(kept, published):
        path = kept
    created_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=row[2])
    return Release(row[0], row[1], str(path), created_at, path.stat().st_size, _same_file(path, published))


def _record(reader: duckdb.DuckDBPyConnection) -> tuple[str, str, int] | None:
    condition = "where id <> '' and run_id <> '' and isfinite(created_at)"
    try:
        found = reader.execute(
            f"select release_id as id, run_id, epoch_us(created_at) from warehouse.release {condition}"
        )
    except duckdb.CatalogException:  # a release from when the table was named so
        found = reader.execute(
            f"select snapshot_id as id, run_id, epoch_us(created_at) from warehouse.snapshot {condition}"
        )
    return found.fetchone()


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
