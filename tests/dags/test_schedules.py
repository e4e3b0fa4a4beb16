"""Schedules of the guide: local times, working days, several a day; and deliveries."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from testing.project import block

pytestmark = [pytest.mark.dags, pytest.mark.usefixtures("dag_bag")]


def schedule(number: int) -> Any:
    found: dict[str, Any] = {}
    exec(block("When a DAG runs", "python", number), found)
    return found["SCHEDULE"]


def test_local_times_on_working_days_follow_the_clock_there() -> None:
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables.base import TimeRestriction

    timetable = coerce_to_core_timetable(schedule(0))
    restriction = TimeRestriction(earliest=None, latest=None, catchup=True)
    found, last = [], None
    import pendulum

    restriction = TimeRestriction(pendulum.datetime(2026, 3, 27, 4), None, True)  # a Friday, before summer time
    for _ in range(3):
        info = timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction)
        assert info
        last = info.data_interval
        found.append(info.run_after.astimezone(UTC).replace(tzinfo=None))
    assert found == [datetime(2026, 3, 27, 5), datetime(2026, 3, 27, 12, 30), datetime(2026, 3, 30, 4)]


def test_a_delivery_is_an_asset_that_the_triggerer_watches() -> None:
    (asset,) = schedule(1)("marketing")
    (watcher,) = asset.watchers
    path, arguments = watcher.trigger.serialize()
    assert arguments == {
        "source": "jaffle_shop",
        "deadline_seconds": timedelta(hours=1).total_seconds(),
        "warehouse": "marketing",
    }
    module, name = path.split(".")
    assert getattr(sys.modules[module], name)(**arguments).serialize() == (path, arguments)
