"""The dbt project run by hand in its folder, on a real warehouse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from include.dlt_pipelines.jaffle_shop_pipeline import SOURCE
from include.dlt_pipelines.load import load
from include.runs import dbt_results
from include.runs.build_graph import BuildGraph
from include.runs.dbt_stop import DbtStoppedError
from include.warehouse import builds, paths
from include.warehouse.errors import NotReadyError
from include.warehouse.targets import target

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DBT = Path(sys.executable).with_name("dbt")

# The public jaffle shop's own logic, as dbt-labs wrote it, over raw tables.
CLASSIC = """
with stg_payments as (
    select id as payment_id, order_id, payment_method, amount / 100 as amount from jaffle_shop_raw.raw_payments
),
stg_orders as (select id as order_id, user_id as customer_id, order_date, status from jaffle_shop_raw.raw_orders),
stg_customers as (select id as customer_id, first_name, last_name from jaffle_shop_raw.raw_customers),
customer_orders as (
    select customer_id, min(order_date) as first_order, max(order_date) as most_recent_order,
        count(order_id) as number_of_orders
    from stg_orders group by customer_id
),
customer_payments as (
    select orders.customer_id, sum(amount) as total_amount
    from stg_payments left join stg_orders as orders on stg_payments.order_id = orders.order_id
    group by orders.customer_id
),
customers as (
    select c.customer_id, c.first_name, c.last_name, o.first_order, o.most_recent_order, o.number_of_orders,
        p.total_amount as customer_lifetime_value
    from stg_customers as c
    left join customer_orders as o on c.customer_id = o.customer_id
    left join customer_payments as p on c.customer_id = p.customer_id
),
order_payments as (
    select order_id,
        sum(case when payment_method = 'credit_card' then amount else 0 end) as credit_card_amount,
        sum(case when payment_method = 'coupon' then amount else 0 end) as coupon_amount,
        sum(case when payment_method = 'bank_transfer' then amount else 0 end) as bank_transfer_amount,
        sum(case when payment_method = 'gift_card' then amount else 0 end) as gift_card_amount,
        sum(amount) as total_amount
    from stg_payments group by order_id
),
orders as (
    select o.order_id, o.customer_id, o.order_date, o.status, p.credit_card_amount, p.coupon_amount,
        p.bank_transfer_amount, p.gift_card_amount, p.total_amount as amount
    from stg_orders as o left join order_payments as p on o.order_id = p.order_id
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project so that its default warehouse path, ../../data, is empty; load and build by hand."""
    folder = tmp_path_factory.mktemp("repo") / "include" / "dbt_project"
    shutil.copytree(ROOT / "include" / "dbt_project", folder, ignore=shutil.ignore_patterns("target", "logs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAREHOUSE_DIR", str(folder.parents[1] / "data"))
        load(SOURCE, "test")
    built = dbt(folder, "--warn-error-options", '{"error": "all", "warn": ["UnusedResourceConfigPath"]}', "build")
    assert built.returncode == 0, built.stdout
    return folder


@pytest.fixture
def database(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the built working database, and restore it after the test."""
    monkeypatch.setenv("WAREHOUSE_DIR", str(project.parents[1] / "data"))
    saved = shutil.copyfile(paths.working_path(), paths.working_path().with_suffix(".saved"))
    yield paths.working_path()
    saved.replace(paths.working_path())


def dbt(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "WAREHOUSE_DIR"}
    return subprocess.run(
        [DBT, *arguments],
        cwd=project,
        env=environment | {"PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )


def test_freshness_by_hand_passes_after_a_load(project: Path) -> None:
    done = dbt(project, "source", "freshness")
    assert done.returncode == 0, done.stdout
    assert "WARN" not in done.stdout.replace("WARN=0", "")


def test_dbt_docs_describe_every_column_of_the_models(project: Path) -> None:
    done = dbt(project, "docs", "generate")
    assert done.returncode == 0, done.stdout
    manifest = json.loads((project / "target" / "manifest.json").read_text())
    catalog = json.loads((project / "target" / "catalog.json").read_text())
    models = [key for key in catalog["nodes"] if key.startswith("model.")]
    assert sorted(models) == sorted(key for key in manifest["nodes"] if key.startswith("model."))
    for key in models:
        described = {name for name, column in manifest["nodes"][key]["columns"].items() if column["description"]}
        assert described == set(catalog["nodes"][key]["columns"]), key


@pytest.mark.parametrize(("mart", "rows"), [("customers", 100), ("orders", 99)])
def test_marts_match_the_classic_logic(database: Path, mart: str, rows: int) -> None:
    with duckdb.connect(str(database)) as connection:
        assert connection.execute(f"select count(*) from marts.{mart}").fetchone() == (rows,)
        for one, other in ((mart, f"marts.{mart}"), (f"marts.{mart}", mart)):
            assert connection.execute(f"{CLASSIC} from {one} except all from {other}").fetchall() == []


@pytest.mark.parametrize(
    ("damage", "test", "rows"),
    [
        (
            "insert into raw_orders select * from raw_orders where id = 7",
            "unique_stg_orders_order_id",
            "unique_field=7, n_records=2",
        ),
        (
            "update raw_orders set status = 'lost' where id = 7",
            "accepted_values_stg_orders",
            "value_field=lost, n_records=1",
        ),
        ("update raw_payments set order_id = 999 where id = 3", "payments_have_an_order", "from_field=999"),
        # The whole row fails: its names are kept, but not reported.
        ("update raw_customers set id = null where id = 3", "not_null_stg_customers_customer_id", "customer_id=None"),
    ],
)
def test_bad_data_fails_its_test_which_reports_and_keeps_the_rows(
    project: Path, database: Path, damage: str, test: str, rows: str
) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("use jaffle_shop_raw")
        connection.execute(damage)
    assert dbt(project, "test", "--exclude-resource-type", "unit_test").returncode == 1
    with pytest.raises(dbt_results.DbtFailedError) as failed:
        dbt_results.conclude(project / "target", "a-run", "all_tests")
    line = next(line for line in str(failed.value).splitlines() if line.startswith(test))
    assert f": 1 failing row: {rows} (show all: make failures)" in line
    assert failed.value.runbook == "A test failed" and not failed.value.retryable
    kept = json.loads((paths.run_artifacts_dir("a-run") / "all_tests.failures.json").read_text())
    failure = next(failure for failure in kept.values() if failure["name"].startswith(test))
    assert failure["rows"] == len(failure["sample"]) == 1
    with target().open_working() as connection:
        table = failure["table"].split(".")[-1].strip('"')
        assert dbt_results.failing_tests(connection)[f"audit.{table}"] == 1
        with pytest.raises(NotReadyError, match=f"{test}.*: failed"):
            builds.check_current(connection, nodes(project))


def nodes(project: Path) -> list[builds.Node]:
    return BuildGraph(json.loads((project / "target" / "manifest.json").read_text())).nodes


def test_a_build_by_hand_is_current_and_passing_tests_leave_no_audit_tables(project: Path, database: Path) -> None:
    assert dbt(project, "build").returncode == 0
    with target().open_working() as connection:
        builds.check_current(connection, nodes(project))
        audit = connection.execute("select table_name from duckdb_tables() where schema_name = 'audit'").fetchall()
    assert audit == []


def test_reloading_the_same_files_needs_no_rebuild_but_changed_files_do(
    project: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(ROOT / "include" / "data", project.parent / "other", dirs_exist_ok=True))
    monkeypatch.setenv("SOURCES__JAFFLE_SHOP__DATA_DIR", str(other))
    load(SOURCE, "another-run")
    with target().open_working() as connection:
        builds.check_current(connection, nodes(project))
    with (other / "raw_orders.csv").open("a") as file:
        file.write("100,1,2018-01-01,placed\n")
    load(SOURCE, "yet-another-run")
    stale = "that run yet-another-run loaded.*stg_orders: ran before jaffle_shop_raw.raw_orders was last loaded"
    with target().open_working() as connection, pytest.raises(NotReadyError, match=f"(?s){stale}"):
        builds.check_current(connection, nodes(project))


def test_a_broken_model_raises_dbts_error_and_a_lock_is_left_to_a_retry(
    project: Path, database: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    shutil.copytree(project / "target", target)
    results = json.loads((target / "run_results.json").read_text())
    broken = next(one for one in results["results"] if one["unique_id"] == "model.analytics.orders")
    broken |= {"status": "error", "message": "Runtime Error\n  Binder Error: no such column"}
    (target / "run_results.json").write_text(json.dumps(results))
    with pytest.raises(
        dbt_results.DbtFailedError, match="orders: Runtime Error Binder Error: no such column"
    ) as failed:
        dbt_results.conclude(target, "a-run", "orders.run")
    assert failed.value.runbook == "A model failed"

    broken["message"] = "IO Error: Could not set lock on file"
    (target / "run_results.json").write_text(json.dumps(results))
    dbt_results.conclude(target, "a-run", "orders.run")

    broken["message"] = ""
    (target / "run_results.json").write_text(json.dumps(results))
    with pytest.raises(DbtStoppedError, match="dbt stopped: MemoryError") as stopped:
        dbt_results.conclude(target, "a-run", "orders.run")
    assert stopped.value.retryable


def run_python(project: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code beside the dbt project, in a process of its own."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=project, env=environ, capture_output=True, text=True)


OUT_OF_THREADS = """
import os
import threading
from multiprocessing.dummy import DummyProcess

from dbt.cli.main import dbtRunner

from include.runs import dbt_stop

start, started = threading.Thread.start, []


def refuse_second(thread):
    if isinstance(thread, DummyProcess):
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
    start(thread)


runner = dbtRunner(callbacks=[dbt_stop.note])
threading.Thread.start = refuse_second
done = runner.invoke(["run", "--select", "stg_orders", "--profiles-dir", "."])
print("dbt says:", done.exception)
try:
    dbt_stop.check()
except dbt_stop.DbtStoppedError as error:
    print("we say:", error)
threading.Thread.start = start
assert not runner.invoke(["run", "--select", "no_such_model", "--profiles-dir", "."]).success
dbt_stop.check()  # an error of dbt's own
print("done", flush=True)
os._exit(0)  # the thread that did start waits for ever
"""


@pytest.mark.usefixtures("database")
def test_dbt_that_cannot_start_a_thread_is_stopped_by_that_and_not_by_an_error_while_cleaning_up(project: Path) -> None:
    outcome = run_python(project, OUT_OF_THREADS)
    assert outcome.stdout.endswith("done\n"), outcome.stdout[-2000:] + outcome.stderr[-2000:]
    assert "can't start" not in outcome.stdout.split("dbt says:")[1].split("we say:")[0], "dbt tells the cause by now"
    assert "we say: dbt stopped: RuntimeError, then AttributeError." in outcome.stdout, outcome.stdout[-2000:]


IN_ONE_PROCESS = """
import sys
from pathlib import Path

from dbt.adapters.factory import reset_adapters
from dbt.cli.main import dbtRunner

from include.runs import dbt_results
from include.warehouse import paths

assert dbtRunner().invoke(["run", "--select", "stg_orders", "--profiles-dir", "."]).success
reset_adapters()  # as Cosmos does
dbt_results.conclude(Path("target"), "a-run", "stg_orders.run")
opened = [path for path in Path("/proc/self/fd").iterdir() if path.resolve() == paths.working_path().resolve()]
sys.exit(f"still open: {opened}" if opened else 0)
"""


@pytest.mark.usefixtures("database")
def test_a_task_closes_the_database_as_soon_as_dbt_is_done(project: Path) -> None:
    outcome = run_python(project, IN_ONE_PROCESS)
    assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-2000:]
