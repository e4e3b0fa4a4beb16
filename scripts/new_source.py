"""Add CSV files as a source, ready to run and to edit.

For the source `stores`, `make new-source CSV=path/to/stores.csv` writes

    include/dlt_pipelines/stores_pipeline.py            the contract of each file
    include/dbt_project/models/staging/stores.yml       the source, as dbt sees it
    include/dbt_project/models/staging/stg_*.{sql,yml}  a staging model for each file, with tests of its key
    include/data/stores/                                copies of files from outside the project

and adds it to `SOURCES` of the project's DAG. Types, keys and personal data are proposals, made from all rows. Nothing
is overwritten: for a source that exists, it shows in what the files differ from its contracts.
"""

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path

import duckdb
import yaml

from include.dlt_pipelines.file_source import FileSource
from include.dlt_pipelines.files import (
    CsvDialect,
    SourceFileError,
    TableContract,
    column_names,
    parse,
    read_header,
    read_names,
)
from include.dlt_pipelines.load import find_source
from include.errors import PipelineError
from include.sql import identifier, literal

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = ROOT / "include" / "dlt_pipelines"
STAGING = ROOT / "include" / "dbt_project" / "models" / "staging"
DATA = ROOT / "include" / "data"

_NULL_MARKS = ("NA", "N/A", "NULL", "null", "None", "NaN", "nan", "\\N")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KEY_NAME = re.compile(r"(^|_)(id|key|code|sku|uuid|number|no)$", re.IGNORECASE)
_PERSONAL = re.compile(
    r"(^|_)(first|last|full|middle|sur|given|family|user)_?name$|e_?mail|phone|mobile|address|street|birth|ssn|passport|iban",
)
_PERSONS = re.compile(r"customer|user|person|people|employee|contact|member|patient|student")
_KEY_COLUMNS = 2  # at most; three columns of a wide file are too many combinations to try


class NewSourceError(PipelineError):
    """The files cannot become a source; the message says what to do."""


@dataclass(frozen=True)
class Column:
    """A column of a file.

    Attributes:
        type: proposed for the contract.
        name: in the staging model.
        nulls: texts that stand for a missing value, so that the contract's type is VARCHAR.
        cast: the type in the staging model, if there are such texts.
    """

    source: str
    type: str
    name: str
    nulls: tuple[str, ...] = ()
    cast: str = ""

    @property
    def sql(self) -> str:
        """The column in the staging model's select."""
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.source) and self.source.lower() not in _keywords(
            "reserved"
        )
        text = self.source.lower() if plain else identifier(self.source)
        for mark in self.nulls:
            text = f"nullif({text}, {literal(mark)})"
        if self.cast:
            text = f"cast({text} as {self.cast.lower()})"
        return text if text == self.name else f"{text} as {self.name}"


@dataclass(frozen=True)
class Sniffed:
    """A file, and what is proposed for it."""

    path: Path
    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    rows: int

    @property
    def contract(self) -> TableContract:
        """The proposed contract."""
        return TableContract(self.table, {one.source: one.type for one in self.columns}, self.key)

    @property
    def entity(self) -> str:
        """What the rows are, in the plural."""
        return self.table.removeprefix("raw_")


def sniff(path: Path) -> Sniffed:
    """Propose a contract for a CSV file, from all of its rows.

    Args:
        path: the file, plain or gzipped.

    Raises:
        NewSourceError: its name or its header cannot be used.
        SourceFileError: it cannot be read as the loads read files.
    """
    table = path.name.removesuffix(".gz").removesuffix(".csv")
    if not _NAME.fullmatch(table) or table == path.name:
        raise NewSourceError(
            f"{path}: a table is named after its file, so this must be named like raw_orders.csv (or .csv.gz): "
            "lower-case letters, digits and _. Rename it."
        )
    if not path.is_file():
        raise SourceFileError(f"{path}: no such file.")
    header = _header(path, table)
    texts = TableContract(table, dict.fromkeys(header, "VARCHAR"), ())
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as connection:
        parsed = parse(path, texts, Path(scratch), "")
        if not parsed.rows_loaded:
            raise SourceFileError(
                f"{path}: not one of {parsed.rows_rejected} rows can be read as {len(header)} values."
            )
        connection.execute(
            f"create table rows as select * exclude (_dlt_load_id) from read_parquet({literal(parsed.parquet)})"
        )
        columns = [_column(connection, name, _staged_name(name, table)) for name in header]
        # The loads are stricter than a cast, for example with more digits than a DOUBLE holds.
        refused = _refused(connection, path, TableContract(table, {one.source: one.type for one in columns}, ()))
        columns = [replace(one, type="VARCHAR", cast=one.type) if one.source in refused else one for one in columns]
        return Sniffed(path, table, tuple(_named(columns, table)), _key(connection, columns), parsed.rows_loaded)


def _refused(
    connection: duckdb.DuckDBPyConnection, path: Path, contract: TableContract
) -> dict[str | None, tuple[int, int]]:
    """Return how many rows a contract rejects, and the first one's line, by column; None for rows that are no rows."""
    with tempfile.TemporaryDirectory() as scratch:
        parsed = parse(path, contract, Path(scratch), "")
        if not parsed.rejects:
            return {}
        query = "select column_name, count(*), min(line) from read_parquet(?) group by 1 order by 1"
        return {
            column: (count, line) for column, count, line in connection.execute(query, [str(parsed.rejects)]).fetchall()
        }


def _header(path: Path, table: str) -> list[str]:
    with duckdb.connect() as connection:
        try:
            found = connection.execute(
                f"select delimiter, columns from sniff_csv({literal(path)}, all_varchar=true)"
            ).fetchone()
        except duckdb.Error as error:
            raise SourceFileError(f"{path}: not readable as CSV: {str(error).splitlines()[0]}") from None
    delimiter = found[0] if found else ","
    if delimiter != "," and len(found[1] if found else ()) > 1:
        raise NewSourceError(f"{path}: values are separated by {delimiter!r}. Convert it: the loads read commas only.")
    names = column_names(read_names(path, CsvDialect()))
    return read_header(path, TableContract(table, dict.fromkeys(names, "VARCHAR"), ()))


def _column(connection: duckdb.DuckDBPyConnection, source: str, name: str) -> Column:
    text = identifier(source)
    marks = connection.execute(
        f"select distinct {text} from rows where list_contains(?, {text}) order by 1", [list(_NULL_MARKS)]
    ).fetchall()
    plain = _type(connection, text, ())
    nulls = tuple(mark for (mark,) in marks)
    cast = _type(connection, text, nulls) if nulls and plain == "VARCHAR" else ""
    if cast and cast != "VARCHAR":
        return Column(source, "VARCHAR", name, nulls, cast)
    return Column(source, plain, name)


def _type(connection: duckdb.DuckDBPyConnection, text: str, nulls: Sequence[str]) -> str:
    """Return the first type whose form all values have."""
    values = f"(select {text} as v from rows where {text} is not null and not list_contains(?, {text}))"
    row = connection.execute(
        f"""
        select count(*),
            bool_and(regexp_full_match(v, '-?(0|[1-9][0-9]*)') and try_cast(v as bigint) is not null),
            bool_and(regexp_full_match(v, '-?(0|[1-9][0-9]*)([.][0-9]+)?')),
            min(strlen(regexp_replace(v, '^[^.]*[.]?', ''))), max(strlen(regexp_replace(v, '^[^.]*[.]?', ''))),
            max(strlen(regexp_replace(v, '[.].*|-', '', 'g'))),
            bool_and(regexp_full_match(v, '-?(0|[1-9][0-9]*)([.][0-9]*)?([eE][+-]?[0-9]+)?')
                and try_cast(v as double) is not null),
            bool_and(lower(v) in ('true', 'false', 't', 'f')),
            bool_and(regexp_full_match(v, '[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}') and try_cast(v as date) is not null),
            bool_and(regexp_full_match(v, '[0-9-]{{10}}[ T][0-9:]{{8}}([.][0-9]{{1,6}})?')
                and try_cast(v as timestamp) is not null),
            bool_and(regexp_full_match(v, '[0-9-]{{10}}[ T][0-9:]{{8}}([.][0-9]{{1,6}})?(Z|[+-][0-9:]+)')
                and try_cast(v as timestamptz) is not null)
        from {values}
        """,
        [list(nulls)],
    ).fetchone()
    assert row
    count, whole, exact, fewest, most, digits, floating, boolean, day, time, zoned = row
    if not count:
        return "VARCHAR"
    if whole:
        return "BIGINT"
    # Amounts have the same number of decimals everywhere; measurements do not.
    if exact and fewest == most and digits + most <= 18:
        return f"DECIMAL(18,{most})"
    kinds = ((floating, "DOUBLE"), (boolean, "BOOLEAN"), (day, "DATE"), (time, "TIMESTAMP"))
    return next((type_ for fits, type_ in (*kinds, (zoned, "TIMESTAMP WITH TIME ZONE")) if fits), "VARCHAR")


def _key(connection: duckdb.DuckDBPyConnection, columns: Sequence[Column]) -> tuple[str, ...]:
    """Return the columns that identify a row: those whose names sound like it first; none if there are none."""
    able = [one for one in columns if one.type in ("BIGINT", "VARCHAR", "DATE") or one.type.startswith("TIMESTAMP")]
    counts = connection.execute(
        "select count(*), " + ", ".join(f"count({identifier(one.source)})" for one in columns) + " from rows"
    ).fetchone()
    assert counts
    filled = {one.source for one, count in zip(columns, counts[1:], strict=True) if count == counts[0]}
    able = sorted((one for one in able if one.source in filled), key=lambda one: not _KEY_NAME.search(one.source))
    for size in range(1, _KEY_COLUMNS + 1):
        for names in combinations([one.source for one in able], size):
            quoted = ", ".join(map(identifier, names))
            found = connection.execute(f"select count(distinct ({quoted})) = count(*) from rows").fetchone()
            if found and found[0]:
                return names
    return ()


def _staged_name(source: str, table: str) -> str:
    name = _snake_case(source) or "column"
    return f"{_singular(table.removeprefix('raw_'))}_id" if name == "id" else name


def _snake_case(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def _named(columns: Iterable[Column], table: str) -> Iterable[Column]:
    """Give a column another name in the staging model if it cannot have its own there, or another has it."""
    taken: set[str] = set()
    for one in columns:
        renamed = one.cast or one.name != one.source
        name = one.name
        if name[0].isdigit() or name in _keywords("reserved") or (renamed and name in _keywords()):
            name = f"{_singular(table.removeprefix('raw_'))}_{name}"
        number = 1
        while name in taken:
            number += 1
            name = f"{one.name}_{number}"
        taken.add(name)
        yield replace(one, name=name)


@cache
def _keywords(category: str = "%") -> set[str]:
    with duckdb.connect() as connection:
        query = "select keyword_name from duckdb_keywords() where keyword_category like ?"
        return {name for (name,) in connection.execute(query, [category]).fetchall()}


def _singular(plural: str) -> str:
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    return plural[:-1] if plural.endswith("s") and not plural.endswith("ss") else plural


def pipeline_file(name: str, folder: str, files: Sequence[Sniffed]) -> str:
    """Return the text of the source's declaration."""
    tables = "".join(f"        {_contract(one)},\n" for one in files)
    return (
        f'"""{name.replace("_", " ").capitalize()}: CSV files."""\n\n'
        "from include.dlt_pipelines.file_source import FileSource, TableContract\n\n"
        f"SOURCE = FileSource(\n    {_python(name)},\n    folder={_python(folder)},\n    tables=(\n{tables}    ),\n)\n"
    )


def _contract(file: Sniffed) -> str:
    columns = "".join(f"                {_python(one.source)}: {_python(one.type)},\n" for one in file.columns)
    key = ", ".join(map(_python, file.key)) + ("," if len(file.key) == 1 else "")
    return (
        f"TableContract(\n            {_python(file.table)},\n            {{\n{columns}            }},\n"
        f"            primary_key=({key}),\n        )"
    )


def source_file(name: str, files: Sequence[Sniffed]) -> str:
    """Return the text of dbt's description of the source."""
    tables = [
        {
            "name": file.table,
            "description": f"One row per {_one(file)}.",
            "columns": [
                *(_yaml_column(one, file, one.source) for one in file.columns),
                {"name": "_dlt_load_id", "description": _Jinja("{{ doc('dlt_load_id') }}")},
            ],
        }
        for file in files
    ]
    source = {
        "name": name,
        "description": f"{_words(name).capitalize()}, loaded from CSV files.",
        "schema": f"{name}_raw",
        "config": {
            "loaded_at_field": "to_timestamp(cast(_dlt_load_id as double precision))",
            "freshness": {
                "warn_after": {"count": 36, "period": "hour"},
                "error_after": {"count": 72, "period": "hour"},
            },
        },
        "tables": tables,
    }
    return _yaml({"sources": [source]})


def model_sql(name: str, file: Sniffed) -> str:
    """Return the text of the staging model."""
    columns = ",\n".join(f"        {_no_jinja(one.sql)}" for one in file.columns)
    return (
        f"with\n\nsource as (\n\n    select * from {{{{ source('{name}', '{file.table}') }}}}\n\n),\n\n"
        f"renamed as (\n\n    select\n{columns}\n\n    from source\n\n)\n\nselect * from renamed\n"
    )


def model_yaml(model: str, file: Sniffed) -> str:
    """Return the text of the staging model's description and tests."""
    described: dict[str, object] = {"name": model, "description": f"One row per {_one(file)}."}
    staged = {one.source: one.name for one in file.columns}
    if len(file.key) > 1:
        names = [staged[name] for name in file.key]
        unique = {
            "name": f"unique_{model}_{'_'.join(names)}",
            "arguments": {"column_name": f"({', '.join(names)})"},
        }
        described["data_tests"] = [{"unique": unique}]
    columns = [_yaml_column(one, file, one.name) for one in file.columns]
    for one, column in zip(file.columns, columns, strict=True):
        if one.source in file.key:
            column["data_tests"] = ["unique"] * (len(file.key) == 1) + ["not_null"]
    return _yaml({"models": [described | {"columns": columns}]})


def _yaml_column(column: Column, file: Sniffed, name: str) -> dict[str, object]:
    text = "Key, as delivered in" if column.source in file.key else "As delivered in"
    described: dict[str, object] = {"name": name, "description": f"{text} `{column.source}`."}
    if _is_personal(column, file):
        described["config"] = {"meta": {"contains_pii": True}}
    return described


def _python(text: str) -> str:
    """Return a Python string literal: in double quotes, unless that takes escapes."""
    return repr(text) if '"' in text else f'"{repr(text)[1:-1]}"'


def _no_jinja(text: str) -> str:
    """Return a text so that dbt, which renders SQL and YAML with Jinja, reads it as it is."""
    return re.sub(r"\{(?=[{%#])", "{{ '{' }}", text)


class _Jinja(str):
    """A text for dbt to render."""


class _Dumper(yaml.SafeDumper):
    """Writes YAML as the project's is written: lists are indented, and a text is data unless it is `_Jinja`."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_str(_no_jinja(text)))
_Dumper.add_representer(_Jinja, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _yaml(content: object) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _is_personal(column: Column, file: Sniffed) -> bool:
    name = _snake_case(column.source)
    return bool(_PERSONAL.search(name) or (name == "name" and _PERSONS.search(file.entity)))


def _one(file: Sniffed) -> str:
    return _words(_singular(file.entity))


def _words(name: str) -> str:
    return name.replace("_", " ")


def add(name: str, paths: Sequence[Path]) -> list[str]:
    """Write a new source's files; return what to tell the user.

    Args:
        name: the source's name.
        paths: its CSV files.

    Raises:
        NewSourceError: a file that would be written exists, or a name cannot be used.
        SourceFileError: a CSV file cannot be read.
    """
    inside = all(path.is_relative_to(ROOT) for path in paths)
    if inside and len({path.parent for path in paths}) > 1:
        raise NewSourceError("A source's files must be in one folder. Move them, or add each folder as a source.")
    folder = paths[0].parent if inside else DATA / name
    files = [sniff(path) for path in paths]
    written: dict[Path, str] = {
        PIPELINES / f"{name}_pipeline.py": pipeline_file(name, folder.relative_to(ROOT).as_posix(), files),
        STAGING / f"{name}.yml": source_file(name, files),
    }
    for file in files:
        model = f"stg_{file.entity}"
        if any(ROOT.glob(f"include/dbt_project/models/**/{model}.*")):
            model = f"stg_{name}__{file.entity}"
        written[STAGING / f"{model}.sql"] = model_sql(name, file)
        written[STAGING / f"{model}.yml"] = model_yaml(model, file)
    copies = {} if inside else {path: folder / path.name for path in paths}
    if exist := [str(path.relative_to(ROOT)) for path in (*written, *copies.values()) if path.exists()]:
        raise NewSourceError(
            f"{', '.join(exist)} exists, and nothing is overwritten. Remove it, or choose another NAME=."
        )
    dag, edited = _dag_with(name)
    for source, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    for path, text in written.items():
        path.write_text(text)
    if dag:
        dag.write_text(edited)
    said = [f"Source {name}:"]
    for file in files:
        key = ", ".join(file.key) or "none found in one or two columns"
        said.append(f"  {file.table}: {file.rows:,} rows, {len(file.columns)} columns, key: {key}")
        marked = [one.source for one in file.columns if one.nulls]
        if marked:
            said.append(f"    texts for a missing value, which the staging model turns into NULL: {', '.join(marked)}")
        if personal := [one.source for one in file.columns if _is_personal(one, file)]:
            said.append(f"    marked as personal data: {', '.join(personal)}")
    said += ["Written:", *(f"  {path.relative_to(ROOT)}" for path in (*written, *copies.values()))]
    said.append(f"  {dag.relative_to(ROOT)} (SOURCES)" if dag else f'Add "{name}" to SOURCES of a DAG.')
    said += [
        "Review them: types, keys, descriptions and personal data are proposals. Then `make run`, and approve the new",
        "graph of the DAG: UPDATE_SNAPSHOTS=1 make test ARGS=tests/dags/test_graphs.py",
    ]
    return said


def _dag_with(name: str) -> tuple[Path | None, str]:
    """Return the project's DAG file and its text with the source added; no file if it must be added by hand."""
    for path in sorted((ROOT / "dags").glob("*.py")):
        text = path.read_text()
        match = re.search(r"^SOURCES = \(([^)#]*)\)", text, re.MULTILINE)
        if match and "elt_dag(PROJECT_NAME" in text:
            sources = ", ".join([match[1].strip().rstrip(","), f'"{name}"'])
            return path, text[: match.start()] + f"SOURCES = ({sources})" + text[match.end() :]
    return None, ""


def compare(source: FileSource, paths: Sequence[Path]) -> list[str]:
    """Return in what files differ from a source's contracts.

    Args:
        source: the source.
        paths: files of tables that it has, or of new ones.

    Raises:
        NewSourceError: a file's name or header cannot be used.
        SourceFileError: a file cannot be read.
    """
    contracts = {table.name: table for table in source.tables}
    said = []
    for path in paths:
        file = sniff(path)
        declared = contracts.get(file.table)
        if declared is None:
            said += [f"{file.table}: a new table. Add to {source.name}_pipeline.py:", f"        {_contract(file)},"]
            continue
        differences = _differences(declared, file)
        said += [f"{file.table}: {one}" for one in differences] or [f"{file.table}: as its contract says."]
    return said


def _differences(declared: TableContract, file: Sniffed) -> list[str]:
    found = file.contract.columns
    lines = [f'{name}: new; propose "{type_}"' for name, type_ in found.items() if name not in declared.columns]
    lines += [f"{name}: missing in the file" for name in declared.columns if name not in found]
    # Rows as they would be loaded: with declared types where there are any.
    both = {name: declared.columns.get(name, "VARCHAR") for name in found}
    with duckdb.connect() as connection:
        refused = _refused(connection, file.path, TableContract(file.table, both, ()))
    lines += [
        f'{column}: {count} rows are not a valid {both[column]}, the first in line {line}; propose "{found[column]}"'
        if column
        else f"{count} rows do not have {len(found)} values, the first is line {line}"
        for column, (count, line) in refused.items()
    ]
    if declared.primary_key != file.key and not set(declared.primary_key) <= set(file.key):
        unique = ", ".join(declared.primary_key)
        lines += [f"key ({unique}): not unique or not filled in this file"] if not _is_key(declared, file) else []
    return lines


def _is_key(declared: TableContract, file: Sniffed) -> bool:
    if not set(declared.primary_key) <= {one.source for one in file.columns} or not declared.primary_key:
        return not declared.primary_key
    texts = TableContract(file.table, dict.fromkeys((one.source for one in file.columns), "VARCHAR"), ())
    with tempfile.TemporaryDirectory() as scratch, duckdb.connect() as connection:
        parsed = parse(file.path, texts, Path(scratch), "")
        keys = ", ".join(map(identifier, declared.primary_key))
        filled = " and ".join(f"{identifier(key)} is not null" for key in declared.primary_key)
        row = connection.execute(
            f"select count(distinct ({keys})) = count(*) and bool_and({filled}) from read_parquet(?)",
            [str(parsed.parquet)],
        ).fetchone()
        return bool(row and row[0])


def _paths(given: str) -> list[Path]:
    """Return the files of an argument: the path that it is, or else those of its words, which a shell would split."""
    if Path(given).expanduser().exists():
        return [Path(given).expanduser().resolve()]
    try:
        words = [Path(word).expanduser() for word in shlex.split(given)]
    except ValueError:  # an apostrophe: one path that does not exist
        words = [Path(given)]
    return [path.resolve() for word in words for path in sorted(word.parent.glob(word.name)) or [word]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Add or compare a source; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="CSV files, plain or gzipped: a path, or several words or patterns")
    parser.add_argument("--name", help="of the source; default: of the file, or of the folder of several")
    options = parser.parse_args(arguments)
    paths = [path for given in options.files for path in _paths(given)]
    default = paths[0].name.split(".")[0].removeprefix("raw_") if len(paths) == 1 else paths[0].parent.name
    name = options.name or default
    try:
        if not _NAME.fullmatch(name):
            raise NewSourceError(f"{name!r} cannot name a source: NAME= takes lower-case letters, digits and _.")
        if (PIPELINES / f"{name}_pipeline.py").exists():
            source = find_source(name)
            if not isinstance(source, FileSource):
                raise NewSourceError(
                    f"{name}_pipeline.py exists and is not a source of CSV files. Choose another NAME=."
                )
            lines = [f"The source {name} exists; nothing was written.", *compare(source, paths)]
        else:
            lines = add(name, paths)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
