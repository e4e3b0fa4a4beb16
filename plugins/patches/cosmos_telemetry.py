"""Without telemetry, Cosmos collects none.

What: takes Cosmos's listener for the ends of tasks out of Airflow's listener manager.
Why: after each task it parses profiles.yml, in pure Python, for a figure that it then does not send.
Reported: no.
Since: Cosmos 1.15.
Remove once Cosmos asks first whether telemetry is on.
"""

import contextlib

from airflow.sdk.configuration import conf
from airflow.sdk.listener import get_listener_manager
from cosmos.listeners import task_instance_listener


def apply() -> None:
    """Change this process."""
    if not conf.getboolean("cosmos", "enable_telemetry", fallback=True):
        with contextlib.suppress(ValueError):  # not registered
            get_listener_manager().pm.unregister(task_instance_listener)
