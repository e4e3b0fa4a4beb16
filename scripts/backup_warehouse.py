"""What backup.py does inside the warehouse's volume. It is sent there on the command line of a container.

`unpack` prepares `.restore-new`; `swap` moves what is there to `.restore-old`, and the new files into its place. A kill
at any step leaves what `put-back` can undo: `.restore-aside` while files are moved out, `.restore-old` after that.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from include.warehouse import locks, paths

DATA = paths.warehouse_dir()
SAVED = (paths.published_path().parent, paths.snapshots_dir(), paths.artifacts_dir())
NEW, ASIDE, OLD, GARBAGE = (DATA / f".restore-{name}" for name in ("new", "aside", "old", "garbage"))
COPY = DATA / ".backup"


def pack() -> None:
    """Write the published file, the snapshots and the artifacts to standard output, as a tar.

    Snapshots never change, so hard links made while nobody publishes are a consistent copy, at once and without space.
    """
    COPY.mkdir(exist_ok=True)
    descriptor = os.open(COPY, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("error: another backup is under way")
    try:
        _empty(COPY)  # of a backup that was killed
        with locks.snapshots_lock():
            for folder in SAVED:
                if folder.exists():
                    shutil.copytree(folder, COPY / folder.name, copy_function=_link)
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
            tar.add(COPY, ".")
    finally:
        _empty(COPY)


def _link(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a run removes or renames its artifacts without the lock
        os.link(source, target)


def unpack() -> None:
    """Unpack a tar from standard input and make the working database, which opens and checks the published one."""
    _remove(NEW)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        tar.extractall(NEW, filter="data")
    if foreign := {path.name for path in NEW.iterdir()} - {folder.name for folder in SAVED}:
        sys.exit(f"error: not a warehouse: there is {', '.join(sorted(foreign))} in it")
    environ = os.environ | {"WAREHOUSE_DIR": str(NEW)}
    command = [sys.executable, "-m", "include.warehouse", "restore"]
    if subprocess.run(command, env=environ, stdout=subprocess.DEVNULL).returncode:
        sys.exit(1)
    os.sync()


def discard() -> None:
    """Remove what `unpack` has made."""
    _remove(NEW)


def swap() -> None:
    """Put what `unpack` has made in the place of what there is."""
    ASIDE.mkdir()
    for path in _visible():
        path.rename(ASIDE / path.name)
    ASIDE.rename(OLD)
    for path in list(NEW.iterdir()):
        path.rename(DATA / path.name)


def put_back() -> None:
    """Undo a swap, however far it went."""
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
    """Print whether a swap is neither final nor undone."""
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
