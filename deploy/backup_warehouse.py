"""The part of backup.py that runs inside the warehouse's volume, passed to a container on its command line.

It imports nothing of the project: during an upgrade the container is still of the old version.

`unpack` prepares `.restore-new`; `swap` moves the current files to `.restore-old`, and the new files into place. A kill
at any step leaves a state that `put-back` can undo: `.restore-aside` while files are moved out, then `.restore-old`.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(os.environ["WAREHOUSE_DIR"])
RELEASES = ("releases", "snapshots")  # what they are called, and were
SAVED = ("published", "artifacts", "lake", *RELEASES)
IN_FILES = (os.environ.get("DBT_TARGET") or "duckdb") in ("duckdb", "encrypted")
NEW, ASIDE, OLD, GARBAGE = (DATA / f".restore-{name}" for name in ("new", "aside", "old", "garbage"))
COPY = DATA / ".backup"


def _warehouses(root: Path) -> Iterator[Path]:
    """Yield the folders of all warehouses: the project's own, and those of other DAGs in it."""
    yield root
    yield from (path for path in root.iterdir() if path.name[:1] != "." and _holds_a_warehouse(path))


def _holds_a_warehouse(path: Path) -> bool:
    return path.name not in SAVED and any((path / name).is_dir() for name in SAVED)


@contextlib.contextmanager
def _lock(warehouse: Path) -> Iterator[None]:
    """Hold the lock of publish and rollback, if anything was ever published."""
    with contextlib.ExitStack() as stack:
        folder = next((warehouse / name for name in RELEASES if (warehouse / name).is_dir()), None)
        if folder:
            file = stack.enter_context((folder / ".lock").open("a"))
            deadline = time.monotonic() + 60
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        sys.exit("error: a publish or rollback has been in progress for a minute: try again")
                time.sleep(0.1)
        yield


def pack() -> None:
    """Write the published files, the kept releases, a lake's files and the artifacts to standard output, as a tar.

    Releases and a lake's files never change, so hard links are a consistent copy, instant and free.
    """
    if IN_FILES and not any(any((one / "published").glob("*.duckdb")) for one in _warehouses(DATA)):
        sys.exit("error: nothing is published yet, so there is nothing to back up.")
    COPY.mkdir(exist_ok=True)
    descriptor = os.open(COPY, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("error: another backup is in progress")
    try:
        _empty(COPY)  # leftovers of a killed backup
        for warehouse in _warehouses(DATA):
            with _lock(warehouse):
                for folder in SAVED:
                    if (warehouse / folder).exists():
                        copy = COPY / warehouse.relative_to(DATA) / folder
                        shutil.copytree(warehouse / folder, copy, copy_function=_link)
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
            tar.add(COPY, ".")
    finally:
        _empty(COPY)


def _link(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # runs remove and rename artifacts without the lock
        os.link(source, target)


def unpack() -> None:
    """Unpack a tar from standard input and create the working databases, which verifies the published ones."""
    _remove(NEW)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        # Debian 12's own Python 3.11.2 has no filters yet; the image's does.
        options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(NEW, **options)  # noqa: S202, a tar that `pack` wrote
    if foreign := [path.name for path in NEW.iterdir() if path.name not in SAVED and not _holds_a_warehouse(path)]:
        sys.exit(f"error: not a warehouse backup: it contains {', '.join(sorted(foreign))}")
    if lost := [path.name for path in _warehouses(DATA) if path != DATA and not (NEW / path.name).exists()]:
        sys.exit(
            f"error: the backup has no warehouse {', '.join(sorted(lost))}, which is here: a restore would delete it. "
            "Move its folder out of the volume first"
        )
    for warehouse in _warehouses(NEW) if IN_FILES else ():
        environ = os.environ | {"WAREHOUSE_DIR": str(warehouse)}
        if warehouse != NEW:
            environ["WAREHOUSE_NAME"] = warehouse.name
        command = [sys.executable, "-m", "include.warehouse", "restore"]
        if subprocess.run(command, env=environ, stdout=subprocess.DEVNULL).returncode:
            sys.exit(1)
    os.sync()


def discard() -> None:
    """Remove what `unpack` created."""
    _remove(NEW)


def swap() -> None:
    """Replace the current files with what `unpack` created."""
    ASIDE.mkdir()
    for path in _visible():
        path.rename(ASIDE / path.name)
    ASIDE.rename(OLD)
    for path in list(NEW.iterdir()):
        path.rename(DATA / path.name)


def put_back() -> None:
    """Undo a swap, however far it got."""
    if OLD.exists():
        for path in _visible():
            _remove(path)
        OLD.rename(ASIDE)
    if ASIDE.exists():
        for path in list(ASIDE.iterdir()):
            path.rename(DATA / path.name)
        ASIDE.rmdir()
    _remove(NEW)


def keep() -> None:
    """Make a swap final."""
    _remove(GARBAGE)
    OLD.rename(GARBAGE)
    for path in (GARBAGE, NEW):
        _remove(path)


def where() -> None:
    """Print whether the warehouse is in this volume or on a server."""
    print("volume" if IN_FILES else "server")


def state() -> None:
    """Print whether a swap is pending, neither final nor undone."""
    print("swapped" if ASIDE.exists() or OLD.exists() else "clean")


def mark() -> None:
    """Note that a backup is complete: an alert tells when the last one is old (include/warehouse/backups.py)."""
    note = DATA / "artifacts" / "last-backup"
    note.parent.mkdir(exist_ok=True)
    note.touch()


def _visible() -> list[Path]:
    return [path for path in DATA.iterdir() if path not in (NEW, ASIDE, OLD, GARBAGE, COPY)]


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    commands = (pack, unpack, discard, swap, put_back, keep, where, state, mark)
    {command.__name__.replace("_", "-"): command for command in commands}[sys.argv[1]]()
