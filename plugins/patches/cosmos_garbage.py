"""Collect garbage after every tenth dbt command of a process, not after each.

What: replaces the module `gc` in Cosmos's runner by an object whose `collect` does so.
Why: Cosmos collects after each command, for the semaphores of dbt's adapter: a twentieth of a short task's time. Ten of
    them do no harm until then.
Reported: no; it was introduced for https://github.com/astronomer/astronomer-cosmos/issues/2334.
Since: Cosmos 1.15.
Remove once Cosmos collects no garbage.
"""

import gc
import itertools
from types import SimpleNamespace
from typing import Any

from cosmos.dbt import runner

EVERY = 10


def apply() -> None:
    """Change Cosmos in this process."""
    if getattr(runner, "gc", None) is not gc:
        return
    commands = itertools.count(1)

    def collect(*words: Any) -> int:
        return 0 if next(commands) % EVERY else gc.collect(*words)

    runner.gc = SimpleNamespace(collect=collect)
