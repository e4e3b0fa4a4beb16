"""Warm up dbt on import, so that forked task processes skip its per-process startup work.

Airflow's `mp_forkserver_preload` names this module. If it is missing there, or fails, tasks are merely slower. It opens
no database.

- dbt compiles its serializers and JSON schemas on first use, about 0.9 s per command. Parsing the project builds them
  all.
- Tasks inherit the parsed project in memory instead of reading `partial_parse.msgpack`. As with that file, dbt compares
  it with the current profile, target, variables, environment, packages and file contents, and re-parses what differs. A
  project in another folder is parsed in full.
- dbt writes `manifest.json` twice per command. If there was nothing to parse, it writes the bytes cached here.
- dbt caches compiled macros by their text: those used by tables, views and tests are compiled here.
- dbt scans all of Python's path for its plugins: once is enough.
- dbt reads the source files of every caller to name the module that declares a behavior flag, a tenth of a task's time:
  a frame knows its module.
- Cosmos has OpenLineage read the manifest after each command even with `OPENLINEAGE_DISABLED`; not any more.

All but the first patch private parts of dbt and Cosmos: `tests/integration/test_warm_dbt.py` fails if a new version
changes them.
"""

import functools
import gc
import logging
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import dbt.parser.manifest
import dbt.task.freshness
import dbt.task.run
import dbt.task.runnable
import dbt.task.test
import dbt_common.clients.agate_helper  # noqa: F401
from dbt.cli.main import dbtRunner
from dbt.constants import MANIFEST_FILE_NAME, PARTIAL_PARSE_FILE_NAME
from dbt.contracts.graph.manifest import Manifest
from dbt.flags import get_flags
from dbt.parser.manifest import ManifestLoader, write_manifest
from dbt.plugins.manager import PluginManager
from dbt_common.behavior_flags import BehaviorFlagRendered
from dbt_common.clients.jinja import template_cache
from dbt_common.invocation import get_invocation_id

logger = logging.getLogger(__name__)

PROJECT_DIR = Path(__file__).resolve().parent / "dbt_project"
PROFILE = "analytics"
TARGET = os.environ.get("DBT_TARGET", "duckdb")

# Macros that dbt calls from Python.
_ADAPTER_MACROS = (
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

_offered: Manifest | None = None  # until dbt takes it and modifies it
_unchanged: Manifest | None = None  # the manifest that `_manifest_json` was written from
_manifest_json = b""


class _Loader(ManifestLoader):
    def read_manifest_for_partial_parse(self) -> Manifest | None:
        global _offered
        # Cosmos symlinks it into a temporary folder.
        project_file = Path(self.root_project.project_root, "dbt_project.yml").resolve()
        if (
            (manifest := _offered)
            and get_flags().PARTIAL_PARSE  # type: ignore[no-untyped-call]
            and project_file == PROJECT_DIR / project_file.name
            and self.is_partial_parsable(manifest)[0]
        ):
            _offered = None
            manifest.metadata.generated_at = datetime.now(UTC).replace(tzinfo=None)
            manifest.metadata.invocation_id = get_invocation_id()
            logger.info("dbt reuses the project parsed in memory and checks for changes since")
            return manifest
        return super().read_manifest_for_partial_parse()

    def write_manifest_for_partial_parse(self) -> None:
        """Called by dbt after parsing anything: the cached manifest is stale."""
        global _unchanged
        _unchanged = None
        super().write_manifest_for_partial_parse()  # type: ignore[no-untyped-call]


def _write_manifest(manifest: Manifest, target_path: str, which: str | None = None) -> None:
    if manifest is _unchanged:
        file = Path(target_path, MANIFEST_FILE_NAME)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_manifest_json)
    else:
        write_manifest(manifest, target_path, which)


def _parse() -> None:
    global _offered, _unchanged, _manifest_json
    with tempfile.TemporaryDirectory() as scratch:
        with suppress(FileNotFoundError):  # that of `make` or of the image saves a second and a half
            shutil.copy(PROJECT_DIR / "target" / PARTIAL_PARSE_FILE_NAME, scratch)
        # dbt compares the profile and target arguments as given, so pass them as Cosmos does.
        options = ["--profile", PROFILE, "--target", TARGET, "--target-path", scratch, "--log-path", scratch]
        options += ["--project-dir", str(PROJECT_DIR), "--profiles-dir", str(PROJECT_DIR)]
        for _ in range(2):  # the second parse reuses the partial parse of the first, as later commands do
            outcome = dbtRunner().invoke(["--quiet", "--log-level-file", "none", "parse", *options])
        if isinstance(outcome.result, Manifest):
            _offered = _unchanged = outcome.result
            _manifest_json = Path(scratch, MANIFEST_FILE_NAME).read_bytes()
            _compile_macros(outcome.result)


def _compile_macros(manifest: Manifest) -> None:
    """Compile the macros used by the project's nodes, by their materializations and by dbt itself."""
    kinds = {"unit", *(node.config.materialized for node in manifest.nodes.values())}
    mine = manifest.metadata.adapter_type
    names = {f"materialization_{kind}_{adapter}" for kind in kinds for adapter in ("default", mine)}
    names.update(f"{prefix}{name}" for name in _ADAPTER_MACROS for prefix in ("", f"{mine}__"))
    todo = [key for key, macro in manifest.macros.items() if macro.name in names]
    todo += [key for node in manifest.nodes.values() for key in node.depends_on.macros]
    seen: set[str] = set()
    while todo:
        if (key := todo.pop()) not in seen and key in manifest.macros:
            seen.add(key)
            todo += manifest.macros[key].depends_on.macros
            template_cache.get_node_template(manifest.macros[key])


def _declaring_module() -> str:
    frame = sys._getframe(1)
    while frame.f_globals["__name__"] == BehaviorFlagRendered.__module__ and frame.f_back:
        frame = frame.f_back
    return str(frame.f_globals["__name__"])


PluginManager.get_prefixed_modules = functools.cache(PluginManager.get_prefixed_modules)  # type: ignore[method-assign]
_parse()
BehaviorFlagRendered._default_source = staticmethod(_declaring_module)  # type: ignore[method-assign]
dbt.parser.manifest.ManifestLoader = _Loader  # type: ignore[misc]
dbt.parser.manifest.write_manifest = _write_manifest
dbt.task.runnable.write_manifest = _write_manifest  # type: ignore[attr-defined]
if os.environ.get("OPENLINEAGE_DISABLED", "").lower() == "true":
    sys.modules["openlineage.common.provider.dbt.local"] = None  # type: ignore[assignment]  # its import fails
# Freeze the objects alive now: otherwise each child's first garbage collection copies all of their pages.
gc.collect()
gc.freeze()
