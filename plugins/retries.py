"""Retries only where they can help."""

from typing import Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowTaskTimeout


class RetryIfItHelps(RetryPolicy):
    """Retry transient failures: a held lock, a full disk, a killed process. Everything else fails at once."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """Decide by the exception; unknown ones are retried."""
        from cosmos.exceptions import CosmosDbtRunError

        from include.errors import PipelineError
        from include.runs.dbt_results import TRANSIENT

        retryable = True
        if isinstance(exception, AirflowTaskTimeout):
            retryable = False
        elif isinstance(exception, PipelineError):
            retryable = exception.retryable
        elif isinstance(exception, CosmosDbtRunError):  # Cosmos wraps every dbt failure in it
            retryable = any(sign in str(exception) for sign in TRANSIENT)
        if retryable:
            return RetryDecision.default()
        return RetryDecision.fail(f"{type(exception).__name__}: a retry would fail again")
