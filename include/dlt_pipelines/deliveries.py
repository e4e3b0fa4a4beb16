"""Whether the files of a source have been delivered: all that belong together, none still being written.

A file counts as delivered once it is there, whole, and newer than the last load: renaming it into place changes its
`ctime`. Files that belong together are those of all tables of the source.
"""

import time
from dataclasses import dataclass, field

from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.files import SourceFileError, find_files
from include.runs import artifacts
from include.warehouse import paths


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
        deadline_seconds: how long after the first file of a set the last one may come.
    """

    source: FileSource
    deadline_seconds: float = 3600.0
    _before: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _told: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _waits_since: float | None = None
    _is_late: bool = False

    def look(self, loaded_at: float | None = None) -> Seen:
        """Look once; a set that is complete is reported once.

        Args:
            loaded_at: when the last load began, in seconds since 1970; default as its summary says.
        """
        loaded = last_load(self.source.name) if loaded_at is None else loaded_at
        now: dict[str, tuple[int, ...]] = {}
        missing = []
        for table in self.source.tables:
            try:
                found = find_files(self.source.data_dir, table)
                stats = {name: path.stat() for name, path in found.items()}
            except (SourceFileError, OSError):  # none yet; or an error that the load would report, if the others came
                stats = {}
            new = {name: one for name, one in stats.items() if one.st_ctime > loaded}
            now |= {name: (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in new.items()}
            if not new:
                missing.append(table.name)
        is_whole, self._before = now == self._before, now  # a file that grows is not whole
        if not now:
            self._waits_since, self._is_late = None, False
            return Seen()
        if missing:
            self._waits_since = self._waits_since or time.monotonic()
            was_late, self._is_late = self._is_late, time.monotonic() > self._waits_since + self.deadline_seconds
            return Seen(False, tuple(now), tuple(missing), self._is_late and not was_late)
        self._waits_since, self._is_late = None, False
        if not is_whole or now == self._told:
            return Seen(False, tuple(now))
        self._told = now
        return Seen(True, tuple(sorted(now)))


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
