"""Write a proposal down: the contract in Python, dbt's YAML and SQL.

What comes from a file is data: a name or a value is quoted for Python, YAML, SQL and Jinja, in that order of need.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from include.dlt_pipelines.files import CsvDialect, TableContract
from include.dlt_pipelines.propose.names import entity, singular, unusable, words
from include.dlt_pipelines.propose.table import Column, Table
from include.sql import identifier

_LINE = 110  # characters, from which a call is written in several lines
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def pipelines(root: Path) -> Path:
    """Return the folder of sources."""
    return root / "include" / "dlt_pipelines"


def staging(root: Path) -> Path:
    """Return the folder of staging models."""
    return root / "include" / "dbt_project" / "models" / "staging"


def source_files(name: str, folder: str, tables: Sequence[Table], root: Path) -> dict[Path, str]:
    """Return the text of each file of a new source.

    Args:
        name: the source's name.
        folder: that of its data, relative to the project.
        tables: its tables.
        root: the project.
    """
    models = {table.contract.name: _model_name(name, table, root) for table in tables}
    written = {
        pipelines(root) / f"{name}_pipeline.py": pipeline_file(name, folder, tables),
        staging(root) / f"{name}.yml": source_file(name, tables),
    }
    for table in tables:
        model = staging(root) / models[table.contract.name]
        written[model.with_suffix(".sql")] = model_sql(name, table)
        written[model.with_suffix(".yml")] = model_yaml(table, models, tables)
    return written


def _model_name(source: str, table: Table, root: Path) -> str:
    plural = entity(table.contract.name)
    taken = any((root / "include" / "dbt_project" / "models").rglob(f"stg_{plural}.*"))
    return f"stg_{source}__{plural}" if taken else f"stg_{plural}"


def pipeline_file(name: str, folder: str, tables: Sequence[Table]) -> str:
    """Return the text of the source's declaration."""
    used = ["CsvDialect"] * any(table.contract.dialect != CsvDialect() for table in tables)
    names = ", ".join([*used, "FileSource", "TableContract"])
    contracts = "".join(f"        {contract(table.contract, 8)},\n" for table in tables)
    return (
        f'"""{words(name).capitalize()}: {", ".join(sorted({_format(table) for table in tables}))} files."""\n\n'
        f"from include.dlt_pipelines.file_source import {names}\n\n"
        f"SOURCE = FileSource(\n    {_python(name)},\n    folder={_python(folder)},\n"
        f"    tables=(\n{contracts}    ),\n)\n"
    )


def _format(table: Table) -> str:
    return {"csv": "CSV", "jsonl": "JSON Lines", "parquet": "Parquet", "xlsx": "Excel"}[table.contract.format]


def contract(table: TableContract, indent: int = 0) -> str:
    """Return the Python text of a contract: what is not as by default."""
    arguments = [_python(table.name), _python(dict(table.columns)), f"primary_key={_python(table.primary_key)}"]
    usual = TableContract(table.name, table.columns, table.primary_key)
    for one in fields(TableContract):
        value = getattr(table, one.name)
        if one.name != "dialect" and value != getattr(usual, one.name):
            arguments.append(f"{one.name}={_python(value)}")
    if table.dialect != CsvDialect():
        arguments.append(f"dialect={dialect(table.dialect)}")
    return _call("TableContract", arguments, indent, always=True)


def dialect(declared: CsvDialect) -> str:
    """Return the Python text of a dialect: what is not as by default."""
    usual = CsvDialect()
    options = [
        f"{one.name}={_python(dict(value) if isinstance(value, Mapping) else value)}"
        for one in fields(CsvDialect)
        if (value := getattr(declared, one.name)) != getattr(usual, one.name)
    ]
    return _call("CsvDialect", options)


def _call(name: str, arguments: Sequence[str], indent: int = 0, *, always: bool = False) -> str:
    line = f"{name}({', '.join(arguments)})"
    if not always and len(line) + indent <= _LINE and "\n" not in line:
        return line
    text = f"{name}(\n" + "".join(f"{_indented(argument)},\n" for argument in arguments) + ")"
    return text.replace("\n", "\n" + " " * indent)


def _indented(text: str) -> str:
    return "    " + text.replace("\n", "\n    ")


def _python(value: Any) -> str:
    """Return a Python literal, with strings in double quotes unless that takes escapes."""
    if isinstance(value, str):
        return repr(value) if '"' in value else f'"{repr(value)[1:-1]}"'
    if isinstance(value, tuple):
        return f"({', '.join(map(_python, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        pairs = [f"{_python(key)}: {_python(one)}" for key, one in value.items()]
        line = f"{{{', '.join(pairs)}}}"
        if len(line) < 60 and not any(isinstance(one, dict) for one in value.values()) and len(pairs) < 3:
            return line
        return "{\n" + "".join(f"{_indented(pair)},\n" for pair in pairs) + "}"
    return repr(value)


def source_file(name: str, tables: Sequence[Table]) -> str:
    """Return the text of dbt's description of the source."""
    described = [
        {
            "name": table.contract.name,
            "description": f"One row per {_one(table)}.",
            "columns": [
                *(_yaml_column(column, column.source) for column in table.columns),
                {"name": "_dlt_load_id", "description": _Jinja("{{ doc('dlt_load_id') }}")},
            ],
        }
        for table in tables
    ]
    source = {
        "name": name,
        "description": f"{words(name).capitalize()}, loaded from files.",
        "schema": f"{name}_raw",
        "config": {
            "loaded_at_field": "to_timestamp(cast(_dlt_load_id as double precision))",
            "freshness": {
                "warn_after": {"count": 36, "period": "hour"},
                "error_after": {"count": 72, "period": "hour"},
            },
        },
        "tables": described,
    }
    return _yaml({"sources": [source]})


def model_sql(source: str, table: Table) -> str:
    """Return the text of the staging model."""
    lines = []
    for column in table.columns:
        if column.note:
            lines.append(f"        -- {column.note}")
        comma = "," * (column is not table.columns[-1])
        lines.append(f"        {_select(column)}{comma}")
    columns = _no_jinja("\n".join(lines))
    return (
        f"with\n\nsource as (\n\n    select * from {{{{ source('{source}', '{table.contract.name}') }}}}\n\n),\n\n"
        f"renamed as (\n\n    select\n{columns}\n\n    from source\n\n)\n\nselect * from renamed\n"
    )


def _select(column: Column) -> str:
    plain = _PLAIN.fullmatch(column.source) and column.source.lower() not in unusable()
    text = column.source.lower() if plain else identifier(column.source)
    if column.cast:
        text = f"cast({text} as {column.cast.lower()})"
    return text if text == column.name else f"{text} as {column.name}"


def model_yaml(table: Table, models: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Return the text of the staging model's description and tests.

    Args:
        table: the table.
        models: the staging models' names, by table.
        tables: all tables of the source.
    """
    model, key = models[table.contract.name], table.contract.primary_key
    described: dict[str, object] = {"name": model, "description": f"One row per {_one(table)}."}
    staged = {(one.contract.name, column.source): column.name for one in tables for column in one.columns}
    if len(key) > 1:
        names = [staged[table.contract.name, name] for name in key]
        unique = {
            "name": f"unique_{model}_{'_'.join(names)}"[:120],
            "arguments": {"column_name": f"({', '.join(names)})"},
        }
        described["data_tests"] = [{"unique": unique}]
    columns = []
    for column in table.columns:
        tests: list[object] = []
        tests += ["unique"] * (key == (column.source,)) + ["not_null"] * (column.source in key)
        tests += [
            {
                "relationships": {
                    "arguments": {
                        "to": f"ref('{models[one.to_table]}')",
                        "field": staged[one.to_table, one.to_column],
                    }
                }
            }
            for one in table.relationships
            if one.column == column.source
        ]
        if column.accepted:
            # New values are news, not an error, until someone has decided that the list is complete.
            accepted = {"arguments": {"values": list(column.accepted)}, "config": {"severity": "warn"}}
            tests.append({"accepted_values": accepted})
        columns.append(_yaml_column(column, column.name) | ({"data_tests": tests} if tests else {}))
    return _yaml({"models": [described | {"columns": columns}]})


def _yaml_column(column: Column, name: str) -> dict[str, object]:
    described: dict[str, object] = {"name": name, "description": column.description}
    if column.personal:
        described["config"] = {"meta": {"contains_pii": True}}
    return described


def _one(table: Table) -> str:
    return words(singular(entity(table.contract.name)))


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


def dag_with(name: str, root: Path) -> tuple[Path | None, str]:
    """Return the project's DAG file and its text with a source added; no file if it must be added by hand.

    Args:
        name: the source's name.
        root: the project.
    """
    for path in sorted((root / "dags").glob("*.py")):
        text = path.read_text()
        match = re.search(r"^SOURCES = \(([^)#]*)\)", text, re.MULTILINE)
        if match and "elt_dag(PROJECT_NAME" in text:
            sources = [one.strip() for one in match[1].split(",") if one.strip()] + [_python(name)]
            declared = f"SOURCES = ({', '.join(sources)}{',' * (len(sources) == 1)})"
            return path, text[: match.start()] + declared + text[match.end() :]
    return None, ""
