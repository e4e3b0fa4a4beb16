"""Do not put together dbt's events that nothing shows.

What: `EventManager.fire_event` returns at once for an event below the level of all loggers.
Why: dbt makes a message of each, with its text, and leaves it to Python's logging to drop it: three in four are for
    `--debug`, a tenth of a short command's time.
Reported: no.
Since: dbt-common 1.39.
Remove once dbt looks at the level first.
"""

from typing import Any

from dbt.tracking import track_behavior_change_warn
from dbt_common.events.base_types import BaseEvent, EventLevel
from dbt_common.events.event_manager import EventManager

from include.patches import fits

_HIDDEN = (EventLevel.TEST, EventLevel.DEBUG)


def apply() -> None:
    """Change dbt in this process."""
    fire = EventManager.fire_event
    if not fits(fire, "self", "e", "level", "node", "force_warn_or_error_handling"):
        return

    def fire_if_shown(
        self: EventManager, e: BaseEvent, level: EventLevel | None = None, *words: Any, **options: Any
    ) -> None:
        if (level or e.level_tag()) in _HIDDEN and all(
            listener is track_behavior_change_warn or getattr(listener, "level", EventLevel.DEBUG) not in _HIDDEN
            for listener in (*self.loggers, *self.callbacks)
        ):
            return
        fire(self, e, level, *words, **options)

    EventManager.fire_event = fire_if_shown  # type: ignore[method-assign]
