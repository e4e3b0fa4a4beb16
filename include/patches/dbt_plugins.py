"""Scan Python's path for dbt's plugins once for each process.

What: `PluginManager.get_prefixed_modules` keeps its answer.
Why: dbt lists every module of the environment in each command.
Reported: no.
Since: dbt-core 1.11.
Remove once dbt keeps it itself; it has `_get_dbt_modules`, which does, and does not call it.
"""

import functools

from dbt.plugins.manager import PluginManager

from include.patches import fits


def apply() -> None:
    """Change dbt in this process."""
    if fits(PluginManager.get_prefixed_modules):
        PluginManager.get_prefixed_modules = functools.cache(PluginManager.get_prefixed_modules)  # type: ignore[method-assign]
