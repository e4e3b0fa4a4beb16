"""Name the module that declares one of dbt's behavior flags without reading source files.

What: `BehaviorFlagRendered._default_source` looks at the callers' frames.
Why: dbt's own calls `inspect.stack()`, which reads the source file of every caller: a tenth of a task's time.
Reported: no; the same was one of dbt-fal, https://github.com/fal-ai/dbt-fal/pull/723.
Since: dbt-common 1.39.
Remove once dbt does without `inspect.stack()`, or calls this only for a flag without a source.
"""

import sys

from dbt_common.behavior_flags import BehaviorFlagRendered

from include.patches import fits


def apply() -> None:
    """Change dbt in this process."""
    if fits(BehaviorFlagRendered._default_source):
        BehaviorFlagRendered._default_source = staticmethod(_declaring_module)  # type: ignore[method-assign]


def _declaring_module() -> str:
    frame = sys._getframe(1)
    while frame.f_globals["__name__"] == BehaviorFlagRendered.__module__ and frame.f_back:
        frame = frame.f_back
    return str(frame.f_globals["__name__"])
