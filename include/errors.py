"""Base of the project's errors, which say what failed and what to do about it."""

import sys


class PipelineError(Exception):
    """Base of all errors whose message may be shown unredacted: it never contains values from rows.

    Attributes:
        retryable: whether simply running the task again may succeed.
        runbook: title of the section of docs/runbook.md to read.
    """

    retryable = False
    runbook = "What to do first"


class TimeLimitError(PipelineError):
    """A task reached its time limit."""

    runbook = "A task ran into its time limit"

    def __init__(self) -> None:
        super().__init__("The task reached its time limit, and was stopped.")


def describe_failure(exception: BaseException | str | None) -> tuple[str, str]:
    """Return the text for the person on call, for an exception, and the title of its section in docs/runbook.md."""
    if isinstance(exception, PipelineError):
        return str(exception), exception.runbook
    if exception is None:
        return "The task was stopped from outside, or its process died.", "A task was killed"
    name = "" if isinstance(exception, str) else f"{type(exception).__name__}: "
    return f"{name}{exception}".strip(), PipelineError.runbook


def storage_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return what a disk or an object store raises if it cannot be read or written, for an `except` clause.

    Args:
        others: further errors to return.
    """
    # Imported by now, if anything could raise its errors.
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, *([botocore.BotoCoreError] if botocore else []), *others)


NO_SPACE = ("No space left", "Disk quota exceeded", "File too large")


def is_disk_full(text: str) -> bool:
    """Return whether an error message from DuckDB, dlt or the OS reports a full disk or quota.

    Args:
        text: the error message; none of the libraries has an error class for this.
    """
    return any(sign in text for sign in NO_SPACE)
