"""`make new-source`: what it proposes for odd files, and that it never overwrites anything."""

import shutil
import subprocess
from pathlib import Path

import duckdb
import pytest
import yaml
from jinja2 import Environment

from include.dlt_pipelines.file_source import FileSource, TableContract
from include.dlt_pipelines.propose import Table, add, compare, preview, propose
from include.dlt_pipelines.propose.write import model_sql, model_yaml, source_file
from include.errors import PipelineError
from scripts import new_source

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
STAGING = "include/dbt_project/models/staging"
ODD = """Store ID,order,year,isOpen,no,Full Name,zip,9 lives,price,ratio,seen,mood
1,a,NA,true,5,Ann,01234,1,1.50,1.5,2026-01-01T10:00:00Z,good
1,"b,c",1999,false,6,Bo,22222,1,2.25,-0.125,2026-01-01T11:00:00+02:00,good
1,d,1999,false,7,Cy,22222,1,2.25,0.5,2026-01-01T11:00:00+02:00,bad
1,e,1999,true,8,Di,22222,1,2.25,0.5,2026-01-01T11:00:00+02:00,bad
1,f,2001,true,9,Ed,22222,1,2.25,0.5,,bad
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with nothing but the folders that are written to."""
    root = tmp_path / "project"
    for folder in ("include/dlt_pipelines", STAGING, "include/data", "dags"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "dags" / "jaffle_shop.py", root / "dags")
    return root


def deliver(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def proposed(path: Path) -> Table:
    (table,) = propose([path])
    return table


def test_types_names_and_descriptions_of_an_odd_file(tmp_path: Path) -> None:
    found = proposed(deliver(tmp_path, "raw_odd_ones.csv", ODD))
    assert dict(found.contract.columns) == {
        "Store ID": "BIGINT",
        "order": "VARCHAR",
        "year": "BIGINT",
        "isOpen": "BOOLEAN",
        "no": "BIGINT",
        "Full Name": "VARCHAR",
        "zip": "VARCHAR",  # a number would lose its zero
        "9 lives": "BIGINT",
        "price": "DECIMAL(18,2)",
        "ratio": "DOUBLE",
        "seen": "TIMESTAMP WITH TIME ZONE",
        "mood": "VARCHAR",
    }
    assert found.contract.dialect.columns == {"year": {"null_values": ("NA",)}}
    sql = model_sql("shop", found)
    for line in ('"Store ID" as store_id,', '"order" as odd_one_order,', "year,", "isopen as is_open,"):
        assert f"        {line}\n" in sql
    described = yaml.safe_load(source_file("shop", [found]))["sources"][0]["tables"][0]["columns"]
    texts = {one["name"]: one["description"] for one in described}
    assert texts["year"] == "As delivered in `year`: whole numbers from 1999 to 2001; 20 % are NULL."
    assert texts["zip"] == "As delivered in `zip`: text such as `22222`, `01234`."
    assert texts["seen"].endswith("; 20 % are NULL.")
    assert texts["Full Name"] == "As delivered in `Full Name`: personal data."
    assert described[5]["config"] == {"meta": {"contains_pii": True}}


def test_a_short_list_of_values_is_expected_but_a_new_one_only_warns(tmp_path: Path) -> None:
    text = "id,mood,name\n" + "".join(f"{at},{'good' if at % 3 else 'bad'},n{at}\n" for at in range(30))
    found = proposed(deliver(tmp_path, "people.csv", text))
    columns = yaml.safe_load(model_yaml(found, {"people": "stg_people"}, [found]))["models"][0]["columns"]
    assert [one.get("data_tests") for one in columns] == [
        ["unique", "not_null"],
        [{"accepted_values": {"arguments": {"values": ["good", "bad"]}, "config": {"severity": "warn"}}}],
        None,
    ]


def test_files_that_come_together_are_tested_for_their_relationships(tmp_path: Path, project: Path) -> None:
    stores = deliver(tmp_path, "stores.csv", "id,name\n" + "".join(f"{at},n{at}\n" for at in range(9)))
    sales = deliver(tmp_path, "sales.csv", "id,store_id\n" + "".join(f"{at},{at % 9}\n" for at in range(99)))
    add("shop", propose([stores, sales]), project)
    model = yaml.safe_load((project / STAGING / "stg_sales.yml").read_text())["models"][0]
    assert model["columns"][1]["data_tests"] == [
        {"relationships": {"arguments": {"to": "ref('stg_stores')", "field": "store_id"}}}
    ]


def test_two_columns_can_be_the_key(tmp_path: Path) -> None:
    text = "id,sku,n\n" + "".join(f"S{at // 5},J{at % 5},1\n" for at in range(50))
    found = proposed(deliver(tmp_path, "supplies.csv", text))
    assert found.contract.primary_key == ("id", "sku")
    assert "column_name: (supply_id, sku)\n" in model_yaml(found, {"supplies": "stg_supplies"}, [found])
    assert "  key: id, sku" in preview([found])


def test_a_number_with_more_digits_than_a_double_holds_stays_text_and_is_cast_in_the_model(tmp_path: Path) -> None:
    found = proposed(deliver(tmp_path, "spots.csv", "id,lat\n1,-80.61958329999999123\n2,1.5\n"))
    assert found.contract.columns["lat"] == "VARCHAR"
    sql = model_sql("spots", found)
    assert "        -- text, as not each value is exactly a DOUBLE\n        cast(lat as double) as lat\n" in sql


def test_rows_that_cannot_be_read_are_shown_and_do_not_block(tmp_path: Path) -> None:
    rows = [f"{at},n{at}" for at in range(100)]
    rows[41] = "41,n,41"
    found = proposed(deliver(tmp_path, "stores.csv", "\n".join(["id,name", *rows]) + "\n"))
    assert (found.rows, found.rejected, list(found.contract.columns.values())) == (99, 1, ["BIGINT", "VARCHAR"])
    assert "    line 43: 3 values, 2 expected" in preview([found])
    for at in range(50, 60):
        rows[at] = "1,2,3"
    with pytest.raises(PipelineError, match="11 of 100 lines cannot be read") as raised:
        proposed(deliver(tmp_path, "stores.csv", "\n".join(["id,name", *rows]) + "\n"))
    assert "\n  line 43: 3 values, 2 expected\n  line 52: " in str(raised.value)


def test_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    lines = preview([proposed(deliver(tmp_path, "stores.csv", "id,na\x1b[31mme\n1,\x1b]0;x\x07\n2,b\n"))])
    assert all(line.isprintable() for line in lines)
    assert any("na\\x1b[31mme" in line for line in lines)


def test_a_text_that_may_mean_null_is_kept_and_said(tmp_path: Path) -> None:
    found = proposed(deliver(tmp_path, "lands.csv", "land,size\nNA,1\nDE,NA\nFR,3\n"))
    assert found.contract.dialect.columns == {"size": {"null_values": ("NA",)}}
    assert [row[0] for row in found.preview] == ["NA", "DE", "FR"]
    assert "  check: 'NA' stays a text in land: if it means NULL there too, declare it in null_values" in preview(
        [found]
    )


def test_whether_there_is_a_header_can_be_said(tmp_path: Path) -> None:
    path = deliver(tmp_path, "words.csv", "north,red\nsouth,blue\nwest,green\n")
    assert proposed(path).rows == 2
    assert any("HEADER=no" in line for line in preview([proposed(path)]))
    (table,) = propose([path], header=False)
    assert (table.rows, list(table.contract.columns)) == (3, ["column_1", "column_2"])
    # Two of its names are values, too, and two are equal.
    doubtful = deliver(tmp_path, "doubtful.csv", "a,b,c,,\na,,,,\n,,c,\n,,,,\n")
    with pytest.raises(PipelineError, match="may be the header or a row: say HEADER=yes or HEADER=no"):
        propose([doubtful])
    assert propose([doubtful], header=True)[0].rows == 3
    (table,) = propose([path], header=new_source.find_header("words: place, colour; others: id"))
    assert (table.rows, list(table.contract.columns)) == (3, ["place", "colour"])
    with pytest.raises(PipelineError, match="has 2 columns, but HEADER= gives 1 names"):
        propose([path], header={"words": ["place"]})
    with pytest.raises(PipelineError, match="give yes, no, or names"):
        new_source.find_header("maybe")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("stores.csv", "", "the file is empty"),
        ("stores.csv", None, "no such file"),
        ("stores.csv", "\n\n\n", "the file is empty"),
    ],
)
def test_a_file_that_cannot_become_a_table_is_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / name if text is None else deliver(tmp_path, name, text)
    with pytest.raises(PipelineError, match=message):
        propose([path])


def test_two_files_cannot_be_one_table(tmp_path: Path) -> None:
    files = [deliver(tmp_path, name, "id\n1\n") for name in ("Sales 2026.csv", "sales_2026.CSV")]
    with pytest.raises(PipelineError, match="the table of each would be named sales_2026"):
        propose(files)


def test_nothing_is_overwritten(tmp_path: Path, project: Path) -> None:
    tables = propose([deliver(tmp_path, "stores.csv", "id,name\n1,Accra\n")])
    mine = deliver(project / STAGING, "stores.yml", "mine")
    with pytest.raises(PipelineError, match=r"models/staging/stores\.yml exists, and nothing is overwritten"):
        add("stores", tables, project)
    assert mine.read_text() == "mine"
    assert not list((project / "include/dlt_pipelines").iterdir())
    mine.unlink()
    deliver(project / "include/dbt_project/models", "stg_stores.sql", "select 1")
    add("stores", tables, project)
    assert (project / STAGING / "stg_stores__stores.sql").exists(), "another model's name"
    assert 'SOURCES = ("jaffle_shop", "stores")' in (project / "dags" / "jaffle_shop.py").read_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [("()", '("stores",)'), ('("a",)', '("a", "stores")'), ('("a", "b")', '("a", "b", "stores")')],
)
def test_the_dag_gets_the_source(project: Path, tmp_path: Path, before: str, after: str) -> None:
    dag = project / "dags" / "jaffle_shop.py"
    dag.write_text(f"SOURCES = {before}\nelt_dag(PROJECT_NAME)\n")
    add("stores", propose([deliver(tmp_path, "stores.csv", "id\n1\n")]), project)
    assert dag.read_text() == f"SOURCES = {after}\nelt_dag(PROJECT_NAME)\n"


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, project: Path) -> None:
    tables = propose([deliver(tmp_path, "stores.csv", "id\n1\n")])
    (project / STAGING).rmdir()
    with pytest.raises(PipelineError, match="Nothing was written"):
        add("stores", tables, project)
    assert [path.name for path in project.rglob("*") if path.is_file()] == ["jaffle_shop.py"]
    assert "stores" not in (project / "dags" / "jaffle_shop.py").read_text()


def test_files_within_the_project_stay_where_they_are(project: Path) -> None:
    path = deliver(project / "include" / "data", "Stores 2026.CSV", "id,name\n1,Accra\n")
    add("stores", propose([path]), project)
    declared = (project / "include/dlt_pipelines/stores_pipeline.py").read_text()
    assert 'folder="include/data",' in declared
    assert 'file="Stores 2026.CSV",' in declared
    assert not (project / "include/data/stores").exists()


def test_a_changed_file_shows_how_it_differs_from_the_contract(tmp_path: Path) -> None:
    columns = {"id": "BIGINT", "name": "VARCHAR", "opened_at": "DATE", "size": "BIGINT"}
    source = FileSource("stores", "stores", (TableContract("stores", columns, ("id",)),))
    fits = deliver(tmp_path, "stores.csv", "id,name,opened_at,size\n1,a,2026-01-01,5\n")
    assert compare(source, [fits]) == ["stores: as its contract says."]
    text = "id,name,opened_at,region\n1,a,2026-01-01,x\n1,b,soon,y\n1,c,2026-01-02,z\n"
    assert compare(source, [deliver(tmp_path, "stores.csv", text)]) == [
        'stores: region: new; propose "VARCHAR"',
        "stores: size: missing in the file",
        'stores: opened_at: 1 rows are not a valid DATE, the first in line 3; propose "VARCHAR"',
        "stores: key (id): not unique or not filled in this file",
    ]
    text = "id;name;opened_at;size\n1;a;2026-01-01;5\n"
    assert compare(source, [deliver(tmp_path, "stores.csv", text)]) == [
        "stores: delimiter: ';' in the file, ',' declared"
    ]


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
    add("odd", propose([path]), project)

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
    assert Environment().from_string(columns[4]["description"]).render() == "As delivered in `{{ 1 + 1 }}`: always 4."

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
    assert done.stderr.startswith(f"error: {tmp_path / name}: the file is empty.")


def test_several_files_are_given_as_to_a_shell(tmp_path: Path) -> None:
    for name in ("a b.csv", "o2.csv", "o1.csv"):
        (tmp_path / name).touch()
    several = f"'{tmp_path}/a b.csv' {tmp_path}/o*.csv {tmp_path}/none.csv"
    assert [one.name for one in new_source.find_paths(several)] == ["a b.csv", "o1.csv", "o2.csv", "none.csv"]
