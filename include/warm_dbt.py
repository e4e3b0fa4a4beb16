"""Warm up dbt on import, so that forked task processes skip its per-process startup work.

Airflow's `mp_forkserver_preload` names this module. If it is missing there, or fails, tasks are merely slower. It opens
no database.

- dbt compiles its serializers and JSON schemas on first use, about 0.9 s per command. Parsing the project builds them
  all.
- dbt caches compiled macros by their text: those used by tables, views and tests are compiled here.
- What only a change to a library can save is in include/patches: tasks inherit the parsed project, scan for dbt's
  plugins once, read no source files, and leave OpenLineage alone.
"""

import gc
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import dbt_common.clients.agate_helper  # noqa: F401
from dbt.cli.main import dbtRunner
from dbt.constants import MANIFEST_FILE_NAME, PARTIAL_PARSE_FILE_NAME
from dbt.contracts.graph.manifest import Manifest
from dbt_common.clients.jinja import template_cache

from include.patches import cosmos_openlineage, dbt_behavior_flags, dbt_duckdb_close, dbt_manifest, dbt_plugins
from include.runs.manifest import parse_command
from include.settings import DBT_PROJECT, dbt_target

# Macros that no node names: dbt, or the recorder, calls them from Python.
_CALLED_MACROS = (
    "record_build",
    "create_schema",
    "current_timestamp",
    "drop_relation",
    "get_columns_in_relation",
    "list_relations_without_caching",
    "list_schemas",
    "rename_relation",
    "collect_freshness",
    "validate_fixture_rows",
    "get_fixture_sql",
)


def _parse() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        with suppress(FileNotFoundError):  # that of `make` or of the image saves a second and a half
            shutil.copy(DBT_PROJECT / "target" / "pipeline" / dbt_target() / PARTIAL_PARSE_FILE_NAME, scratch)
        for _ in range(2):  # the second parse reuses the partial parse of the first, as later commands do
            outcome = dbtRunner().invoke(parse_command(Path(scratch)))
        if isinstance(outcome.result, Manifest):
            dbt_manifest.offer(DBT_PROJECT, outcome.result, Path(scratch, MANIFEST_FILE_NAME).read_bytes())
            _compile_macros(outcome.result)


def _compile_macros(manifest: Manifest) -> None:
    """Compile the macros used by the project's nodes, by their materializations and by dbt itself."""
    kinds = {"unit", *(node.config.materialized for node in manifest.nodes.values())}
    mine = manifest.metadata.adapter_type
    names = {f"materialization_{kind}_{adapter}" for kind in kinds for adapter in ("default", mine)}
    names.update(f"{prefix}{name}" for name in _CALLED_MACROS for prefix in ("", f"{mine}__"))
    todo = [key for key, macro in manifest.macros.items() if macro.name in names]
    todo += [key for node in manifest.nodes.values() for key in node.depends_on.macros]
    seen: set[str] = set()
    while todo:
        if (key := todo.pop()) not in seen and key in manifest.macros:
            seen.add(key)
            todo += manifest.macros[key].depends_on.macros
            template_cache.get_node_template(manifest.macros[key])


for patch in (dbt_plugins, dbt_behavior_flags, dbt_manifest, dbt_duckdb_close, cosmos_openlineage):
    patch.apply()
_parse()
# Freeze the objects alive now: otherwise each child's first garbage collection copies all of their pages.
gc.collect()
gc.freeze()
