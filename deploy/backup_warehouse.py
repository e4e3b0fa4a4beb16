"""The part of backup.py that runs inside the warehouse's volume, passed to a container on its command line.

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
from pathlib import Path
from typing import Any

from include.warehouse import locks, paths

DATA = paths.warehouse_dir()
SAVED = ("published", "releases", "artifacts")
NEW, ASIDE, OLD, GARBAGE = (DATA / f".restore-{name}" for name in ("new", "aside", "old", "garbage"))
COPY = DATA / ".backup"


def pack() -> None:
    """Write the published file, the kept releases and the artifacts to standard output, as a tar.

    Releases never change, so hard links made under the publish lock are a consistent copy, instant and free.
    """
    COPY.mkdir(exist_ok=True)
    descriptor = os.open(COPY, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("error: another backup is in progress")
    try:
        _empty(COPY)  # leftovers of a killed backup
        with locks.releases_lock():
            for folder in SAVED:
                if (DATA / folder).exists():
                    shutil.copytree(DATA / folder, COPY / folder, copy_function=_link)
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
            tar.add(COPY, ".")
    finally:
        _empty(COPY)


def _link(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # runs remove and rename artifacts without the lock
        os.link(source, target)


def unpack() -> None:
    """Unpack a tar from standard input and create the working database, which verifies the published one."""
    _remove(NEW)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        # Debian 12's own Python 3.11.2 has no filters yet; the image's does.
        options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(NEW, **options)  # noqa: S202, a tar that `pack` wrote
    if foreign := {path.name for path in NEW.iterdir()} - {*SAVED, "snapshots"}:  # what `releases` was called
        sys.exit(f"error: not a warehouse backup: it contains {', '.join(sorted(foreign))}")
    environ = os.environ | {"WAREHOUSE_DIR": str(NEW)}
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


def state() -> None:
    """Print whether a swap is pending, neither final nor undone."""
    print("swapped" if ASIDE.exists() or OLD.exists() else "clean")


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
    commands = (pack, unpack, discard, swap, put_back, keep, state)
    {command.__name__.replace("_", "-"): command for command in commands}[sys.argv[1]]()
