"""Errors of sources: short, without secrets, with what to do. A source's own traceback is logged at DEBUG level."""

import logging
import re
import traceback
from contextlib import suppress
from pathlib import Path

from dlt.common.configuration.container import Container
from dlt.common.configuration.exceptions import ConfigFieldMissingException
from dlt.common.configuration.specs.base_configuration import is_secret_hint
from dlt.common.configuration.specs.pluggable_run_context import PluggableRunContext
from dlt.common.configuration.utils import get_resolved_traces
from dlt.common.exceptions import DltException

from include import masking
from include.errors import PipelineError

logger = logging.getLogger(__name__)

_LONGEST = 600  # characters of the cause
_MISTAKES = (KeyError, ImportError, NameError, AttributeError, TypeError, SyntaxError)
_REFUSED = re.compile(r"\b(40[0-8]|410|422) Client Error|(?i:password authentication failed|access denied)")


class SourceError(PipelineError):
    """A source could not be read. The message has no secret."""

    retryable = True
    runbook = "A source cannot be read"


class SourceRefusedError(SourceError):
    """A source that will give the same answer again: wrong credentials, a wrong address, a setting that is missing."""

    retryable = False


def secrets_of(source: str) -> set[str]:
    """Return the secrets that a source may use: in the environment, and what dlt has resolved or reads from its files.

    Args:
        source: its name; every environment variable that its module mentions is taken for a secret.
    """
    found: set[str] = set()
    with suppress(OSError):
        text = (Path(__file__).parent / f"{source}_pipeline.py").read_text()
        found |= masking.in_environment(re.findall(r"\w+", text))
    for provider in Container()[PluggableRunContext].providers.providers:
        if provider.supports_secrets:
            found |= masking.in_values(getattr(provider, "_config_doc", {}))
    traces = get_resolved_traces()
    for one in (*(traces.resolved_traces or ()), *(traces.all_traces or ())):
        if is_secret_hint(one.hint) and isinstance(one.value, str | dict | list):
            found |= masking.in_values(one.value)
    return found | masking.in_environment()


def describe(failure: BaseException, source: str, declaring: bool = False) -> SourceError:
    """Return the short error for a failed source.

    Args:
        failure: what dlt, a library or the source's own code raised.
        source: its name.
        declaring: whether its module failed, not its data.
    """
    secrets = secrets_of(source)
    whole = "".join(traceback.format_exception(failure))
    logger.debug("%s", masking.mask(whole, secrets))
    resource, error = "", failure
    while isinstance(error, DltException) and (cause := error.__cause__ or error.__context__):
        resource = getattr(error, "pipe_name", None) or resource
        error = cause
    text = " ".join(masking.without_values(str(error)).split())
    if isinstance(error, ConfigFieldMissingException):
        text = f"{', '.join(error.fields)} not set, in the environment or in .dlt/secrets.toml"
    text = masking.mask(text, secrets)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    name = masking.mask(f"{source}, resource {resource}" if resource else source, secrets)
    refused = declaring or isinstance(error, _MISTAKES) or bool(_REFUSED.search(str(error)))
    remedy = (
        "Correct its settings (address, credentials) or its code, then clear this task."
        if refused
        else "Check that it is up and can be reached from here; the task retries by itself, then clear it."
    )
    place = _place(error)
    return (SourceRefusedError if refused else SourceError)(
        f"{name}: {type(error).__name__}: {text}{place}. Nothing was loaded. {remedy}"
    )


def _place(error: BaseException) -> str:
    """Return the last line of the source's own code that took part, if any."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith("_pipeline.py")]
    return f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
