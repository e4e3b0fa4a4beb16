"""Changes to private parts of dbt and dlt, one file each; those that need Airflow are in plugins/patches.

Each file says what it changes, why, where that was reported, since which version, and when it can go. Each has a test
in tests/integration/test_patches.py that fails once the change is not needed any more, or does not fit any more.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def fits(function: Callable[..., Any], *parameters: str) -> bool:
    """Return whether a library's function still takes what a change was made for; log a warning if not.

    Args:
        function: the library's function, before the change.
        parameters: names of the parameters it must have, in order.
    """
    found = tuple(inspect.signature(function).parameters)
    if found != parameters:
        name = f"{function.__module__}.{function.__qualname__}"
        logger.warning("%s takes %s now, not %s: it is left unchanged, and tasks are slower", name, found, parameters)
    return found == parameters
