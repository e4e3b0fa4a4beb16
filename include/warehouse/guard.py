"""Keep a second checkout, and dbt by hand, from getting in the way of a running Airflow.

An Airflow that `make up` or `make run` has started holds a lock in the folder of its warehouse, in which it says who it
is. Only Linux lists who holds a file (`/proc/locks`); elsewhere DuckDB's own error has to do.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from include.settings import REPOSITORY_ROOT
from include.warehouse import locks, paths
from include.warehouse.errors import WarehouseError, WarehouseLockedError

_SERVED = ".served"
_ON_PURPOSE = "WAREHOUSE_SHARED"
# As long as dbt's own retries would take (profiles.yml).
_SECONDS = 7.0


@contextlib.contextmanager
def serving(url: str) -> Iterator[None]:
    """Say for as long as the context lasts that this checkout's Airflow serves the warehouse.

    Args:
        url: where it is.

    Raises:
        WarehouseError: another one serves it already.
    """
    folder = paths.warehouse_dir()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _SERVED, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            check_checkout()
            yield  # this checkout's, or on purpose
            return
        text = json.dumps({"checkout": str(REPOSITORY_ROOT), "pid": os.getpid(), "url": url})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_checkout() -> None:
    """Refuse to write a warehouse that the running Airflow of another checkout serves.

    Raises:
        WarehouseError: that is so, and nobody has said that it is on purpose.
    """
    if os.environ.get(_ON_PURPOSE) == "1":
        return
    folder = paths.warehouse_dir()
    for path in (folder / _SERVED, folder.parent / _SERVED):  # another DAG's warehouse is a folder deeper
        if (other := _holder(path)) and other.get("checkout") != str(REPOSITORY_ROOT):
            who = f"{other.get('checkout')} at {other.get('url')} (PID {other.get('pid')})"
            raise WarehouseError(
                f"{folder} is served by the Airflow of another checkout: {who}. To see what this one would change: "
                "make preview. For a warehouse of its own: WAREHOUSE_DIR=/another/folder. To write there on purpose: "
                f"{_ON_PURPOSE}=1."
            )


def is_served() -> bool:
    """Return whether an Airflow is running on this warehouse."""
    return bool(_holder(paths.warehouse_dir() / _SERVED))


def _holder(path: Path) -> dict[str, object]:
    """Return the description that the lock holder wrote; empty if nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return {}
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return dict(json.loads(os.pread(descriptor, 10_000, 0)))
        return {"checkout": "one that is just starting"}
    finally:
        os.close(descriptor)
    return {}


def check_free(seconds: float = _SECONDS) -> None:
    """Wait for the working database, and say who holds it if that takes too long; for commands of people.

    The file is not opened: that would end locks of this process.

    Args:
        seconds: how long to wait.

    Raises:
        WarehouseLockedError: another process still had it open.
    """
    path = paths.working_path()
    deadline = time.monotonic() + seconds
    while holders := _holders(path):
        if time.monotonic() >= deadline:
            who = "; ".join(locks.describe_process(pid) for pid in sorted(holders))
            raise WarehouseLockedError(
                f"{path} is open in {who}. It has one user at a time: let that finish, or close the session. "
                "To build a change beside it: make preview."
            )
        time.sleep(0.2)


def _holders(path: Path) -> set[int]:
    """Return the other processes that hold a lock on a file, by the kernel's list."""
    try:
        found = path.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:  # no such file, or not Linux
        return set()
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids = {int(words[-4]) for line in lines if "->" not in line and device in (words := line.split())}
    return {pid for pid in pids if pid > 0 and pid != os.getpid()}
