"""What publish refuses, and why: a real load and real dbt commands, as tasks would run them.

No Airflow here: what counts is what was loaded, built and tested, whoever ran it and in whatever order.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
import yaml
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.adapters.factory import reset_adapters
from dbt.cli.main import dbtRunner

from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.load import load
from include.runs.build_graph import BuildGraph
from include.runs.publish import publish
from include.warehouse import builds
from include.warehouse.builds import recorded
from include.warehouse.errors import NotReadyError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from testing import feature_project
from testing.project import NAME
from testing.targets import InBigQuery, InSnowflake, Target, fetch_all

pytestmark = pytest.mark.integration
of_dbt_duckdb = pytest.mark.not_on("postgres", "bigquery", "snowflake", reason="only dbt-duckdb has it")
# BigQuery overwrites partitions for it.
rebuilt_is_new = pytest.mark.not_on(
    "bigquery", "snowflake", reason="a rebuilt table counts as new there: what it replaces is gone by then"
)
on_microbatch = pytest.mark.not_on("bigquery", reason="its emulator cannot parse insert_overwrite, so no microbatch")

ROOT = Path(__file__).resolve().parents[2]


class Shop:
    """A dbt project with two sources and a warehouse, driven by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        feature_project.write(folder / "project")
        (folder / "project" / "tests" / "of_nothing.sql").unlink()  # it must run after every command
        self.deliver("one", "id,i\n1,10\n2,20\n")
        self.deliver("two", "id\n1\n2\n")

    def write(self, name: str, text: str) -> None:
        path = self.folder / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / "project" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def deliver(self, source: str, content: str) -> None:
        path = self.folder / source / ("raw.csv" if source == "one" else "items.csv")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)

    def load(self, source: str, i_type: str = "BIGINT") -> None:
        table = (
            TableContract("raw", {"id": "BIGINT", "i": i_type}, ("id",))
            if source == "one"
            else TableContract("items", {"id": "BIGINT"}, ("id",))
        )
        load(FileSource(source, str(self.folder / source), (table,)), f"load-{source}")

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Start dbt in a process that can be killed."""
        command = [str(Path(sys.executable).with_name("dbt")), "--quiet", *words]
        return subprocess.Popen(
            command,
            cwd=self.folder / "project",
            env=os.environ | {"PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1", "DBT_LOG_LEVEL_FILE": "debug"},
            text=True,
        )

    def dbt(self, *words: str) -> bool:
        """Run dbt in this process, which is faster, and return whether it succeeded."""
        project = str(self.folder / "project")
        done = dbtRunner().invoke(
            ["--quiet", *words, "--project-dir", project, "--profiles-dir", project, "--log-path", f"{project}/logs"]
        )
        DuckDBConnectionManager.close_all_connections()
        reset_adapters()
        assert done.exception is None, done.exception
        return bool(done.success)

    def publish(self) -> Release:
        assert self.dbt("parse")  # the manifest always matches the files
        return publish("a-run", self.folder / "project" / "target" / "manifest.json")

    def refuses(self, *reasons: str) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(NotReadyError) as refused:
            patch.setattr(builds, "_NODES_SHOWN", 100)
            self.publish()
        for reason in reasons:
            assert reason in str(refused.value), refused.value

    def published(self, query: str) -> list[tuple[object, ...]]:
        with target().open_release() as connection:
            return connection.execute(query).fetchall()


@dataclass
class Built:
    folder: Path
    warehouse: dict[str, str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Built:
    """A folder and a warehouse with everything loaded, built, tested and published once."""
    folder = tmp_path_factory.mktemp("built")
    variables = target.new(tmp_path_factory.mktemp("warehouse"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv("PRICES", str(folder / "project" / "prices.csv"))
        shop = Shop(folder)
        if isinstance(target, InBigQuery | InSnowflake):
            target.adapt(folder / "project")
        shop.load("one")
        shop.load("two")
        assert shop.dbt("seed"), "what reads it as a source does not wait for it"
        # BigQuery replaces a seed in two steps, between which what reads it as a source finds none.
        assert shop.dbt("build", *(["--exclude", "resource_type:seed"] if target.name == "bigquery" else []))
        shop.publish()
    return Built(folder, variables)


@pytest.fixture
def shop(built: Built, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Return a copy of `built`, all current."""
    shutil.copytree(built.folder, tmp_path, dirs_exist_ok=True)
    for name, value in target.copy(built.warehouse, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PRICES", str(built.folder / "project" / "prices.csv"))
    shop = Shop.__new__(Shop)
    shop.folder = tmp_path
    return shop


def test_a_current_database_is_republished_despite_warning_disabled_and_ephemeral_nodes(shop: Shop) -> None:
    assert shop.publish().published


def test_what_is_demanded_is_what_dbt_records(shop: Shop) -> None:
    """Dbt records from the project in memory, and publish reads the manifest: for every kind of node they agree."""
    manifest = json.loads((shop.folder / "project" / "target" / "manifest.json").read_text())
    nodes = BuildGraph(manifest).nodes
    kinds = {node.id.split(".")[0] for node in nodes}
    assert kinds == {"model", "seed", "snapshot", "test", "unit_test"}
    with target().open_working() as connection:
        found = recorded(connection)
    assert {node.id: node.code for node in nodes} == {node.id: found[node.id].code for node in nodes}
    assert {node.id: set(node.parents) for node in nodes} == {node.id: set(found[node.id].parents) for node in nodes}


def test_refuses_a_failed_unit_test_marked_as_success(shop: Shop) -> None:
    shop.edit("models/models.yml", "expect: {rows: [{id: 1, i: 5}]}", "expect: {rows: [{id: 1, i: 6}]}")
    assert not shop.dbt("test", "--select", "orders_keep_i")
    shop.refuses("orders_keep_i: failed")


def test_refuses_a_test_that_ran_after_a_new_load_but_before_its_model(shop: Shop) -> None:
    shop.deliver("one", "id,i\n1,11\n2,20\n")
    shop.load("one")
    assert shop.dbt("test", "--select", "orders")
    shop.refuses("stg: ran before one_raw.raw was last loaded")
    assert shop.dbt("run", "--select", "stg+")
    shop.refuses("unique_orders_id: ran before orders was last loaded or built")


@pytest.mark.parametrize("model", ["growing", "random"])
def test_refuses_an_incremental_or_random_model_rebuilt_without_its_tests(shop: Shop, model: str) -> None:
    assert shop.dbt("run", "--select", model)
    shop.refuses(f": ran before {model} was last loaded or built")
    assert shop.dbt("test", "--select", model)
    shop.publish()


@rebuilt_is_new
def test_rebuilding_a_model_with_the_same_rows_keeps_its_tests_valid(shop: Shop) -> None:
    for task in ("stg", "orders", "countries", "by_country"):
        assert shop.dbt("seed" if task == "countries" else "run", "--select", task)
        shop.publish()


def test_refuses_a_changed_seed_that_ran_alone(shop: Shop) -> None:
    shop.write("seeds/countries.csv", "id,country\n1,Chile\n3,Nepal\n")
    assert shop.dbt("seed")
    shop.refuses("by_country: ran before countries was last loaded or built")


def test_refuses_an_edited_model_whose_command_was_killed_after_building_it(shop: Shop) -> None:
    shop.edit("models/orders.sql", "select id,", "select id, 'new' as edited,")
    rows = "range(100000000000)"
    if target().name == "bigquery":  # its emulator works on it to the end
        rows = ", ".join(f"unnest(generate_array(1, 70000)) as {one}" for one in "ab")
    shop.write("models/slow.sql", f"-- depends_on: {{{{ ref('orders') }}}}\nselect count(*) as n from {rows}")
    process = shop.start("run", "--select", "orders", "slow")
    try:
        deadline = time.monotonic() + 120
        log = shop.folder / "project" / "logs" / "dbt.log"
        while not log.exists() or "Began executing node model.analytics.slow" not in log.read_text():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (shop.folder / "project" / "models" / "slow.sql").unlink()
    with target().open_working() as connection:
        fetch_all(connection)
        assert connection.execute("select distinct edited from marts.orders").fetchall() == [("new",)]
    shop.refuses("unique_orders_id: ran before orders was last loaded or built", "orders_keep_i: was changed")


def test_refuses_an_edited_model_built_by_hand_without_its_tests(shop: Shop) -> None:
    shop.edit("models/orders.sql", "select id,", "select id, 'new' as edited,")
    assert shop.dbt("run", "--select", "orders")
    shop.refuses("unique_orders_id: ran before orders was last loaded or built", "orders_keep_i: was changed")


def test_refuses_a_load_between_a_models_build_and_its_tests(shop: Shop) -> None:
    assert shop.dbt("run", "--select", "stg+")
    shop.deliver("one", "id,i\n1,11\n1,20\n")
    shop.load("one")
    assert shop.dbt("test"), "on the old tables"
    shop.refuses("stg: ran before one_raw.raw was last loaded")


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("models/orders.sql", "i * ", "i + 0 * ", "orders: was changed"),
        ("macros/factor.sql", "1", "2", "orders: was changed"),
        ("macros/late.sql", "later() %} 1", "later() %} 2", "late_macro: was changed"),
        ("macros/plain.sql", "as {{ sql }}", "as from ({{ sql }})", "custom: was changed"),
        pytest.param(
            "macros/alias.sql",
            "{{ return",
            "{# edited #} {{ return",
            "batches: was changed",
            marks=on_microbatch,
        ),
        ("models/inlined.sql", "select id, i", "select id, 1 as i", "stg: was changed"),
        ("tests/few.sql", "100", "5", "few: was changed"),
        (
            "models/models.yml",
            "data_tests: [unique]}]\n  - name: random",
            "data_tests: [unique: {config: {severity: warn}}]}]\n  - name: random",
            "unique_orders_id: was changed",
        ),
        ("seeds/countries.csv", "Ghana", "Nepal", "countries: was changed"),
        ("models/models.yml", "rows: [{id: 1, i: 5}]}]", "rows: [{id: 1, i: 6}]}]", "orders_keep_i: was changed"),
        ("models/off.sql", "enabled=false", "enabled=true", "off: has not run"),
    ],
)
def test_refuses_an_edited_node_that_has_not_run(shop: Shop, file: str, old: str, new: str, reason: str) -> None:
    shop.edit(file, old, new)
    shop.refuses(reason)


def test_refuses_a_contract_type_change_on_the_same_files(shop: Shop) -> None:
    shop.load("one", "VARCHAR")
    shop.refuses("stg: ran before one_raw.raw was last loaded")


def test_refuses_a_table_that_was_dropped_by_hand(shop: Shop) -> None:
    with target().open_working() as connection:
        target().drop(connection, "marts", "by_country")
    shop.refuses("marts.by_country was built, but is not in the database any more")


def test_a_removed_models_table_is_not_published(shop: Shop) -> None:
    (shop.folder / "project" / "models" / "late_macro.sql").unlink()
    shop.publish()
    tables = shop.published("select table_name from duckdb_tables() where schema_name = 'marts' order by 1")
    assert ("late_macro",) not in tables and ("countries",) in tables and ("log",) in tables, "a hook's is kept"


def test_a_deleted_tests_failing_rows_are_not_published(shop: Shop) -> None:
    shop.write("tests/broken.sql", "select * from {{ ref('orders') }}")
    assert not shop.dbt("test", "--select", "broken")
    shop.refuses("broken: failed")
    (shop.folder / "project" / "tests" / "broken.sql").unlink()
    shop.publish()
    assert shop.published("select table_name from duckdb_tables() where schema_name = 'audit'") == []


def test_a_second_source_must_be_tested_too(shop: Shop) -> None:
    shop.deliver("two", "id\n1\n1\n")
    shop.load("two")
    shop.refuses("from_two: ran before two_raw.items was last loaded")
    assert not shop.dbt("build", "--select", "from_two")
    shop.refuses("unique_from_two_id: failed")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("run --select orders --empty", "orders: was changed"),
        ("run --select orders --vars {a:\u00a01}", "orders: was changed"),
        ("test --select random --vars {a:\u00a01}", "not_null_random_r: was changed"),
        ("build --select resource_type:test --empty", "few: was changed"),
        ("build --select source:two --empty", "of_a_source: was changed"),
        pytest.param("run --select batches --sample 1\u00a0day", "batches: was changed", marks=on_microbatch),
        pytest.param(
            "run --select orders --defer --favor-state --state {project}/state",
            "orders: was changed",
            marks=pytest.mark.not_on("bigquery", "snowflake", reason="not tried on their emulators"),
        ),
        ("run --select orders --target other", "orders: was changed"),
        pytest.param(
            "run --select batches --event-time-start 2026-01-01 --event-time-end 2026-02-01",
            "batches: was changed",
            marks=on_microbatch,
        ),
    ],
)
def test_refuses_what_ran_on_a_part_or_elsewhere(shop: Shop, words: str, reason: str) -> None:
    project = shop.folder / "project"
    profiles = yaml.safe_load((project / "profiles.yml").read_text())
    outputs = profiles["analytics"]["outputs"]
    outputs["other"] = outputs[os.environ.get("DBT_TARGET", "duckdb")]
    (project / "profiles.yml").write_text(yaml.safe_dump(profiles))
    assert shop.dbt("parse")  # what was copied names the database that it was copied from
    shutil.copytree(project / "target", project / "state")
    words = words.replace("{project}", str(project))
    assert shop.dbt(*(word.replace("\u00a0", " ") for word in words.split(" ")))
    shop.refuses(reason)


@rebuilt_is_new
def test_a_build_by_hand_changes_nothing_that_is_demanded(shop: Shop) -> None:
    """Dbt adds macros to the manifest that it finds only at run time."""
    assert shop.dbt("seed") and shop.dbt("build", "--exclude", "random", "growing", "history")
    publish("a-run", shop.folder / "project" / "target" / "manifest.json")


def test_refuses_a_test_whose_model_was_rebuilt_while_it_ran(shop: Shop) -> None:
    """As a second command may do on a lake or a server; here the test does it."""
    shop.write(
        "tests/slow.sql",
        """
        {% if execute %}
            {% do run_query("begin transaction; insert into " ~ graph.builds.table(target.database)
                ~ " select version + 1, node, 'another', code, parents, passed, stateful, relation, run_id, recorded_at"
                ~ " from "
                ~ graph.builds.table(target.database) ~ " where node = 'model.analytics.custom'; commit") %}
        {% endif %}
        select * from {{ ref('custom') }} where id < 0
        """,
    )
    assert shop.dbt("test", "--select", "slow")
    shop.refuses("slow: ran before custom was last loaded or built")


def test_a_node_that_names_no_parent_must_run_after_each_load(shop: Shop) -> None:
    shop.write("tests/of_nothing.sql", feature_project.FILES["tests/of_nothing.sql"])
    shop.deliver("one", "id,i\n1,11\n2,20\n")
    shop.load("one")
    assert shop.dbt("build", "--exclude", "constant")
    shop.refuses("constant: ran before one_raw.raw was last loaded", "of_nothing: ran before")
    assert shop.dbt("run", "--select", "constant") and shop.dbt("test", "--select", "of_nothing")
    shop.publish()


def test_a_model_that_moved_leaves_no_table_behind(shop: Shop) -> None:
    shop.edit("models/by_country.sql", "select id", "{{ config(schema='reports') }} select id")
    shop.refuses("by_country: was changed")
    assert shop.dbt("build", "--select", "by_country")
    shop.publish()
    assert shop.published("select schema_name from duckdb_tables() where table_name = 'by_country'") == [("reports",)]


@pytest.mark.not_on("bigquery", reason="its emulator cannot drop a view by its REST API")
def test_failing_rows_stored_as_a_view_are_dropped_when_the_test_passes(shop: Shop) -> None:
    shop.edit(
        "models/models.yml",
        "unique]}]\n  - name: random",
        "unique: {config: {store_failures_as: view}}]}]\n  - name: random",
    )
    shop.edit("models/orders.sql", "select id,", "select 1 as id,")
    assert not shop.dbt("build", "--select", "orders")
    with target().open_working() as connection:
        assert target().relations(connection)["audit", "unique_orders_id"] == "view"
    shop.edit("models/orders.sql", "select 1 as id,", "select id,")
    assert shop.dbt("run", "--select", "orders")  # in PostgreSQL the view goes with the table that it reads
    shop.refuses("unique_orders_id: failed")
    assert shop.dbt("test", "--select", "orders")
    with target().open_working() as connection:
        assert ("audit", "unique_orders_id") not in target().relations(connection)


@pytest.mark.not_on("bigquery", "snowflake", reason="their adapters leave such hooks out: findings")
def test_refuses_a_model_whose_hook_outside_the_transaction_failed(shop: Shop) -> None:
    shop.edit(
        "models/late_macro.sql",
        "select id,",
        "{{ config(post_hook={'sql': 'select 1/0 from nowhere', 'transaction': false}) }} select id,",
    )
    assert not shop.dbt("build", "--select", "late_macro")
    shop.refuses("late_macro: failed")
    shop.edit("models/late_macro.sql", "1/0 from nowhere", "1")
    assert shop.dbt("build", "--select", "late_macro")
    shop.publish()


def test_a_table_that_a_hook_changes_is_tested_again(shop: Shop) -> None:
    shop.edit("models/orders.sql", "select id,", "{{ config(post_hook='update {{ this }} set i = i + 0') }} select id,")
    assert shop.dbt("build", "--select", "orders+", "few")
    shop.publish()
    assert shop.dbt("run", "--select", "orders")
    shop.refuses("unique_orders_id: ran before orders was last loaded or built")


@of_dbt_duckdb
@pytest.mark.parametrize(("library", "frame"), [("pandas", "df"), ("polars", "pl")])
def test_python_models_with_data_frames(shop: Shop, library: str, frame: str) -> None:
    pytest.importorskip(library, reason="an optional part: make setup-dataframes")
    shop.write(
        "models/framed.py",
        f"""
        import {library}

        def model(dbt, session):
            dbt.config(materialized="table")
            found = dbt.ref("orders").{frame}()
            assert isinstance(found, {library}.DataFrame)
            return found
        """,
    )
    shop.refuses("framed: has not run")
    assert shop.dbt("build", "--select", "framed")
    shop.publish()
    assert shop.published("select id, i from marts.framed order by id") == [(1, 10), (2, 20)]
    shop.edit("models/framed.py", "return found", "return found.head(1)")
    shop.refuses("framed: was changed")


PLUGIN = """
import pyarrow
from dbt.adapters.duckdb.plugins import BasePlugin

class Plugin(BasePlugin):
    def load(self, source_config):
        return pyarrow.table({"id": [len(source_config.identifier)]})
"""


@of_dbt_duckdb
def test_sources_of_attached_databases_and_plugins_need_no_load_and_stay(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shop.folder / "other.duckdb"
    with duckdb.connect(str(other)) as connection:
        connection.execute("create table items as select 7 as id")
    shop.write("rows_plugin.py", PLUGIN)
    monkeypatch.syspath_prepend(str(shop.folder / "project"))
    profiles = yaml.safe_load((shop.folder / "project" / "profiles.yml").read_text())
    output = profiles["analytics"]["outputs"][os.environ.get("DBT_TARGET", "duckdb")]
    output.setdefault("attach", []).append({"path": str(other), "alias": "other", "read_only": True})
    output.setdefault("plugins", []).append({"module": "rows_plugin", "alias": "rows"})
    shop.write("profiles.yml", yaml.safe_dump(profiles))
    shop.write(
        "models/outside.yml",
        """
        sources:
          - {name: attached, database: other, schema: main, tables: [{name: items}]}
          - {name: made, schema: marts, tables: [{name: seven_x, config: {meta: {plugin: rows}}}]}
        """,
    )
    for name, source in (("from_attached", "attached', 'items"), ("from_plugin", "made', 'seven_x")):
        shop.write(f"models/{name}.sql", f"select id from {{{{ source('{source}') }}}}")
    shop.refuses("from_attached: has not run", "from_plugin: has not run")
    for _ in range(2):
        assert shop.dbt("build", "--select", "from_attached", "from_plugin")
        shop.publish()
        assert shop.published("select id from marts.from_attached union all from marts.from_plugin order by 1") == [
            (7,),
            (7,),
        ]
    with duckdb.connect(str(other), read_only=True) as connection:
        assert connection.execute("from items").fetchall() == [(7,)]


@of_dbt_duckdb
def test_refuses_a_table_function_and_files_read_by_dbt_like_anything_else(shop: Shop) -> None:
    shop.write(
        "models/above.sql",
        "{{ config(materialized='table_function', parameters=['x']) }} select * from {{ ref('orders') }} where i > x",
    )
    shop.refuses("above: has not run")
    assert shop.dbt("run", "--select", "above")
    shop.publish()


def test_a_project_without_sources_is_published(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in target.new(tmp_path).items():
        monkeypatch.setenv(name, value)
    shop = Shop(tmp_path)
    kept = (
        "dbt_project.yml",
        "profiles.yml",
        "packages.yml",
        "seeds",
        "macros",
        "countries.csv",
        "generate_schema_name.sql",
    )
    for path in sorted((tmp_path / "project").rglob("*"), reverse=True):
        if path.is_file() and path.name not in kept and "dbt_packages" not in path.parts:
            path.unlink()
    shop.write("models/by_country.sql", "select id, country from {{ ref('countries') }}")
    assert shop.dbt("seed")
    shop.refuses("by_country: has not run")
    shop.edit("dbt_project.yml", "data_tests: {+store_failures: true, +schema: audit}\n", "")
    assert shop.dbt("--warn-error", "build")
    shop.publish()
    shop.write("seeds/countries.csv", "id,country\n1,Chile\n3,Nepal\n")
    shop.refuses("countries: was changed")


@pytest.mark.files
def test_published_views_are_read_whatever_the_file_is_attached_as(shop: Shop) -> None:
    shop.write(
        "models/nested.sql",
        "{{ config(materialized='view', schema='staging') }} with two as (select * from {{ ref('orders') }})"
        " select two.id as \"A B\", (select max({{ ref('stg') }}.i) from {{ ref('stg') }}) as most"
        " from two join {{ ref('stg') }} using (id) where two.id in (select id from {{ ref('stg') }})",
    )
    assert shop.dbt("build", "--select", "nested")
    with target().open_working() as connection:  # a view of somebody's that does not work any more
        connection.execute(
            f"create table marts.gone as select 1 as i; create view marts.of_gone as from {NAME}.marts.gone"
        )
        connection.execute("drop table marts.gone")
    release = shop.publish()
    expected = shop.published("from staging.nested order by 1")
    with duckdb.connect() as connection:
        connection.execute(f"attach '{release.location}' as other (read_only)")
        connection.execute("create schema staging; create table staging.stg as select 666 as id, 666 as i")
        assert connection.execute("from other.staging.nested order by 1").fetchall() == expected == [(1, 20), (2, 20)]
        assert connection.execute("from other.staging.stg order by 1").fetchall() == [(1, 10), (2, 20)]
    assert shop.dbt("build", "--exclude", "random", "growing", "history", "constant")
    shop.publish()


def test_source_freshness_and_docs_create_and_drop_no_table(shop: Shop) -> None:
    with target().open_working() as connection:
        before = target().relations(connection)
    shop.edit(
        "models/models.yml",
        "tables: [{name: raw}]",
        "tables: [{name: raw, config: {loaded_at_query: 'select"
        " current_timestamp', freshness: {warn_after: {count: 1, period: day}}}}]",
    )
    assert shop.dbt("source", "freshness")
    if target().name != "bigquery":  # its emulator has none of what dbt's catalog reads
        assert shop.dbt("docs", "generate")
    with target().open_working() as connection:
        assert target().relations(connection) == before


def test_a_red_runs_rows_do_not_survive_in_dbt_snapshots_or_incremental_models(shop: Shop) -> None:
    shop.deliver("one", "id,i\n1,666\n3,30\n3,30\n")
    shop.load("one")
    assert not shop.dbt("build")  # the key is not unique
    shop.refuses("unique_orders_id: failed")

    shop.deliver("one", "id,i\n1,10\n2,20\n3,30\n")
    shop.load("one")
    assert shop.dbt("build")
    shop.publish()
    assert shop.published("select id, i from marts.growing order by all") == [(1, 10), (2, 20), (3, 30)]
    assert shop.published("select id, i from marts.history order by all") == [(1, 10), (2, 20), (3, 30)]
