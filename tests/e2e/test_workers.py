"""Two Celery workers that share nothing but network services."""

import importlib.util
import time
from collections.abc import Iterator

import pytest

from include.runs import artifacts
from testing import targets
from testing.airflow_processes import Airflow, Deployment
from testing.celery_processes import Worker, connect, deliver, machine, parse, redis
from testing.project import LOAD, NAME

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not importlib.util.find_spec("celery"), reason="needs make setup-workers"),
]


@pytest.fixture(scope="module")
def lake() -> Iterator[targets.DuckLake]:
    with targets.started("ducklake-s3") as target:
        assert isinstance(target, targets.DuckLake)
        yield target


@pytest.fixture(scope="module")
def central(lake: targets.DuckLake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The machine of the api-server, the scheduler and the dag-processor."""
    with redis() as broker:
        deployment = machine(tmp_path_factory.mktemp("central"))
        connect(deployment, lake, broker)
        parse(deployment)
        deployment.initialise()
        yield deployment


@pytest.fixture(scope="module")
def airflow(central: Deployment) -> Iterator[Airflow]:
    with central.running() as airflow:
        yield airflow


@pytest.fixture(scope="module")
def workers(airflow: Airflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Worker]]:
    started = [Worker(name, tmp_path_factory.mktemp(name), airflow) for name in ("one", "two")]
    try:
        yield started
    finally:
        for worker in started:
            if worker.service.process.poll() is None:
                worker.service.kill()


def test_workers_share_a_run_and_its_files(airflow: Airflow, central: Deployment, workers: list[Worker]) -> None:
    run = airflow.trigger(NAME)
    assert set(run.tasks().values()) == {"success"}, run.tasks()
    assert all(worker.tasks for worker in workers)
    assert central.read("select count(*) from marts.orders") == [(99,)]
    assert "loaded 312 rows, 0 rejected" in run.log(LOAD)
    with central.selected():
        assert {one.rows_loaded for one in artifacts.loads_of(run.id)} == {312}
        assert all(one.status in ("pass", "success") for one in artifacts.results_of(run.id))
    for page, text in (("releases", run.id), ("quality", "unique_stg_orders_order_id")):
        status, content = airflow.request("GET", f"/warehouse/{page}", token=airflow.token)
        assert status == 200 and text in content.decode()


def test_workers_keep_no_process_of_ended_tasks(airflow: Airflow, workers: list[Worker]) -> None:
    """As Airflow's issue 70117 reports of supervisors, with the memory of each."""

    def processes() -> int:
        return sum(len(worker.service.children()) for worker in workers)

    before = processes()
    for _ in range(2):
        assert airflow.trigger(NAME).state == "success"
    deadline = time.monotonic() + 60
    while processes() > before:
        assert time.monotonic() < deadline, (before, [worker.service.children() for worker in workers])
        time.sleep(1)


def test_a_delivery_a_bad_row_and_a_killed_worker(airflow: Airflow, central: Deployment, workers: list[Worker]) -> None:
    number = central.append("raw_orders", "x,1,2018-01-01,placed")
    deliver(central)
    bad = airflow.trigger(NAME)
    assert bad.tasks()[LOAD] == "failed"
    assert f"raw_orders.csv:{number}: column id: id: not a valid BIGINT" in bad.log(LOAD)
    central.restore_data()
    central.append("raw_orders", "100,1,2018-01-01,placed")
    deliver(central)
    bad.clear_tasks([LOAD])
    bad.wait_for_running("transform.")
    workers[0].service.kill()
    assert bad.wait().state == "success", bad.tasks()
    assert central.read("select count(*) from marts.orders") == [(100,)]


def test_pages_say_that_the_object_store_is_down(airflow: Airflow, lake: targets.DuckLake) -> None:
    assert lake.store
    lake.store.service.kill()
    try:
        answers = [airflow.request("GET", f"/warehouse/{page}", token=airflow.token) for page in ("", "quality")]
    finally:
        lake.store.service.start()
    for status, content in answers:
        said = content.decode()
        assert status == 503 and "cannot be read" in said and "Could not connect" in said, said
    status, _ = airflow.request("GET", "/warehouse/quality", token=airflow.token)
    assert status == 200
