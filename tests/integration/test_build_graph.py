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

import pytest
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.adapters.factory import reset_adapters
from dbt.cli.main import dbtRunner

from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.load import load
from include.runs import build_graph
from include.warehouse.builds import recorded
from include.warehouse.errors import NotReadyError
from include.warehouse.targets import target
from include.warehouse.targets.base import Release
from testing.targets import Target

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]

# One minimal node of each kind that publish checks, with the project's own macros and profile.
FILES = {
    "dbt_project.yml": """
        name: analytics
        profile: analytics
        flags: {send_anonymous_usage_stats: false}
        on-run-start: "{{ create_builds() }}"
        on-run-end: "{{ record_tests(results) }}"
        models: {+post-hook: "{{ record_build() }}", +schema: marts, +materialized: table}
        seeds: {+post-hook: "{{ record_build() }}", +schema: marts}
        snapshots: {+post-hook: "{{ record_build() }}"}
        data_tests: {+store_failures: true, +schema: audit}
        """,
    "seeds/countries.csv": "id,country\n1,Chile\n2,Ghana\n",
    "macros/factor.sql": "{% macro factor() %} 1 {% endmacro %}",
    "models/inlined.sql": "{{ config(materialized='ephemeral') }} select id, i from {{ source('one', 'raw') }}",
    "models/stg.sql": "{{ config(materialized='view', schema='staging') }} select id, i from {{ ref('inlined') }}",
    "models/orders.sql": "select id, i * {{ factor() }} as i from {{ ref('stg') }}",
    "models/by_country.sql": "select id, country from {{ ref('countries') }}",
    "models/random.sql": "select id, random() as r from {{ ref('stg') }}",
    "models/growing.sql": "{{ config(materialized='incremental') }} select id, i from {{ ref('stg') }}"
    " {% if is_incremental() %} where id > (select max(id) from {{ this }}) {% endif %}",
    "models/from_two.sql": "select id from {{ source('two', 'items') }}",
    "models/off.sql": "{{ config(enabled=false) }} select 1 as id",
    "snapshots/history.yml": """
        snapshots:
          - name: history
            relation: ref('stg')
            config: {schema: marts, unique_key: id, strategy: check, check_cols: [i]}
        """,
    "models/models.yml": """
        sources:
          - {name: one, schema: one_raw, tables: [{name: raw}]}
          - {name: two, schema: two_raw, tables: [{name: items}]}
        models:
          - name: orders
            columns: [{name: id, data_tests: [unique]}]
          - name: random
            columns: [{name: r, data_tests: [not_null]}]
          - name: growing
            columns: [{name: id, data_tests: [not_null]}]
          - name: from_two
            columns: [{name: id, data_tests: [unique]}]
        unit_tests:
          - name: orders_keep_i
            model: orders
            given: [{input: ref('stg'), rows: [{id: 1, i: 5}]}]
            expect: {rows: [{id: 1, i: 5}]}
        """,
    "tests/few.sql": "{{ config(severity='warn') }} select * from {{ ref('orders') }} where i > 100",
}


class Shop:
    """A dbt project with two sources and a warehouse, driven by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in FILES.items():
            self.write(name, text)
        for name in ("profiles.yml", "macros/build_graph.sql", "macros/generate_schema_name.sql"):
            shutil.copy(ROOT / "include" / "dbt_project" / name, folder / "project" / name)
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
            env=os.environ | {"DO_NOT_TRACK": "1", "DBT_LOG_LEVEL_FILE": "debug"},
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
        return build_graph.publish("a-run", self.folder / "project" / "target" / "manifest.json")

    def refuses(self, *reasons: str) -> None:
        with pytest.raises(NotReadyError) as refused:
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
        shop = Shop(folder)
        shop.load("one")
        shop.load("two")
        assert shop.dbt("build")
        shop.publish()
    return Built(folder, variables)


@pytest.fixture
def shop(built: Built, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Return a copy of `built`, all current."""
    shutil.copytree(built.folder, tmp_path, dirs_exist_ok=True)
    for name, value in target.copy(built.warehouse, tmp_path).items():
        monkeypatch.setenv(name, value)
    shop = Shop.__new__(Shop)
    shop.folder = tmp_path
    return shop


def test_a_current_database_is_republished_despite_warning_disabled_and_ephemeral_nodes(shop: Shop) -> None:
    assert shop.publish().published


def test_manifest_digests_match_those_dbt_records(shop: Shop) -> None:
    """The digest is implemented twice, in Jinja and in Python: they agree for every kind of node."""
    manifest = json.loads((shop.folder / "project" / "target" / "manifest.json").read_text())
    nodes = build_graph.BuildGraph(manifest).nodes
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
    shop.write("models/slow.sql", "-- depends_on: {{ ref('orders') }}\nselect count(*) as n from range(100000000000)")
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
        target().drop_table(connection, "marts", "by_country")
    shop.refuses("marts.by_country was built, but is not in the database any more")


def test_a_removed_models_table_is_not_published(shop: Shop) -> None:
    (shop.folder / "project" / "models" / "by_country.sql").unlink()
    shop.publish()
    tables = shop.published("select table_name from duckdb_tables() where schema_name = 'marts' order by 1")
    assert tables == [("countries",), ("from_two",), ("growing",), ("history",), ("orders",), ("random",)]


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


@pytest.mark.parametrize("words", [("--empty",), ("--vars", "{a: 1}")])
def test_refuses_a_model_built_empty_or_with_command_line_vars(shop: Shop, words: tuple[str, ...]) -> None:
    assert shop.dbt("run", "--select", "orders", *words)
    shop.refuses("orders: was changed since it last ran")


def test_source_freshness_and_docs_create_and_drop_no_table(shop: Shop) -> None:
    with target().open_working() as connection:
        before = connection.execute("select schema_name, table_name from duckdb_tables() order by all").fetchall()
    shop.edit(
        "models/models.yml",
        "tables: [{name: raw}]",
        "tables: [{name: raw, config: {loaded_at_query: 'select"
        " now()', freshness: {warn_after: {count: 1, period: day}}}}]",
    )
    assert shop.dbt("source", "freshness")
    assert shop.dbt("docs", "generate")
    with target().open_working() as connection:
        assert (
            connection.execute("select schema_name, table_name from duckdb_tables() order by all").fetchall() == before
        )


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
