"""`make new-source`: what it proposes for odd files, and that it never overwrites anything."""

import shutil
import subprocess
from pathlib import Path

import duckdb
import pytest
import yaml
from jinja2 import Environment

from include.dlt_pipelines.file_source import FileSource, TableContract
from include.errors import PipelineError
from scripts import new_source

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
ODD = """Store ID,order,year,isOpen,no,Full Name,zip,9 lives,price,ratio,seen
1,a,NA,true,5,Ann,01234,1,1.50,1.5,2026-01-01T10:00:00Z
1,"b,c",1999,false,6,Bo,22222,1,2.25,-0.125,2026-01-01T11:00:00+02:00
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with nothing but the folders that are written to."""
    root = tmp_path / "project"
    for folder in ("include/dlt_pipelines", "include/dbt_project/models/staging", "include/data", "dags"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "dags" / "jaffle_shop.py", root / "dags")
    monkeypatch.setattr(new_source, "ROOT", root)
    monkeypatch.setattr(new_source, "PIPELINES", root / "include/dlt_pipelines")
    monkeypatch.setattr(new_source, "STAGING", root / "include/dbt_project/models/staging")
    monkeypatch.setattr(new_source, "DATA", root / "include/data")
    return root


def deliver(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_types_keys_and_names_of_an_odd_file(tmp_path: Path) -> None:
    found = new_source.sniff(deliver(tmp_path, "raw_odd_ones.csv", ODD))
    assert dict(found.contract.columns) == {
        "Store ID": "BIGINT",
        "order": "VARCHAR",
        "year": "VARCHAR",
        "isOpen": "BOOLEAN",
        "no": "BIGINT",
        "Full Name": "VARCHAR",
        "zip": "VARCHAR",  # a number would lose its zero
        "9 lives": "BIGINT",
        "price": "DECIMAL(18,2)",
        "ratio": "DOUBLE",
        "seen": "TIMESTAMP WITH TIME ZONE",
    }
    assert found.key == ("no",)
    sql = new_source.model_sql("shop", found)
    for line in (
        '"Store ID" as store_id,',
        '"order" as odd_one_order,',
        "cast(nullif(year, 'NA') as bigint) as odd_one_year,",
        "isopen as is_open,",
        '"9 lives" as odd_one_9_lives,',
    ):
        assert f"        {line}\n" in sql
    described = yaml.safe_load(new_source.source_file("shop", [found]))["sources"][0]["tables"][0]["columns"]
    assert described[5]["name"] == "Full Name"
    assert described[5]["config"] == {"meta": {"contains_pii": True}}


def test_two_columns_can_be_the_key_and_none_is_said(tmp_path: Path) -> None:
    pair = deliver(tmp_path, "supplies.csv", "id,sku,n\nS1,J1,1\nS1,J2,1\nS2,J1,1\n")
    assert new_source.sniff(pair).key == ("id", "sku")
    assert "column_name: (supply_id, sku)\n" in new_source.model_yaml("stg_supplies", new_source.sniff(pair))
    assert new_source.sniff(deliver(tmp_path, "twice.csv", "a,b\n1,1\n1,1\n")).key == ()


def test_a_number_with_more_digits_than_a_double_holds_stays_text_and_is_cast_in_the_model(tmp_path: Path) -> None:
    found = new_source.sniff(deliver(tmp_path, "spots.csv", "id,lat\n1,-80.61958329999999123\n2,1.5\n"))
    assert found.contract.columns["lat"] == "VARCHAR"
    assert "cast(lat as double) as lat" in new_source.model_sql("spots", found)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("Stores 2024.csv", "id\n1\n", "a table is named after its file"),
        ("stores.txt", "id\n1\n", "a table is named after its file"),
        ("stores.csv", "id;name\n1;a\n2;b\n", "values are separated by ';'"),
        ("stores.csv", "", "the file is empty"),
        ("stores.csv", None, "no such file"),
    ],
)
def test_a_file_that_cannot_become_a_table_is_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / name if text is None else deliver(tmp_path, name, text)
    with pytest.raises(PipelineError, match=message):
        new_source.add("stores", [path])
    assert not [one for one in new_source.ROOT.rglob("*") if "store" in one.name]


def test_nothing_is_overwritten(tmp_path: Path, project: Path) -> None:
    path = deliver(tmp_path, "stores.csv", "id,name\n1,Accra\n")
    mine = deliver(project / "include/dbt_project/models/staging", "stores.yml", "mine")
    with pytest.raises(PipelineError, match=r"models/staging/stores\.yml exists, and nothing is overwritten"):
        new_source.add("stores", [path])
    assert mine.read_text() == "mine"
    assert not list((project / "include/dlt_pipelines").iterdir())
    mine.unlink()
    deliver(project / "include/dbt_project/models", "stg_stores.sql", "select 1")
    new_source.add("stores", [path])
    assert (project / "include/dbt_project/models/staging/stg_stores__stores.sql").exists(), "another model's name"
    assert 'SOURCES = ("jaffle_shop", "stores")' in (project / "dags" / "jaffle_shop.py").read_text()


def test_files_within_the_project_stay_where_they_are(project: Path) -> None:
    path = deliver(project / "include" / "data", "stores.csv", "id,name\n1,Accra\n")
    new_source.add("stores", [path])
    assert 'folder="include/data",' in (project / "include/dlt_pipelines/stores_pipeline.py").read_text()
    assert not (project / "include/data/stores").exists()


def test_a_changed_file_shows_how_it_differs_from_the_contract(tmp_path: Path) -> None:
    columns = {"id": "BIGINT", "name": "VARCHAR", "opened_at": "DATE", "size": "BIGINT"}
    source = FileSource("stores", "stores", (TableContract("stores", columns, ("id",)),))
    fits = deliver(tmp_path, "stores.csv", "id,name,opened_at,size\n1,a,2026-01-01,5\n")
    assert new_source.compare(source, [fits]) == ["stores: as its contract says."]
    text = "id,name,opened_at,region\n1,a,2026-01-01,x\n1,b,soon,y\n"
    assert new_source.compare(source, [deliver(tmp_path, "stores.csv", text)]) == [
        'stores: region: new; propose "VARCHAR"',
        "stores: size: missing in the file",
        'stores: opened_at: 1 rows are not a valid DATE, the first in line 3; propose "VARCHAR"',
        "stores: key (id): not unique or not filled in this file",
    ]


def test_a_large_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "readings.csv"
    with duckdb.connect() as connection:
        query = "select i as id, case when i < 299999 then '1' else 'off' end as value from range(300000) t(i)"
        connection.execute(f"copy ({query}) to '{path}'")
    assert new_source.sniff(path).contract.columns["value"] == "VARCHAR"


ODD_NAMES = [
    'a "real" amount',
    "it's",
    "geo\\TIME",
    "two\nlines",
    "{{ 1 + 1 }}",
    "{% if x %}{# c #}",
    "{{{",
    '"""',
    "yes",
    "# 1: &x *y",
    "\u2028é",
]


def test_a_header_is_data_in_python_yaml_jinja_and_sql(tmp_path: Path, project: Path) -> None:
    path = tmp_path / "odd.csv"
    header = ",".join('"' + name.replace('"', '""').replace("\n", " ") + '"' for name in ODD_NAMES)
    path.write_text(f"{header}\n{','.join(str(number) for number in range(len(ODD_NAMES)))}\n")
    names = [name.replace("\n", " ") for name in ODD_NAMES]
    new_source.add("odd", [path])

    declared: dict[str, FileSource] = {}
    exec((project / "include/dlt_pipelines/odd_pipeline.py").read_text(), declared)
    (table,) = declared["SOURCE"].tables
    assert list(table.columns) == names

    (source,) = yaml.safe_load((project / "include/dbt_project/models/staging/odd.yml").read_text())["sources"]
    columns = source["tables"][0]["columns"]
    doc = {"doc": lambda name: name}
    rendered = [Environment().from_string(one["name"]).render(doc) for one in columns]
    assert rendered == [*names, "_dlt_load_id"]
    assert all(isinstance(one["name"], str) for one in columns)
    assert Environment().from_string(columns[4]["description"]).render() == "As delivered in `{{ 1 + 1 }}`."

    model = (project / "include/dbt_project/models/staging/stg_odd.sql").read_text()
    sql = Environment().from_string(model).render(source=lambda *_: "odd")
    with duckdb.connect() as connection:
        connection.execute(f"create table odd as select * from read_csv('{path}', header=true, quote='\"')")
        assert connection.execute(sql).fetchall() == [tuple(range(len(ODD_NAMES)))]


@pytest.mark.parametrize("name", ['Shop\'s "new" stores', "a  b", "$HOME $(id) `id`", "*"])
def test_a_path_goes_through_make_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    command = ["make", "new-source", f"CSV={tmp_path / name}", "NAME=odd"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"error: {tmp_path / name}: ")


def test_several_files_are_given_as_to_a_shell(tmp_path: Path) -> None:
    for name in ("a b.csv", "o2.csv", "o1.csv"):
        (tmp_path / name).touch()
    several = f"'{tmp_path}/a b.csv' {tmp_path}/o*.csv {tmp_path}/none.csv"
    assert [one.name for one in new_source._paths(several)] == ["a b.csv", "o1.csv", "o2.csv", "none.csv"]
