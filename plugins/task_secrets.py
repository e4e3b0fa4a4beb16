"""Secrets of sources and targets from Airflow's secrets backend, read before each task: a new value needs no restart.

The Airflow variable `warehouse_secrets` is a JSON object of environment variables, such as `{"PGPASSWORD": "…"}`. It is
read only with `AIRFLOW__SECRETS__BACKEND` (docs/deployment.md).
"""

import json
import os
import re
from typing import Any

from include.errors import PipelineError

VARIABLE = "warehouse_secrets"
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
# What runs code, or is Airflow's own: whoever may write a password of a source need not be the one who deploys.
_REFUSED = re.compile(r"PATH$|^(PYTHON|LD_|AIRFLOW|BASH_|ENV$|IFS$|WAREHOUSE_DIR$|WAREHOUSE_NAME$)")
_set: set[str] = set()


class SecretsError(PipelineError):
    """The secrets cannot be used. The message has none."""


def fetch(_context: Any = None) -> None:
    """Bring the environment to the state of the secrets; do nothing without a secrets backend.

    Raises:
        SecretsError: the variable is malformed; names what is wrong, and no value.
    """
    if not os.environ.get("AIRFLOW__SECRETS__BACKEND"):
        return
    from airflow.sdk.log import mask_secret

    found = _checked(_read())
    for name in _set - found.keys():
        os.environ.pop(name, None)
    _set.clear()
    _set.update(found)
    for name, value in found.items():
        mask_secret(value)
        os.environ[name] = value


def _read() -> str:
    """Return the variable's text, empty if there is none: in a task by Airflow's supervisor, elsewhere directly."""
    from airflow.models.variable import Variable

    return str(Variable.get(VARIABLE, default_var="") or "")


def _checked(text: str) -> dict[str, str]:
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SecretsError(f"The variable {VARIABLE} is not JSON ({type(error).__name__}).") from None
    if not isinstance(found, dict):
        raise SecretsError(f"The variable {VARIABLE} is not a JSON object of names and values.")
    for name, value in found.items():
        if not _NAME.fullmatch(name) or _REFUSED.search(name):
            raise SecretsError(f"The variable {VARIABLE} may not set {name[:80]!r}.")
        if not isinstance(value, str) or not value or "\0" in value:
            raise SecretsError(f"The variable {VARIABLE}: the value of {name} is not a text.")
    return found
