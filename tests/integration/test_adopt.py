"""`make adopt` and `make remove-sample`: a project with what real ones have, in a checkout of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import yaml

from scripts import adopt
from testing.project import PROJECT, Copy

pytestmark = pytest.mark.integration

FILES = {
    "dbt_project.yml": """name: shop
profile: my_shop # of this project
target-path: build
model-paths: [transformations]
on-run-start: "create table if not exists {{ target.schema }}.hook_log (i integer)"
vars: {currency: EUR}
models:
  +post-hook: "{{ record_build() }}"
  shop:
    staging: {+materialized: view, +schema: clean}
    mart: {+materialized: table, +group: finance}
seeds: {shop: {+schema: raw}}
tests:
  +severity: warn
""",
    "profiles.yml": "my_shop: {outputs: {dev: {type: duckdb, path: shop.duckdb, extensions: [icu]}}}\n",
    "packages.yml": "packages: # ours\n- local: vendored/cents\n",
    "vendored/cents/dbt_project.yml": "name: cents\n",
    "vendored/cents/macros/cents.sql": "{% macro euros(of) %} ({{ of }} / 100) {% endmacro %}",
    # A name that the pipeline's own package has, too.
    "macros/record_build.sql": "{% macro record_build() %} select 1 {% endmacro %}",
    "macros/generate_schema_name.sql": """{% macro generate_schema_name(custom_schema_name, node) %}
        {{ ('s_' ~ custom_schema_name) if custom_schema_name else target.schema }}{% endmacro %}""",
    "seeds/orders.csv": "id,cents\n1,150\n2,275\n",
    "data/rates.csv": "currency,rate\nEUR,2\n",
    "transformations/shop.yml": """
groups: [{name: finance, owner: {name: Finance}}]
sources:
  - {name: raw, schema: s_raw, tables: [{name: orders, columns: [{name: id, data_tests: [unique]}]}]}
  - {name: files, tables: [{name: rates, config: {meta: {external_location: data/rates.csv}}}]}
  - {name: crm, schema: crm, tables: [{name: people}]}
models:
  - name: sales
    config: {access: private}
    description: "{{ doc('dlt_load_id') }}"
    columns: [{name: id, data_tests: [unique, {not_null: {config: {severity: error}}}]}]
unit_tests:
  - name: cents_are_euros
    model: clean_orders
    given: [{input: "source('raw', 'orders')", rows: [{id: 1, cents: 250}]}]
    expect: {rows: [{id: 1, amount: 2.5}]}
snapshots:
  - {name: kept, relation: ref('clean_orders'), config: {unique_key: id, strategy: check, check_cols: [amount]}}
""",
    "transformations/docs.md": "{% docs dlt_load_id %} Ours. {% enddocs %}",
    "transformations/staging/clean_orders.sql": "select id, {{ cents.euros('cents') }} as amount"
    " from {{ source('raw', 'orders') }}",
    "transformations/mart/sales.sql": "select id, amount * rate as amount from {{ ref('clean_orders') }}"
    " cross join {{ source('files', 'rates') }} where currency = '{{ var(\"currency\") }}'",
    ".dbtignore": "drafts/\n",
    "transformations/drafts/new.sql": "select from {{ nowhere",
    "README.md": "Not dbt's.",
    ".env": "SECRET=1",
}

# Packages with the features of dbt-utils, dbt-expectations and elementary: macros by adapter, tests of several models,
# hooks that fill the package's own models, tests that make tables, a model of a name that the project has; and names,
# folders and kinds of nodes of all sorts.
BAKERY = Path(__file__).with_name("adopted")
BAKERYS_TASKS = {
    "load",
    "source_freshness",
    "publish",
    *(f"transform.{name}.{kind}" for name in ("by_shop", "by_day_v1", "by_day_v2") for kind in ("run", "test")),
    *(f"transform.{name}.{kind}" for name in ("sales_cleaned", "results", "helpers__days") for kind in ("run", "test")),
    *(f"transform.shops.{kind}" for kind in ("seed", "test")),
    *("transform.between_run", "transform.days_run", "transform.failures_run", "transform.größte_verkäufe_run"),
    *("transform.sales_seed", "transform.shops_then_snapshot", "transform.by_shop_test"),
    *("transform.helpers_same_number_of_rows_by_shop_ref_shops__test",),
    *("transform.relationships_by_shop_shop__shop__ref_shops__test",),
}
# What hooks and tests write, which depends on how many commands there were, and when.
BY_HOOKS = {("main", "starts"), ("main_watcher_tests", "n_results"), ("watched", "results")}


def write(folder: Path, **changed: str) -> Path:
    for name, text in (FILES | changed).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    return subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True, text=True).stdout


def commit_all(root: Path) -> Path:
    """Copy the files of this checkout to a new one, and commit them."""
    names = subprocess.run(["git", "ls-files"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if not name.startswith(("tests/data", "benchmarks/", "docs/images/")) and (PROJECT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, root / name)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "All of it")
    return root


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commit_all(tmp_path_factory.mktemp("original") / "checkout")


@pytest.fixture
def checkout(original: Path, tmp_path: Path) -> Copy:
    copy = Copy.__new__(Copy)
    copy.root = tmp_path / "checkout"
    shutil.copytree(original, copy.root)
    copy.env = {k: v for k, v in os.environ.items() if not re.match("AIRFLOW|WAREHOUSE|SOURCES__|DBT_|DLT_|MAKE", k)}
    copy.env |= {"PYTHONPATH": str(copy.root), "DO_NOT_TRACK": "1", "WAREHOUSE_DIR": str(copy.root / "data")}
    copy.env |= {"WAREHOUSE_NAME": "jaffle_shop", "WAREHOUSE_TIMEZONE": "UTC"}
    copy.env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return copy


def run_adopt(checkout: Copy, project: Path | str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "scripts/adopt.py", str(project)]
    return subprocess.run(command, cwd=checkout.root, env=checkout.env, capture_output=True, text=True)


def refused(checkout: Copy, project: Path | str) -> str:
    """Return why a project is refused; nothing may change."""
    before = status(checkout)
    done = run_adopt(checkout, project)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert status(checkout) == before
    return done.stderr


def status(checkout: Copy) -> list[str]:
    found = git(checkout.root, "status", "--porcelain", "--ignored").splitlines()
    return [line for line in found if "__pycache__" not in line]


@pytest.mark.long
def test_a_project_with_what_real_ones_have_is_adopted_built_and_published(checkout: Copy, tmp_path: Path) -> None:
    project = write(tmp_path / "theirs")
    said = checkout.run(f"{sys.executable} scripts/adopt.py {project}")
    assert "shop from" in said and "1 seed" in said and "1 snapshot" in said and "1 unit test" in said
    assert "profiles.yml, dev: extensions" in said
    (crm,) = [line for line in said.splitlines() if "source" in line]
    assert "source crm (schema crm; people): nothing loads it" in crm
    assert not any((checkout.root / name).exists() for name in adopt.SAMPLE)
    assert not checkout.file("include/dbt_project/.env").exists()
    assert not checkout.file("include/dbt_project/README.md").exists()
    kept = [path.name for path in checkout.file("include").iterdir()]
    assert not [name for name in kept if name.startswith(".")]
    assert git(checkout.root, "diff", "--stat", "HEAD", "--", "plugins", "tests") == ""
    assert checkout.setting("MARTS_SCHEMA") == "main"

    checkout.run(f"{sys.executable} -m include.runs.manifest")
    tasks = checkout.dags()["jaffle_shop"]
    assert {"load", "transform.orders_seed", "transform.sales.run", "transform.sales.test", "publish"} <= tasks, tasks
    assert "transform.clean_orders.test" in tasks, "of a unit test"
    checkout.run("dbt --quiet seed && dbt --quiet build", "include/dbt_project")
    checkout.run(f"{sys.executable} -m include.runs publish first")
    path = "data/published/jaffle_shop.duckdb"
    assert checkout.published(path, "from main.sales order by id") == [(1, 3.0), (2, 5.5)]
    found = checkout.published(path, "select table_schema, table_name from information_schema.tables order by all")
    expected = {("s_raw", "orders"), ("s_clean", "clean_orders"), ("main", "kept"), ("main", "hook_log")}
    assert expected <= set(found)

    git(checkout.root, "add", "-A")
    git(checkout.root, "commit", "-qm", "Adopted")
    assert "files that are not the sample's" in refused(checkout, project)


def rows(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], tuple[list[object], list[str]]]:
    """The columns and rows of each table and view, but for the pipeline's own and those of hooks."""
    found = {}
    tables = connection.execute("select table_schema, table_name from information_schema.tables").fetchall()
    for schema, name in {*tables} - BY_HOOKS:
        if schema != "warehouse":
            columns = connection.execute(f'describe "{schema}"."{name}"').fetchall()
            columns = [column for column in columns if not column[0].startswith("dbt_")]  # times of a dbt snapshot
            listed = ", ".join(f'"{column[0]}"' for column in columns)
            values = connection.execute(f'select {listed} from "{schema}"."{name}"').fetchall()
            found[schema, name] = (columns, sorted(map(repr, values)))
    return found


def build_plainly(project: Path) -> dict[tuple[str, str], tuple[list[object], list[str]]]:
    """Run plain dbt in a project, with its own profile; return its `rows`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DBT_", "PYTHONPATH"))}
    for command in ("deps", "build"):
        dbt = [str(Path(sys.executable).with_name("dbt")), "--quiet", command]
        subprocess.run(dbt, cwd=project, env=env | {"DO_NOT_TRACK": "1", "TZ": "UTC"}, check=True)
    with duckdb.connect(str(project / "bakery.duckdb"), read_only=True) as connection:
        return rows(connection)


@pytest.mark.long
def test_what_is_published_is_what_plain_dbt_builds_also_with_packages_hooks_and_odd_names(
    checkout: Copy, tmp_path: Path
) -> None:
    project = Path(shutil.copytree(BAKERY, tmp_path / "bakery"))
    said = checkout.run(f"{sys.executable} scripts/adopt.py {project}")
    assert "the rows that fail data_tests are not stored, as two tests would have the same table" in said
    assert checkout.dags()["jaffle_shop"] == BAKERYS_TASKS
    checkout.run("dbt --write-json --quiet build", "include/dbt_project")
    checkout.run(f"{sys.executable} -m include.runs publish first")
    expected = build_plainly(project)
    assert len(expected) == 12
    with duckdb.connect(str(checkout.file("data/published/jaffle_shop.duckdb")), read_only=True) as connection:
        assert rows(connection) == expected
        assert connection.execute("select count(*) from main.starts").fetchall() == [(2,)], "a hook's table"
        assert connection.execute("select count(*) > 10 from watched.results").fetchall() == [(True,)]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"packages.yml": "packages: [{local: ../other}]"}, "the package ../other is outside of the project"),
        (
            {"dbt_project.yml": "name: shop\nmodel-paths: [models, ../shared]\n"},
            "../shared in model-paths is outside of the project",
        ),
        ({"dbt_project.yml": "name: [shop"}, "dbt_project.yml cannot be read as YAML"),
        ({"dbt_project.yml": "name: warehouse\nprofile: a\n"}, "The project's name is warehouse"),
        ({"transformations/mart/sales.sql": "select * from {{ ref('nothing') }}"}, "which was not found"),
    ],
)
def test_a_project_that_cannot_be_taken_over_changes_nothing(
    checkout: Copy, tmp_path: Path, changed: dict[str, str], reason: str
) -> None:
    assert reason in refused(checkout, write(tmp_path / "theirs", **changed))


def test_what_could_be_lost_is_refused(checkout: Copy, tmp_path: Path) -> None:
    project = write(tmp_path / "theirs")
    assert "has no dbt_project.yml" in refused(checkout, tmp_path)
    assert "within this checkout" in refused(checkout, checkout.file("include/dbt_project"))
    checkout.write("include/dbt_project/models/mine.sql", "select 1 as i")
    assert "not committed: include/dbt_project/models/mine.sql" in refused(checkout, project)
    git(checkout.root, "add", "-A")
    git(checkout.root, "commit", "-qm", "Mine")
    assert "not the sample's: models/mine.sql" in refused(checkout, project)
    shutil.rmtree(checkout.file(".git"))
    assert "is no git checkout" in run_adopt(checkout, project).stderr


def test_a_failure_in_the_middle_puts_everything_back(checkout: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "ROOT", checkout.root)
    monkeypatch.setattr(adopt, "DBT_PROJECT", checkout.file("include/dbt_project"))

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(adopt, "_remove_from_dag", fail)
    with pytest.raises(OSError, match="No space left"):
        adopt.remove_sample()
    assert git(checkout.root, "status", "--porcelain") == ""


@pytest.mark.long
def test_without_the_sample_everything_else_is_there(checkout: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.edit("dags/jaffle_shop.py", '("jaffle_shop",)', '("jaffle_shop", "stores")')
    git(checkout.root, "commit", "-qam", "A second source")
    checkout.run(f"{sys.executable} scripts/adopt.py --remove-sample")
    assert not any((checkout.root / name).exists() for name in adopt.SAMPLE)
    assert 'SOURCES = ("stores",)' in checkout.file("dags/jaffle_shop.py").read_text()
    checkout.edit("dags/jaffle_shop.py", '("stores",)', "()")
    uuids = {yaml.safe_load(path.read_text())["uuid"] for path in checkout.file("bi/assets").rglob("datasets/*/*.yaml")}
    charts = [yaml.safe_load(path.read_text()) for path in checkout.file("bi/assets/charts").glob("*.yaml")]
    assert charts and {chart["dataset_uuid"] for chart in charts} <= uuids
    checkout.write("include/dbt_project/models/marts/one.sql", "select 1 as i")
    checkout.run("dbt --quiet deps && python -m include.runs.manifest && dbt --quiet build", "include/dbt_project")
    assert "transform.one_run" in checkout.dags()["jaffle_shop"]
    checkout.run(f"{sys.executable} -m include.runs publish first")
    assert checkout.published("data/published/jaffle_shop.duckdb", "from marts.one") == [(1,)]
