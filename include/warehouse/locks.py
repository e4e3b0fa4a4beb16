"""Wait for locks held by other processes, up to a timeout, and name the holder."""

import contextlib
import fcntl
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from include.warehouse import paths
from include.warehouse.errors import WarehouseError, WarehouseLockedError

logger = logging.getLogger(__name__)
T = TypeVar("T")

_POLL_SECONDS = 0.1


class LockHeldError(Exception):
    """The lock is taken; the message names the holder."""


def lock_timeout_seconds() -> float:
    """Return how long to wait for a lock: `WAREHOUSE_LOCK_TIMEOUT` in seconds, default 60.

    Raises:
        WarehouseError: the variable is not a number.
    """
    value = os.environ.get("WAREHOUSE_LOCK_TIMEOUT") or "60"
    try:
        return float(value)
    except ValueError:
        raise WarehouseError(f"WAREHOUSE_LOCK_TIMEOUT must be a number of seconds, not {value!r}.") from None


def describe_process(pid: int, program: str = "") -> str:
    """Return a process's program, PID and, if readable, command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:  # gone, not readable, or in another container
        words = []
    command = f", command line: {shlex.join(words)[:300]}" if words != [""] and words else ""
    return f"{program or 'a process'} (PID {pid}){command}"


def duckdb_lock_holder(message: str) -> str:
    """Return the lock holder named in DuckDB's "Could not set lock on file" error."""
    if "current process" in message:
        return f"another connection of this process (PID {os.getpid()})"
    pid = re.search(r"PID (\d+)", message)
    if pid is None or pid[1] == "0":  # 0: the holder lives in another PID namespace
        return f"a process that cannot be seen from here, such as one in another container ({message})"
    program = re.search(r"lock is held in (.+?) \(PID", message)
    return describe_process(int(pid[1]), program[1] if program else "")


def wait_for_lock(attempt: Callable[[], T], what: object, timeout_seconds: float | None, advice: str) -> T:
    """Retry an attempt until the lock it needs is free.

    Args:
        attempt: takes the lock, or raises `LockHeldError`.
        what: what is locked, for messages.
        timeout_seconds: how long to wait; None means `lock_timeout_seconds()`; 0 means one attempt.
        advice: what to do after the timeout; appended to the error message.

    Returns:
        The attempt's result.

    Raises:
        WarehouseLockedError: the lock was still held at the timeout.
    """
    bound = lock_timeout_seconds() if timeout_seconds is None else timeout_seconds
    deadline = time.monotonic() + bound
    waiting = False
    while True:
        try:
            return attempt()
        except LockHeldError as held:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise WarehouseLockedError(f"{what} is locked by {held}; waited {bound:g} s. {advice}") from held
            if not waiting:
                logger.warning("Waiting up to %g s for %s, which is locked by %s", bound, what, held)
                waiting = True
        time.sleep(min(_POLL_SECONDS, remaining))


def sign(descriptor: int) -> None:
    """Write who holds a lock into its file; only informational, and the disk may be full."""
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)


def signed_by(descriptor: int, otherwise: str) -> str:
    """Describe the process that signed a lock's file last."""
    pid = os.pread(descriptor, 20, 0).strip()
    return describe_process(int(pid)) if pid.isdigit() else otherwise


@contextlib.contextmanager
def releases_lock() -> Iterator[int]:
    """Serialize publish and rollback: hold `releases/.lock`, which the kernel drops when its holders are gone.

    It is separate from the working database's lock, so that rollback works while that file is locked or damaged.

    Yields:
        The descriptor that holds the lock. A child process that inherits it keeps the lock until it exits too.

    Raises:
        WarehouseLockedError: another publish or rollback took longer than `lock_timeout_seconds()`.
    """
    path, descriptor = _open_lock()

    def attempt() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeldError(signed_by(descriptor, "a publish or rollback")) from None

    try:
        advice = "A publish or rollback is in progress: let it finish or stop that process, then try again."
        wait_for_lock(attempt, path, None, advice)
        sign(descriptor)
        _rename_old_folder()
        yield descriptor
    finally:
        os.close(descriptor)


def _open_lock() -> tuple[Path, int]:
    while True:
        path = paths.releases_dir() / ".lock"
        if path.parent != paths.old_releases_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may just have renamed the old folder, with the lock file in it.
        with contextlib.suppress(FileNotFoundError):
            return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _rename_old_folder() -> None:
    """Give the folder of the kept releases its present name. Renames keep the published file's link to one of them."""
    old, new = paths.old_releases_dir(), paths.warehouse_dir() / "releases"
    if not old.exists():
        return
    if not new.exists():
        old.rename(new)
        return
    # An older version of this project has published since: its releases are the newer ones.
    for path in list(old.glob("*.duckdb")):
        path.rename(new / path.name)
        path.unlink(missing_ok=True)  # a rename of one link to another of the same file does nothing
    with contextlib.suppress(OSError):  # what else is in it is not ours
        (old / ".lock").unlink(missing_ok=True)
        old.rmdir()
