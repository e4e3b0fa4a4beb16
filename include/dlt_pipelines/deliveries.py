"""Whether the files of a source have been delivered: all that belong together, none still being written.

A file counts as delivered once it is there, whole, and newer than the last load: renaming it into place changes its
`ctime`. An object store shows a file once it is whole, with the time of its own clock, to the second. Files that belong
together are those of all tables of the source.
"""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from include.dlt_pipelines import landing
from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.files import SourceFileError, TableContract, find_files, is_of
from include.runs import artifacts
from include.warehouse import paths

logger = logging.getLogger(__name__)

_SECOND = 1.0  # a store's times are cut to it: rather a run too many than a file that is missed
_State = tuple[object, ...]  # of a file: changes with it


@dataclass(frozen=True)
class Seen:
    """What a look at a source's folder has found.

    Attributes:
        is_complete: whether the files of every table are there, new and whole: a run can load them.
        files: names of the new files.
        missing: tables without a new file, while others have one.
        is_late: whether some have been missing for longer than they may; true in one look only.
    """

    is_complete: bool = False
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    is_late: bool = False


@dataclass
class Watch:
    """Looks at the folder of a source again and again.

    Args:
        source: the source.
        deadline_seconds: how long after the first file of a set the last one may come, by the time of the files: a
            watch that starts again does not start counting again.
    """

    source: FileSource
    deadline_seconds: float = 3600.0
    _before: dict[str, _State] = field(default_factory=dict)
    _told: dict[str, _State] = field(default_factory=dict)
    _is_late: bool = False
    _away: str = ""

    @property
    def is_store(self) -> bool:
        """Whether the folder is in an object store, where a look costs a request."""
        return "://" in self.source.location

    def _files(self) -> list[tuple[str, dict[str, tuple[float, _State]]]]:
        """Return each table's files, with when they came and their state; none of a store that does not answer."""
        if not self.is_store:
            return [(table.name, _local(self.source.data_dir, table)) for table in self.source.tables]
        try:
            stored = landing.look(self.source.location)
            self._away = ""
        except landing.LandingError as error:
            if str(error) != self._away:  # once, not at each look
                logger.warning("%s", error)
            stored, self._away = {}, str(error)
        return [
            (table.name, {name: (at + _SECOND, (state,)) for name, (at, state) in stored.items() if is_of(name, table)})
            for table in self.source.tables
        ]

    def look(self, loaded_at: float | None = None) -> Seen:
        """Look once; a set that is complete is reported once.

        Args:
            loaded_at: when the last load began, in seconds since 1970; default as its summary says.
        """
        loaded = last_load(self.source.name) if loaded_at is None else loaded_at
        now: dict[str, _State] = {}
        since = math.inf
        missing = []
        for table, files in self._files():
            new = {name: state for name, (at, state) in files.items() if at > loaded}
            now |= new
            since = min([since, *(files[name][0] for name in new)])
            if not new:
                missing.append(table)
        is_whole, self._before = self.is_store or now == self._before, now  # a file that grows is not whole
        if not now:
            self._is_late = False
            return Seen()
        if missing:
            was_late, self._is_late = self._is_late, time.time() > since + self.deadline_seconds
            return Seen(False, tuple(now), tuple(missing), self._is_late and not was_late)
        self._is_late = False
        if not is_whole or now == self._told:
            return Seen(False, tuple(now))
        self._told = now
        return Seen(True, tuple(sorted(now)))


def _local(folder: Path, table: TableContract) -> dict[str, tuple[float, _State]]:
    try:
        found = {name: path.stat() for name, path in find_files(folder, table).items()}
    except (SourceFileError, OSError):  # none yet; or an error that the load would report, if the others came
        return {}
    return {
        name: (one.st_ctime, (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)) for name, one in found.items()
    }


def last_load(source: str) -> float:
    """Return when the last load of a source that ended began, in seconds since 1970; 0 if there was none.

    A load that failed on rejected rows counts, too: only a new file can help.
    """
    found = paths.artifacts_dir().glob(f"*/load-{source}.json")
    last = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if last is None:
        return 0.0
    # To the millisecond, unlike the time in the summary.
    seconds = max((one.seconds for one in artifacts.loads_of(last.parent.name) if one.source == source), default=0.0)
    return float(last.stat().st_mtime - seconds)
