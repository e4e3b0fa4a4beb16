"""What the errors of this project have in common: they tell the person on call what failed and what to do."""


class PipelineError(Exception):
    """Base of all errors that are meant to be shown as they are.

    Attributes:
        retry_can_mend: whether the same task may succeed if it is only run again.
        runbook: the title of the section of docs/runbook.md that helps.
    """

    retry_can_mend = False
    runbook = "What to do first"

    @property
    def summary(self) -> str:
        """What failed, short and without any row's text: alerts leave the deployment."""
        return str(self)
