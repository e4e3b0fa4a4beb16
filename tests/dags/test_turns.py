"""Runs of a warehouse take turns, and one of them can always go on."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from include.warehouse.builds import record_load
from include.warehouse.targets import target

pytestmark = pytest.mark.dags

RUNS = ("a", "b", "c")


class Instance(SimpleNamespace):
    """What `take_turn` uses of a task instance; `active` are the runs that Airflow calls running."""

    def get_dr_count(self, dag_id: str, run_ids: Any = RUNS, states: Any = ()) -> int:
        return len(self.active.intersection(run_ids))


@pytest.fixture(autouse=True)
def _warehouse(airflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAREHOUSE_DIR", str(tmp_path))
    import airflow.sdk  # noqa: F401, with airflow_home's settings


def waits(run_id: str, active: set[str]) -> bool:
    from airflow.sdk.exceptions import AirflowRescheduleException
    from turns import take_turn

    try:
        take_turn({"ti": Instance(dag_id="shop", run_id=run_id, active=active)}, is_only_writer=True)
    except AirflowRescheduleException:
        return True
    return False


@pytest.mark.parametrize("loaded", list(itertools.product((*RUNS, "ended"), repeat=2)), ids=" then ".join)
def test_of_the_active_runs_that_loaded_a_source_each_the_last_one_goes_on(loaded: tuple[str, str]) -> None:
    """Runs that are cleared could each wait for the other to end, up to their time limit of six hours."""
    for number, run_id in enumerate(loaded):
        with target().open_working() as connection:
            record_load(connection, run_id, {f"source_{number}_raw.orders": "build"})
    for size in (1, 2, 3):
        for active in map(set, itertools.combinations(RUNS, size)):
            newest_first = [run_id for run_id in reversed(loaded) if run_id in active]
            going_on = {run_id for run_id in active if not waits(run_id, active)}
            assert going_on == (set(newest_first[:1]) or active), active


def test_publish_waits_for_a_model_that_is_newer_than_its_run() -> None:
    from turns import IncompleteRunError, check_complete

    states = {"a": {"load": "success", "transform.orders.run": None}}
    ti = SimpleNamespace(dag_id="shop", run_id="a", get_task_states=lambda dag_id, run_ids: states)
    check_complete({"ti": ti, "dag": SimpleNamespace(task_ids=["load", "transform.orders.run"])})
    with pytest.raises(IncompleteRunError, match=r"^transform\.new_run: added to the project after") as refused:
        check_complete({"ti": ti, "dag": SimpleNamespace(task_ids=["load", "transform.new_run"])})
    assert refused.value.retryable
