"""What stopped a dbt command before it could report results, in this process.

dbt's result has only the last error's text. Out of memory, that may be an error met while cleaning up after the first,
or nothing at all: `MemoryError` has no text.
"""

import re
from typing import Any

from include.errors import PipelineError

# Lines that begin with an error's class; dbt's trace is Python's.
_CLASS = re.compile(r"^(?:\w+\.)*(\w+)(?:: |:?$)", re.MULTILINE)

_trace = ""


class DbtStoppedError(PipelineError):
    """dbt stopped on an error that is not its own, so one that says nothing about the project."""

    retryable = True
    runbook = "A task was killed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"dbt stopped: {reason}. The next try has a process of its own.")


def note(event: Any) -> None:
    """Take an event of dbt's: a callback for `dbtRunner`."""
    global _trace
    if event.info.name == "MainReportVersion":  # the first one of a command
        _trace = ""
    elif event.info.name == "MainStackTrace":
        _trace = event.data.stack_trace


note.level = "error"  # type: ignore[attr-defined]  # include/patches/dbt_quiet_events.py makes no others for it


def check() -> None:
    """Raise if the last command was stopped.

    Raises:
        DbtStoppedError: it was. Its text names the errors only: what they say may have values of rows.
    """
    global _trace
    if _trace:
        names = dict.fromkeys(_CLASS.findall(_trace))
        _trace = ""
        raise DbtStoppedError(", then ".join(names))
