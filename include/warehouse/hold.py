"""A rollback holds: until somebody releases it, runs build and test, and publish nothing.

artifacts/hold.json    who went from which release to which, and when; while it is there, readers' release stays
"""

import fcntl
import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from include.errors import storage_errors
from include.warehouse import paths
from include.warehouse.errors import NotReadyError, WarehouseError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release, find


class ReleaseHeldError(NotReadyError):
    """Readers' release is held after a rollback."""

    runbook = "Readers see wrong data"


@dataclass(frozen=True)
class Hold:
    """A rollback that holds.

    Attributes:
        release: id of the release that readers see.
        instead_of: id of the one that they saw before; empty if none.
        by: who rolled back.
        since: ISO time.
    """

    release: str
    instead_of: str
    by: str
    since: str

    @property
    def text(self) -> str:
        """What holds, in a sentence."""
        before = f", instead of {self.instead_of}" if self.instead_of else ""
        return f"{self.by} rolled readers back to {self.release}{before}, on {self.since} UTC"


def current() -> Hold | None:
    """Return what holds readers' release, if anything.

    Raises:
        WarehouseError: that cannot be read, so nothing may be published.
    """
    try:
        raw = json.loads(_path().read_text())
        return Hold(*(str(raw[name]) for name in Hold.__dataclass_fields__))
    except FileNotFoundError:
        return None
    except storage_errors(ValueError, KeyError, TypeError) as error:
        raise WarehouseError(f"{_path()}, which says whether a rollback holds, cannot be read: {error}") from error


def check() -> None:
    """Refuse to publish while a rollback holds.

    Raises:
        ReleaseHeldError: says who rolled back, and how to release it.
    """
    if found := current():
        raise ReleaseHeldError(
            f"Not published: {found.text}, and that holds. What was built is tested and waits. To publish again: make "
            "release-hold (or the button on the Warehouse pages), then clear this task, or let the next run publish."
        )


def roll_back(release_or_run_id: str, by: str = "") -> Release:
    """Switch readers to a kept release, and hold it; to the newest one, and hold nothing.

    Args:
        release_or_run_id: as for `Target.rollback`.
        by: who asks; default this process's user.

    Raises:
        As `Target.rollback`.
    """
    with _one_at_a_time():
        kept, before = target().list_releases(), current()
        chosen = find(kept, release_or_run_id, target().published_location())
        published = next((one.id for one in kept if one.published), "")
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        # Before readers are switched: a run that is green meanwhile would undo the rollback.
        _write(Hold(chosen.id, published, by or getpass.getuser(), now))
        try:
            release = target().rollback(chosen.id)
        except BaseException:
            _write(before)
            raise
        if release.id == kept[0].id:
            _write(None)
        return release


def end() -> Hold | None:
    """Let runs publish again; return what held, if anything."""
    with _one_at_a_time():
        found = current()
        _write(None)
        return found


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep what holds and what readers see in step while several people roll back; an object store has no locks."""
    path = _path()
    if "://" in str(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _path() -> Path:
    return paths.artifacts_dir() / "hold.json"


def _write(hold: Hold | None) -> None:
    path = _path()
    if hold is None:
        path.unlink(missing_ok=True)
        return
    paths.write_whole(path, json.dumps(asdict(hold), indent=2) + "\n")
