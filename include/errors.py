"""What the errors of this project have in common: they tell the person on call what failed and what to do."""


class PipelineError(Exception):
    """Base of all errors that are meant to be shown as they are; so the message has no value of any row.

    Attributes:
        retry_can_mend: whether the same task may succeed if it is only run again.
        runbook: the title of the section of docs/runbook.md that helps.
    """

    retry_can_mend = False
    runbook = "What to do first"


NO_SPACE = ("No space left", "Disk quota exceeded", "File too large")


def is_disk_full(text: str) -> bool:
    """Tell whether an error's text, DuckDB's, dlt's or the system's, says that a disk or its quota is full.

    Args:
        text: the error's message; none of the libraries has a class for it.
    """
    return any(sign in text for sign in NO_SPACE)
